"""Captures in NSVF's layout, held to values worked out by hand."""

import numpy as np
import pytest
import torch
from PIL import Image

from tensorf.captures import load_capture
from tensorf.captures.nsvf import is_nsvf, read_nsvf
from tensorf.captures.sources import find_source
from tensorf.errors import UserError

FIRST_LINE = "100. 8. 6. 0.\n0. 0. 0.\n0.\n1.\n12 16\n"  # NSVF's own
MATRIX = "100 0 9 0\n0 90 5 0\n0 0 1 0\n0 0 0 1\n"  # of Tanks and Temples


def write(folder, names, intrinsics=FIRST_LINE):
    for part in ("pose", "rgb"):
        (folder / part).mkdir(parents=True)
    for i, name in enumerate(names):
        pose = np.eye(4)
        pose[:3, 3] = 0.5 * i, 1, 2
        np.savetxt(folder / "pose" / f"{name}.txt", pose)
        Image.new("RGB", (16, 12)).save(folder / "rgb" / f"{name}.png")
    (folder / "intrinsics.txt").write_text(intrinsics)
    return folder


@pytest.mark.parametrize("text, lens", [(FIRST_LINE, (100, 100, 8, 6)), (MATRIX, (100, 90, 9, 5))])
def test_poses_are_taken_as_they_are_and_both_kinds_of_intrinsics(text, lens, tmp_path):
    listing = read_nsvf(write(tmp_path, ["0_a", "0_b", "0_c"], text))
    assert is_nsvf(tmp_path) and find_source(tmp_path, 60) is None
    assert [view.name for view in listing.views] == ["0_a.png", "0_b.png", "0_c.png"]
    view = listing.views[2]
    torch.testing.assert_close(
        torch.from_numpy(view.pose), torch.tensor([[1, 0, 0, 1.0], [0, 1, 0, 1], [0, 0, 1, 2]]).double()
    )
    assert (view.lens.fx, view.lens.fy, view.lens.cx, view.lens.cy, view.lens.size) == (*lens, (16, 12))


@pytest.mark.parametrize(
    "text, lens, size",
    [
        ("100. 8. 6. 0.\n0. 0. 0.\n0.\n1.\n24 32\n\n", (50, 50, 4, 3), (32, 24)),
        ("100. 8. 6. 0.\n24 32", (50, 50, 4, 3), (32, 24)),
        ("100. 8. 6. 0.\n0. 0. 0.\n0.\n1.\n", (100, 100, 8, 6), (16, 12)),  # without a size
        ("100. 8. 6. 0.", (100, 100, 8, 6), (16, 12)),
    ],
)
def test_intrinsics_are_for_the_size_in_their_last_line(text, lens, size, tmp_path):
    """Height and width; the photos are 16x12."""
    folder = write(tmp_path, ["0_a", "0_b", "0_c"], text)
    assert read_nsvf(folder).views[0].lens.size == size
    camera = load_capture(folder).cameras[0]
    assert (camera.fx, camera.fy, camera.cx, camera.cy, camera.width, camera.height) == (*lens, 16, 12)


@pytest.mark.parametrize(
    "names, held_out",
    [
        (["0_00", "0_01", "1_00", "2_00", "2_01"], {"0_00": False, "0_01": False, "2_00": True, "2_01": True}),
        (["0_00", "0_01", "1_00"], {"0_00": False, "0_01": False, "1_00": True}),
    ],
)
def test_names_tell_the_split(names, held_out, tmp_path):
    listing = read_nsvf(write(tmp_path, names))
    assert {view.path.stem: view.held_out for view in listing.views} == held_out


def test_what_is_wrong_is_told(tmp_path):
    folder = write(tmp_path / "a", ["0_a", "0_b", "0_c", "0_d"])
    (folder / "rgb" / "0_b.png").unlink()
    assert len(read_nsvf(folder).views) == 3  # with a warning
    (folder / "pose" / "0_c.txt").write_text("1 2 3")
    with pytest.raises(UserError, match="0_c.txt has to hold a 4x4 matrix"):
        read_nsvf(folder)
    (folder / "intrinsics.txt").write_text("wide\n")
    with pytest.raises(UserError, match="intrinsics.txt has to hold a matrix, or a focal length"):
        read_nsvf(folder)
    (folder / "intrinsics.txt").write_text("100. 8. 6. 0.\n12 wide\n")
    with pytest.raises(UserError, match="intrinsics.txt has to hold .* at its end height and width"):
        read_nsvf(folder)
    (folder / "intrinsics.txt").write_text("100. 8. 6. 0.\n0 16\n")
    with pytest.raises(UserError, match="0_a are unusable .*image 16x0"):
        read_nsvf(folder)


@pytest.mark.parametrize("name", ["intrinsics.txt", "pose/0_c.txt"])
@pytest.mark.parametrize("content", [b"\xff\xfe1 0", b"1 " * 2**20])
def test_files_that_are_no_texts_of_numbers(name, content, tmp_path):
    folder = write(tmp_path / "a", ["0_a", "0_b", "0_c", "0_d"])
    (folder / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{name.rpartition('/')[2]} cannot be read"):
        read_nsvf(folder)
