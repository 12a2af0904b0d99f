"""A made-up file under the released Spatial-CLAP's names; CASE against PyTorch's own layers."""

import functools

import jax
import numpy as np
import pytest

from spatial_clap_jax.errors import InputError
from spatial_clap_jax.models.crnn import Crnn, CrnnConfig
from spatial_clap_jax.models.layers import ProjectionMlp
from spatial_clap_jax.pretrained.mapping import nested
from spatial_clap_jax.pretrained.read import read_audio_tower, read_text_tower, read_weights
from spatial_clap_jax.pretrained.spatial_clap import SpatialClapWeights, read_spatial_clap
from spatial_clap_jax.pretrained.towers import inside

torch = pytest.importorskip("torch", reason="the parity extra is not installed")
transformers = pytest.importorskip("transformers", reason="the parity extra is not installed")
pytestmark = pytest.mark.parity

from clap_files import AUDIO, hf_clap, laion_names  # noqa: E402
from random_models import randomised  # noqa: E402

CONTENT, SPATIAL = "audio_encoder.mel_encoder.", "audio_encoder.spatial_encoder.encoder."
WIDTH, JOINT = 128, 24


class Case(torch.nn.Module):
    """CASE as its paper and a public re-implementation describe it."""

    def __init__(self):
        super().__init__()
        layers = []
        for channels in (4, 64, 64):
            layers += [
                torch.nn.Conv2d(channels, 64, 3, padding=1),
                torch.nn.ReLU(),
                torch.nn.BatchNorm2d(64),
                torch.nn.MaxPool2d((1, 2)),
            ]
        self.cnn_block = torch.nn.Sequential(*layers)
        self.middle_linear = torch.nn.Linear(64 * 64, 128)
        self.gru = torch.nn.GRU(128, 128, 2, batch_first=True, bidirectional=True)

    def forward(self, planes):
        """[b, c, l, f] to [b, 256]."""
        x = self.cnn_block(planes)
        x = self.middle_linear(x.permute(0, 2, 1, 3).flatten(2))
        return self.gru(x)[0].mean(dim=1)


def mlp(width, seed):
    layers = [torch.nn.Linear(width, JOINT), torch.nn.ReLU(), torch.nn.Linear(JOINT, JOINT)]
    return randomised(torch.nn.Sequential(*layers), seed)


@functools.cache
def parts():
    """CASE, both projections, and all tensors but those of the text's projection."""
    case = randomised(Case(), seed=1, scale=0.05)
    fusion, text_projection = mlp(WIDTH + 256, 2), mlp(64, 3)
    content = {
        name: tensor for name, tensor in hf_clap().state_dict().items() if name.startswith(AUDIO)
    }
    text = randomised(
        transformers.RobertaModel(
            transformers.RobertaConfig(
                vocab_size=60,
                hidden_size=64,
                num_hidden_layers=2,
                num_attention_heads=1,
                intermediate_size=80,
                max_position_embeddings=22,
                type_vocab_size=1,
            )
        )
    )
    state = laion_names(content, CONTENT, module="")
    state |= {f"{SPATIAL}{name}": tensor for name, tensor in case.state_dict().items()}
    state |= {f"audio_projection.{name}": value for name, value in fusion.state_dict().items()}
    state |= {f"text_encoder.roberta.{name}": value for name, value in text.state_dict().items()}
    state |= {
        "logit_scale": torch.tensor(2.5),
        "audio_encoder.spatial_encoder.feature_extractor.window": torch.ones(1024),
        "audio_encoder.resampler.kernel": torch.ones(3),
    }
    return case, fusion, text_projection, state


def saved(folder, state):
    torch.save({"state_dict": state, "epoch": 1}, folder / "spatial_clap.pt")
    return folder / "spatial_clap.pt"


def with_projection(prefix):
    _, _, projection, state = parts()
    return state | {f"{prefix}.{name}": value for name, value in projection.state_dict().items()}


def assert_mlp(arrays, name, layers, width):
    x = np.random.default_rng(0).normal(size=(3, width)).astype(np.float32)
    with torch.no_grad():
        expected = layers(torch.from_numpy(x)).numpy()
    module = ProjectionMlp(JOINT, JOINT)
    ours = np.asarray(jax.jit(module.apply)(nested(inside(arrays, name)), x))
    np.testing.assert_allclose(ours, expected, atol=1e-5)
    assert np.std(expected) > 0.1


def test_every_part_gives_the_numbers_of_its_layers(tmp_path):
    case, fusion, projection, _ = parts()
    weights = read_spatial_clap(saved(tmp_path, with_projection("text_projection")))
    planes = np.random.default_rng(0).normal(size=(2, 9, 513, 4)).astype(np.float32)
    with torch.no_grad():
        expected = case(torch.from_numpy(planes).permute(0, 3, 1, 2)).numpy()
    variables = nested(inside(weights.arrays, "spatial"))
    ours = jax.jit(lambda v, x: Crnn(CrnnConfig()).apply(v, x, train=False))(variables, planes)
    np.testing.assert_allclose(ours, expected, atol=1e-5)
    assert np.std(expected) > 0.01
    assert_mlp(weights.arrays, "fusion", fusion, WIDTH + 256)
    assert_mlp(weights.arrays, "text_projection", projection, 64)
    assert weights.arrays["params/logit_scale"] == np.float32(2.5)
    assert weights.arrays["params/logit_scale"].shape == ()
    assert weights.joint_width == JOINT
    assert weights.report.made == ()


def test_both_encoders_are_taken_whole(tmp_path):
    state = with_projection("text_projection")
    path = saved(tmp_path, state)
    weights = read_weights(path)
    assert isinstance(weights, SpatialClapWeights)
    np.testing.assert_array_equal(
        weights.audio.arrays["params/stage_2_block_1/attention/qkv/kernel"],
        state[f"{CONTENT}layers.2.blocks.1.attn.qkv.weight"].numpy().T,
    )
    np.testing.assert_array_equal(
        weights.text.arrays["params/layer_1/mlp/down/kernel"],
        state["text_encoder.roberta.encoder.layer.1.output.dense.weight"].numpy().T,
    )
    assert weights.audio.config.width == WIDTH
    assert weights.text.tokenizer is None
    taken = [name for _, names, _ in weights.report.taken for name in names.split(" + ")]
    left = dict(weights.report.left)
    assert sorted([*taken, *left]) == sorted(state)
    assert left["audio_encoder.resampler.kernel"] == "front end"
    assert left[f"{SPATIAL}cnn_block.2.num_batches_tracked"] == "counters"
    audio, text = read_audio_tower(path), read_text_tower(path)
    assert (audio.config, text.config) == (weights.audio.config, weights.text.config)


@pytest.mark.parametrize("prefix", ["text_encoder.projection", "text_head.mlp", "projection_t"])
def test_the_texts_projection_is_found_under_any_name(tmp_path, prefix):
    weights = read_spatial_clap(saved(tmp_path, with_projection(prefix)))
    assert_mlp(weights.arrays, "text_projection", parts()[2], 64)
    assert weights.report.made == ()


def test_the_texts_projection_is_found_among_the_encoders_own_tensors(tmp_path):
    state = with_projection("text_encoder.projection")
    bare = {name.replace("text_encoder.roberta.", "text_encoder."): t for name, t in state.items()}
    weights = read_spatial_clap(saved(tmp_path, bare))
    assert not weights.report.made
    assert_mlp(weights.arrays, "text_projection", parts()[2], 64)


def test_a_projection_that_is_absent_is_drawn_and_told(tmp_path):
    path = saved(tmp_path, parts()[3])
    weights = read_spatial_clap(path)
    drawn = {path for path in weights.arrays if "text_projection" in path}
    why = "the source has no projection of texts, drawn"
    assert {place for place, _ in weights.report.made} == drawn
    assert {reason for _, reason in weights.report.made} == {why}
    assert f"; 4 made ({why})" in weights.report.summary
    kernel = weights.arrays["params/text_projection/hidden/kernel"]
    assert kernel.shape == (64, JOINT)
    assert kernel.std() == pytest.approx(1 / 8, rel=0.1)
    again = read_spatial_clap(path).arrays
    for place in drawn:
        np.testing.assert_array_equal(weights.arrays[place], again[place])


@pytest.mark.parametrize(
    "name",
    [
        f"{SPATIAL}gru.weight_hh_l1_reverse",
        f"{SPATIAL}cnn_block.6.running_var",
        f"{SPATIAL}middle_linear.bias",
        f"{CONTENT}layers.2.blocks.0.mlp.fc1.bias",
        "audio_projection.0.bias",
        "audio_projection.2.weight",
        "logit_scale",
        "text_encoder.roberta.pooler.dense.bias",
    ],
)
def test_a_missing_tensor_is_named(tmp_path, name):
    state = dict(parts()[3])
    del state[name]
    with pytest.raises(InputError, match=rf"spatial_clap\.pt: lacks {name.replace('.', '[.]')};"):
        read_spatial_clap(saved(tmp_path, state))


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"audio_encoder.zeta": (1,)}, r"has audio_encoder\.zeta, which this architecture"),
        (
            {f"{SPATIAL}gru.weight_ih_l2": (384, 256)},
            r"has audio_encoder\.spatial_encoder\.encoder\.gru\.weight_ih_l2, which",
        ),
        # A projection of another width is not dropped.
        (
            {"text_projection.0.weight": (JOINT, 65), "text_projection.0.bias": (JOINT,)},
            r"has text_projection\.0\.bias, text_projection\.0\.weight, which",
        ),
        ({f"{SPATIAL}middle_linear.weight": (128, 4095)}, r"weight has shape \[128, 4095\], which"),
        (
            {"x.embeddings.word_embeddings.weight": (60, 64)},
            r"end in embeddings\.word_embeddings\.weight: text_encoder\.roberta\., x\.; one is",
        ),
    ],
)
def test_other_tensors_are_named(tmp_path, extra, message):
    state = parts()[3] | {name: torch.ones(shape) for name, shape in extra.items()}
    with pytest.raises(InputError, match=message):
        read_spatial_clap(saved(tmp_path, state))
