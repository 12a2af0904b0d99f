"""The released Spatial-CLAP: content encoder, CASE, fusion, text encoder.

**Never run against the real file**, which cannot be had where this is built. The names of the audio
side are those of a public re-implementation that loads it, but loads it loosely (whatever fits); so
every tensor is held to its name and to its shape here, and what the text side is called is found by
Hugging Face's endings. The report says what was taken, made and left.

Reference: Seki et al., arXiv 2509.14785; names by Diff-MST's `mst/modules.py` and `mst/htsat.py`.
"""

from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

from spatial_clap_jax.models.crnn import Crnn, CrnnConfig
from spatial_clap_jax.pretrained.files import common_prefix, open_source
from spatial_clap_jax.pretrained.hf_text import (
    TEXT_LEFT,
    current_name,
    text_entries,
    text_shapes,
)
from spatial_clap_jax.pretrained.htsat import LAION, htsat_entries, htsat_shapes
from spatial_clap_jax.pretrained.laion_clap import (
    LAION_AUDIO_LEFT,
    htsat_shape,
    laion_front_end,
    roberta_shape,
)
from spatial_clap_jax.pretrained.mapping import (
    Entry,
    Left,
    Report,
    Taking,
    Tensors,
    batch_norm,
    dense,
    leaf_shapes,
    mlp,
    mlp_shapes,
    renamed,
)
from spatial_clap_jax.pretrained.towers import AudioTower, TextTower, below

CONTENT_PREFIX = "audio_encoder.mel_encoder."
_SPATIAL_PREFIX = "audio_encoder.spatial_encoder.encoder."
_FRAMES, _BINS, _PLANES = 4, 513, 4
_LEFT = (
    *TEXT_LEFT,
    *LAION_AUDIO_LEFT,
    Left(r"audio_encoder\.(spatial_encoder\.feature_extractor|resampler)\..*", "front end"),
)


@dataclass(frozen=True)
class SpatialClapWeights:
    """The released model.

    Attributes:
      audio: content encoder.
      text: text encoder, without a tokenizer: it is that of roberta-base.
      arrays: `params/` and `batch_stats/` of spatial, fusion, text_projection and logit_scale.
      joint_width: width of the joint space.
      report: what was taken, made and left.
    """

    audio: AudioTower
    text: TextTower
    arrays: dict[str, np.ndarray]
    joint_width: int
    report: Report


def read_spatial_clap(source: str | Path) -> SpatialClapWeights:
    """Reads the released checkpoint, as far as it is known (see the module's text).

    Where it has no projection of the text, one is drawn (by seed 0) and the report says so: texts
    then mean nothing until that projection is trained.

    Args:
      source: its `.pt` file (needs PyTorch), or its state dict as `.safetensors`.

    Raises:
      InputError: a tensor is missing, unknown or does not fit.
    """
    return spatial_clap_of(open_source(source).tensors(), str(source))


def spatial_clap_of(tensors: Tensors, name: str) -> SpatialClapWeights:
    """`read_spatial_clap` of tensors that are read already; `name` stands in errors."""
    tensors = renamed(tensors, current_name)
    word_table = "embeddings.word_embeddings.weight"
    text_prefix = common_prefix(tensors, word_table, name)
    audio = htsat_shape(tensors, CONTENT_PREFIX, name)
    text = roberta_shape(tensors, text_prefix, name)
    mel = laion_front_end(tensors, CONTENT_PREFIX, audio, name)
    taking = Taking(name, tensors)
    content = taking.take(htsat_entries(audio, CONTENT_PREFIX, LAION), htsat_shapes(audio))
    texts = taking.take(text_entries(text, text_prefix), text_shapes(text))
    joint = len(tensors.get("audio_projection.2.weight", ()))
    arrays = taking.take(_spatial_entries(), _spatial_shapes())
    arrays |= taking.take(
        mlp("fusion", "audio_projection.0", "audio_projection.2"),
        mlp_shapes("fusion", audio.width + 2 * CrnnConfig().gru_width, joint),
    )
    scale = Entry("params/logit_scale", ("logit_scale",))
    arrays |= taking.take([scale], {scale.ours: ()})
    arrays |= _text_projection(taking, text.width, joint)
    report = taking.finish(_LEFT)
    return SpatialClapWeights(
        audio=AudioTower(audio, mel, content, report),
        text=TextTower(text, texts, None, report),
        arrays=arrays,
        joint_width=joint,
        report=report,
    )


def is_spatial_clap(tensors: Tensors) -> bool:
    """Whether a state dict looks like the released one."""
    return any(name.startswith(CONTENT_PREFIX) for name in tensors)


def _spatial_entries() -> list[Entry]:
    """CASE: three blocks of convolution, ReLU, BatchNorm, pooling; a layer; a two-layer GRU."""
    entries = []
    for block in range(3):
        # Four layers a block, of which the first and the third have weights.
        ours, theirs = f"spatial/block{block}", f"{_SPATIAL_PREFIX}cnn_block"
        conv = f"{theirs}.{4 * block}"
        entries.append(Entry(f"params/{ours}/conv/kernel", (f"{conv}.weight",), "convolution"))
        entries.append(Entry(f"params/{ours}/conv/bias", (f"{conv}.bias",)))
        entries += batch_norm(f"{ours}/norm", f"{theirs}.{4 * block + 2}")
    entries += dense("params/spatial/frame", f"{_SPATIAL_PREFIX}middle_linear")
    for layer in range(CrnnConfig().gru_layers):
        for end in ("", "_reverse"):
            ours, theirs = f"params/spatial/gru{layer}{end}", f"{_SPATIAL_PREFIX}gru."
            for role, there in (("input", "ih"), ("state", "hh")):
                place = f"{there}_l{layer}{end}"
                kernel = Entry(f"{ours}/{role}_kernel", (f"{theirs}weight_{place}",), "matrix")
                entries += [kernel, Entry(f"{ours}/{role}_bias", (f"{theirs}bias_{place}",))]
    return entries


def _spatial_shapes() -> dict[str, tuple[int, ...]]:
    planes = np.zeros((1, _FRAMES, _BINS, _PLANES), np.float32)
    tree = jax.eval_shape(lambda: Crnn(CrnnConfig()).init(jax.random.key(0), planes, train=False))
    return below(leaf_shapes(tree), "spatial")


def _text_projection(taking: Taking, width: int, joint: int) -> dict[str, np.ndarray]:
    """Two layers under any name left that fit by shape; drawn where there are none."""
    shapes = mlp_shapes("text_projection", width, joint)
    for name in taking.untaken:
        if name.endswith(".0.weight") and taking.tensors[name].shape == (joint, width):
            place = name.removesuffix(".0.weight")
            return taking.take(mlp("text_projection", f"{place}.0", f"{place}.2"), shapes)
    rng = np.random.default_rng(0)
    for path in shapes:
        taking.make(path, "the source has no projection of texts, drawn")
    return {
        path: rng.normal(0, shape[0] ** -0.5, shape).astype(np.float32)
        if len(shape) == 2
        else np.zeros(shape, np.float32)
        for path, shape in shapes.items()
    }
