"""What others load of a SELD network: its tracks as a compiled program, or plain tensors.

OUT/stablehlo/     tracks.stablehlo    model.json README.md
OUT/safetensors/   model.safetensors   model.json README.md
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import export as jax_export
from safetensors.numpy import save_file

from spatial_clap_jax import __version__
from spatial_clap_jax.errors import InputError
from spatial_clap_jax.folders import write_folder
from spatial_clap_jax.shown import markdown, markdown_code
from spatial_clap_jax.stored import (
    CARD,
    EVENTS,
    TENSORS,
    TRACKS_PROGRAM,
    TrainedModel,
    flatten,
)
from spatial_clap_jax.systems.base import in_use
from spatial_clap_jax.systems.seld import Seld

_CARD = """\
---
license: other
library_name: spatial_clap_jax
tags: [audio, spatial-audio, sound-event-localization-and-detection, jax]
---
# {name}

Tells in stereo sound{pictures} which events sound when, in which direction, how far away{shown}.
Stereo SELD after Berghi and Jackson (arXiv 2509.06598), trained for {step} steps with
spatial_clap_jax {version}; {parameters:,} parameters; format `{format}`.

Classes, by number: {classes}.

{use}Tracks are float32 [clips, {labels} label frames of 0.1 s, 3 tracks, 4, {count} classes]; the
four are x (ahead) and y (left), whose length is the activity (an event above 0.5), the distance in
m, and the probability of being in the picture{silent}. Directions lie in the front half-plane.

## Training data

Clips with labelled events. Fingerprint of the data: {fingerprint}. All settings stand in
`model.json` under `experiment`.

## License

The programs and files come from spatial_clap_jax (Apache-2.0). The weights were learned from clips
whose licenses decide what the weights may be used for.

## Limits

- Front and back are not told apart, nor above and below.
- Other classes, rooms and receivers than those of the training are unknown to it.
"""

_PROGRAM_USE = """\
## Use without the library that made it

Needs `jax` (with `flatbuffers`) and `numpy`. Any number of clips; cpu, cuda and tpu.

```python
import numpy as np
from jax import export

locate = export.deserialize(bytearray(open("tracks.stablehlo", "rb").read())).call
# Inputs by name: {inputs}; audio is left, right at {rate} Hz, full scale 1.
tracks = locate({call})
```

"""

_LIBRARY_USE = """\
## Use with spatial_clap_jax

```bash
spatial-clap detect this/folder --data FOLDER_OF_CLIPS --out predictions
```

"""


def write_locator(
    model: TrainedModel,
    out: str | Path,
    format: str,
    manifest_of: Callable[..., dict[str, Any]],
    platforms: tuple[str, ...],
) -> list[Path]:
    """Writes a SELD network into `out/{format}`; see `export.export`.

    Args:
      model: the network.
      out: folder to write in.
      format: 'stablehlo' or 'safetensors'.
      manifest_of: what every export says of itself, of (model, preprocessing).
      platforms: that the program is for.

    Raises:
      InputError: another format.
    """
    system = model.system
    assert isinstance(system, Seld)
    if format not in ("stablehlo", "safetensors"):
        raise InputError(
            f"--format {format}: holds an audio-text model, and this is a SELD network; take "
            "stablehlo or safetensors."
        )
    inputs = {name: row for name, row in system.batch_rows().items() if name != "targets"}

    def fill(folder: Path) -> None:
        if format == "stablehlo":
            (folder / TRACKS_PROGRAM).write_bytes(_program(model, system, inputs, platforms))
        else:
            save_file(flatten(model.variables), folder / TENSORS)
        (folder / CARD).write_text(_card(model, system, format, inputs), encoding="utf-8")

    shapes = {
        name: {"dtype": jnp.dtype(dtype).name, "shape": ["b", *shape]}
        for name, (shape, dtype) in inputs.items()
    }
    config = system.config
    manifest = manifest_of(
        model,
        {
            "sample_rate_hz": config.sample_rate_hz,
            "channels": 2,
            "channel_order": ["left", "right"],
            "window_samples": system.window_samples,
            "full_scale": 1.0,
            "max_tokens": 0,
        },
    )
    manifest |= {"task": EVENTS, "classes": list(system.classes), "inputs": shapes}
    return write_folder(out, format, fill, manifest)


def _program(
    model: TrainedModel, system: Seld, inputs: dict[str, Any], platforms: tuple[str, ...]
) -> bytes:
    variables = jax.tree.map(jnp.asarray, in_use(model.variables))
    (b,) = jax_export.symbolic_shape("b")

    def locate(batch: dict[str, Any]) -> Any:
        with jax.default_matmul_precision("highest"):
            return system.locate(variables, batch)

    shapes = {
        name: jax.ShapeDtypeStruct((b, *shape), dtype) for name, (shape, dtype) in inputs.items()
    }
    return bytes(jax_export.export(jax.jit(locate), platforms=platforms)(shapes).serialize())


def _card(model: TrainedModel, system: Seld, format: str, inputs: dict[str, Any]) -> str:
    config = system.config
    told = [
        f"`{name}` {jnp.dtype(dtype).name} [clips, {', '.join(map(str, shape))}]"
        for name, (shape, dtype) in inputs.items()
    ]
    use = _LIBRARY_USE
    if format == "stablehlo":
        call = "{" + ", ".join(f'"{name}": {name}' for name in inputs) + "}"
        use = _PROGRAM_USE.format(inputs=", ".join(told), rate=config.sample_rate_hz, call=call)
    return _CARD.format(
        name=markdown(model.experiment["name"]),
        pictures=" and its video" if config.seen_from else "",
        shown=", and whether they are in the picture" if config.on_screen else "",
        silent="" if config.on_screen else " (0 here: it was not trained to tell)",
        step=model.step,
        version=__version__,
        parameters=sum(leaf.size for leaf in jax.tree.leaves(model.variables["params"])),
        format=format,
        classes=", ".join(f"{i} {markdown(name)}" for i, name in enumerate(system.classes)),
        use=use,
        labels=config.labels,
        count=len(system.classes),
        fingerprint=markdown_code(model.provenance.get("data_fingerprint") or "unknown"),
    )
