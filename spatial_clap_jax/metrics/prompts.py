"""Prompts of classes become vectors of classes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from rich.progress import Progress

from spatial_clap_jax.acoustics.captions import (
    bare_content,
    category_phrasings,
    compose_caption,
    label_prompt,
)
from spatial_clap_jax.metrics.attributes import ATTRIBUTES
from spatial_clap_jax.metrics.embed import Embedder, embed_texts
from spatial_clap_jax.metrics.zero_shot import prototype

# What a clip of no known category is called in the prompts of the direction classes.
ANY_SOUND = "a sound"


@dataclasses.dataclass(frozen=True)
class Prompts:
    """Prompts of classes become vectors of classes.

    Attributes:
      categories: all that are known.
      phrases: what is said of each direction class.
    """

    embedder: Embedder
    categories: list[str]
    phrases: Sequence[str]
    batch_size: int
    bar: Progress

    def of_directions(self) -> Float[np.ndarray, "5 d"]:
        contents = self._phrasings() or [ANY_SOUND]
        classes = range(len(self.phrases))
        return self._prototypes([self._said(contents, [d]) for d in classes], "direction prompts")

    def of_attributes(self) -> dict[str, Float[np.ndarray, "c d"]]:
        """Of each answer to each of the `ATTRIBUTES`, said of any sound and of every category."""
        contents = (ANY_SOUND, *self._phrasings())
        return {
            name: self._prototypes(attribute.prompts(contents), f"{name} prompts")
            for name, attribute in ATTRIBUTES.items()
        }

    def of_contents_anywhere(self) -> Float[np.ndarray, "c d"]:
        """Of the categories, said from each of the four directions."""
        texts = [
            [p for said in ATTRIBUTES["direction_4"].prompts(category_phrasings(c)) for p in said]
            for c in self.categories
        ]
        return self._prototypes(texts, "content prompts")

    def of_labels(self) -> Float[np.ndarray, "c d"]:
        """Of the categories, by M2D-CLAP's prompt."""
        texts = [label_prompt(label) for label in self.categories]
        return embed_texts(self.embedder, texts, self.batch_size, self.bar, "label prompts")

    def of_texts(self, texts: Sequence[str]) -> Float[np.ndarray, "n d"]:
        """Of each text, itself, as a plain caption."""
        captions = [f"{bare_content(text)}." for text in texts]
        return embed_texts(self.embedder, captions, self.batch_size, self.bar, "contents")

    def of_categories(self) -> Float[np.ndarray, "c d"]:
        classes = range(len(self.phrases))
        texts = [self._said(category_phrasings(c), classes) for c in self.categories]
        return self._prototypes(texts, "content prompts")

    def _phrasings(self) -> list[str]:
        return [phrasing for c in self.categories for phrasing in category_phrasings(c)]

    def _said(self, contents: Sequence[str], directions: Sequence[int]) -> list[str]:
        return [
            compose_caption([content], [d], phrases=self.phrases)
            for content in contents
            for d in directions
        ]

    def _prototypes(self, texts: list[list[str]], name: str) -> Float[np.ndarray, "classes d"]:
        flat = [text for of_class in texts for text in of_class]
        vectors = embed_texts(self.embedder, flat, self.batch_size, self.bar, name)
        ends = np.cumsum([len(of_class) for of_class in texts])[:-1]
        return np.stack([prototype(of_class) for of_class in np.split(vectors, ends)])
