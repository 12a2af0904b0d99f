"""M2D-CLAP, stage 1 (arXiv 2503.22104): masked prediction and language teach one encoder of sound.

    spatial-clap render configs/clips.py --size small --sources esc10.csv --out data/clips
    spatial-clap train configs/m2d_clap.py --size small --data data/clips --workdir runs/m2d

`quickstart` and `small` train a text encoder along. `base` learns from sentence embeddings of a
large model that stays as it is, made once, as the paper does. The paper's, NV-Embed-v2, is no BERT
and does not run here: its vectors are brought as an array, a row a caption (docs/m2d_clap.md), or a
BERT of sentences makes them, such as the GTE-base of 2024:

    spatial-clap embed-text data/clips --vectors nv_embed.npy --out data/sentences
    spatial-clap train configs/m2d_clap.py --data data/clips --workdir runs/m2d \
        --data.sentences data/sentences

    spatial-clap embed-text data/clips --text-encoder thenlper/gte-base --out data/gte
    spatial-clap train configs/m2d_clap.py --data data/clips --workdir runs/m2d \
        --data.sentences data/gte --model.text.width 768

What the parts are worth is told by leaving them out, by one option each:

    --model.contrast-weight 0        masked prediction alone (M2D)
    --model.masked-weight 0          language alone, with as many patches hidden
    --model.mask-ratio 0             language alone, all patches seen

Next comes configs/m2d_clap_labels.py (stage 1.1) or configs/m2d_clap_text.py (stage 2), then
configs/m2d_clap_text_fine.py (stage 2.1). `base` has the numbers of 2025 and has not been trained
by us; those of 2024 differ in `--model.projector mlp` and sentence embeddings of 768 numbers.

What is ours:
- In `small`: sizes and rates, shorter averages of the target for a shorter run, and a contrastive
  loss that weighs as much as the masked one (the paper's 0.01 of it leaves language hardly learnt
  in 350 steps).
- In `quickstart` and `small` clips and captions of one category are positives of one another. So
  the contrastive loss learns from categories, "language alone" is partly supervised by class, and
  zero-shot asks for classes that were trained. `--loss.positives pair` is the paper's plain
  InfoNCE, which `base` has.
- In `quickstart` and `small` clips have one active level, and so have recordings in use
  (`--model.active-level-db`): some hundred clips are too few to learn that loudness is no content.
  Training changes their gain by up to 6 dB and shifts them circularly in time as well.
- The length of `base`: an epoch counts as 1,000 batches of 2,048 clips, near AudioSet's two
  million; the paper adds VGGSound and WavCaps. Other data need other `--steps` and
  `--optimizer.warmup-steps`: clips / 2,048 times 300 and 20.
- The learning rate does not follow the batch: who gives `base` another `--data.captions-per-batch`
  gives `--optimizer.learning-rate` 3e-4 x batch / 256 with it, the paper's rule.
- CLS, mask and learned tokens are free of weight decay like biases and norms, which are all that
  the paper frees.
- The linear layer from sentence embeddings of another width than the joint space's.
"""

from dataclasses import replace

from spatial_clap_jax.data.drawing import REFERENCE_LEVEL_DB
from spatial_clap_jax.data.pipeline import PipelineConfig
from spatial_clap_jax.losses.contrastive import ContrastiveConfig
from spatial_clap_jax.models.m2d import PredictorConfig
from spatial_clap_jax.models.text import TextConfig
from spatial_clap_jax.models.vit import VitConfig
from spatial_clap_jax.systems.m2d_clap import CachedSentences, M2dClapConfig
from spatial_clap_jax.train.experiment import Experiment
from spatial_clap_jax.train.optim import OptimizerConfig


def get_config(size: str = "base") -> Experiment:
    """The experiment at one of the sizes 'quickstart', 'small', 'base'."""
    return {"quickstart": quickstart, "small": small, "base": base}[size]()


def small() -> Experiment:
    """Crops of 3 s out of 5 s; four minutes of two cores."""
    model = M2dClapConfig(
        window_s=5.0,
        crop_frames=304,
        normalisation=None,
        active_level_db=REFERENCE_LEVEL_DB,
        content=VitConfig(frames=304, width=128, layers=4, heads=4),
        predictor=PredictorConfig(width=128, layers=2, heads=4),
        target_decays=(0.99, 0.9995),
        contrast_weight=1.0,
        projector="token",
        joint_width=128,
        text=TextConfig(
            vocabulary=1024,
            width=128,
            layers=2,
            heads=4,
            mlp_width=512,
            max_tokens=32,
            dropout=0.0,
            attention_dropout=0.0,
        ),
    )
    return Experiment(
        name="m2d_clap_small",
        model=model,
        loss=ContrastiveConfig(min_scale=1.0),
        data=PipelineConfig(captions_per_batch=32, plain_share=1.0, swap=False),
        optimizer=OptimizerConfig(
            learning_rate=1e-3, warmup_steps=60, weight_decay=0.05, b2=0.95, clip_norm=3.0
        ),
        steps=350,
        log_every=20,
        checkpoint_every=175,
    )


def quickstart() -> Experiment:
    """`small` with one layer and some steps less, for the built-in sounds of 2 s."""
    ours = small()
    model = ours.model
    assert isinstance(model, M2dClapConfig)
    model = replace(
        model,
        window_s=2.0,
        crop_frames=192,
        content=VitConfig(frames=192, width=128, layers=3, heads=4),
    )
    return replace(ours, name="m2d_clap_quickstart", model=model, steps=300, checkpoint_every=150)


def base() -> Experiment:
    """The paper's: ViT-B, crops of 608 frames, a learned token as projector; for accelerators."""
    return Experiment(
        name="m2d_clap_base",
        model=M2dClapConfig(
            normalisation=None, projector="token", text=CachedSentences(width=4096)
        ),
        loss=ContrastiveConfig(positives="pair", min_scale=1.0),
        data=PipelineConfig(
            captions_per_batch=2048,
            plain_share=1.0,
            swap=False,
            gain_db=(0.0, 0.0),
            shift=False,
            workers=8,
        ),
        # 300 epochs of 1,000 steps, 20 of them to warm up.
        optimizer=OptimizerConfig(
            learning_rate=3e-4 * 2048 / 256,
            warmup_steps=20_000,
            weight_decay=0.05,
            b2=0.95,
            clip_norm=3.0,
        ),
        steps=300_000,
    )
