"""An OWL-ViT in use: objects in images by their descriptions, and merged maps.

Computation is in float32 at full precision on every device, in batches of one shape.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np
from jaxtyping import Float32, Int64, UInt8

from spatial_clap_jax.data.images import clip_normalised, resized
from spatial_clap_jax.data.tokens import Tokenizer
from spatial_clap_jax.errors import InputError
from spatial_clap_jax.metrics.embed import embed_in_batches
from spatial_clap_jax.models.owlvit import OwlVit, OwlVitConfig
from spatial_clap_jax.pretrained.mapping import nested
from spatial_clap_jax.pretrained.owl_vit import OwlVitWeights, read_owl_vit
from spatial_clap_jax.systems.base import Variables

# Images of every batch: attention of a single one fills a core's caches.
_BATCH = 4


@dataclass(frozen=True)
class Objects:
    """What was found in an image, the surest first.

    Attributes:
      boxes_px: left, top, right and bottom in the image's pixels; they may reach beyond it.
      scores: 0 to 1.
      labels: which text each box answers to.
    """

    boxes_px: Float32[np.ndarray, "n 4"]
    scores: Float32[np.ndarray, "n"]
    labels: Int64[np.ndarray, "n"]


@dataclass(frozen=True, eq=False)
class ObjectDetector:
    """Finds objects that texts describe.

    Attributes:
      config: of the model.
      tokenizer: of its texts; None where it has none, and only maps can be had.
      map_program: normalised images [b, y, x, 3] -> merged maps [b, h, w, d].
      query_program: tokens [q, n] -> unit queries [q, e].
      head_program: maps, queries and tokens -> `OwlVitOutput`.
    """

    config: OwlVitConfig
    tokenizer: Tokenizer | None
    map_program: Callable[..., Any]
    query_program: Callable[..., Any]
    head_program: Callable[..., Any]

    def merged_maps(self, images: UInt8[np.ndarray, "b y x 3"]) -> Float32[np.ndarray, "b h w d"]:
        """What stands where in images of any size, which are resized to the model's.

        Args:
          images: red, green and blue.
        """
        size = self.config.image.image_size
        pixels = (clip_normalised(resized(image, size)) for image in images)

        def embed(batch: list[np.ndarray]) -> np.ndarray:
            maps = np.asarray(self.map_program(np.stack(batch)), np.float32)
            return maps.reshape(len(batch), -1)

        rows = embed_in_batches(pixels, embed, min(_BATCH, len(images)), "images")
        return rows.reshape(len(images), *self.config.image.grid, -1)

    def detect(
        self,
        images: UInt8[np.ndarray, "b y x 3"],
        texts: Sequence[str],
        threshold: float = 0.1,
    ) -> list[Objects]:
        """Finds what texts describe; of each patch the text that fits it best.

        Args:
          images: red, green and blue, of any size.
          texts: at least one; they are looked for in every image.
          threshold: scores that an object must exceed.

        Returns:
          One entry an image.

        Raises:
          InputError: no text, a blank one, or one that is too long; a model without a tokenizer.
        """
        if self.tokenizer is None:
            raise InputError(
                "detect: this OWL-ViT came without a tokenizer; put its tokenizer.json beside it."
            )
        if isinstance(texts, str) or not texts:
            raise InputError(f"texts: {texts!r}; give a list of at least one text.")
        tokens, _ = self.tokenizer.encode(texts)
        queries = self.query_program(tokens)
        height, width = images.shape[1:3]
        found = []
        for map in self.merged_maps(images):
            output = self.head_program(map[None], queries, tokens)
            logits = np.asarray(output.logits[0])
            x, y, wide, high = np.asarray(output.boxes[0]).T
            corners = np.stack([x - wide / 2, y - high / 2, x + wide / 2, y + high / 2], axis=-1)
            boxes_px = corners * np.array([width, height, width, height], np.float32)
            scores = 1 / (1 + np.exp(-logits.max(axis=1)))
            order = np.argsort(-scores, kind="stable")
            kept = order[scores[order] > threshold]
            found.append(Objects(boxes_px[kept], scores[kept], logits.argmax(axis=1)[kept]))
        return found


def load_detector(source: str | Path) -> ObjectDetector:
    """Loads an OWL-ViT, ready for use.

    Args:
      source: see `pretrained.owl_vit.read_owl_vit`.

    Raises:
      InputError: it is none, or cannot be read.

    Example:
      >>> detector = load_detector("google/owlvit-base-patch32")
      >>> detector.detect(image[None], ["a photo of a dog"])[0].boxes_px
      array([[ 32.1,  80.5, 210.7, 301. ]], dtype=float32)
    """
    return object_detector(read_owl_vit(source))


def object_detector(weights: OwlVitWeights) -> ObjectDetector:
    """An OWL-ViT in use; see `load_detector`."""
    module = OwlVit(weights.config)
    variables = jax.device_put(nested(weights.arrays))

    def program(method: Callable[..., Any]) -> Callable[..., Any]:
        @jax.jit
        def run(variables: Variables, *inputs: Any) -> Any:
            with jax.default_matmul_precision("highest"):
                return cast(Any, module.apply(variables, *inputs, method=method))

        return partial(run, variables)

    return ObjectDetector(
        config=weights.config,
        tokenizer=weights.tokenizer,
        map_program=program(lambda module, images: module.image(images)),
        query_program=program(OwlVit.embed_text),
        head_program=program(OwlVit.detect),
    )
