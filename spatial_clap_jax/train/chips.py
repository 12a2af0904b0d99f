"""What accelerators can do at best, by the name that JAX gives them.

All figures are of one JAX device: a whole chip, but half of one on TPU7x. Sources, read in
November 2026:

- Google Cloud: docs.cloud.google.com/tpu/docs/{v4, v5e, v5p, v6e, tpu7x}: bfloat16 peak, HBM
  bandwidth, bidirectional ICI bandwidth a chip. DCN: 50 Gbps a chip on v5p, 100 on v6e and TPU7x,
  25 on v5e (6.4 Tbps a pod of 256).
- v4 ICI: Jouppi et al., ISCA 2023, table 4: 6 links of 50 GB/s each way. v4 DCN: "How to Scale
  Your Model", jax-ml.github.io/scaling-book/tpus: 25 GB/s a host, of 4 chips.
- HBM of TPUs: what libtpu 0.0.42 lets a program have, from its refusals of programs that need more.
- NVIDIA's data sheets of A100, H100, H200 and L4: dense tensor-core peaks, which are half of those
  printed "with sparsity"; memory; NVLink (PCIe on L4), both directions together.
"""

from dataclasses import dataclass

_GIB = 2**30


@dataclass(frozen=True)
class Chip:
    """Peaks of one JAX device.

    Attributes:
      bf16_flops_per_s: dense matrix products of bfloat16, accumulated in float32.
      float32_flops_per_s: matrix products of float32 at JAX's default precision, which is one
        bfloat16 pass on a TPU and TF32 on NVIDIA GPUs.
      hbm_bytes: main memory that a program can have.
      hbm_bytes_per_s: between main memory and the chip.
      interconnect_bytes_per_s: to and from neighbours in a slice or a host, both directions
        and all links together.
      network_bytes_per_s: its share of the host's data-centre network, each way; None if
        unknown.
    """

    bf16_flops_per_s: float
    float32_flops_per_s: float
    hbm_bytes: int
    hbm_bytes_per_s: float
    interconnect_bytes_per_s: float
    network_bytes_per_s: float | None = None

    def flops_per_s(self, precision: str) -> float:
        """The peak of products in 'float32' or, of anything else, in bfloat16."""
        return self.float32_flops_per_s if precision == "float32" else self.bf16_flops_per_s


def chip(device_kind: str) -> Chip | None:
    """The peaks of a device, or None if nothing is known of its kind, as of a CPU.

    Args:
      device_kind: `jax.Device.device_kind`.

    Example:
      >>> chip("TPU v5 lite").bf16_flops_per_s
      197000000000000.0
    """
    return _CHIPS.get(device_kind)


_V5P = Chip(459e12, 459e12, int(95.74 * _GIB), 2765e9, 1200e9, 50e9 / 8)
_H100 = Chip(989.4e12, 494.7e12, 80 * _GIB, 3350e9, 900e9)
_CHIPS = {
    "TPU v4": Chip(275e12, 275e12, int(30.75 * _GIB), 1200e9, 600e9, 25e9 / 4),
    "TPU v5 lite": Chip(197e12, 197e12, int(15.75 * _GIB), 819e9, 400e9, 25e9 / 8),
    "TPU v5e": Chip(197e12, 197e12, int(15.75 * _GIB), 819e9, 400e9, 25e9 / 8),
    "TPU v5": _V5P,
    "TPU v5p": _V5P,
    "TPU v6 lite": Chip(918e12, 918e12, int(31.25 * _GIB), 1638e9, 800e9, 100e9 / 8),
    "TPU v6e": Chip(918e12, 918e12, int(31.25 * _GIB), 1638e9, 800e9, 100e9 / 8),
    # Two devices a chip, which share its peaks.
    "TPU7x": Chip(2307e12 / 2, 2307e12 / 2, int(94.75 * _GIB), 7380e9 / 2, 1200e9 / 2, 100e9 / 16),
    "NVIDIA A100-SXM4-40GB": Chip(312e12, 156e12, 40 * _GIB, 1555e9, 600e9),
    "NVIDIA A100-SXM4-80GB": Chip(312e12, 156e12, 80 * _GIB, 2039e9, 600e9),
    "NVIDIA A100-PCIE-40GB": Chip(312e12, 156e12, 40 * _GIB, 1555e9, 600e9),
    "NVIDIA A100 80GB PCIe": Chip(312e12, 156e12, 80 * _GIB, 1935e9, 600e9),
    "NVIDIA H100 80GB HBM3": _H100,
    "NVIDIA H100 PCIe": Chip(756e12, 378e12, 80 * _GIB, 2000e9, 600e9),
    "NVIDIA H200": Chip(989.4e12, 494.7e12, int(141e9), 4800e9, 900e9),
    "NVIDIA L4": Chip(121e12, 60e12, 24 * _GIB, 300e9, 64e9),
}
