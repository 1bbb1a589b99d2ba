"""Names of photos in Unicode's two forms: a pose file has one, and the photos, unpacked elsewhere, the other."""

import unicodedata

import pytest
from PIL import Image
from tiny_captures import edit_json, ring, write_colmap, write_image, write_transforms

from tensorf.captures import load_capture
from tensorf.captures.images import find_by_stem, find_file
from tensorf.captures.transforms import read_transforms

FORMS = [("NFC", "NFD"), ("NFD", "NFC")]


def spelled(form, name="Blüte.png"):
    return unicodedata.normalize(form, name)


@pytest.mark.parametrize(("on_disk", "asked"), FORMS)
def test_a_file_is_found_in_the_other_form(tmp_path, on_disk, asked):
    (tmp_path / spelled(on_disk)).touch()
    assert find_file(tmp_path, spelled(asked)) == tmp_path / spelled(on_disk)
    assert find_by_stem(tmp_path, spelled(asked, "Blüte")) == tmp_path / spelled(on_disk)
    assert find_file(tmp_path, "Blute.png") is None
    (tmp_path / spelled(asked)).touch()  # both are there, as only some systems allow
    assert find_file(tmp_path, spelled(asked)) == tmp_path / spelled(asked)


@pytest.mark.parametrize(("on_disk", "asked"), FORMS)
def test_transforms_in_the_other_form(tmp_path, on_disk, asked):
    write_transforms(tmp_path, ring(4))
    photo = spelled(on_disk, "Blüte.jpg")
    (tmp_path / "images" / "0.png").rename(tmp_path / "images" / photo)
    write_image(tmp_path / "images" / spelled(on_disk), (12, 8), (9, 9, 9))  # another one, whose suffix comes first
    (tmp_path / "masks").mkdir()
    Image.new("L", (12, 8), 255).save(tmp_path / "masks" / spelled(on_disk))

    def change(table):
        table["frames"][0] |= {
            "file_path": f"images/{spelled(asked, 'Blüte.jpg')}",
            "mask_path": f"masks/{spelled(asked)}",
        }

    edit_json(tmp_path / "transforms.json", change)
    views = read_transforms(tmp_path).views
    assert len(views) == 4
    assert [(view.path.name, view.mask.name) for view in views if view.mask] == [(photo, spelled(on_disk))]


@pytest.mark.parametrize(("on_disk", "asked"), FORMS)
def test_absolute_names_and_smaller_copies_in_the_other_form(tmp_path, on_disk, asked):
    write_transforms(tmp_path, ring(4))
    (tmp_path / "images" / "0.png").rename(tmp_path / "images" / spelled(on_disk))
    for name in (spelled(asked), "1.png", "2.png", "3.png"):  # made by another program
        write_image(tmp_path / "images_2" / name, (6, 4), (80, 80, 80))

    def change(table):
        table["frames"][0]["file_path"] = f"/Users/somebody/scan/images/{spelled(asked)}"

    edit_json(tmp_path / "transforms.json", change)
    capture = load_capture(tmp_path, width=6, check=False)
    assert capture.image_names[-1].startswith("images/Bl") and capture.images.shape[:3] == (4, 4, 6)
    assert (capture.images == 80).all()  # not the large ones


@pytest.mark.parametrize(("on_disk", "asked"), FORMS)
def test_a_colmap_model_in_the_other_form(tmp_path, on_disk, asked):
    write_colmap(tmp_path / "sparse" / "0", ".txt", count=4)
    names = ["view2.png", "view3.png", "view4.png", spelled(on_disk)]
    for folder, size in (("images", (24, 16)), ("images_2", (12, 8))):
        for name in names[: 4 if folder == "images" else 3]:  # the smaller copies are not complete
            write_image(tmp_path / folder / name, size, (9, 9, 9))
    (tmp_path / "masks").mkdir()
    mask = Image.new("L", (12, 8), 255)
    mask.paste(0, (0, 0, 12, 4))
    mask.save(tmp_path / "masks" / f"{spelled(on_disk)}.png")
    listed = tmp_path / "sparse" / "0" / "images.txt"
    listed.write_text(listed.read_text().replace("view1.png", spelled(asked)), encoding="utf-8")
    capture = load_capture(tmp_path, width=12, check=False)
    assert len(capture.cameras) == 4 and capture.images.shape[1:3] == (8, 12)
    hidden = [name for i, name in enumerate(capture.image_names) if not capture.mask(i).all()]
    assert hidden == [spelled(asked)]
