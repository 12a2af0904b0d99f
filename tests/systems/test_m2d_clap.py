"""M2D-CLAP on hand-made batches: its losses, its target, and every mix of what can be trained."""

import dataclasses
import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import MAX_TOKENS, RATE_HZ, WINDOW, tiny_m2d, tiny_m2d_stage

from spatial_clap_jax import features
from spatial_clap_jax.configs_io import from_plain, to_plain
from spatial_clap_jax.errors import InputError
from spatial_clap_jax.losses.contrastive import info_nce
from spatial_clap_jax.losses.labels import label_loss
from spatial_clap_jax.losses.masked import masked_prediction_loss
from spatial_clap_jax.models.m2d import Masks, Predictor, PredictorConfig
from spatial_clap_jax.models.text import bert_base
from spatial_clap_jax.models.vit import Vit, VitConfig, take_tokens
from spatial_clap_jax.systems.base import Batch, Following, Labelled, System
from spatial_clap_jax.systems.content import SpecAugmentConfig
from spatial_clap_jax.systems.m2d_clap import CachedSentences, M2dClap, M2dClapConfig
from spatial_clap_jax.systems.m2d_clap_module import Heard
from spatial_clap_jax.systems.mixing import mixed_up, random_crop
from spatial_clap_jax.train import sharding
from spatial_clap_jax.train.experiment import SIZES, Experiment, load_config
from spatial_clap_jax.train.step import Execution
from spatial_clap_jax.train.trainer import build_state_and_step

STAGES = ("m2d_clap", "m2d_clap_labels", "m2d_clap_text", "m2d_clap_text_fine")
CLASSES = ("bell", "dog", "rain")
SENTENCES = CachedSentences(width=5)


def batch_of(rows: int = 8, seed: int = 0) -> Batch:
    rng = np.random.default_rng(seed)
    arrays = {
        "audio": rng.normal(size=(rows, 1, WINDOW)).astype(np.float32),
        "tokens": rng.integers(0, 300, (rows, MAX_TOKENS)).astype(np.int32),
        "token_mask": np.arange(MAX_TOKENS) < rng.integers(2, 9, (rows, 1)),
        "group": np.arange(rows, dtype=np.int32),
        "meaning": np.arange(rows, dtype=np.int32),
        "sentence": rng.normal(size=(rows, 5)).astype(np.float32),
        "categories": np.eye(3, dtype=np.float32)[rng.integers(0, 3, rows)],
    }
    return {name: jnp.asarray(array) for name, array in arrays.items()}


def system_of(**changes) -> M2dClap:
    system = tiny_m2d(**changes).build_system()
    assert isinstance(system, M2dClap)
    return system


@functools.cache
def whole() -> tuple[M2dClap, dict]:
    """A system of everything at once, and variables of which none is zero."""
    system = system_of(classes=CLASSES, text=SENTENCES, projector="token", joint_width=16)
    rng = np.random.default_rng(3)
    shapes = jax.eval_shape(system.init, jax.random.key(0))
    draw = lambda leaf: 0.3 * rng.normal(size=leaf.shape).astype(np.float32)  # noqa: E731
    return system, jax.tree.map(draw, shapes)


@functools.cache
def encode_heard():
    system, _ = whole()

    @jax.jit
    def encode(variables, heard, batch):
        return system.encode_heard(variables, heard, batch, jax.random.key(0), True).rows

    return encode


def heard_of(rows: int = 8) -> Heard:
    rng = np.random.default_rng(1)
    order = rng.permuted(np.tile(np.arange(10, dtype=np.int32), (rows, 1)), axis=1)
    levels = rng.normal(size=(rows, 40, 16)).astype(np.float32)
    masks = Masks(np.sort(order[:, :4], axis=1), np.sort(order[:, 4:], axis=1))
    return Heard(levels, batch_of(rows)["categories"], masks)


def test_it_is_a_system():
    system, _ = whole()
    for protocol in (System, Following, Labelled):
        assert isinstance(system, protocol)
    assert system.labels == ("sentence", "categories")
    assert (system.channels, system.window_samples) == (1, WINDOW)
    assert system_of().labels == ()


@pytest.mark.slow
def test_rows_are_what_the_parts_make():
    """The encoder on what is seen, the target's blocks on the rest, the predictor between."""
    system, variables = whole()
    heard, batch = heard_of(), batch_of()
    rows = encode_heard()(variables, heard, batch)
    params, config = variables["params"], system.config
    vit = Vit(config.content)
    encode = lambda vit, kept: vit.encode(take_tokens(vit.embed(heard.levels), kept))  # noqa: E731
    seen = vit.apply({"params": params["content"]}, heard.masks.kept, method=encode)
    target = {**params["content"], **variables["target"]["content"]}
    wanted = vit.apply({"params": target}, heard.masks.masked, method=encode).tokens
    predicted = Predictor(config.predictor, 16).apply(
        {"params": params["predictor"]}, seen.tokens, seen.cls, heard.masks, (2, 5)
    )
    loss = masked_prediction_loss(predicted, wanted)
    np.testing.assert_allclose(rows["masked_loss"], loss, rtol=1e-4)
    head = params["head"]
    logits = seen.tokens.mean(axis=1) @ head["kernel"] + head["bias"]
    np.testing.assert_allclose(rows["category_logits"], logits, rtol=1e-4, atol=1e-5)
    text = batch["sentence"] @ params["text_projection"]["kernel"]
    text += params["text_projection"]["bias"]
    text /= np.linalg.norm(text, axis=1, keepdims=True)
    np.testing.assert_allclose(rows["text"], text, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(rows["audio"], axis=1), 1, rtol=1e-5)


def test_with_a_fixed_mask_the_batch_size_is_of_no_effect():
    _, variables = whole()
    heard, batch = heard_of(), batch_of()
    many = encode_heard()(variables, heard, batch)
    cut = functools.partial(jax.tree.map, lambda x: x[2:5])
    few = encode_heard()(variables, cut(heard), cut(batch))
    assert few.keys() == {"masked_loss", "audio", "text", "category_logits", "categories"}
    for name, rows in few.items():
        np.testing.assert_allclose(rows, many[name][2:5], rtol=1e-5, atol=1e-6, err_msg=name)


def test_the_loss_is_the_weighted_sum():
    system, _ = whole()
    rng, batch = np.random.default_rng(5), batch_of()
    rows = {
        "masked_loss": rng.uniform(1, 3, 8).astype(np.float32),
        "category_logits": rng.normal(size=(8, 3)).astype(np.float32),
        "categories": batch["categories"],
    }
    for name in ("audio", "text"):
        x = rng.normal(size=(8, 4)).astype(np.float32)
        rows[name] = jnp.asarray(x / np.linalg.norm(x, axis=1, keepdims=True))
    rows = {name: jnp.asarray(x) for name, x in rows.items()}
    config = dataclasses.replace(system.config, masked_weight=2.0, contrast_weight=0.25)
    system = dataclasses.replace(system, config=config)
    scale = jnp.log(20.0)
    loss, metrics = system.objective(rows, {"logit_scale": scale}, batch, None)
    contrast = info_nce(rows["audio"], rows["text"], jnp.float32(20.0))
    category = label_loss(rows["category_logits"], rows["categories"])
    expected = 2 * rows["masked_loss"].mean() + 0.25 * contrast + category
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)
    assert float(metrics["scale"]) == pytest.approx(20)
    assert sorted(metrics) == [
        *("category_accuracy", "category_loss", "contrastive_loss", "masked_loss"),
        *("retrieval", "scale"),
    ]


@pytest.mark.slow
def test_the_target_gets_no_gradient_and_is_not_copied():
    system, variables = whole()
    heard, batch = heard_of(), batch_of()

    def loss(variables):
        rows = system.encode_heard(variables, heard, batch, jax.random.key(0), True).rows
        return rows["masked_loss"].sum()

    gradients = jax.jit(jax.grad(loss))(variables)
    for leaf in jax.tree.leaves(gradients["target"]):
        assert (leaf == 0).all()
    # The encoder learns by what it sees, down to the patches.
    assert np.abs(gradients["params"]["content"]["patch"]["kernel"]).max() > 1e-4
    fresh = jax.jit(system.init)(jax.random.key(0))
    ours, target = fresh["params"]["content"], fresh["target"]["content"]
    assert sorted(target) == ["block_0", "norm"]
    kernels = (tree["block_0"]["mlp"]["up"]["kernel"] for tree in (ours, target))
    assert np.abs(np.subtract(*kernels)).max() > 0.1
    assert jax.tree.map(jnp.shape, target) == jax.tree.map(
        jnp.shape, {name: ours[name] for name in target}
    )


def test_the_gradient_stops_at_what_the_target_is_shown():
    """The patches that are masked, their embedding and CLS reach the encoder as targets only."""
    system, variables = whole()
    heard, batch = heard_of(), batch_of()

    def loss(levels):
        shown = heard._replace(levels=levels)
        rows = system.encode_heard(variables, shown, batch, jax.random.key(0), True).rows
        return rows["masked_loss"].sum()

    to_levels = np.asarray(jax.jit(jax.grad(loss))(heard.levels))
    # Patches [b, f, t] of 8 mels and 8 frames.
    cells = to_levels.reshape(8, 5, 8, 2, 8).transpose(0, 3, 1, 2, 4).reshape(8, 10, -1)
    often = np.abs(cells).max(axis=-1)
    assert (np.take_along_axis(often, heard.masks.masked, axis=1) == 0).all()
    assert (np.take_along_axis(often, heard.masks.kept, axis=1) > 0).all()


@pytest.mark.slow
def test_the_step_moves_the_target_after_the_encoder():
    ours = tiny_m2d()
    ours = dataclasses.replace(
        ours, steps=5, optimizer=dataclasses.replace(ours.optimizer, warmup_steps=0)
    )
    start, step = build_state_and_step(ours, sharding.make_mesh(jax.devices()[:1]))
    state = start({})
    for done in range(5):
        before = jax.device_get(state.variables["target"]["content"])
        state, metrics = step(state, batch_of())
        decay = 0.9 + (0.99 - 0.9) * done / 4
        after = jax.device_get(state.variables)
        online = {name: after["params"]["content"][name] for name in before}
        expected = jax.tree.map(lambda t, o: decay * t + (1 - decay) * o, before, online)  # noqa: B023
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6),
            after["target"]["content"],
            expected,
        )
    assert {"masked_loss", "contrastive_loss", "retrieval"} <= metrics.keys()


@pytest.mark.slow
def test_the_logit_scale_is_kept_in_its_range_and_never_stuck():
    ours = tiny_m2d(contrast_weight=1.0, mask_ratio=0.0)
    loss = dataclasses.replace(ours.loss, initial_scale=100.0, min_scale=1.0)
    ours = dataclasses.replace(
        ours,
        loss=loss,
        steps=4,
        optimizer=dataclasses.replace(
            ours.optimizer, warmup_steps=0, rate_rules=(("logit_scale", 100.0),)
        ),
    )
    start, step = build_state_and_step(ours, sharding.make_mesh(jax.devices()[:1]))
    state, scales = start({}), []
    for _ in range(3):
        state, metrics = step(state, batch_of())
        scales.append(float(metrics["scale"]))
    # Untrained, the loss wants a lower scale, and gets it.
    assert scales[0] == pytest.approx(100, rel=1e-5)
    assert scales[0] > scales[1] > scales[2] >= 1
    system = ours.build_system()
    held = {"params": {"logit_scale": jnp.float32(9.0)}}
    assert float(system.after_update(held, 0.0)["params"]["logit_scale"]) == pytest.approx(
        np.log(100), rel=1e-6
    )


# Mask ratio, weight of masked prediction, contrast weight, classes.
MIXES = [
    mix
    for mix in itertools.product((0.0, 0.6), (0.0, 1.0), (0.0, 0.1), ((), CLASSES))
    if (mix[0] and mix[1]) or mix[2] or mix[3]
]


@pytest.mark.parametrize(("ratio", "masked", "contrast", "classes"), MIXES)
def test_every_mix_has_the_parts_that_it_needs(ratio, masked, contrast, classes):
    system = system_of(
        mask_ratio=ratio, masked_weight=masked, contrast_weight=contrast, classes=classes
    )
    predicts = bool(ratio and masked)
    variables = jax.eval_shape(system.init, jax.random.key(0))
    assert ("target" in variables) == predicts
    params = {"content"}
    params |= {"predictor"} if predicts else set()
    params |= {"head"} if classes else set()
    if contrast:
        params |= {"audio_projection", "text", "text_projection", "logit_scale"}
    assert variables["params"].keys() == params

    def loss(variables):
        batch = batch_of()
        encoded = system.encode(variables, batch, jax.random.key(0), True)
        return system.objective(encoded.rows, encoded.shared, batch, None)

    value, metrics = jax.eval_shape(loss, variables)
    assert value.shape == ()
    assert ("masked_loss" in metrics, "retrieval" in metrics, "category_loss" in metrics) == (
        predicts,
        bool(contrast),
        bool(classes),
    )
    audio = jnp.zeros((2, 1, WINDOW))
    width = 12 if contrast else 16
    assert jax.eval_shape(system.embed_audio, variables, audio).shape == (2, width)


@pytest.mark.slow
def test_micro_batches_and_scanned_layers_train_too():
    ours = tiny_m2d(
        classes=CLASSES, contrast_weight=0.0, mixup=0.5, spec_augment=SpecAugmentConfig(1, 9, 1, 3)
    )
    ours = dataclasses.replace(
        ours, execution=Execution(micro_batches=2, remat="blocks", scan_layers=True)
    )
    start, step = build_state_and_step(ours, sharding.make_mesh(jax.devices()[:1]))
    batch = {name: x for name, x in batch_of().items() if name != "sentence"}
    _, metrics = step(start({}), batch)
    assert all(np.isfinite(float(value)) for value in metrics.values())


@pytest.mark.slow
def test_an_embedding_is_of_the_whole_window_and_normalised_levels():
    system, variables = whole()
    config = dataclasses.replace(system.config, normalisation=(-3.0, 2.0))
    system = dataclasses.replace(system, config=config)
    audio = batch_of(2)["audio"]
    tokens = jax.jit(system.audio_tokens)(variables, audio)
    levels = (features.log_mel(audio[:, 0], config.mel) + 3) / 2
    assert levels.shape == (2, 51, 16)
    content = {"params": variables["params"]["content"]}
    np.testing.assert_allclose(
        tokens, Vit(config.content).apply(content, levels).tokens, rtol=1e-4, atol=1e-4
    )
    embedded = jax.jit(system.embed_audio)(variables, audio)
    np.testing.assert_allclose(embedded, system.project(variables, tokens), atol=1e-5)
    # Longer audio than the window is taken too.
    longer = jnp.zeros((1, 1, 2 * WINDOW))
    assert jax.eval_shape(system.audio_tokens, variables, longer).shape == (1, 2 * 12, 16)


def test_without_clap_an_embedding_is_the_mean_token():
    system = system_of(contrast_weight=0.0)
    variables = jax.jit(system.init)(jax.random.key(0))
    tokens = np.random.default_rng(0).normal(size=(2, 3, 16)).astype(np.float32)
    mean = tokens.mean(axis=1)
    expected = mean / np.linalg.norm(mean, axis=1, keepdims=True)
    np.testing.assert_allclose(system.project(variables, tokens), expected, atol=1e-6)


def test_texts_and_sentences_each_have_their_way_in():
    system, variables = whole()
    ids = jnp.zeros((2, 8), jnp.int32)
    with pytest.raises(InputError, match=r"model.text: this M2D-CLAP has no text encoder; give it"):
        system.embed_text(variables, ids, ids == 0)
    sentences = batch_of(3)["sentence"]
    rows = encode_heard()(variables, heard_of(3), batch_of(3))
    np.testing.assert_allclose(
        system.embed_sentences(variables, sentences), rows["text"], atol=1e-6
    )
    with pytest.raises(InputError, match=r"this M2D-CLAP takes no sentence embeddings; give texts"):
        system_of().embed_sentences({}, sentences)


def test_crops_are_parts_of_their_own_clips():
    log_mel = np.arange(4 * 30 * 2, dtype=np.float32).reshape(4, 30, 2)
    crops = np.asarray(jax.jit(random_crop, static_argnums=2)(jax.random.key(0), log_mel, 7))
    starts = (crops[:, 0, 0] - log_mel[:, 0, 0]) / 2
    assert len(set(starts)) > 1
    for clip, crop, start in zip(log_mel, crops, starts.astype(int), strict=True):
        np.testing.assert_array_equal(crop, clip[start : start + 7])


def test_powers_and_labels_are_mixed_in_the_same_shares():
    rng = np.random.default_rng(0)
    powers = rng.uniform(0.1, 2, (6, 5, 3)).astype(np.float32)
    categories = np.eye(6, dtype=np.float32)
    mixed, labels = mixed_up(jax.random.key(1), jnp.log(powers), jnp.asarray(categories), 0.5)
    np.testing.assert_allclose(labels.sum(axis=1), 1, rtol=1e-5)
    assert len(set(np.round(np.diag(labels), 3).tolist())) == 6
    np.testing.assert_allclose(
        np.exp(mixed), np.einsum("ij,jlm->ilm", labels, powers), rtol=1e-4, atol=1e-5
    )
    alone, none = mixed_up(jax.random.key(1), jnp.log(powers), None, 0.5)
    np.testing.assert_array_equal(alone, mixed)
    assert none is None


def test_a_mix_with_a_clip_of_no_category_has_none():
    categories = jnp.array([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    _, labels = mixed_up(jax.random.key(1), jnp.zeros((4, 5, 3)), categories, 0.5)
    # The second is not known, and is in the third.
    np.testing.assert_array_equal(labels.any(axis=1), [True, False, False, True])
    np.testing.assert_allclose(labels[3, 1], 1, rtol=1e-6)
    # What is not known has no part in the loss.
    gradient = jax.grad(label_loss)(jnp.ones((4, 2)), labels)
    np.testing.assert_array_equal(gradient.any(axis=1), [True, False, False, True])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"mel": features.LogMelConfig(16_000, mels=16, high_hz=8e3)},
            r"model.mel: 16 mels as deci",
        ),
        ({"mask_ratio": 1.0}, r"model.mask_ratio: 1.0 of 10 patches; give 0 or more, and leave"),
        ({"mask_ratio": 0.95}, r"model.mask_ratio: 0.95 of 10 patches; give 0 or more, and leave"),
        ({"crop_frames": 52}, r"model.crop_frames: 52 of the 51 frames of a window; give 8 to tha"),
        ({"crop_frames": 7}, r"model.crop_frames: 7 of the 51 frames"),
        ({"normalisation": (0.0, 0.0)}, r"model.normalisation: \(0.0, 0.0\); the second, a stand"),
        ({"contrast_weight": -1.0}, r"model.contrast_weight: -1.0; give 0 or more"),
        (
            {"contrast_weight": 0.0, "masked_weight": 0.0},
            r"model.masked_weight: nothing is trained",
        ),
        ({"contrast_weight": 0.0, "mask_ratio": 0.0}, r"model.masked_weight: nothing is trained"),
        ({"target_decays": (0.9, 1.1)}, r"model.target_decays: \(0.9, 1.1\) must be in \[0, 1\]"),
        ({"projector": "token"}, r"model.joint_width: 12, but the projector 'token' gives the 16"),
        ({"mixup": 0.5}, r"model.mixup: 0.5 with a contrastive loss, but no caption tells of a m"),
        ({"mask_ratio": 1e-17}, r"model.mask_ratio: 1e-17 of 10 patches masks none; give 0, or a "),
        ({"window_s": math.inf}, r"model.window_s: inf; give seconds that hold the 8 frames of a "),
        ({"window_s": math.nan}, r"model.window_s: nan; give seconds that hold the 8 frames of a "),
        ({"window_s": 0.0}, r"model.window_s: 0.0; give seconds that hold the 8 frames of a patch"),
        ({"sample_rate_hz": 0}, r"model.sample_rate_hz: 0; give samples a second"),
        ({"normalisation": (math.nan, 1.0)}, r"model.normalisation: \(nan, 1.0\); .* both finite"),
        ({"normalisation": (0.0, math.inf)}, r"model.normalisation: \(0.0, inf\); .* both finite"),
        ({"joint_width": 0}, r"model.joint_width: 0; give at least 1"),
        ({"classes": ("a", "b", "a")}, r"model.classes: 'a' stands twice or more; name each c"),
    ],
)
def test_shapes_that_cannot_be_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        tiny_m2d(**changes)


@pytest.mark.parametrize("kind", [VitConfig, PredictorConfig])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 0}, r"width: 0 with \d+ heads; it must be a multiple of the heads and of 4"),
        ({"width": -48}, r"width: -48 with \d+ heads; it must be a multiple"),
        ({"layers": 0}, r"layers: 0; give at least 1"),
        (
            {"mlp_ratio": math.nan},
            r"mlp_ratio: nan of a width of \d+; the hidden width must be at ",
        ),
        ({"mlp_ratio": math.inf}, r"mlp_ratio: inf of a width of \d+"),
        ({"mlp_ratio": 0.0}, r"mlp_ratio: 0.0 of a width of \d+"),
    ],
)
def test_blocks_that_cannot_be_built_are_refused(kind, changes, message):
    with pytest.raises(InputError, match=rf"{kind.__name__}\.{message}"):
        kind(**changes)


def test_inputs_and_sentences_without_a_size_are_refused():
    with pytest.raises(InputError, match=r"VitConfig\.patch: \(16, 16\) with 0 mels and 608 fra"):
        VitConfig(mels=0)
    with pytest.raises(InputError, match=r"CachedSentences\.width: 0; give that of the embeddings"):
        CachedSentences(width=0)


def test_losses_that_it_has_not_are_refused():
    ours = tiny_m2d()
    siglip = dataclasses.replace(ours, loss=dataclasses.replace(ours.loss, kind="siglip"))
    with pytest.raises(InputError, match=r"loss.kind: 'siglip' with rival_weight 0.0; M2D-CLAP is"):
        siglip.build_system()
    with pytest.raises(InputError, match=r"model.classes: None stands for the categories of the d"):
        tiny_m2d(classes=None).build_system()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("config", STAGES)
def test_shipped_experiments_are_plain_and_have_their_parts(config, size):
    ours = load_config(config, size)
    assert from_plain(Experiment, to_plain(ours)) == ours
    model = ours.model
    assert isinstance(model, M2dClapConfig)
    if model.classes is None:
        model = dataclasses.replace(model, classes=CLASSES)
    system = dataclasses.replace(ours, model=model).build_system("cpu")
    variables = jax.eval_shape(system.init, jax.random.key(0))
    parts = {
        "m2d_clap": {"predictor", "audio_projection", "logit_scale"},
        "m2d_clap_labels": {"head"},
        "m2d_clap_text": {"audio_projection", "logit_scale", "text"},
        "m2d_clap_text_fine": {"audio_projection", "logit_scale", "text"},
    }[config]
    assert parts | {"content"} <= variables["params"].keys()
    stage = load_config("m2d_clap", size).model
    assert isinstance(stage, M2dClapConfig)
    # In use, inputs are as long as in training: a crop, or a window with its last frames.
    frames = model.crop_frames or model.frames
    assert model.content == dataclasses.replace(stage.content, frames=frames)
    assert (model.crop_frames is None) == (config != "m2d_clap")
    assert system.sample_rate_hz == RATE_HZ


def test_base_has_the_papers_numbers():
    ours = load_config("m2d_clap", "base")
    model, optimizer = ours.model, ours.optimizer
    assert isinstance(model, M2dClapConfig)
    assert model.mel == features.M2D_LOG_MEL
    assert model.content == VitConfig(
        mels=80, frames=608, patch=(16, 16), width=768, layers=12, heads=12, mlp_ratio=4.0
    )
    assert (model.frames, model.crop_frames, model.mask_ratio) == (1001, 608, 0.7)
    assert (model.masked_weight, model.contrast_weight) == (1.0, 0.01)
    assert model.predictor == PredictorConfig(width=512, layers=8, heads=16, mlp_ratio=4.0)
    assert model.target_decays == (0.99995, 0.99999)
    assert (model.projector, model.joint_width) == ("token", 768)
    assert model.text == CachedSentences(width=4096)
    assert (optimizer.b1, optimizer.b2, optimizer.weight_decay) == (0.9, 0.95, 0.05)
    assert (optimizer.clip_norm, optimizer.learning_rate) == (3.0, pytest.approx(2.4e-3))
    assert ours.data.captions_per_batch == 2048
    # 300 epochs, 20 of them to warm up.
    assert ours.steps / optimizer.warmup_steps == 300 / 20
    assert (ours.loss.initial_scale, ours.loss.min_scale, ours.loss.max_scale) == (
        *(pytest.approx(1 / 0.07), 1.0, 100.0),
    )
    # CLIP's loss: a clip and its own caption, whatever else is of its category.
    assert ours.loss.positives == "pair"
    labels = load_config("m2d_clap_labels", "base")
    assert (labels.optimizer.kind, labels.optimizer.learning_rate) == ("lars", 2.0)
    assert labels.steps * labels.data.captions_per_batch / 70 == ours.steps * 2048 / 300
    held = labels.model
    assert isinstance(held, M2dClapConfig)
    assert (held.mixup, held.content.frames, held.classes) == (0.5, 1001, None)
    assert held.spec_augment == SpecAugmentConfig(1, 192, 1, 30)


def test_stages_of_the_text_have_the_papers_numbers():
    first = load_config("m2d_clap", "base")
    text, fine = load_config("m2d_clap_text", "base"), load_config("m2d_clap_text_fine", "base")
    for stage, ratio, anew in ((text, 0.3, (r"^logit_scale$",)), (fine, 0.0, ())):
        model, optimizer = stage.model, stage.optimizer
        assert isinstance(model, M2dClapConfig)
        assert (model.mask_ratio, model.crop_frames, model.content.frames) == (ratio, None, 1001)
        assert (model.masked_weight, model.contrast_weight) == (0.0, 1.0)
        assert (model.projector, model.joint_width) == ("token", 768)
        assert model.text == dataclasses.replace(bert_base(), max_tokens=128, pooling="first")
        assert (stage.loss.initial_scale, stage.loss.positives) == (100.0, "pair")
        assert (optimizer.learning_rate, optimizer.frozen) == (2.4e-5, (r"^content/",))
        # 30 epochs, 5 of them to warm up.
        assert stage.steps / optimizer.warmup_steps == 30 / 5
        # What is learned goes on in stage 2.1, the scale too.
        assert stage.init.anew == anew
    assert text.steps / 30 == first.steps / 300


def narrow(config: str) -> Experiment:
    """A shipped stage, tiny and with classes where it tells any."""
    shipped = load_config(config, "small").model
    assert isinstance(shipped, M2dClapConfig)
    classes = CLASSES if shipped.classes is None else ()
    return dataclasses.replace(tiny_m2d_stage(config, classes=classes), steps=4)


@pytest.mark.slow
@pytest.mark.parametrize("config", STAGES)
def test_the_step_of_a_stage_compiles_once(config):
    start, step = build_state_and_step(narrow(config), sharding.make_mesh(jax.devices()[:1]))
    state, losses = start({}), set()
    for seed in range(3):
        state, metrics = step(state, batch_of(seed=seed))
        losses.add(float(metrics["loss"]))
    assert step._cache_size() == 1
    assert len(losses) == 3


def test_a_clip_and_its_own_caption_may_be_the_only_positives():
    rng = np.random.default_rng(0)
    rows = {}
    for name in ("audio", "text"):
        x = rng.normal(size=(4, 6)).astype(np.float32)
        rows[name] = jnp.asarray(x / np.linalg.norm(x, axis=1, keepdims=True))
    batch = {name: jnp.array([0, 1, 1, 2]) for name in ("group", "meaning")}
    scale, found = jnp.log(7.0), {}
    for positives, meaning in (("meaning", batch["meaning"]), ("pair", None)):
        ours = tiny_m2d(contrast_weight=1.0)
        ours = dataclasses.replace(ours, loss=dataclasses.replace(ours.loss, positives=positives))
        loss, metrics = ours.build_system().objective(rows, {"logit_scale": scale}, batch, None)
        expected = info_nce(rows["audio"], rows["text"], jnp.float32(7.0), meaning)
        assert float(loss) == pytest.approx(float(expected), rel=1e-5)
        found[positives] = float(loss), float(metrics["retrieval"])
    assert found["pair"][0] != pytest.approx(found["meaning"][0], rel=1e-3)
    # What counts as right stays.
    assert found["pair"][1] == found["meaning"][1]
