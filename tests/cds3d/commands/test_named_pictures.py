"""Pictures named as photos: which shapes are taken for those of their photos."""

from types import SimpleNamespace

import pytest
from PIL import Image

from cds3d.commands.named_pictures import photo_index, read_as_mask, read_as_photo
from tensorf.errors import UserError


@pytest.mark.parametrize("width", [16, 17, 20, 23, 252])
def test_a_mask_of_its_photos_shape_is_taken_at_every_editing_size(tmp_path, width):
    Image.new("L", (1500, 1000)).save(tmp_path / "a.png")
    height = round(width * 2 / 3)  # a whole number: 20x13 is not exactly 3:2
    assert read_as_mask(tmp_path / "a.png", width, height, "mask=").size == (1500, 1000)


@pytest.mark.parametrize("read", [read_as_mask, lambda *a: read_as_photo(*a, white=True)])
def test_another_shape_is_refused(tmp_path, read):
    Image.new("L", (1400, 1000)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match="a.png is 1400x1000.*252x168"):
        read(tmp_path / "a.png", 252, 168, "mask=")


@pytest.mark.parametrize("name", ["Blu\u0308te.png", "Bl\u00fcte.jpg"])
@pytest.mark.parametrize("photo", ["Blu\u0308te.jpg", "Bl\u00fcte.jpg"])
def test_a_letter_may_be_one_sign_or_two(name, photo):
    """Programs on a Mac write "ü" in another way than others."""
    capture = SimpleNamespace(image_names=["other.jpg", photo], train=[0, 1])
    assert photo_index(capture, name) == 1
