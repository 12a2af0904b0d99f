"""Does Spatial-CLAP (arXiv 2509.14785) show its findings here? Twelve trainings, alike in all else.

Five rows are the paper's: a monaural CLAP; content and place in separate halves of the embedding,
the place from a cross-correlation and no levels of bands (models/plain_spatial.py tells what it
hears of contents all the same); Spatial-CLAP trained on single sources, on mixtures, and on
mixtures with SCL. Seven are ours: separate halves of which that of the place hears the peaks of its
correlation alone, separate halves with SCL, the sigmoid loss, a loss inside scene groups,
hard-negative captions in place of rendered ones, the planes that the other rows do not use, and
three sets of direction phrases in training, so that a fourth may be understood. Every row learns
from labels before captions (configs/spatial_clap_labels.py), in its own way.

    spatial-clap study configs/studies/spatial_clap_findings.py --data data/esc10 \
        --sources esc10.csv --workdir studies/findings

`small` and `base` are those of configs/spatial_clap.py, the one for two cores, with fewer captions
a step, the other for accelerators and without labels, since AudioCaps has no classes; `half` is
`small` with half the steps, 900 by labels and 400 with captions; `quickstart` only shows that the
study works. What it found: docs/findings.md.
"""

from dataclasses import replace
from typing import Any

from spatial_clap_jax.acoustics.rooms import RoomRanges
from spatial_clap_jax.data.scenes import GroupCounts, RoomCounts, SceneRecipe
from spatial_clap_jax.data.sources import SourceOptions
from spatial_clap_jax.features import LogMelConfig
from spatial_clap_jax.models.cnn import CnnConfig
from spatial_clap_jax.models.label_vectors import LabelsConfig
from spatial_clap_jax.models.parted import PartedCnnConfig
from spatial_clap_jax.models.plain_spatial import PlainSpatialConfig
from spatial_clap_jax.study import Noise, Phrases, Rendered, Row, Study
from spatial_clap_jax.systems.spatial_clap import SpatialClapConfig
from spatial_clap_jax.train.experiment import Experiment, load_config

SIZES = ("quickstart", "small", "half", "base")
RIVAL_WEIGHT = 0.5
# Steps by labels in which the audio side learns, before those with captions.
_BEFORE = {"quickstart": 6, "small": 1800, "half": 900}
_MEL = LogMelConfig(sample_rate_hz=16_000, n_fft=512, hop=640, mels=64, low_hz=50.0, high_hz=8000.0)


def get_config(size: str = "small") -> Study:
    """The study at one of the sizes 'quickstart', 'small', 'half', 'base'."""
    sizes = {"quickstart": quickstart, "small": small, "half": half, "base": base}
    experiment, recipe = sizes[size]()
    rows = _rows(experiment)
    if size in _BEFORE:
        rows = tuple(_in_two_stages(row, size) for row in rows)
    study = Study(
        name="spatial_clap_findings",
        scenes=recipe,
        rows=rows,
        comparisons=(
            ("separate", "mono"),
            ("no-scl", "mono"),
            ("no-scl", "separate"),
            ("no-scl", "single"),
            ("scl", "no-scl"),
            ("separate", "separate-peaks"),
            ("no-scl", "separate-peaks"),
            ("separate-scl", "separate"),
            ("scl", "separate-scl"),
            ("siglip", "scl"),
            ("group-loss", "scl"),
            ("rival-captions", "no-scl"),
            ("other-planes", "scl"),
            ("three-phrase-sets", "scl"),
        ),
        conditions=(
            # Training rooms absorb 30 to 50 %.
            Rendered("reverberant", "more reverberation", RoomRanges(absorption=(0.15, 0.25))),
            Rendered("wider", "spacing +20 %", spacing=1.2),
            Rendered("narrower", "spacing -20 %", spacing=0.8),
            Noise("noise-20", "noise, 20 dB", 20.0),
            Noise("noise-10", "noise, 10 dB", 10.0),
            Noise("noise-0", "noise, 0 dB", 0.0),
            Phrases("new-phrases", "phrases never seen", "from"),
        ),
        showcase="scl",
    )
    if size != "quickstart":
        return study
    few = ("no-scl", "scl", "rival-captions")
    tried = ("reverberant", "wider", "noise-10", "new-phrases")
    return replace(
        study,
        rows=tuple(row for row in rows if row.name in few),
        comparisons=(("scl", "no-scl"), ("rival-captions", "no-scl")),
        conditions=tuple(c for c in study.conditions if c.name in tried),
        singles=4,
        pairs=4,
    )


def _rows(scl: Experiment) -> tuple[Row, ...]:
    """Everything as a change of one training with SCL."""
    model = _model(scl)

    def with_model(experiment: Experiment, **changes: Any) -> Experiment:
        return replace(experiment, model=replace(experiment.model, **changes))

    no_scl = replace(scl, loss=replace(scl.loss, scl=False))
    in_groups = replace(scl.loss, rival_weight=RIVAL_WEIGHT)
    with_rivals = replace(no_scl.loss, rival_weight=RIVAL_WEIGHT)
    sigmoid = replace(scl.loss, kind="siglip", initial_scale=10.0)
    separate = replace(
        model,
        spatial=PlainSpatialConfig(),
        spatial_planes="mel_cross",
        spatial_mel=model.spatial_mel or _MEL,
        joined="separate",
    )
    deaf = replace(separate, spatial=PlainSpatialConfig(peaks_above=0.3))
    has_mel = model.spatial_planes == "mel_cross"
    # The planes of the released CASE beside ours, about as many positions of each.
    other: dict[str, Any] = (
        {"spatial_planes": "magnitude_phase"}
        if has_mel
        else {
            "spatial_planes": "mel_cross",
            "spatial_mel": _MEL,
        }
    )
    if has_mel and isinstance(model.spatial, PartedCnnConfig):
        other["spatial"] = replace(model.spatial, patch=(2, 16))
    return (
        Row("mono", "monaural CLAP", with_model(no_scl, spatial=None)),
        Row("separate", "separate halves", replace(no_scl, model=separate)),
        Row("single", "single sources", replace(no_scl, data=replace(scl.data, mixture_share=0.0))),
        Row("no-scl", "mixtures", no_scl),
        Row("scl", "mixtures, SCL", scl),
        Row(
            "separate-peaks",
            "separate halves, peaks alone",
            replace(no_scl, model=deaf),
            is_ours=True,
        ),
        Row("separate-scl", "separate halves, SCL", replace(scl, model=separate), is_ours=True),
        Row("siglip", "SCL, sigmoid loss", replace(scl, loss=sigmoid), is_ours=True),
        Row("group-loss", "SCL, loss in groups", replace(scl, loss=in_groups), is_ours=True),
        Row(
            "rival-captions",
            "mixtures, rival captions",
            replace(no_scl, loss=with_rivals, data=replace(scl.data, rivals=True)),
            is_ours=True,
        ),
        Row(
            "other-planes",
            "SCL, magnitude and phase" if has_mel else "SCL, mel cross-spectra",
            with_model(scl, **other),
            is_ours=True,
        ),
        Row(
            "three-phrase-sets",
            "SCL, three sets of phrases",
            replace(scl, data=replace(scl.data, phrases=("side", "ahead", "stage"))),
            is_ours=True,
        ),
    )


def _in_two_stages(row: Row, size: str) -> Row:
    """The row by labels first, in its own way, and then with captions."""
    experiment, model = row.experiment, _model(row.experiment)
    # The audio side, which has learnt by then, moves more slowly.
    second = load_config("spatial_clap_from_labels", "small" if size == "half" else size).optimizer
    slow = replace(experiment.optimizer, rate_rules=second.rate_rules)
    by_labels = replace(model, text=LabelsConfig())
    return replace(
        row,
        before=replace(experiment, model=by_labels, steps=_BEFORE[size]),
        experiment=replace(experiment, optimizer=slow),
    )


def _model(experiment: Experiment) -> SpatialClapConfig:
    assert isinstance(experiment.model, SpatialClapConfig)
    return experiment.model


def small() -> tuple[Experiment, SceneRecipe]:
    """`small` of configs/spatial_clap.py in half the time a step: 800 of 32 captions.

    Frames are half as dense. With 1,800 steps by labels before, 36 such trainings and their tests
    take two cores six hours and a half, in two processes that each do some of the rows (`--rows`).
    """
    experiment = load_config("spatial_clap", "small")
    model = _model(experiment)
    assert model.spatial_mel is not None
    experiment = replace(
        experiment,
        model=replace(
            model,
            content_mel=replace(model.content_mel, hop=_MEL.hop),
            spatial_mel=replace(model.spatial_mel, hop=_MEL.hop),
        ),
        data=replace(experiment.data, captions_per_batch=32),
        steps=800,
        # A longer average would remember the beginning of so short a run.
        ema_decay=0.99,
        checkpoint_every=200,
    )
    return experiment, load_config("scenes", "small")


def half() -> tuple[Experiment, SceneRecipe]:
    """`small` with half the steps, which shows what longer trainings change."""
    experiment, recipe = small()
    return replace(experiment, steps=400), recipe


def base() -> tuple[Experiment, SceneRecipe]:
    """The released architecture on scenes of 10 s."""
    return load_config("spatial_clap", "base"), load_config("scenes", "base")


def quickstart() -> tuple[Experiment, SceneRecipe]:
    """A second of sound, three rows, a few steps: it shows nothing but that the study works."""
    recipe = SceneRecipe(
        name="study_quickstart",
        duration_s=1.0,
        room_counts=RoomCounts(train=2, validation=1, test=1),
        places_per_room=5,
        group_counts=GroupCounts(24, 24, 0, 0, 0, 0, 12, 12, 4),
        sources=SourceOptions(synthetic_clips=(2, 1, 1)),
    )
    experiment, _ = small()
    model = _model(experiment)
    model = replace(
        model,
        window_s=1.0,
        content=CnnConfig(channels=(16,), pools=((1, 4),), width=32, heads=4),
        spatial=PartedCnnConfig(
            channels=(16,), pools=((1, 4),), parts=3, frame_width=16, context=3, heads=2, width=16
        ),
        text=replace(model.text, width=32, layers=1, heads=2, mlp_width=64),
        fusion_width=32,
        joint_width=32,
    )
    data = replace(experiment.data, captions_per_batch=16)
    return replace(
        experiment, model=model, data=data, steps=12, log_every=4, checkpoint_every=12
    ), recipe
