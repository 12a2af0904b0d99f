"""OWL-ViT computes what Hugging Face's does: maps, logits, boxes, objects, and the way back."""

import functools
import json

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the parity extra is not installed")
transformers = pytest.importorskip("transformers", reason="the parity extra is not installed")

import owlvit_oracle as oracle  # noqa: E402
from safetensors.numpy import load_file, save_file  # noqa: E402

import spatial_clap_jax  # noqa: E402
from spatial_clap_jax.convert import convert  # noqa: E402
from spatial_clap_jax.data.images import clip_normalised, resized  # noqa: E402
from spatial_clap_jax.errors import InputError  # noqa: E402
from spatial_clap_jax.models.owlvit import OwlVit  # noqa: E402
from spatial_clap_jax.pretrained.mapping import nested  # noqa: E402
from spatial_clap_jax.pretrained.owl_vit import (  # noqa: E402
    owl_vit_configs,
    owl_vit_tensors,
    read_owl_vit,
)
from spatial_clap_jax.pretrained.read import read_audio_tower, read_text_tower  # noqa: E402

pytestmark = pytest.mark.parity


@functools.cache
def compiled(config):
    return jax.jit(OwlVit(config).apply)


@pytest.fixture(scope="module", params=[(32, 96), (16, 64)], ids=["patch32", "patch16"])
def published(request, tmp_path_factory):
    """The oracle and its folder, with the vocabulary in CLIP's two files."""
    folder = tmp_path_factory.mktemp("owlvit") / "hf"
    vocabulary = oracle.save_tokenizer(folder)
    patch, size = request.param
    model = oracle.model(vocabulary, patch, size, seed=patch)
    model.save_pretrained(folder)
    return model, folder


def theirs_of(model, images, ids):
    """Their outputs: each image is asked all texts."""
    pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    asked = torch.from_numpy(np.tile(ids.astype(np.int64), (len(images), 1)))
    with torch.no_grad():
        return model(asked, pixels, (asked > 0).long())


def test_maps_logits_and_boxes_are_the_same(published):
    model, folder = published
    weights = read_owl_vit(folder)
    ids, _ = weights.tokenizer.encode(oracle.TEXTS)
    # A text that is none.
    ids = np.concatenate([ids, np.zeros_like(ids[:1])])
    rng = np.random.default_rng(0)
    images = rng.standard_normal((2, *weights.config.image.image_size, 3)).astype(np.float32)
    theirs = theirs_of(model, images, ids)
    ours = compiled(weights.config)(nested(weights.arrays), images, ids)
    assert theirs.logits[..., :3].std() > 0.1
    assert theirs.pred_boxes.std() > 0.05
    np.testing.assert_allclose(ours.map, theirs.image_embeds.numpy(), atol=1e-4)
    np.testing.assert_allclose(ours.logits[..., :3], theirs.logits[..., :3].numpy(), atol=1e-4)
    np.testing.assert_array_equal(ours.logits[..., 3], theirs.logits[..., 3].numpy())
    np.testing.assert_allclose(ours.boxes, theirs.pred_boxes.numpy(), atol=1e-5)
    np.testing.assert_allclose(ours.class_embeddings, theirs.class_embeds.numpy(), atol=1e-4)


def test_whole_images_are_compared_as_by_theirs(published):
    model, folder = published
    weights = read_owl_vit(folder)
    ids, _ = weights.tokenizer.encode(oracle.TEXTS)
    images = np.random.default_rng(1).standard_normal((2, *weights.config.image.image_size, 3))
    images = images.astype(np.float32)
    with torch.no_grad():
        theirs = model.owlvit(
            torch.from_numpy(ids.astype(np.int64)),
            torch.from_numpy(images.transpose(0, 3, 1, 2).copy()),
        ).logits_per_image
    run = jax.jit(functools.partial(OwlVit(weights.config).apply, method="similarity"))
    np.testing.assert_allclose(
        run(nested(weights.arrays), images, ids), theirs.numpy(), atol=1e-4, rtol=1e-4
    )


def test_every_tensor_is_taken_and_comes_back_bit_for_bit(published, tmp_path):
    model, folder = published
    weights = read_owl_vit(folder)
    assert not weights.report.left
    assert not weights.report.made
    back = owl_vit_tensors(weights)
    state = model.state_dict()
    assert back.keys() == state.keys()
    for name, tensor in state.items():
        np.testing.assert_array_equal(back[name], tensor.numpy(), err_msg=name)
    save_file(back, tmp_path / "model.safetensors", metadata={"format": "pt"})
    for name, content in owl_vit_configs(weights).items():
        (tmp_path / name).write_text(json.dumps(content))
    loaded, info = transformers.OwlViTForObjectDetection.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not any(info.values()), info
    assert read_owl_vit(tmp_path).config == weights.config
    for name in ("vision_config", "text_config"):
        there, here = (getattr(m.config, name).to_dict() for m in (model, loaded))
        for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "layer_norm_eps"):
            assert there[key] == here[key], key


def test_files_of_older_versions_are_read(published, tmp_path):
    _, folder = published
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    tensors = {
        name.replace("pre_layernorm", "pre_layrnorm"): tensor
        for name, tensor in load_file(folder / "model.safetensors").items()
    }
    tensors["owlvit.vision_model.embeddings.position_ids"] = np.arange(10)[None]
    tensors["box_bias"] = np.zeros((9, 4), np.float32)
    save_file(tensors, tmp_path / "model.safetensors")
    old, new = read_owl_vit(tmp_path), read_owl_vit(folder)
    assert {name for name, _ in old.report.left} == {
        "owlvit.vision_model.embeddings.position_ids",
        "box_bias",
    }
    for path, array in new.arrays.items():
        np.testing.assert_array_equal(old.arrays[path], array)


def test_texts_have_the_ids_of_clips_tokenizer(published):
    _, folder = published
    ours = read_owl_vit(folder).tokenizer
    theirs = transformers.CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), pad_token="!"
    )
    # Without the '!' that OWL-ViT pads with: a text that spells it out is text here.
    texts = [*oracle.TEXTS, "  A  Photo\tof Café 12 dogs'VE, they'll?. ", "naïve — 日本"]
    expected = theirs(texts, padding="max_length", max_length=oracle.MAX_TOKENS)["input_ids"]
    long = [row for row in expected if len(row) > oracle.MAX_TOKENS]
    fitting = [text for text, row in zip(texts, expected, strict=True) if row not in long]
    assert len(fitting) >= 3
    ids, mask = ours.encode(fitting)
    kept = [row for row in expected if row not in long]
    np.testing.assert_array_equal(ids, kept)
    assert mask.sum() == sum(1 + row.index(ours.end_id) for row in kept)


def pil_processor(size):
    from transformers.models.owlvit.image_processing_pil_owlvit import OwlViTImageProcessorPil

    return OwlViTImageProcessorPil(size={"height": size[0], "width": size[1]})


@pytest.mark.parametrize("shape", [(90, 160), (40, 30), (96, 64)])
def test_pixels_are_those_of_their_processor(shape):
    # Smooth, with sharp edges in it.
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
    image[10:30, 5:25] = 255
    size = (64, 64)
    theirs = pil_processor(size)(image, return_tensors="np")["pixel_values"][0]
    ours = clip_normalised(resized(image, size)).transpose(2, 0, 1)
    # One step of 255 where the last digits round otherwise.
    step = 1 / 255 / 0.26
    assert np.abs(ours - theirs).max() <= 1.01 * step
    assert np.abs(ours - theirs).mean() < 0.01 * step


@pytest.fixture(scope="module")
def converted(published):
    model, folder = published
    convert(folder, folder.parent / "ours")
    return model, folder, folder.parent / "ours"


def test_objects_are_those_of_their_post_processing(converted):
    model, _, ours = converted
    detector = spatial_clap_jax.load_detector(ours)
    size = detector.config.image.image_size
    images = np.random.default_rng(2).integers(0, 256, (3, 50, 80, 3), dtype=np.uint8)
    theirs_in = pil_processor(size)(list(images), return_tensors="pt")["pixel_values"]
    ids, _ = detector.tokenizer.encode(oracle.TEXTS)
    theirs_out = theirs_of(model, theirs_in.numpy().transpose(0, 2, 3, 1), ids)
    threshold = float(torch.sigmoid(theirs_out.logits.max(-1).values).median())
    expected = pil_processor(size).post_process_object_detection(
        theirs_out, threshold, [(50, 80)] * 3
    )
    found = detector.detect(images, oracle.TEXTS, threshold - 1e-3)
    total = 0
    for one, other in zip(found, expected, strict=True):
        order = np.argsort(-other["scores"].numpy(), kind="stable")
        count = len(order)
        total += count
        assert (np.diff(one.scores) <= 0).all()
        np.testing.assert_allclose(one.scores[:count], other["scores"].numpy()[order], atol=2e-2)
        # A pixel's last digit moves a score; equal ones may change places.
        rows = (other[key].numpy() for key in ("scores", "labels", "boxes"))
        for score, label, box in zip(*rows, strict=True):
            near = np.abs(one.boxes_px - box).max(axis=1) < 1.0
            assert (one.labels[near] == label).any()
            assert np.abs(one.scores[near] - score).min() < 2e-2
    assert total


def test_a_converted_folder_is_the_same_model(converted):
    _, folder, ours = converted
    there, here = read_owl_vit(folder), read_owl_vit(ours)
    assert (here.config, here.tokenizer.to_json()) == (there.config, there.tokenizer.to_json())
    assert here.arrays.keys() == there.arrays.keys()
    for path, array in there.arrays.items():
        np.testing.assert_array_equal(here.arrays[path], array)
    card = (ours / "owl-vit" / "README.md").read_text()
    assert "load_detector" in card


def test_the_tower_takes_frames_of_any_size(converted):
    detector = spatial_clap_jax.load_detector(converted[2])
    frames = np.random.default_rng(3).integers(0, 256, (5, 36, 64, 3), dtype=np.uint8)
    maps = detector.merged_maps(frames)
    assert maps.shape == (5, *detector.config.image.grid, 32)
    np.testing.assert_allclose(detector.merged_maps(frames[4:]), maps[4:], atol=1e-5)


def test_mistakes_are_told(converted, tmp_path):
    _, folder, ours = converted
    with pytest.raises(InputError, match=r"holds an OWL-ViT, which embeds no audio; .*detector"):
        spatial_clap_jax.load(ours)
    with pytest.raises(InputError, match="is an OWL-ViT; give a CLAP for the audio side"):
        read_audio_tower(folder)
    with pytest.raises(InputError, match="is an OWL-ViT; give a CLAP or a text encoder"):
        read_text_tower(folder)
    detector = spatial_clap_jax.load_detector(ours)
    blank = np.zeros((1, 8, 8, 3), np.uint8)
    with pytest.raises(InputError, match=r"texts: \[\]; give a list of at least one text"):
        detector.detect(blank, [])
    with pytest.raises(InputError, match="the encoder reads at most 16; shorten"):
        detector.detect(blank, ["dog " * 20])
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    held = json.loads((folder / "config.json").read_text())
    for part, key, value, said in (
        ("vision_config", "hidden_act", "gelu", r"vision_config\.hidden_act is 'gelu', our"),
        ("vision_config", "image_size", 100, r"image_size: \(100, 100\) with patches"),
        ("text_config", "vocab_size", 100, r"has shape .* does not fit params/text/tokens"),
    ):
        changed = {**held, part: {**held[part], key: value}}
        (tmp_path / "config.json").write_text(json.dumps(changed))
        with pytest.raises(InputError, match=said):
            read_owl_vit(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**held, "model_type": "clip"}))
    with pytest.raises(InputError, match="model_type 'clip' is not 'owlvit'"):
        read_owl_vit(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(held))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3}))
    with pytest.raises(InputError, match=r"has image_mean \[0\.5.*normalised by CLIP's"):
        read_owl_vit(tmp_path)
