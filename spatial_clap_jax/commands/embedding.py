"""Commands that turn recordings and words into vectors."""

from pathlib import Path
from typing import Literal

import tyro

from spatial_clap_jax import shown
from spatial_clap_jax.arguments import call
from spatial_clap_jax.errors import InputError
from spatial_clap_jax.streams import tell


def embed_command(arguments: list[str]) -> None:
    """Cosines between a recording and texts; features of clips for trainings."""

    def run(
        run: tyro.conf.Positional[Path],
        audio: tyro.conf.Positional[Path],
        text: tyro.conf.UseAppendAction[tuple[str, ...]] = (),
        out: Path | None = None,
        kind: Literal["joint", "scene", "frames"] = "joint",
        frames: int | None = None,
        text_encoder: str | None = None,
        plain: bool = False,
        foa_format: Literal["acn-sn3d", "acn-n3d", "fuma"] = "acn-sn3d",
        step: int | None = None,
        active_level_db: float | None = None,
    ) -> None:
        """Embeds a recording of any length and rate, and says how near each text is; or runs a
        frozen tower over a folder of clips, for trainings that read what it made.

        Args:
          run: folder of a run or of an export; for clips also a converted OWL-ViT.
          audio: a recording with the channels that the model takes; or a folder of clips in DCASE
            form, of which --kind frames goes into a folder, --out. A start after a failure goes on
            where it stopped.
          text: a text; may be given several times.
          out: write the embedding of the recording to this .npy file, features to this .npz file.
          kind: what --out holds: joint, the embedding that texts are compared with; or what the
            encoder of an M2D-CLAP hears, of the whole by scene (features), of every moment by
            frames (features, times_ms).
          frames: pictures of a clip that an OWL-ViT looks at; 10 where nothing is said.
          text_encoder: of an M2D-CLAP of sentence embeddings, the encoder that made these.
          plain: the recording is mono and has no place; for a model of ambisonics.
          foa_format: order and gains of an ambisonic recording's channels.
          step: checkpoint of a run to take; default: the newest.
          active_level_db: for an M2D-CLAP whose run does not tell, the level that the recording is
            brought to.
        """
        from spatial_clap_jax.data.audio import read_audio
        from spatial_clap_jax.embedding_files import save_embedding, save_features
        from spatial_clap_jax.inference import load

        if kind != "joint" and (plain or foa_format != "acn-sn3d"):
            option = "--plain True" if plain else f"--foa-format {foa_format}"
            raise InputError(
                f"embed: {option}: is said to a model of first-order ambisonics, and --kind {kind} "
                "is of mono models; leave it out"
            )
        if audio.is_dir():
            from spatial_clap_jax.embed_clips import embed_clips

            if kind != "frames" or text or out is None:
                raise InputError(
                    f"embed: {audio} is a folder of clips; give --kind frames and --out alone"
                )
            cache = embed_clips(run, audio, out, frames)
            shape = " x ".join(map(str, cache.shape))
            tell(f"{shown.plain(out)}: {len(cache)} clips, {shape} numbers each")
            return
        if frames is not None:
            raise InputError(f"embed: --frames {frames} is of a folder of clips; leave it out")
        if kind != "joint" and (text or out is None):
            raise InputError(f"embed: --kind {kind} goes to a file; give --out alone")
        if not text and out is None:
            raise InputError('embed: give --text "..." (any number of times), or --out FILE.npy')
        recording = read_audio(audio)
        model = load(run, step=step, text_encoder=text_encoder, active_level_db=active_level_db)
        try:
            if kind == "joint":
                embedding = model.embed_audio(*recording, plain=plain, foa_format=foa_format)
            elif kind == "scene":
                features = {"features": model.embed_scene(*recording)}
            else:
                moments, times_ms = model.embed_frames(*recording)
                features = {"features": moments, "times_ms": times_ms}
        except InputError as error:
            raise InputError(f"{audio}: {error}") from error
        if out is not None and kind == "joint":
            save_embedding(embedding, out)
        elif out is not None:
            save_features(out, **features)
        if text:
            cosines = model.embed_text(list(text)) @ embedding
            for cosine, line in sorted(zip(cosines.tolist(), text, strict=True), reverse=True):
                print(f"{cosine:+.4f}  {shown.plain(line)}")

    call(run, arguments, "embed")


def embed_text_command(arguments: list[str]) -> None:
    """Embed captions once, for trainings that learn from sentence embeddings."""

    def run(
        captions: tyro.conf.Positional[Path],
        out: Path,
        text_encoder: str | None = None,
        vectors: Path | None = None,
        split: Literal["train", "validation", "test"] = "train",
    ) -> None:
        """Writes a vector for each distinct caption; a start after a failure goes on where it
        stopped, and what is finished or of other captions is never overwritten.

        Args:
          captions: a csv with captions (caption, caption_1, ...; where it has none, category), or
            a folder of mono clips that `render` wrote.
          out: folder to write, for train --data.sentences, or for evaluate --sentences.
          text_encoder: a text encoder as `convert` takes or writes them, or the folder of a run.
          vectors: in its place, an .npy of vectors that another program made: floats, a row for
            each distinct caption, in the order of data.sentences.captions_of.
          split: of a folder of clips: train, the captions that trainings need; validation or test,
            those of its clips and the prompts of all categories, which evaluate --sentences asks.
        """
        from spatial_clap_jax.embed_sentences import embed_sentences, store_vectors

        if vectors is not None and text_encoder is None:
            found = store_vectors(captions, vectors, out, split=split)
        elif text_encoder is not None and vectors is None:
            found = embed_sentences(captions, text_encoder, out, split=split)
        else:
            given = "neither" if vectors is None else "both"
            raise InputError(
                f"embed-text: --text-encoder and --vectors: {given} given; give one of them."
            )
        tell(f"{shown.plain(out)}: {len(found)} sentence embeddings of width {found.width}")

    call(run, arguments, "embed-text")
