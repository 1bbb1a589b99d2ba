"""PIE-Bench: its mapping and masks, and its seven metrics against numpy."""

import json
import math

import numpy as np
import pytest
import torch
from judges import save_clip, save_dino, save_trunk
from PIL import Image

from cds3d.bench.image_table import Judges, load_judges
from cds3d.bench.items import Item
from cds3d.bench.pie_bench import SIZE, decode_mask, pie_figures, published_pie_figures, read_mapping
from cds3d.metrics.ssim import ssim
from tensorf.errors import UserError

ENTRY = {
    "image_path": "1_change_object/a.jpg",
    "original_prompt": "a [cat] on a mat",
    "editing_prompt": "a [dog] on a mat",
    "editing_instruction": "",
    "editing_type_id": "1",
    "blended_word": "cat dog",
    "mask": [0, 512 * 256],
}


def save_bench(folder, **entries):
    for entry in entries.values():
        path = folder / "annotation_images" / str(entry.get("image_path", "a.jpg"))
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (SIZE, SIZE), (90, 80, 70)).save(path)
    (folder / "mapping_file.json").write_text(json.dumps(entries))
    return folder


@pytest.fixture(scope="module")
def judges(tmp_path_factory):
    folder = tmp_path_factory.mktemp("judges")
    paths = save_clip(folder / "clip"), save_dino(folder / "dino"), save_trunk(folder / "s.pth", "squeeze")
    return load_judges(*map(str, paths), torch.device("cpu"))


# --- The mapping


def test_mapping(tmp_path):
    second = ENTRY | {"editing_type_id": "9", "image_path": "9_style/b.jpg", "mask": []}
    folder = save_bench(tmp_path, one=ENTRY, two=second)
    one, two = read_mapping(folder)
    assert (one.name, one.src, one.tgt, one.kind) == ("one", "a cat on a mat", "a dog on a mat", "change object")
    assert one.path == folder / "annotation_images" / "1_change_object" / "a.jpg" and one.mask == (0, 512 * 256)
    assert (two.kind, two.mask) == ("change style", ())
    assert read_mapping(folder, 1) == [one]


@pytest.mark.parametrize(
    "wrong, text",
    [
        ({"mask": [0, 5, 3]}, "odd count"),
        ({"mask": [-1, 5]}, "run (-1, 5)"),
        ({"mask": "x"}, "the entry one is wrong"),
        ({"editing_type_id": "77"}, "unknown editing_type_id 77"),
        ({"editing_prompt": None}, "the entry one is wrong"),
        ({"mask": None}, "the entry one is wrong"),
    ],
)
def test_wrong_entries_are_named(tmp_path, wrong, text):
    folder = save_bench(tmp_path, one=ENTRY | wrong)
    with pytest.raises(UserError) as error:
        read_mapping(folder)
    assert text in str(error.value) and "\n" not in str(error.value)


def test_wrong_folders(tmp_path):
    with pytest.raises(UserError, match="no mapping_file.json"):
        read_mapping(tmp_path)
    folder = save_bench(tmp_path, one=ENTRY)
    (folder / "annotation_images" / ENTRY["image_path"]).unlink()
    with pytest.raises(UserError, match="image of the entry one"):
        read_mapping(folder)
    (folder / "mapping_file.json").write_text("[1")
    with pytest.raises(UserError, match="cannot be read"):
        read_mapping(folder)
    save_bench(tmp_path, **{"../up": ENTRY})
    with pytest.raises(UserError, match="cannot be a folder's name"):
        read_mapping(folder)


def test_names_that_lead_outside(tmp_path):
    """Of a picture to read, and of a folder to write to."""
    save_bench(tmp_path / "bench", one=ENTRY)
    Image.new("RGB", (SIZE, SIZE)).save(tmp_path / "other.jpg")
    for place in ("../../other.jpg", "../other.jpg", str(tmp_path / "other.jpg")):
        (tmp_path / "bench" / "mapping_file.json").write_text(json.dumps({"one": ENTRY | {"image_path": place}}))
        with pytest.raises(UserError, match="leads out of"):
            read_mapping(tmp_path / "bench")
    for name in ("", ".", "..", "../up", "/up", "a/b"):
        (tmp_path / "bench" / "mapping_file.json").write_text(json.dumps({name: ENTRY}))
        with pytest.raises(UserError, match="cannot be a folder's name"):
            read_mapping(tmp_path / "bench")


# --- Masks


def test_mask_by_hand():
    mask = decode_mask([3, 2, SIZE + 1, 1, SIZE * SIZE - 1, 5])  # the last run goes past the end
    assert mask.nonzero().tolist() == [[0, 3], [0, 4], [1, 1], [SIZE - 1, SIZE - 1]]
    framed = decode_mask([SIZE + 1, 1], border=True)
    assert framed.sum() == 4 * SIZE - 4 + 1 and framed[0].all() and framed[:, -1].all() and framed[1, 1]


# --- Metrics


def pictures(height=64, width=64):
    generator = torch.Generator().manual_seed(0)
    source = torch.rand(height, width, 3, generator=generator)
    edited = (source + 0.05 * torch.randn(height, width, 3, generator=generator)).clamp(0, 1)
    edited[: height // 2] = torch.rand(height // 2, width, 3, generator=generator)  # the upper half is edited
    return source, edited


UPPER_HALF = Item("one", None, "a cat", "a dog", "change object", (0, SIZE * SIZE // 2))


def test_outside_the_mask_alone(judges):
    source, edited = pictures()
    figures = pie_figures(UPPER_HALF, source, edited, judges)
    assert len(figures) == 7
    mse = np.mean((source.numpy()[32:] - edited.numpy()[32:]) ** 2)
    assert figures["background_mse_x10000"] == pytest.approx(1e4 * mse, rel=1e-4)
    assert figures["background_psnr_db"] == pytest.approx(-10 * math.log10(mse), abs=1e-3)
    assert figures["structure_distance_x1000"] == pytest.approx(1000 * judges.dino.structure_distance(edited, source))
    # What is inside the mask changes no figure of the background.
    other = edited.clone()
    other[:32] = 0
    again = pie_figures(UPPER_HALF, source, other, judges)
    background = [k for k in figures if k.startswith("background")]
    assert len(background) == 4 and all(figures[k] == again[k] for k in background)
    assert figures["structure_distance_x1000"] != again["structure_distance_x1000"]
    # Outside it changes all.
    other[32:] = source[32:]
    same = pie_figures(UPPER_HALF, source, other, judges)
    assert same["background_psnr_db"] == 100 and same["background_mse_x10000"] == 0
    assert same["background_ssim_x100"] == pytest.approx(100) and same["background_lpips_x1000"] == 0
    assert figures["background_ssim_x100"] < 99.9 and figures["background_lpips_x1000"] > 0


def test_clip_scores_are_of_the_target_prompt(judges):
    source, edited = pictures()
    figures = pie_figures(UPPER_HALF, source, edited, judges)
    text = judges.clip.text("a dog").numpy()
    inside = edited.clone()
    inside[32:] = 0
    for key, image in (("clip_score_x100", edited), ("region_clip_score_x100", inside)):
        assert figures[key] == pytest.approx(100 * max(0, float(judges.clip.image(image).numpy() @ text)), abs=1e-3)
    assert figures["clip_score_x100"] != figures["region_clip_score_x100"]


def test_as_published(judges):
    """At 512x512, where the mask's border of one pixel counts."""
    source, edited = pictures(SIZE, SIZE)
    figures = published_pie_figures(UPPER_HALF, source, edited, judges)
    assert figures.keys() == pie_figures(UPPER_HALF, source, edited, judges).keys()
    keep = np.ones((SIZE, SIZE, 1), dtype=np.float32)
    keep[: SIZE // 2], keep[-1], keep[:, 0], keep[:, -1] = 0, 0, 0, 0
    a, b = edited.numpy() * keep, source.numpy() * keep
    mse = np.mean((a - b) ** 2)  # over the whole frame
    assert figures["background_mse_x10000"] == pytest.approx(1e4 * mse, rel=1e-4)
    assert figures["background_psnr_db"] == pytest.approx(-10 * math.log10(mse), abs=1e-3)
    a, b = torch.from_numpy(a), torch.from_numpy(b)
    assert figures["background_ssim_x100"] == pytest.approx(100 * ssim(a, b), abs=1e-3)
    assert figures["background_lpips_x1000"] == pytest.approx(1000 * judges.lpips.distance(a, b), rel=1e-4)
    expected = judges.dino.structure_distance(edited * 255, source * 255)
    assert figures["structure_distance_x1000"] == pytest.approx(1000 * expected)


@pytest.mark.parametrize("judge", [pie_figures, published_pie_figures])
def test_without_a_background_or_a_region(judges, judge):
    source, edited = pictures()
    everything = Item("one", None, "a cat", "a dog", "change style", (0, SIZE * SIZE))
    figures = judge(everything, source, edited, judges)
    assert all(math.isnan(v) == k.startswith("background") for k, v in figures.items())
    nothing = Item("one", None, "a cat", "a dog", "change style", ())
    figures = judge(nothing, source, edited, judges)
    assert math.isnan(figures["region_clip_score_x100"]) and not math.isnan(figures["background_psnr_db"])


def test_without_weights(judges):
    figures = pie_figures(UPPER_HALF, *pictures(), Judges())
    assert figures.keys() == {"background_psnr_db", "background_mse_x10000", "background_ssim_x100"}
