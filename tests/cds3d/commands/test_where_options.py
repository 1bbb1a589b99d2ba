"""`--where`, `mask=`, `box=`, `ball=`, `at=` and `region=`: what they do to an edit, and what is wrong with them."""

import json
import logging
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from cds3d.cli import configured, run_command
from cds3d.commands import edit as edit_module
from cds3d.commands import regions as regions_module
from cds3d.commands.named_pictures import by_photo, photo_index, picture_files
from cds3d.commands.preparing import check_prompts, output_folder
from tensorf.errors import UserError
from tensorf.local import LocalField
from tensorf.renderable import load_field


@pytest.fixture()
def masks(tmp_path):
    """White on the left, for two of the photos."""
    folder = tmp_path / "masks"
    folder.mkdir()
    picture = np.zeros((48, 64), np.uint8)
    picture[:, :32] = 255
    for name in ("view001", "view002"):
        Image.fromarray(picture).save(folder / f"{name}.png")
    return folder


def edited(tmp_path, edit_options, *options):
    assert run_command("edit", [*edit_options, "output=edit", "video_frames=0", *options]) == 0
    field = load_field(tmp_path / "edit" / "field.safetensors")
    assert json.loads((tmp_path / "edit" / "metrics.json").read_text())["iterations"] == 2
    return field


BOX = "box=-9,-9,0,0,9,99"
BALL = "ball=0.2,0,1.15,0.12"


@pytest.mark.parametrize(
    "options",
    [
        [BOX],
        [BOX, "region=both"],
        ["ball=0.2,0,1.15,0.3"],
        ["at=0.4,0.5,view001", "radius=0.5"],
        ["at=0.4,0.5,1"],
        ["--where", "the flower", "edit.region.mask_threshold=0.05", "carve.agreement=0.01"],
        [BOX, "zoom=0"],
        [BOX, "edit=shape", "edit.width=48", "edit.iterations=2"],
        [BOX, "edit=shape", "edit.width=48", "edit.iterations=2", "region=both", "edit.volume.agreement=0.01",
         "edit.region.mask_threshold=0.01"],
    ],
)  # fmt: skip
def test_an_edit_stays_where_it_is_told(options, tmp_path, edit_options, trained):
    field = edited(tmp_path, edit_options, *options)
    assert isinstance(field, LocalField) and field.region.any() and not field.region.all()
    x = torch.rand(2000, 3) * 2 - 1
    outside = ~field.inside(x)
    before = load_field(trained / "field.safetensors")
    torch.testing.assert_close(field.density(x)[outside], before.density(x)[outside])
    assert not all(torch.equal(a, b) for a, b in zip(field.target.parameters(), field.source.parameters()))


def test_words_that_pocket_does_not_know_are_told(caplog):
    check_prompts(configured("edit", ["--tgt", "a red flower", "--where", "the zeppelin"]))
    assert 'does not know "zeppelin":' in caplog.text
    caplog.clear()
    check_prompts(configured("edit", ["--tgt", "a red flower", "--where", "the yellow flower"]))
    assert "does not know" not in caplog.text


@pytest.mark.parametrize("region, find", [("given", False), ("both", True)])
def test_the_options_reach_an_edit_of_pictures(region, find, edit_options, trained, monkeypatch):
    made, build = [], edit_module.PictureEdit
    monkeypatch.setattr(edit_module, "PictureEdit", lambda *a: made.append(build(*a)) or made[-1])
    tiny = ["edit=pictures", "edit.width=48", "edit.iterations=1", "edit.fit.iterations=2", "edit.fit.agreement=0.01"]
    tiny += ["edit.region.mask_threshold=0.01", "video_frames=0", "output=edit"]
    assert run_command("edit", [*edit_options, *tiny, BOX, f"region={region}"]) == 0
    (edit,) = made
    assert edit.find is find and edit.given.any() and not edit.given.all()
    assert not (edit.target.region & ~edit.given).any()


def test_masks_are_carved_into_space(tmp_path, edit_options, trained, masks):
    field = edited(tmp_path, edit_options, f"mask={masks}")
    share = field.region[:, :, : field.region.shape[2] // 2].sum() / field.region.sum()
    assert share > 0.8  # the left of the pictures


def test_an_edit_is_not_resumed_with_other_masks(edit_options, trained, masks, capsys):
    given = [*edit_options, f"mask={masks}", "output=edit", "video_frames=0", "save_every=1"]
    assert run_command("edit", given) == 0
    more = [*(o for o in given if not o.startswith("edit.iterations")), "edit.iterations=3", "resume=true"]
    assert run_command("edit", more) == 0
    for file in masks.iterdir():
        picture = np.asarray(Image.open(file))
        Image.fromarray(picture[:, ::-1].copy()).save(file)
    assert run_command("edit", [*more[:-2], "edit.iterations=4", "resume=true"]) == 1
    assert "was begun with other masks" in capsys.readouterr().err


def test_gradients_alone_decide_if_asked(tmp_path, edit_options, trained):
    assert not isinstance(edited(tmp_path, edit_options, BOX, "region=auto"), LocalField)


@pytest.mark.parametrize("region, find", [("given", False), ("both", True), ("auto", True)])
def test_the_options_reach_the_subject(region, find, edit_options, trained, monkeypatch):
    made = []
    build = edit_module.FieldViews
    monkeypatch.setattr(edit_module, "FieldViews", lambda *a, **k: made.append((a, k)) or build(*a, **k))
    for zoom in (1.2, 1.8):
        options = [BALL, f"region={region}", f"zoom={zoom}", f"output=edit{zoom}", "video_frames=0"]
        assert run_command("edit", [*edit_options, *options]) == 0
    assert all(k["find"] is find and (k["given"] is None) == (region == "auto") for _, k in made)
    less, more = (a[1][0].fx for a, _ in made)
    assert less / more == pytest.approx(1.0 if region == "auto" else 1.8 / 1.2, rel=1e-3)


def test_only_the_masks_of_words_have_strays(edit_options, trained, masks, monkeypatch):
    asked = []
    carve = regions_module.edited_volume
    monkeypatch.setattr(
        regions_module, "edited_volume", lambda *a, **k: asked.append(k["one_subject"]) or carve(*a, **k)
    )
    words = ["--where", "the flower", "edit.region.mask_threshold=0.05", "carve.agreement=0.01"]
    for i, options in enumerate(([f"mask={masks}"], words)):
        assert run_command("edit", [*edit_options, *options, f"output=edit{i}", "video_frames=0"]) == 0
    assert asked == [False, True]


def test_views_are_cropped_around_the_region(tmp_path, edit_options, trained, caplog):
    caplog.set_level(logging.INFO, "cds3d")
    edited(tmp_path, edit_options, "ball=0.2,0,1.15,0.3")
    assert "cropped around it (zoom=1.6)" in caplog.text


@pytest.mark.parametrize(
    "options, told",
    [
        (["box=1,2,3"], "box=1,2,3 has to be six numbers"),
        (["box=0,0,0,1,1,nan"], "six numbers"),
        (["box=0,0,0,1,-1,1"], "no room"),
        (
            ["box=500,500,500,501,501,501"],
            "box=500,500,500,501,501,501 has nothing of the scene in it: the scene lies between",
        ),
        (["ball=0,0,2"], "ball=x,y,z,radius"),
        (["ball=0,0,2,0"], "above 0"),
        (["at=0.5,0.5"], "u,v,view"),
        (["at=1.5,0.5,1"], "go from 0"),
        (["at=0.5,0.5,photo7"], "no photo photo7; give a name, such as view000"),
        (["at=0.5,0.5,6"], "0 to 5"),
        (["at=0.5,0.5,1", "radius=0"], "radius=0"),
        (
            ["at=0.4,0.5,view001", "radius=1e-6"],
            "the ball is too small, no cell of the scene lies in it: give a larger radius=",
        ),
        (["edit.region.cell=inf"], "edit.region.cell=inf has to be 0 or more"),
        (["radius=1"], "at=u,v,view"),
        (["region=given"], "which say where"),
        (["region=some"], "region=some is unknown"),
        ([BOX, "ball=0,0,2,1"], "give one of"),
        ([BOX, "zoom=-1"], "zoom"),
        ([BOX, "carve.agreement=2"], "carve.agreement"),
        (["mask=nowhere"], "mask=nowhere: no such folder"),
        (["--where", " "], "--where is empty"),
        (["--where", "the flower", "edit=published", "edit.width=48"], "edit.region.mask_threshold"),
    ],
)
def test_what_is_wrong_is_one_line(options, told, tmp_path, edit_options, trained, capsys):
    assert run_command("edit", [*edit_options, "output=edit", *options]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and told in error
    assert not (tmp_path / "edit").exists()


def test_wrong_masks_are_named(tmp_path, edit_options, trained, masks, capsys):
    def told():
        assert run_command("edit", [*edit_options, "output=edit", f"mask={masks}"]) == 1
        assert not (tmp_path / "edit").exists()
        return capsys.readouterr().err.strip().splitlines()[-1]

    Image.fromarray(np.full((48, 48), 255, np.uint8)).save(masks / "view001.png")
    assert "view001.png is 48x48" in told() and "64x48" not in told()
    for name in ("view001", "view002"):
        Image.fromarray(np.zeros((48, 64), np.uint8)).save(masks / f"{name}.png")
    assert "all masks are black" in told()
    Image.fromarray(np.zeros((48, 64), np.uint8)).save(masks / "other.png")
    assert "no photo other" in told()
    (masks / "other.png").write_bytes(b"no picture")
    for file in masks.iterdir():
        file.unlink()
    assert "no pictures" in told()


@pytest.mark.parametrize("option", ["--where", "mask", "box", "ball", "at", "region"])
def test_images_have_no_places(option, image_options, capsys):
    given = ["--where", "the flower"] if option == "--where" else [f"{option}=both"]
    assert run_command("edit", [*image_options, *given]) == 1
    assert "is for scenes, not for --image" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options, name",
    [([], "a-red-flower"), ([BALL], "a-red-flower-ball"), (["at=0.5,0.5,1"], "a-red-flower-at")]
    + [([BOX, "region=auto"], "a-red-flower"), ([BOX, "edit=shape", "output=here"], "here")],
)
def test_the_default_folder_says_how_the_place_was_given(options, name, edit_options):
    assert output_folder(configured("edit", [*edit_options, *options]), Path("there")).name == name


class Photos:
    """A capture of photos in two folders, as Blender's are."""

    image_names = [
        "train/r_0.png",
        "train/r_1.png",
        "test/r_0.png",
        "test/r_2.png",
        "train/frame.01.png",
        "a/x.png",
        "b/x.png",
    ]
    train = [0, 1, 4, 5, 6]


def test_photos_are_named_in_several_ways():
    found = {
        "test/r_0.png": 2, "test/r_0": 2, "train/r_0": 0, "r_0.png": 0, "r_0": 0, "r_0.jpg": 0, "r_2": 3,
        "frame.01": 4, "frame.01.png": 4, "x": None, "a/x": 5, "r_9": None, "r_0.txt": None,
    }  # fmt: skip
    assert {name: photo_index(Photos, name) for name in found} == found


def test_pictures_go_to_the_photos_of_their_names(tmp_path):
    def matched(*names):
        folder = tmp_path / "-".join(n.replace("/", "_") for n in names)
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (4, 4)).save(folder / name)
        files = by_photo(picture_files(folder, "mask=m", False), Photos, "mask=m")
        return {i: file.relative_to(folder).as_posix() for i, file in files.items()}

    assert matched("r_0.png", "r_2.jpg") == {0: "r_0.png", 3: "r_2.jpg"}
    assert matched("train/r_0.png", "test/r_0.png") == {0: "train/r_0.png", 2: "test/r_0.png"}
    assert matched("r_1.png", "notes/other.png") == {1: "r_1.png"}
    with pytest.raises(UserError, match="mask=m: r_1.jpg and r_1.png are both of train/r_1.png"):
        matched("r_1.jpg", "r_1.png")
    with pytest.raises(UserError, match="no photo x; .*such as r_0.png"):
        matched("x.png")


def test_a_local_edit_without_a_region_has_no_preview(tmp_path):
    written, region = [], torch.zeros(2, 2, 2, dtype=torch.bool)
    target = LocalField.__new__(LocalField)
    torch.nn.Module.__init__(target)
    target.region, target.save = region, written.append
    shown, work = SimpleNamespace(target=target), SimpleNamespace(iteration=4)
    preview = edit_module._previewing(lambda *ignored: None, work, shown, tmp_path / "preview", 2)
    preview({}, None, None)
    assert written == []
    region[0] = True
    preview({}, None, None)
    work.iteration = 5
    preview({}, None, None)
    assert written == [tmp_path / "preview"]
