"""What others load: a trained model as compiled programs, or as plain tensors.

    OUT/stablehlo/     audio.stablehlo text.stablehlo  model.json tokenizer.json README.md
    OUT/safetensors/   model.safetensors               model.json tokenizer.json README.md

The programs hold weights and front end, take any batch size, and run wherever JAX does, without
this library. The tensors are for those who build on the model: `spatial_clap_jax.load` rebuilds it
from the experiment in model.json.
"""

import hashlib
import importlib.metadata
import json
import os
import platform
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export
from jaxtyping import Shaped
from safetensors.numpy import save_file

from spatial_clap_jax import __version__
from spatial_clap_jax.errors import InputError
from spatial_clap_jax.inference import embedding_functions
from spatial_clap_jax.stored import (
    CARD,
    FORMAT_VERSION,
    FORMATS,
    MANIFEST,
    PROGRAMS,
    TENSORS,
    TOKENIZER,
    TrainedModel,
    flatten,
    read_manifest,
    read_trained,
    sha256,
)

PLATFORMS = ("cpu", "cuda", "tpu")
_CHANNEL_NAMES = {2: ("left", "right")}


def export(
    run: str | Path,
    out: str | Path,
    format: Literal["stablehlo", "safetensors"],
    step: int | None = None,
) -> list[Path]:
    """Writes a trained model into `out/{format}`, whole or not at all.

    An earlier export of the same format is replaced; `out` may hold other things, which stay.

    Args:
      run: folder of a run (its moving average is exported where it kept one), or of a
        safetensors export.
      out: folder to write in; made when missing.
      format: 'stablehlo' (programs of raw waveforms and of token ids, for cpu, cuda and tpu) or
        'safetensors' (weights).
      step: checkpoint of a run; the newest when None.

    Returns:
      The files written.

    Raises:
      InputError: no such format, no model in `run`, or `out/{format}` holds what is not an
        earlier export.
    """
    if format not in FORMATS:
        raise InputError(f"--format {format}: unknown; choose one of {', '.join(FORMATS)}.")
    target = Path(out).expanduser() / format
    _refuse_foreign(target, format)
    model = read_trained(run, step)
    width = _embedding_width(model)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{format}-", dir=target.parent) as scratch:
            fresh = Path(scratch) / "fresh"
            fresh.mkdir()
            if format == "stablehlo":
                _write_programs(model, fresh)
            else:
                save_file(flatten(model.variables), fresh / TENSORS)
            (fresh / TOKENIZER).write_text(model.tokenizer.to_json(), encoding="utf-8")
            (fresh / CARD).write_text(_model_card(model, format, width), encoding="utf-8")
            _write_manifest(model, format, width, fresh)
            names = sorted(path.name for path in fresh.iterdir())
            if target.exists():
                # Looked at again: it may have changed while the programs were made.
                _refuse_foreign(target, format)
                target.rename(Path(scratch) / "earlier")
            fresh.rename(target)
    except OSError as error:
        raise InputError(
            f"{target}: cannot be written ({error.strerror or error}); give another --out."
        ) from error
    return [target / name for name in names]


def _refuse_foreign(target: Path, format: str) -> None:
    """Raises InputError unless `target` is absent, empty, or an earlier export as we wrote it."""
    remedy = "nothing there is overwritten: give another --out, or move it away."
    if not os.path.lexists(target):
        return
    if target.is_symlink() or not target.is_dir():
        raise InputError(f"{target}: is no folder; {remedy}")
    held = sorted(path.name for path in target.iterdir())
    if not held:
        return
    try:
        manifest = read_manifest(target)
    except InputError as error:
        raise InputError(f"{target}: holds what is no export of this library; {remedy}") from error
    if manifest["format"] != format:
        raise InputError(f"{target}: holds an export of format {manifest['format']}; {remedy}")
    foreign = [name for name in held if name != MANIFEST and name not in manifest["files"]]
    # The model card is what people add to; the other files are only ever ours.
    if CARD in held and sha256(target / CARD) != manifest["files"].get(CARD):
        foreign.append(f"an edited {CARD}")
    if foreign:
        raise InputError(f"{target}: holds {foreign[0]} beside an earlier export; {remedy}")


def _write_programs(model: TrainedModel, folder: Path) -> None:
    system = model.system
    audio, text = embedding_functions(system)
    # Weights held by NumPy would change the arithmetic of models, for one by float64.
    variables = jax.tree.map(jnp.asarray, model.variables)
    (b,) = jax_export.symbolic_shape("b")
    tokens = (b, system.max_tokens)
    programs = {
        "audio": (
            lambda batch: audio(variables, batch),
            (jax.ShapeDtypeStruct((b, system.channels, system.window_samples), jnp.float32),),
        ),
        "text": (
            lambda ids, mask: text(variables, ids, mask),
            (jax.ShapeDtypeStruct(tokens, jnp.int32), jax.ShapeDtypeStruct(tokens, jnp.bool_)),
        ),
    }
    for name, (function, arguments) in programs.items():
        exported = jax_export.export(jax.jit(function), platforms=PLATFORMS)(*arguments)
        (folder / PROGRAMS[name]).write_bytes(exported.serialize())


def _write_manifest(model: TrainedModel, format: str, width: int, folder: Path) -> None:
    system, tokenizer = model.system, model.tokenizer
    manifest = {
        "library": "spatial_clap_jax",
        "format": format,
        "format_version": FORMAT_VERSION,
        "name": model.experiment["name"],
        "step": model.step,
        "embedding_width": width,
        "preprocessing": {
            "sample_rate_hz": system.sample_rate_hz,
            "channels": system.channels,
            "channel_order": _CHANNEL_NAMES.get(system.channels),
            "window_samples": system.window_samples,
            "full_scale": 1.0,
            "max_tokens": system.max_tokens,
            "begin_id": tokenizer.begin_id,
            "end_id": tokenizer.end_id,
            "pad_id": tokenizer.pad_id,
        },
        "calling_convention": _calling_convention(model, width) if format == "stablehlo" else None,
        "weights_sha256": _weights_sha256(flatten(model.variables)),
        "files": {path.name: sha256(path) for path in sorted(folder.iterdir())},
        "provenance": model.provenance,
        "exported_with": {
            "python": platform.python_version(),
            "spatial_clap_jax": __version__,
            **{name: importlib.metadata.version(name) for name in ("jax", "jaxlib")},
        },
        # The tokenizer lies beside; the path that it once came from says nothing to others.
        "experiment": {**model.experiment, "tokenizer": None},
    }
    text = json.dumps(manifest, indent=2, ensure_ascii=False, allow_nan=False)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def _embedding_width(model: TrainedModel) -> int:
    system = model.system
    batch = jax.ShapeDtypeStruct((1, system.channels, system.window_samples), jnp.float32)
    return jax.eval_shape(system.embed_audio, model.variables, batch).shape[1]


def _calling_convention(model: TrainedModel, width: int) -> dict[str, Any]:
    system = model.system
    waveform = ["b", system.channels, system.window_samples]
    tokens = ["b", system.max_tokens]
    result = {"embedding": {"dtype": "float32", "shape": ["b", width], "norm": 1.0}}
    return {
        "platforms": list(PLATFORMS),
        "audio": {
            "file": PROGRAMS["audio"],
            "inputs": {"waveform": {"dtype": "float32", "shape": waveform}},
            "outputs": result,
        },
        "text": {
            "file": PROGRAMS["text"],
            "inputs": {
                "tokens": {"dtype": "int32", "shape": tokens},
                "mask": {"dtype": "bool", "shape": tokens},
            },
            "outputs": result,
        },
    }


def _weights_sha256(arrays: Mapping[str, Shaped[np.ndarray, "..."]]) -> str:
    """One checksum of all weights, by which exports of the same ones are known."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


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

_CARD = """\
---
license: other
library_name: spatial_clap_jax
tags: [audio, spatial-audio, audio-text, jax]
---
# {name}

Embeds audio of {channels} channels ({order}) and texts into one space of {width} dimensions that
holds what sounds and where. Spatial-CLAP (Seki et al., arXiv 2509.14785), trained for {step} steps
with spatial_clap_jax {version}; {parameters:,} parameters; format `{format}`.

{use}## Use with spatial_clap_jax

```python
import spatial_clap_jax

model = spatial_clap_jax.load("this/folder")
audio_embedding = model.embed_audio(audio, sample_rate_hz)  # [c, t] or [b, c, t], any rate, length
text_embeddings = model.embed_text(["a dog barks on the left side"])
```

## Training data

Scenes rendered from clips with captions. Fingerprint of the rendered data: `{fingerprint}`. The
fingerprint names one recipe, seed and source of clips; the `manifest.json` beside the scenes has it
too, and lists them. All settings stand in `model.json` under `experiment`.

## License

The programs and files come from spatial_clap_jax (Apache-2.0). The weights were learned from
clips and captions whose licenses decide what the weights may be used for.

## Limits

- One embedding tells of {seconds:g} s; the library averages longer audio over windows, and order in
  time is lost. Sources are taken to stand still.
- Directions are those of the captions of the training: of a pair of microphones, which cannot tell
  ahead from behind nor above from below.
- Another receiver, other rooms, languages and kinds of sound than those of the training are
  unknown to it. At most {max_tokens} tokens a text.
- Computes in float32; accelerators agree with a CPU within rounding.
"""


def _model_card(model: TrainedModel, format: str, width: int) -> str:
    system = model.system
    facts = {
        "name": model.experiment["name"],
        "channels": system.channels,
        "order": ", ".join(_CHANNEL_NAMES.get(system.channels, ("in the order of the training",))),
        "width": width,
        "step": model.step,
        "version": __version__,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(model.variables["params"])),
        "format": format,
        "seconds": system.window_samples / system.sample_rate_hz,
        "rate": system.sample_rate_hz,
        "fingerprint": model.provenance.get("data_fingerprint") or "unknown",
        "max_tokens": system.max_tokens,
    }
    use = _PROGRAM_USE.format(**facts) if format == "stablehlo" else ""
    return _CARD.format(use=use, **facts)
