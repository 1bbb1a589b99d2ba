"""The edit of a small copy, pasted into the whole picture."""

import numpy as np
import pytest
import torch
from PIL import Image

from cds3d.cli import run_command
from cds3d.commands.images import pasted


def test_only_what_changed_is_pasted():
    generator = torch.Generator().manual_seed(0)
    whole = torch.rand(96, 128, 3, generator=generator)
    before = torch.nn.functional.avg_pool2d(whole.permute(2, 0, 1)[None], 2)[0].permute(1, 2, 0)
    after = before + 0.01 * torch.randn(before.shape, generator=generator)  # of the decoder, everywhere
    after[10:30, 20:50] = torch.tensor([1.0, 0.0, 0.0])
    result = pasted(whole, before, after)
    assert torch.equal(result[70:], whole[70:]) and torch.equal(result[:, 110:], whole[:, 110:])
    torch.testing.assert_close(result[30:50, 50:90], torch.tensor([1.0, 0, 0]).expand(20, 40, 3))


def test_the_whole_picture_is_written(tmp_path, image_options, image_file):
    wide = np.random.default_rng(0).integers(0, 255, (70, 90, 3), dtype=np.uint8)
    Image.fromarray(wide).save(image_file)
    options = [*image_options, "guidance.image_width=40", "paste=true", "output=edit"]
    assert run_command("edit", options) == 0
    assert Image.open(tmp_path / "edit" / "edited_full.png").size == (90, 70)
    assert Image.open(tmp_path / "edit" / "edited.png").size[0] < 90
    assert run_command("edit", [*image_options, "output=plain"]) == 0
    assert not (tmp_path / "plain" / "edited_full.png").exists()


@pytest.mark.parametrize("value, told", [("maybe", "true or false"), ("true", "is for --image")])
def test_it_is_for_images(edit_options, value, told, capsys):
    assert run_command("edit", [*edit_options, f"paste={value}"]) == 1
    assert told in capsys.readouterr().err
