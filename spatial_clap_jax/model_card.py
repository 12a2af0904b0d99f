"""The model card that goes with every folder for others."""

import jax

from spatial_clap_jax import __version__
from spatial_clap_jax.folders import HF_CLAP, M2D_CLAP
from spatial_clap_jax.pretrained.owl_vit import OWL_VIT, OwlVitWeights
from spatial_clap_jax.pretrained.towers import TextTower
from spatial_clap_jax.shown import markdown, markdown_code
from spatial_clap_jax.stored import TEXT_ENCODER, TrainedModel
from spatial_clap_jax.systems.attributes import AttributeRegression
from spatial_clap_jax.systems.clap import Clap
from spatial_clap_jax.systems.elsa import Elsa
from spatial_clap_jax.systems.m2d_clap import M2dClap
from spatial_clap_jax.systems.spatial_clap import SpatialClap

CHANNEL_NAMES = {1: ("mono",), 2: ("left", "right"), 4: ("W", "Y", "Z", "X")}

_PROGRAM_USE = """\
## Use without the library that made it

Needs `jax` (with `flatbuffers`), `numpy` and `tokenizers`. Any batch size; cpu, cuda and tpu.

```python
import json
import numpy as np
import tokenizers
from jax import export

held = json.load(open("model.json"))["preprocessing"]
embed_audio = export.deserialize(bytearray(open("audio.stablehlo", "rb").read())).call
embed_text = export.deserialize(bytearray(open("text.stablehlo", "rb").read())).call

# {seconds:g} s at {rate} Hz, {channels} channels ({order}), full scale 1.
audio = np.zeros((1, held["channels"], held["window_samples"]), np.float32)

tokenizer = tokenizers.Tokenizer.from_file("tokenizer.json")
ids = tokenizer.encode("a dog barks on the left side").ids  # with begin and end token
tokens = np.full((1, held["max_tokens"]), held["pad_id"], np.int32)
tokens[0, : len(ids)] = ids
mask = np.arange(held["max_tokens"])[None] < len(ids)

cosines = np.asarray(embed_text(tokens, mask)) @ np.asarray(embed_audio(audio)).T
```

"""

_LIBRARY_USE = """\
## Use with spatial_clap_jax

```python
import spatial_clap_jax

model = spatial_clap_jax.load("this/folder")
audio_embedding = model.embed_audio(audio, sample_rate_hz)  # [c, t] or [b, c, t], any rate, length
text_embeddings = model.embed_text(["a dog barks{example}"])
```

"""

_TRANSFORMERS_USE = """\
## Use with transformers

```python
from transformers import AutoTokenizer, ClapFeatureExtractor, ClapModel

model = ClapModel.from_pretrained("this/folder")
extractor = ClapFeatureExtractor.from_pretrained("this/folder")
tokenizer = AutoTokenizer.from_pretrained("this/folder")
```

{silence}"""

_SILENCE = """\
`ClapModel` is monaural. The text side is whole. The audio side is the content encoder with what the
model's fusion makes of it when the spatial encoder gives zeros: place is lost.

"""

_LABELS_USE = """\
## Use

Its audio side was told labels in place of captions, what sounds where, and it reads no texts. A
training with captions starts from it:

```
spatial-clap train configs/spatial_clap_from_labels.py --data DATA --workdir RUN \\
    --init.model this/folder
```

"""

_BRANCH_USE = """\
## Use

It tells place and room alone, and reads no texts. A training of ELSA starts from it:

```
spatial-clap train configs/elsa.py --data DATA --workdir RUN --init.branch this/folder
```

"""

_PUBLIC_USE = """\
## Use with the public code of M2D (nttcslab/m2d)

It reads the length of its input from the name of the folder of a pickle:

```python
from pathlib import Path

import torch
from safetensors.torch import load_file

(weights,) = Path("this/folder").glob("*.safetensors")
folder = Path(weights.stem)
folder.mkdir()
torch.save({{"model": load_file(weights)}}, folder / "checkpoint.pth")
```

"""

_SENTENCES_USE = """\
## Use with spatial_clap_jax

It has no text encoder of its own: texts are sentence embeddings of the encoder that it was trained
with (`thenlper/gte-base` for the public weights of 2024).

```python
import spatial_clap_jax

model = spatial_clap_jax.load("this/folder", text_encoder="thenlper/gte-base")
audio_embedding = model.embed_audio(audio, sample_rate_hz)  # [1, t] or [b, 1, t], any rate, length
text_embeddings = model.embed_text(["a dog barks"])
```

"""

_CARD = """\
---
license: other
library_name: {library}
tags: [audio, {tag}audio-text, jax]
---
# {name}

Embeds audio of {channels} ({order}) {embeds} into one space of {width} dimensions that
holds what sounds{and_where}. {system}, {made}; {parameters:,} parameters; format `{format}`.

{use}## {data_title}

{data}

## License

The programs and files come from spatial_clap_jax (Apache-2.0). The weights were learned from
clips and captions whose licenses decide what the weights may be used for.

## Limits

- {long}
{limits}- Other kinds of sound and other languages than those of the training are unknown to it.
{tokens}- Computes in float32; accelerators agree with a CPU within rounding.
"""

_PAIR_LIMITS = """\
- Directions are those of the captions of the training: of a pair of microphones, which cannot tell
  ahead from behind nor above from below.
"""

_FOA_LIMITS = """\
- Channels are those of first-order ambisonics, in ACN order with SN3D gains (AmbiX); FuMa or N3D
  must be converted, which the library does when it is told.
- Directions, distances and rooms are those of the captions of the training, from a coincident
  receiver that looks ahead.
"""

_SPATIAL_LIMITS = """\
- Another receiver and other rooms than those of the training are unknown to it. Sources are taken
  to stand still.
"""

_TRAINED_ON = """\
Scenes rendered from clips with captions. Fingerprint of the rendered data: {fingerprint}. The
fingerprint names one recipe, seed and source of clips; the `manifest.json` beside the scenes has it
too, and lists them. All settings stand in `model.json` under `experiment`."""


# Of each system whether it is monaural, and its paper.
_REFERENCES: dict[type, tuple[bool, str]] = {
    Clap: (True, "CLAP (Wu et al., arXiv 2211.06687)"),
    SpatialClap: (False, "Spatial-CLAP (Seki et al., arXiv 2509.14785)"),
    Elsa: (False, "ELSA (Devnani et al., arXiv 2409.11369)"),
    M2dClap: (True, "M2D-CLAP (Niizumi et al., arXiv 2503.22104)"),
    AttributeRegression: (
        False,
        "Spatial attributes alone, ELSA's branch before it learns (Devnani et al., arXiv "
        "2409.11369)",
    ),
}
_LIMITS = {2: _PAIR_LIMITS, 4: _FOA_LIMITS}


def model_card(model: TrainedModel, format: str, width: int) -> str:
    """The text of the card.

    Args:
      model: what is written.
      format: of the folder.
      width: of the embeddings.
    """
    system = model.audio_text
    monaural, reference = _REFERENCES[type(system)]
    source = model.provenance.get("converted_from")
    seconds = system.window_samples / system.sample_rate_hz
    facts = {
        "name": markdown(model.experiment["name"]),
        "library": "transformers" if format == HF_CLAP else "spatial_clap_jax",
        "tag": "" if monaural else "spatial-audio, ",
        "channels": "1 channel" if system.channels == 1 else f"{system.channels} channels",
        "order": ", ".join(CHANNEL_NAMES.get(system.channels, ("in the order of the training",))),
        "width": width,
        "and_where": "" if monaural else " and where",
        "system": reference,
        "made": f"converted from {markdown_code(source)} by spatial_clap_jax {__version__}"
        if source
        else f"trained for {model.step} steps with spatial_clap_jax {__version__}",
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(model.variables["params"])),
        "format": format,
        "data_title": "Origin" if source else "Training data",
        "data": "Published weights in another form; their own card tells what they were trained on."
        if source
        else _TRAINED_ON.format(
            fingerprint=markdown_code(model.provenance.get("data_fingerprint") or "unknown")
        ),
        "long": _told_of_length(system, seconds),
        "limits": "" if monaural else _LIMITS[system.channels] + _SPATIAL_LIMITS,
        "tokens": f"- At most {system.max_tokens} tokens a text.\n" if model.tokenizer else "",
        "example": "" if monaural else " on the left side",
        "seconds": seconds,
        "rate": system.sample_rate_hz,
        "silence": "" if monaural else _SILENCE,
        "embeds": "and texts",
    }
    if isinstance(system, SpatialClap) and not system.reads:
        facts["embeds"] = "and labels"
    if isinstance(system, AttributeRegression):
        facts["embeds"] = "alone"
    if format == HF_CLAP:
        use = _TRANSFORMERS_USE.format(**facts)
    elif format == M2D_CLAP:
        use = _PUBLIC_USE.format(**facts)
    elif isinstance(system, SpatialClap) and not system.reads:
        use = _LABELS_USE
    elif isinstance(system, AttributeRegression):
        use = _BRANCH_USE
    elif model.tokenizer is None:
        use = _SENTENCES_USE
    else:
        use = _LIBRARY_USE.format(**facts)
        if format == "stablehlo":
            use = _PROGRAM_USE.format(**facts) + use
    return _CARD.format(use=use, **facts)


def _told_of_length(system: object, seconds: float) -> str:
    if isinstance(system, Clap) and system.config.content.fusion:
        return (
            f"Audio longer than {seconds:g} s is embedded as a whole, from a shrunk view of it and "
            "three crops; order in time\n  is lost."
        )
    if isinstance(system, M2dClap):
        return (
            "A recording of any length is embedded as a whole, from the tokens of all of it; where "
            "order in time matters,\n  take `embed_frames`."
        )
    return (
        f"One embedding tells of {seconds:g} s; the library averages longer audio over windows, "
        "and order in\n  time is lost."
    )


_TEXT_CARD = """\
---
license: other
library_name: spatial_clap_jax
tags: [text, jax]
---
# {name}

A text encoder of {width} dimensions ({layers} layers, pooled by `{pooling}`, at most {max_tokens}
tokens), converted from {source} by spatial_clap_jax {version}; format `{format}`. The weights'
own license and card apply.

```python
import spatial_clap_jax

embeddings = spatial_clap_jax.load_text("this/folder").embed_text(["a dog barks"])
```

A training starts from it by `--init.text this/folder`.
"""


def text_card(name: str, tower: TextTower) -> str:
    """The text of a text encoder's card."""
    config = tower.config
    return _TEXT_CARD.format(
        name=markdown(name),
        width=config.width,
        layers=config.layers,
        pooling=config.pooling,
        max_tokens=config.max_tokens,
        source=markdown_code(tower.report.source),
        version=__version__,
        format=TEXT_ENCODER,
    )


_OWL_VIT_CARD = """\
---
license: other
library_name: spatial_clap_jax
tags: [image, object-detection, jax]
---
# {name}

An OWL-ViT (Minderer et al., arXiv 2205.06230) for images of {height} x {width} pixels in patches of
{patch} ({layers} layers of width {image_width}), converted from {source} by spatial_clap_jax
{version}; format `{format}`. The weights' own license and card apply.

```python
import spatial_clap_jax

detector = spatial_clap_jax.load_detector("this/folder")
objects = detector.detect(images, ["a photo of a dog"])  # uint8 [b, height, width, 3], any size
maps = detector.merged_maps(images)
```
"""


def owl_vit_card(name: str, weights: OwlVitWeights) -> str:
    """The text of an OWL-ViT's card."""
    image = weights.config.image
    return _OWL_VIT_CARD.format(
        name=markdown(name),
        height=image.image_size[0],
        width=image.image_size[1],
        patch=image.patch,
        layers=image.layers,
        image_width=image.width,
        source=markdown_code(weights.report.source),
        version=__version__,
        format=OWL_VIT,
    )
