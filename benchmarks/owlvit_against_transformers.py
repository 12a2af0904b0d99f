"""Our OWL-ViT beside transformers' OwlViTForObjectDetection, same random weights.

    pip install '.[parity]' && python benchmarks/owlvit_against_transformers.py

Tells, for each patch size of ViT-B, the greatest differences of merged map, class logits and boxes,
and the time of a forward pass of ours and theirs, in turn.
"""

import tempfile
from typing import Any

import jax
import numpy as np
import torch
import transformers
import tyro
from side_by_side import Comparison, compare, report

from spatial_clap_jax.models.owlvit import OwlVit
from spatial_clap_jax.pretrained.mapping import nested
from spatial_clap_jax.pretrained.owl_vit import read_owl_vit


def main(
    patches: tuple[int, ...] = (32, 16), images: int = 1, repeats: int = 3, json: bool = False
) -> None:
    """Runs all patch sizes at 768 pixels.

    Args:
      patches: sides of a patch.
      images: at once.
      repeats: timed passes of each side.
      json: print a line of JSON for each.
    """
    found = [compare_patch(patch, images, repeats) for patch in patches]
    report(found, {"images": images, "repeats": repeats}, json)


def compare_patch(patch: int, images: int, repeats: int) -> Comparison:
    """ViT-B with patches of one size; three texts."""
    model = randomised(patch)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        weights = read_owl_vit(folder)
    rng = np.random.default_rng(0)
    pixels = rng.standard_normal((images, 768, 768, 3)).astype(np.float32)
    tokens = rng.integers(1, 49_000, (3, 16))
    tokens[:, 0], tokens[:, 5:] = 49_406, 0
    tokens[:, 5] = 49_407
    variables = jax.device_put(nested(weights.arrays))
    apply = jax.jit(OwlVit(weights.config).apply)
    theirs_in = torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())
    asked = torch.from_numpy(np.tile(tokens, (images, 1)))

    def ours() -> Any:
        return jax.block_until_ready(apply(variables, pixels, tokens))

    @torch.no_grad()
    def theirs() -> Any:
        return model(asked, theirs_in, (asked > 0).long())

    one, other = ours(), theirs()
    pairs = (
        ("map", one.map, other.image_embeds),
        ("logits", one.logits, other.logits),
        ("boxes", one.boxes, other.pred_boxes),
    )
    told = [f"{name} {np.abs(x - y.numpy()).max():.1e}" for name, x, y in pairs]
    name = f"OWL-ViT B/{patch} (differences: {', '.join(told)})"
    return compare(ours, theirs, repeats, 0, name=name, peer_name="transformers")


def randomised(patch: int) -> transformers.OwlViTForObjectDetection:
    """A model with noise in every weight."""
    torch.manual_seed(0)
    config = transformers.OwlViTConfig(vision_config={"patch_size": patch})
    model = transformers.OwlViTForObjectDetection(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            scales = "norm" in name and name.endswith("weight")
            spread = 0.2 if weight.ndim < 2 else weight[0].numel() ** -0.5
            weight.copy_(torch.randn_like(weight) * spread + scales)
    return model.eval()


if __name__ == "__main__":
    tyro.cli(main)
