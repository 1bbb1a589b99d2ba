"""COLMAP models: the camera models that are read, and photo names in other encodings."""

import cv2
import numpy as np
import pytest
from tiny_captures import expect_error, write_colmap, write_image

from tensorf.captures.colmap import model_poses, read_colmap
from tensorf.captures.colmap_files import _MODELS, _MOST_BYTES
from tensorf.captures.views import Lens
from tensorf.errors import UserError

# (name, number in COLMAP) -> parameters, and what they say of the lens
READ = {
    ("SIMPLE_PINHOLE", 0): ((10, 6, 4), (10, 10, 6, 4), (), False),
    ("PINHOLE", 1): ((10, 11, 6, 4), (10, 11, 6, 4), (), False),
    ("SIMPLE_RADIAL", 2): ((10, 6, 4, 0.1), (10, 10, 6, 4), (0.1, 0, 0, 0, 0), False),
    ("RADIAL", 3): ((10, 6, 4, 0.1, 0.2), (10, 10, 6, 4), (0.1, 0.2, 0, 0, 0), False),
    ("OPENCV", 4): ((10, 11, 6, 4, 0.1, 0.2, 0.03, 0.04), (10, 11, 6, 4), (0.1, 0.2, 0.03, 0.04, 0), False),
    ("OPENCV_FISHEYE", 5): ((10, 11, 6, 4, 0.1, 0.2, 0.03, 0.04), (10, 11, 6, 4), (0.1, 0.2, 0.03, 0.04), True),
    ("FULL_OPENCV", 6): (
        (10, 11, 6, 4, 0.1, 0.2, 0.03, 0.04, 0.05, 0.06, 0.07, 0.08),
        (10, 11, 6, 4),
        (0.1, 0.2, 0.03, 0.04, 0.05, 0.06, 0.07, 0.08),
        False,
    ),
    ("SIMPLE_RADIAL_FISHEYE", 8): ((10, 6, 4, 0.1), (10, 10, 6, 4), (0.1, 0, 0, 0), True),
    ("RADIAL_FISHEYE", 9): ((10, 6, 4, 0.1, 0.2), (10, 10, 6, 4), (0.1, 0.2, 0, 0), True),
    ("SIMPLE_FISHEYE", 14): ((10, 6, 4), (10, 10, 6, 4), (0, 0, 0, 0), True),
    ("FISHEYE", 15): ((10, 11, 6, 4), (10, 11, 6, 4), (0, 0, 0, 0), True),
}
REFUSED = {
    ("FOV", 7): 5,
    ("THIN_PRISM_FISHEYE", 10): 12,
    ("RAD_TAN_THIN_PRISM_FISHEYE", 11): 16,
    ("SIMPLE_DIVISION", 12): 4,
    ("DIVISION", 13): 5,
    ("EUCM", 16): 6,
}
models = pytest.mark.parametrize("model", READ, ids=lambda model: model[0])


def lens_of(root, suffix, model, parameters):
    write_colmap(root / "sparse" / "0", suffix, model=model, parameters=parameters)
    for i in range(3):
        write_image(root / "images" / f"view{i + 1}.png")
    return read_colmap(root, None).views[0].lens


@pytest.mark.parametrize("suffix", [".bin", ".txt"])
@models
def test_camera_models_that_are_read(tmp_path, suffix, model):
    parameters, focals_and_center, distortion, fisheye = READ[model]
    lens = lens_of(tmp_path, suffix, model, parameters)
    assert lens == Lens(*focals_and_center, 12, 8, distortion, fisheye)


@models
def test_lenses_see_what_colmap_sees(tmp_path, model):
    pycolmap = pytest.importorskip("pycolmap")
    parameters = READ[model][0]
    points = np.array([[0.3, -0.2, 1.0], [-0.5, 0.4, 1.0], [0.1, 0.6, 1.0]])
    expected = pycolmap.Camera(model=model[0], width=12, height=8, params=parameters).img_from_cam(points)
    lens = lens_of(tmp_path, ".bin", model, parameters)
    matrix = np.array([[lens.fx, 0, lens.cx], [0, lens.fy, lens.cy], [0, 0, 1]])
    project = cv2.fisheye.projectPoints if lens.fisheye else cv2.projectPoints
    seen, _ = project(points[:, None], np.zeros(3), np.zeros(3), matrix, np.array(lens.distortion, dtype=float))
    np.testing.assert_allclose(seen[:, 0], expected, atol=1e-9)


@pytest.mark.parametrize("suffix", [".bin", ".txt"])
@pytest.mark.parametrize("model", REFUSED, ids=lambda model: model[0])
def test_camera_models_that_are_refused_are_named(tmp_path, suffix, model):
    with pytest.raises(UserError, match=rf"cameras{suffix}: camera model {model[0]} is not read; run .*_undistorter"):
        lens_of(tmp_path, suffix, model, (0.1,) * REFUSED[model])


def test_panoramas_have_a_remedy_of_their_own(tmp_path):
    with pytest.raises(UserError, match="camera model EQUIRECTANGULAR is not read; cut perspective photos"):
        lens_of(tmp_path, ".bin", ("EQUIRECTANGULAR", 17), (12, 8))


def test_camera_models_of_later_versions_have_a_number(tmp_path):
    with pytest.raises(UserError, match="camera model number 99 is not read; run colmap image_undistorter"):
        lens_of(tmp_path, ".bin", ("LATER", 99), (10,) * 4)


def test_numbers_and_lengths_of_camera_models_are_pycolmaps():
    pycolmap = pytest.importorskip("pycolmap")
    for name, model in pycolmap.CameraModelId.__members__.items():
        if model.value in _MODELS:
            assert _MODELS[model.value] == (name, len(pycolmap.Camera.create_from_model_id(1, model, 9, 9, 9).params))


# --- names in other encodings, as of archives from Windows


def write_latin_names(root, suffix):
    """Names in Latin-1, which is no UTF-8. Returns what Python calls them."""
    write_colmap(root / "sparse" / "0", suffix, count=4)
    file = root / "sparse" / "0" / f"images{suffix}"
    file.write_bytes(file.read_bytes().replace(b"view", b"vi\xe9w"))
    return [f"vi\udce9w{i + 1}.png" for i in range(4)]


@pytest.mark.parametrize("suffix", [".bin", ".txt"])
def test_names_that_are_no_utf8_are_found(tmp_path, suffix, caplog):
    *there, missing = names = write_latin_names(tmp_path, suffix)
    try:
        for name in there:
            write_image(tmp_path / "images" / name)
    except OSError:
        pytest.skip("this file system takes no such names")
    assert [view.path for view in read_colmap(tmp_path, None).views] == [tmp_path / "images" / name for name in there]
    assert list(model_poses([tmp_path / "sparse" / "0"])) == names
    (line,) = caplog.messages
    assert "1 of 4 photos are missing" in line and missing in line


def test_names_that_are_no_utf8_can_be_told(tmp_path):
    write_latin_names(tmp_path, ".bin")
    expect_error(tmp_path, "images.bin: 0 of 4 listed photos exist (vi\udce9w1.png is the first that is missing)")


def test_files_of_ten_thousand_photos_are_read():
    """Each with 10,000 observations, of two doubles and a number of eight bytes."""
    assert _MOST_BYTES > 10_000 * (10_000 * 24 + 200)
