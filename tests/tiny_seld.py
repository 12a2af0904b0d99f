"""A tiny SELD network with both towers, for clips of 0.4 s of two classes."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import soundfile

from spatial_clap_jax.acoustics.rooms import FloorRanges
from spatial_clap_jax.data.event_tables import write_predictions
from spatial_clap_jax.data.scenes import RoomCounts
from spatial_clap_jax.data.seld_pipeline import SeldPipelineConfig
from spatial_clap_jax.data.seld_recipe import ClipCounts, PictureOptions, SeldRecipe
from spatial_clap_jax.data.sound_events import SoundEvents
from spatial_clap_jax.data.sources import SourceOptions
from spatial_clap_jax.data.video import write_video
from spatial_clap_jax.features import LogMelConfig
from spatial_clap_jax.losses.accdoa import AccdoaConfig
from spatial_clap_jax.models.cnn import CnnConfig
from spatial_clap_jax.models.conformer import ConformerConfig
from spatial_clap_jax.models.cross_modal import CrossModalConfig
from spatial_clap_jax.models.owlvit import OwlVitImageConfig
from spatial_clap_jax.models.seld_encoder import SeldEncoderConfig
from spatial_clap_jax.stereo_features import AV_SELD, BASELINE
from spatial_clap_jax.systems.seld import Seld, SeldConfig
from spatial_clap_jax.train.experiment import Experiment
from spatial_clap_jax.train.optim import OptimizerConfig

CLASSES = ("a bell", "a dog")
DURATION_S = 0.4
RATE_HZ = 24_000


def tiny_seld() -> Experiment:
    """Every part at a width that compiles in a second."""
    return Experiment(
        name="tiny_seld",
        model=SeldConfig(
            classes=CLASSES,
            duration_s=DURATION_S,
            features=replace(BASELINE, planes=AV_SELD.planes),
            encoder=SeldEncoderConfig(channels=(8,), pools=((5, 16),), bands="flat"),
            temporal=ConformerConfig(width=8, heads=2, feed_forward=8, layers=1, kernel=3),
            content=CnnConfig(channels=(8,), pools=((1, 2),), width=8, heads=2),
            content_mel=LogMelConfig(
                sample_rate_hz=16_000, n_fft=256, hop=160, mels=16, low_hz=50.0, high_hz=8000.0
            ),
            image=OwlVitImageConfig(
                image_size=(8, 16), patch=4, width=8, layers=1, heads=2, mlp_width=8
            ),
            pictures=2,
            column_width=4,
            fusion=CrossModalConfig(
                width=8, heads=2, feed_forward=8, layers=1, kernel=3, other_kernel=3
            ),
            masks=None,
        ),
        loss=AccdoaConfig(),
        data=SeldPipelineConfig(clips_per_batch=4),
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=1),
        steps=4,
        log_every=1,
        checkpoint_every=2,
    )


def tiny_seld_recipe() -> SeldRecipe:
    """Clips of a second with small videos, of the built-in sounds."""
    return SeldRecipe(
        name="tiny",
        duration_s=1.0,
        clip_counts=ClipCounts(train=3, validation=1, test=2),
        events=(1, 3),
        event_s=(0.3, 0.6),
        room_counts=RoomCounts(1, 1, 1),
        places_per_room=4,
        rooms=FloorRanges(floor_area_m2=(20.0, 30.0), t30_s=(0.15, 0.2)),
        response_s=0.15,
        video=PictureOptions(width=64, height=36),
        sources=SourceOptions(synthetic_clips=(1, 1, 1)),
    )


def tiny_batch(system: Seld, clips: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Noise of the shapes that a network takes; one source of the first class in each frame."""
    rng = np.random.default_rng(seed)
    batch = {}
    for name, (shape, dtype) in system.batch_rows().items():
        whole = (clips, *shape)
        if dtype == np.uint8:
            batch[name] = rng.integers(0, 256, whole).astype(np.uint8)
        else:
            batch[name] = rng.normal(0, 0.1, whole).astype(np.float32)
    targets = np.zeros_like(batch["targets"])
    targets[:, :, 0, :, 0] = [1, 0.6, 0.8, 2, 1]
    return {**batch, "targets": targets}


def write_tiny_clips(folder: Path, video: bool = True, train: int = 6) -> Path:
    """A folder in DCASE form: a tone of each class left or right, and a white bar at its place."""
    rng = np.random.default_rng(3)
    samples, labels = round(DURATION_S * RATE_HZ), round(DURATION_S * 10)
    times = np.arange(samples) / RATE_HZ
    for split, count in (("train", train), ("validation", 2), ("test", 3)):
        for index in range(count):
            category, side = index % 2, 1 if rng.random() < 0.5 else -1
            tone = 0.3 * np.sin(2 * np.pi * (500 + 1500 * category) * times)
            gains = np.array([[1.0], [0.3]]) if side > 0 else np.array([[0.3], [1.0]])
            sound = gains * tone + rng.normal(0, 0.01, (2, samples))
            frames = np.zeros((4, 36, 64, 3), np.uint8)
            column = 16 if side > 0 else 48
            frames[:, :, column - 4 : column + 4] = 255
            name, group = f"{split}_{index}", f"dev-{split}-tiny"
            for kind in ("stereo_dev", "metadata_dev", *(["video_dev"] if video else [])):
                (folder / kind / group).mkdir(parents=True, exist_ok=True)
            soundfile.write(folder / "stereo_dev" / group / f"{name}.wav", sound.T, RATE_HZ)
            number = np.arange(labels, dtype=np.int32)
            events = SoundEvents(
                number,
                np.full(labels, category, np.int32),
                0 * number,
                np.full(labels, 30.0 * side, np.float32),
                np.full(labels, 2.0, np.float32),
                np.ones(labels, bool),
            )
            write_predictions(folder / "metadata_dev" / group / f"{name}.csv", events)
            if video:
                write_video(folder / "video_dev" / group / f"{name}.mp4", frames, 10)
    (folder / "clips.json").write_text(json.dumps({"classes": CLASSES}), encoding="utf-8")
    return folder
