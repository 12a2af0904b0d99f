import numpy as np
import pytest
from rich.progress import Progress

from spatial_clap_jax.errors import InputError
from spatial_clap_jax.metrics.embed import embed_in_batches, embed_texts


class Lengths:
    """Embeds a text as its length; remembers the batches."""

    def __init__(self):
        self.batches = []

    def embed_text(self, texts):
        self.batches.append(texts)
        return np.array([[len(text)] for text in texts], np.float32)

    def embed_audio(self, audio, sample_rate_hz):
        raise AssertionError("only texts are embedded here")


@pytest.mark.parametrize("batch_size", [1, 2, 5, 8])
def test_every_item_gets_its_row_from_batches_of_one_size(batch_size):
    sizes = []

    def embed(batch):
        sizes.append(len(batch))
        return np.array(batch, np.float32)[:, None]

    rows = embed_in_batches(iter(range(5)), embed, batch_size, "numbers")
    np.testing.assert_array_equal(rows[:, 0], np.arange(5))
    assert set(sizes) == {batch_size}


def test_each_distinct_text_is_embedded_once():
    model = Lengths()
    rows = embed_texts(model, ["ccc", "a", "ccc", "bb"], 3, Progress(disable=True), "texts")
    np.testing.assert_array_equal(rows[:, 0], [3, 1, 3, 2])
    assert model.batches == [["a", "bb", "ccc"]]


def test_what_is_not_finite_is_refused():
    with pytest.raises(InputError, match="numbers: the model's embeddings hold NaN or infinity"):
        embed_in_batches([1.0], lambda batch: np.full((len(batch), 2), np.inf), 4, "numbers")
