"""CLIP figures on a small random CLIP, against the model called directly and against values by hand."""

import errno
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from huggingface_hub import errors
from judges import CLIP_SIZE, CLIP_WORDS, save_clip, save_dino
from PIL import Image
from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from cds3d.metrics.clip import (
    Clip,
    clip_direction,
    clip_score,
    is_nearer_to_target,
    motion_consistency,
    path_consistency,
    view_direction,
)
from tensorf.errors import UserError

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_clip(tmp_path_factory.mktemp("judges") / "clip")


@pytest.fixture(scope="module")
def clip(folder):
    return Clip(str(folder), CPU)


def picture(height, width, seed=0):
    """Smooth colours of 8 bits: what resizing does to single pixels is not the point."""
    noise = np.random.default_rng(seed).integers(0, 255, (6, 7, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize((width, height), Image.BICUBIC)
    return image, torch.from_numpy(np.asarray(image).copy()).float() / 255


def cosine(a, b):
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


# --- Embeddings


@pytest.mark.parametrize("height, width", [(64, 64), (50, 81), (97, 40), (20, 24)])
def test_pictures_are_prepared_as_clips_own_processor_does(folder, clip, height, width):
    image, pixels = picture(height, width)
    size = {"size": {"shortest_edge": CLIP_SIZE}, "crop_size": {"height": CLIP_SIZE, "width": CLIP_SIZE}}
    prepared = CLIPImageProcessorPil(**size)(image, return_tensors="pt")["pixel_values"]
    model = CLIPModel.from_pretrained(folder).eval()
    with torch.no_grad():
        expected = model.visual_projection(model.vision_model(pixel_values=prepared).pooler_output)[0]
    found = clip.image(pixels)
    assert found.norm() == pytest.approx(1, abs=1e-5)
    assert cosine(found, expected) > 0.99998  # PIL rounds to 8 bits after each pass


def test_embeddings_tell_pictures_apart(clip):
    one, flipped = clip.image(picture(50, 81)[1]), clip.image(picture(50, 81)[1].flip(1))
    assert cosine(one, flipped) < 0.99
    assert cosine(one, clip.image(picture(50, 81)[1][:, :50])) < 0.998  # another crop


def test_squash_sees_the_whole_picture(folder):
    squash = Clip(str(folder), CPU, fit="squash")
    model = CLIPModel.from_pretrained(folder).eval()
    image = picture(40, 90)[1]
    small = torch.nn.functional.interpolate(image.permute(2, 0, 1)[None], (CLIP_SIZE, CLIP_SIZE), mode="bicubic")
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(1, 3, 1, 1)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(1, 3, 1, 1)
    with torch.no_grad():
        expected = model.visual_projection(model.vision_model(pixel_values=(small - mean) / std).pooler_output)[0]
    assert cosine(squash.image(image), expected) == pytest.approx(1, abs=1e-5)
    with pytest.raises(ValueError, match="crop or squash"):
        Clip(str(folder), CPU, fit="stretch")


def test_text_is_embedded_by_the_text_tower(folder, clip):
    model, tokenizer = CLIPModel.from_pretrained(folder).eval(), CLIPTokenizer.from_pretrained(folder)
    with torch.no_grad():
        output = model.text_model(**tokenizer("a red flower", return_tensors="pt"))
        expected = model.text_projection(output.pooler_output)[0]
    assert cosine(clip.text("a red flower"), expected) == pytest.approx(1, abs=1e-5)
    assert cosine(clip.text("a red flower"), clip.text("a cat")) < 0.99


def test_texts_that_are_too_long_are_cut(clip):
    long = "a red flower " * CLIP_WORDS
    torch.testing.assert_close(clip.text(long), clip.text(long + "a cat"))


def test_other_shapes_than_pictures_are_refused(clip):
    with pytest.raises(ValueError, match="H, W, 3"):
        clip.image(torch.zeros(3, 40, 40))


# --- Figures by hand


def test_score_and_accuracy_by_hand():
    image, source, target = torch.tensor([3.0, 4]), torch.tensor([1.0, 0]), torch.tensor([0.0, 2])
    assert clip_score(image, source) == pytest.approx(0.6) and clip_score(image, target) == pytest.approx(0.8)
    assert is_nearer_to_target(image, source, target)
    assert not is_nearer_to_target(image, target, source)
    assert not is_nearer_to_target(image, target, target)  # a tie is no success


def test_direction_by_hand():
    before, after = torch.tensor([1.0, 0, 0]), torch.tensor([1.0, 3, 4])
    source, target = torch.tensor([0.0, 1, 0]), torch.tensor([0.0, 3, 0])
    assert clip_direction(before, after, source, target) == pytest.approx(0.6)  # (0, 3, 4) and (0, 2, 0)
    assert clip_direction(after, before, source, target) == pytest.approx(-0.6)
    assert clip_direction(before, before, source, target) == 0


def test_view_direction_is_the_mean_over_views():
    before = torch.tensor([[1.0, 0, 0], [0.0, 0, 0]])
    after = torch.tensor([[1.0, 3, 4], [0.0, 5, 0]])  # cosines 0.6 and 1
    source, target = torch.tensor([0.0, 1, 0]), torch.tensor([0.0, 3, 0])
    assert view_direction(before, after, source, target) == pytest.approx(0.8)
    assert np.isnan(view_direction(before[:0], after[:0], source, target))
    with pytest.raises(ValueError, match="one shape"):
        view_direction(before, after[:1], source, target)


def test_consistency_along_a_path_against_numpy():
    rng = np.random.default_rng(0)
    before, after = rng.normal(size=(2, 5, 7))
    steady = np.mean([cosine(after[i] - before[i], after[i + 1] - before[i + 1]) for i in range(4)])
    moving = np.mean([cosine(before[i + 1] - before[i], after[i + 1] - after[i]) for i in range(4)])
    assert abs(steady - moving) > 0.05
    before, after = torch.from_numpy(before), torch.from_numpy(after)
    assert path_consistency(before, after) == pytest.approx(steady)
    assert motion_consistency(before, after) == pytest.approx(moving)
    assert np.isnan(path_consistency(before[:1], after[:1])) and np.isnan(motion_consistency(before[:1], after[:1]))
    for figure in (path_consistency, motion_consistency):
        with pytest.raises(ValueError, match="one shape"):
            figure(before, after[:3])


def test_an_edit_that_adds_the_same_everywhere_is_consistent():
    before = torch.randn(6, 9, generator=torch.Generator().manual_seed(0))
    after = before + torch.arange(9.0)
    assert path_consistency(before, after) == pytest.approx(1, abs=1e-5)
    assert motion_consistency(before, after) == pytest.approx(1, abs=1e-5)


# --- What cannot be loaded


@pytest.mark.parametrize("path", ["./nowhere", "nowhere", "a/b/c"])
def test_a_folder_that_is_not_there(path):
    with pytest.raises(UserError, match=f"--clip {path}: no such folder"):
        Clip(path, CPU)


def test_a_hub_id_without_a_network(monkeypatch):
    def no_network(*_args, **_kwargs):
        raise OSError("We couldn't connect\nto 'https://huggingface.co'")

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(CLIPModel, "from_pretrained", no_network)
    with pytest.raises(UserError, match="hf download openai/clip --local-dir FOLDER") as error:
        Clip("openai/clip", CPU)
    assert "\n" not in str(error.value)
    assert "from the hub (We couldn't connect): download it" in str(error.value)
    with pytest.raises(UserError, match="and pass clip=FOLDER"):
        Clip("openai/clip", CPU, option="clip")


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("GatedRepoError", "it is gated: ask for access at https://huggingface.co/openai/clip"),
        ("RepositoryNotFoundError", "there is no such model, or it is private"),
        ("RevisionNotFoundError", "it has no revision v9"),
    ],
)
def test_a_hub_id_that_a_network_alone_does_not_help(monkeypatch, name, told):
    """As transformers tells it, which wraps what the hub's client raises."""
    response = SimpleNamespace(headers={}, request=None, status_code=403)
    error = getattr(errors, name)("told by the hub", response=response)

    def download(*_args, **_kwargs):
        raise error

    monkeypatch.setattr("transformers.utils.hub.hf_hub_download", download)
    with pytest.raises(UserError) as caught:
        Clip("openai/clip@v9", CPU)
    assert f"--clip openai/clip@v9: cannot get it from the hub: {told}" in str(caught.value)


def test_a_full_disk_and_full_memory_are_told_as_such(monkeypatch):
    def download(*_args, **_kwargs):
        raise error

    monkeypatch.setattr(CLIPModel, "from_pretrained", download)
    error = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(UserError, match="--clip openai/clip: cannot get it from the hub: the disk is full"):
        Clip("openai/clip", CPU)
    error = MemoryError()
    with pytest.raises(MemoryError):
        Clip("openai/clip", CPU)


def test_another_models_folder_is_refused_and_not_filled_with_random_numbers(tmp_path):
    with pytest.raises(UserError, match="is not a CLIPModel") as error:
        Clip(str(save_dino(tmp_path / "vit")), CPU)
    assert "openai/clip-vit-large-patch14" in str(error.value)


def test_a_folder_without_a_tokenizer_or_weights(tmp_path, folder):
    save_clip(tmp_path / "clip")
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        (tmp_path / "clip" / name).unlink()
    with pytest.raises(UserError, match="tokenizer|vocab.json"):
        Clip(str(tmp_path / "clip"), CPU)
    (tmp_path / "clip" / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(UserError, match="cannot be loaded"):
        Clip(str(tmp_path / "clip"), CPU)
