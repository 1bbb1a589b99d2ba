"""Masks of photos (transforms.json's `mask_path`, the folder `masks`): what they hide does not count."""

import json
import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from test_matching import photograph, poses
from tiny_captures import (
    edit_json,
    expect_error,
    frame,
    ring,
    row_of_cameras,
    write_colmap,
    write_image,
    write_llff,
    write_transforms,
)

from tensorf.captures import load_capture
from tensorf.captures.masks import masks_of
from tensorf.captures.matching import fit
from tensorf.captures.pictures import read_mask
from tensorf.captures.transforms import read_transforms
from tensorf.space import space_of
from tensorf.train import PixelBatches, _true_places


def write_mask(path, rows=slice(None), columns=slice(None), size=(12, 8), mode="L"):
    """White, and black in these rows and columns."""
    pixels = np.full(size[::-1], 255, np.uint8)
    pixels[rows, columns] = 0
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(pixels).convert(mode).save(path)


def with_masks(root, count=4, **options):
    """A capture whose photo 1 has a mask that hides its left half."""
    write_transforms(root, ring(count))
    write_mask(root / "masks" / "1.png", columns=slice(0, 6), **options)
    edit_json(root / "transforms.json", lambda table: table["frames"][1].update(mask_path="./masks/1.png"))
    return root


@pytest.mark.parametrize("mode", ["L", "1", "RGB"])
def test_a_mask_hides_what_is_black(tmp_path, mode):
    capture = load_capture(with_masks(tmp_path, mode=mode))
    assert capture.masks.shape == (4, 8, 12) and capture.masks.dtype == torch.bool
    assert not capture.mask(1)[:, :6].any() and capture.mask(1)[:, 6:].all()
    assert capture.masks[[0, 2, 3]].all()


def test_without_masks_all_counts(tmp_path):
    write_transforms(tmp_path, ring(4))
    capture = load_capture(tmp_path)
    assert capture.masks is None and capture.mask(1) is None


def test_a_mask_follows_its_photo_in_size_and_lens(tmp_path):
    write_transforms(tmp_path, ring(4), fl_x=60.0, w=48.0, h=32.0, k1=2.0, size=(48, 32))
    write_mask(tmp_path / "masks" / "0.png", columns=slice(0, 8), size=(96, 64))
    edit_json(tmp_path / "transforms.json", lambda table: table["frames"][0].update(mask_path="masks/0.png"))
    capture = load_capture(tmp_path, width=24)
    assert capture.masks.shape == (4, 16, 24)
    row = capture.mask(0)[8]
    # Column 8 of 96 lies at (8 - 48) / 120 = -0.333 in the lens; x (1 + 2 x^2) = -0.333 has the solution -0.287, which
    # is column 12 + 30 * -0.287 = 3.4 of the 24. As a photo without distortion it would be column 2.
    assert not row[:3].any() and row[4:].all()


def test_only_what_counts_is_drawn(tmp_path):
    capture = load_capture(with_masks(tmp_path), test_every=0)
    images = torch.where(capture.masks[..., None], capture.images, torch.tensor(255, dtype=torch.uint8))
    batches = PixelBatches(replace(capture, images=images), capture.train, space_of(capture), torch.device("cpu"))
    rays, colors, photos = batches.draw(4000, torch.Generator().manual_seed(0))
    assert (colors < 0.5).all()  # what is hidden is white here
    share = (photos == 1).float().mean().item()
    assert share == pytest.approx(0.5 / 3.5, abs=0.02)
    # Colours and rays are of the same pixels: the rays of photo 1 all pass through its right half.
    local = torch.einsum("nji,nj->ni", batches.poses[photos, :, :3], rays.directions)
    u = local[:, 0] / local[:, 2] * capture.cameras[0].fx + capture.cameras[0].cx
    assert u[photos == 1].min() > 6 and u[photos != 1].min() < 1


def test_features_are_not_taken_from_what_is_hidden(tmp_path):
    rows = poses(4)
    frames = []
    for i, pose in enumerate(rows):
        path = tmp_path / "images" / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(photograph(pose)).save(path)
        write_mask(tmp_path / "masks" / f"{i}.png", rows=slice(0, 150), size=(320, 240))
        frames.append(frame(f"images/{i}.png", pose, mask_path=f"masks/{i}.png"))
    (tmp_path / "transforms.json").write_text(json.dumps({"fl_x": 300.0, "w": 320, "h": 240, "frames": frames}))
    views = read_transforms(tmp_path).views
    found, all_found = fit(views), fit([replace(view, mask=None) for view in views])
    assert 50 < len(found.points) < len(all_found.points)
    for view in views[:1]:
        local = (found.points - view.pose[:, 3]) @ view.pose[:, :3]
        v = 300 * local[:, 1] / local[:, 2] + 120
        assert np.quantile(v, 0.05) > 120  # neighbours see a point of the lower part at about the same height
    assert np.quantile(300 * ((all_found.points - rows[0][:, 3]) @ rows[0][:, :3])[:, 1] / 6 + 120, 0.3) < 120


def test_missing_masks_are_counted_once(tmp_path, caplog):
    with_masks(tmp_path)
    edit_json(tmp_path / "transforms.json", lambda table: table["frames"][2].update(mask_path="masks/2.png"))
    capture = load_capture(tmp_path)
    assert [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING] == [
        f"{tmp_path / 'transforms.json'}: 1 of 2 masks are missing, the first is {tmp_path / 'masks/2.png'}: their "
        "photos are trained on as a whole"
    ]
    assert not capture.mask(1).all() and capture.mask(2).all()


def test_masks_that_cannot_be_meant(tmp_path):
    with_masks(tmp_path)
    write_mask(tmp_path / "masks" / "1.png")
    expect_error(tmp_path, "masks/1.png", "hides all of its photo")
    write_mask(tmp_path / "masks" / "1.png", columns=slice(4), size=(12, 12))
    expect_error(tmp_path, "masks/1.png is 12x12", "another aspect")
    (tmp_path / "masks" / "1.png").write_bytes(b"no picture")
    expect_error(tmp_path, "masks/1.png", "cannot be read")
    edit_json(tmp_path / "transforms.json", lambda table: table["frames"][1].update(mask_path=3))
    expect_error(tmp_path, "transforms.json", "mask_path", "3")


def test_masks_lie_in_the_captures_folder(tmp_path):
    root = tmp_path / "capture"
    root.mkdir()
    with_masks(root)
    write_image(tmp_path / "other.png", colour=(255, 255, 255))
    edit_json(root / "transforms.json", lambda table: table["frames"][1].update(mask_path="../other.png"))
    expect_error(root, "other.png", "outside")
    assert load_capture(root, outside=True).mask(1).all()


# --- the folder `masks`


def as_llff(root):
    write_llff(root, row_of_cameras())
    return "image1"


def as_colmap(root):
    write_colmap(root / "sparse" / "0", ".bin", count=4)
    for i in range(4):
        write_image(root / "images" / f"view{i + 1}.png")
    return "view1"


@pytest.mark.parametrize("name", ["{}.png.png", "{}.png", "{}.JPG"])
@pytest.mark.parametrize("write", [as_llff, as_colmap], ids=lambda f: f.__name__)
def test_masks_in_a_folder_are_found_by_the_photos_names(tmp_path, caplog, write, name):
    caplog.set_level(logging.INFO)
    photo = write(tmp_path)
    write_mask(tmp_path / "masks" / name.format(photo), rows=slice(0, 4))
    capture = load_capture(tmp_path)
    i = capture.image_names.index(f"{photo}.png")
    assert not capture.mask(i)[:4].any() and capture.mask(i)[4:].all()
    assert capture.masks[[k for k in range(4) if k != i]].all()
    assert "1 of 4 photos have a mask" in caplog.text


def test_a_mask_named_as_colmap_does_goes_first(tmp_path):
    photo = as_llff(tmp_path)
    write_mask(tmp_path / "masks" / f"{photo}.png")
    write_mask(tmp_path / "masks" / f"{photo}.png.png", rows=slice(0, 4))
    capture = load_capture(tmp_path)
    assert not capture.mask(capture.image_names.index(f"{photo}.png"))[:4].any()


def test_photos_in_subfolders_have_their_masks_in_subfolders(tmp_path):
    (tmp_path / "masks" / "left").mkdir(parents=True)
    write_mask(tmp_path / "masks" / "left" / "a.png")
    found = masks_of(tmp_path, ["left/a.jpg", "right/a.jpg"])
    assert found == [tmp_path / "masks" / "left" / "a.png", None]


def test_a_folder_of_masks_of_other_names_is_told(tmp_path, caplog):
    as_llff(tmp_path)
    write_mask(tmp_path / "masks" / "other.png")
    assert load_capture(tmp_path).masks is None
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1 and "masks is not used" in warnings[0] and "image1.png.png" in warnings[0]


def test_transforms_json_names_its_masks_itself(tmp_path, caplog):
    write_transforms(tmp_path, ring(4))
    write_mask(tmp_path / "masks" / "1.png", rows=slice(0, 4))
    assert load_capture(tmp_path).masks is None
    assert "masks is not used: no frame of transforms.json names its mask" in caplog.text


def test_more_pixels_than_32_bits_count():
    masks = torch.zeros(1, 1 << 16, 1 << 8, dtype=torch.bool)
    masks[0, 3, 5] = True
    many = masks.expand(200, -1, -1)  # 3.4e9 pixels, in the memory of one photo
    places = _true_places(many)
    assert places.tolist() == [i * (1 << 24) + 3 * 256 + 5 for i in range(200)]
    assert _true_places(masks.expand(2, -1, -1)).dtype == torch.int32


def test_masks_that_are_links_to_elsewhere_are_refused(tmp_path):
    photo = as_colmap(tmp_path / "capture")
    write_mask(tmp_path / "other" / "mask.png", rows=slice(0, 4))
    (tmp_path / "capture" / "masks").mkdir()
    (tmp_path / "capture" / "masks" / f"{photo}.png").symlink_to(tmp_path / "other" / "mask.png")
    expect_error(tmp_path / "capture", f"masks/{photo}.png", "leads out of")
    assert load_capture(tmp_path / "capture", outside=True).masks is not None


@pytest.mark.parametrize("kind", ["0 and 1", "numbers", "palette", "16 bits"])
def test_masks_that_are_not_black_and_white(tmp_path, kind):
    root = with_masks(tmp_path)
    pixels = np.zeros((8, 12), np.uint8)
    pixels[:, 6:] = 1
    if kind == "numbers":
        pixels[:4, 6:] = 7
    mask = Image.fromarray(pixels)
    if kind == "palette":  # as DAVIS's and video segmenters': objects have dark colours
        mask.putpalette([0, 0, 0, 128, 0, 0])
    if kind == "16 bits":
        mask = Image.fromarray(pixels.astype(np.uint16) * 65535)
    mask.save(root / "masks" / "1.png")
    capture = load_capture(root)
    assert not capture.mask(1)[:, :6].any() and capture.mask(1)[:, 6:].all()


def test_a_bright_mask_is_cut_at_its_middle_and_noise_is_black(tmp_path):
    grey = np.tile(np.linspace(0, 255, 12, dtype=np.uint8), (8, 1))
    Image.fromarray(grey).save(tmp_path / "soft.png")
    assert read_mask(tmp_path / "soft.png", upright=False)[0].tolist() == grey[0].tolist()
    Image.fromarray(np.full((8, 12), 3, np.uint8)).save(tmp_path / "noise.jpg", quality=95)
    assert read_mask(tmp_path / "noise.jpg", upright=False).max() < 10
    Image.fromarray(np.full((8, 12, 3), (200, 0, 0), np.uint8)).save(tmp_path / "red.png")
    assert (read_mask(tmp_path / "red.png", upright=False) == 255).all()
