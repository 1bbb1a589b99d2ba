"""The picture that --image names, as `read_image` hands it to an edit."""

import numpy as np
import pytest
import torch
from checks import fails, files
from diffusers import AutoencoderKL
from PIL import Image

from cds3d.cli import run_command
from cds3d.commands.images import configured_image, read_image
from cds3d.options import load_config

GREY16 = np.linspace(0, 65535, 24 * 32).round().astype(np.uint16).reshape(24, 32)


def test_sixteen_bit_grey_keeps_its_shades(tmp_path):
    Image.fromarray(GREY16).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    assert image.shape == (3, 24, 32) and image.dtype == torch.float32
    truth = torch.from_numpy(GREY16 / 65535).float().expand(3, 24, 32)
    torch.testing.assert_close(image, truth, atol=0.51 / 255, rtol=0)


def test_a_picture_is_turned_upright(tmp_path):
    stored = Image.new("RGB", (32, 24), "red")
    stored.paste("blue", (16, 0, 32, 24))
    exif = Image.Exif()
    exif[274] = 6  # row 0 is on the right: turn clockwise
    stored.save(tmp_path / "a.png", exif=exif)
    image = read_image(tmp_path / "a.png")
    assert image.shape == (3, 32, 24)
    assert image[:, :16].flatten(1).unique(dim=1).flatten().tolist() == [1, 0, 0]
    assert image[:, 16:].flatten(1).unique(dim=1).flatten().tolist() == [0, 0, 1]
    assert read_image(tmp_path / "a.png", 16).shape == (3, 21, 16)  # 16x12, but 16 at least


def test_transparency_is_white(tmp_path):
    Image.new("RGBA", (32, 24), (255, 0, 0, 0)).save(tmp_path / "a.png")
    assert (read_image(tmp_path / "a.png") == 1).all()


@pytest.mark.parametrize("value", [2.0, float("nan")])
def test_floats_of_another_range_are_told_in_one_line(tmp_path, capsys, image_options, value):
    path = tmp_path / "a flower.tif"
    Image.fromarray(np.full((24, 32), value, np.float32)).save(path)
    options = [o.replace("a flower.png", "a flower.tif") for o in image_options]
    text = fails(capsys, "edit", *options)
    assert f"--image {path} cannot be read as an image (float samples of" in text and "8-bit PNG" in text
    assert not any(name.startswith("outputs") for name in files(tmp_path))


def test_pictures_of_the_world_need_no_other_prior(tmp_path, image_file, caplog):
    for place in ("world.json", "images/world.json"):
        folder = (tmp_path / place).parent
        folder.mkdir(exist_ok=True)
        config = load_config("edit", [])
        config.image = str(folder / "a.png")
        Image.open(image_file).save(config.image)
        caplog.clear()
        configured_image(config)
        assert "photographs need" in caplog.text
    (tmp_path / "world.json").write_text("{}")
    caplog.clear()
    configured_image(config)
    assert "photographs need" not in caplog.text


@pytest.mark.parametrize("option", ["scene=mug", "field=cp", "zoom=9", "carve.grow=0.7", "refit.iterations=4"])
def test_options_of_scenes_are_refused(tmp_path, capsys, image_options, option):
    text = fails(capsys, "edit", *image_options, option)
    assert f"{option.split('=')[0].split('.')[0]}= is for scenes, not for --image" in text


def test_a_picture_that_was_replaced_is_not_edited_on(tmp_path, capsys, image_file, image_options):
    assert run_command("edit", [*image_options, "output=run"]) == 0
    assert run_command("edit", [*image_options, "output=run", "resume=true", "edit.iterations=3"]) == 0
    Image.new("RGB", (23, 17), "red").save(image_file)
    text = fails(capsys, "edit", *image_options, "output=run", "resume=true", "edit.iterations=4")
    assert "run was begun from another picture, which has been replaced since" in text


def test_prompts_that_are_cut_are_told(tmp_path, image_options, caplog):
    long = " ".join(["very"] * 90)
    given = [f"{o} {long} much" if o == "a red flower" else o for o in image_options]
    assert run_command("edit", [*given, "output=run"]) == 0
    assert 'the text encoder has no room for the end of "a red flower very' in caplog.text
    assert 'very much" is left out' in caplog.text
    caplog.clear()
    assert run_command("edit", [*image_options, "output=other"]) == 0
    assert "has no room" not in caplog.text


def test_prompts_that_differ_only_in_what_is_cut_are_refused(capsys, image_options):
    long = " ".join(["very"] * 90)
    given = [f"{long} {o}" if o.endswith("flower") else o for o in image_options]
    assert "the same for the text encoder, which reads the beginning" in fails(capsys, "edit", *given)


@pytest.mark.parametrize(
    ("size", "longest", "expected"),
    [
        ((320, 200), 128, (128, 80)),
        ((200, 320), 128, (80, 128)),
        ((64, 40), 128, (128, 80)),
        ((64, 40), None, (64, 40)),
    ],
)
def test_the_longer_side_is_the_models(tmp_path, caplog, size, longest, expected):
    Image.new("RGB", size, "red").save(tmp_path / "a.png")
    caplog.set_level("INFO", "cds3d")
    assert read_image(tmp_path / "a.png", longest).shape == (3, *expected[::-1])
    assert ("a.png is 64x40: enlarged to 128x80" in caplog.text) == (expected[0] > size[0])


def test_a_decoder_that_overflows_is_told(tmp_path, capsys, image_options, monkeypatch):
    decode = AutoencoderKL.decode

    def overflowing(self, *asked, **options):
        made = decode(self, *asked, **options)
        made.sample[..., 0] = float("nan")
        return made

    with monkeypatch.context() as patch:
        patch.setattr("cds3d.guidance.loading._try", lambda *_: None)
        patch.setattr(AutoencoderKL, "decode", overflowing)
        text = fails(capsys, "edit", *image_options, "output=run")
    assert "decoder gives numbers that are not finite in float32: its weights are damaged" in text
    assert "edited.png" not in files(tmp_path / "run")
    assert run_command("edit", [*image_options, "output=run", "resume=true"]) == 0  # the state is kept


def test_a_model_without_its_preset_is_told(image_options, caplog, monkeypatch):
    monkeypatch.setattr("cds3d.guidance.prior.SMALL", 10)
    assert run_command("edit", [*image_options, "output=run"]) == 0
    assert "is used with the settings of guidance=pocket, as its scale of 4" in caplog.text
    caplog.clear()
    options = [o for o in image_options if "image_width" not in o]
    assert run_command("edit", [*options, "output=other", "guidance=sd15", "guidance.image_width=128"]) == 0
    assert "settings of guidance=pocket" not in caplog.text and "was trained on pictures of" not in caplog.text
    assert run_command("edit", [*options, "output=third", "guidance=sd15", "guidance.image_width=320"]) == 0
    assert "guidance.image_width=320: " in caplog.text and "was trained on pictures of 128 pixels" in caplog.text


def test_a_long_strip_keeps_its_shape(tmp_path):
    Image.new("RGB", (300, 16)).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png", 64).shape == (3, 16, 300)  # 64x3 would be too low
    assert read_image(tmp_path / "a.png", 600).shape == (3, 32, 600)
