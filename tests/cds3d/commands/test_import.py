"""`cds3d import`: checkpoints of TensoRF's authors from the command line, and what is then done with them."""

import json
import shutil

import pytest
import torch
from authors import llff_rays, random_model
from checks import fails, files
from omegaconf import OmegaConf

from cds3d.cli import main, run_command
from tensorf.captures import load_capture
from tensorf.local import LocalField
from tensorf.official.field import OfficialField
from tensorf.renderable import load_field

TINY = ["scene.width=32", "scene.check=false", "threads=1", "video_frames=0"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A model of the capture of daisies: NDC, with a mask."""
    path = tmp_path_factory.mktemp("models") / "model.th"
    return random_model(ndc=True, masked=True, fea2denseAct="relu", gain=0.5, rayMarch_weight_thres=0.0).save(path)


@pytest.fixture(scope="module")
def imported_once(tmp_path_factory, checkpoint, capture_folder):
    folder = tmp_path_factory.mktemp("imported") / "source"
    options = [str(checkpoint), str(capture_folder), *TINY, "mirrored=true", f"output={folder}"]
    assert run_command("import", options) == 0
    return folder


@pytest.fixture()
def imported(tmp_path, imported_once):
    """Its run folder where an edit of the capture looks for it."""
    folder = tmp_path / "outputs" / "daisies" / "source"
    shutil.copytree(imported_once, folder)
    return folder


@pytest.fixture()
def edit_options(capture_folder, tiny_folder):
    prompts = ["--src", "a yellow flower", "--tgt", "a red flower", "--capture", str(capture_folder)]
    return [*prompts, *TINY, f"guidance.path={tiny_folder}", "edit.iterations=3", "edit.width=32"]


def test_a_run_folder_like_a_trained_source(tmp_path, checkpoint, capture_folder):
    options = [str(checkpoint), str(capture_folder), *TINY, "mirrored=true", "video_frames=2", "video_width=32"]
    assert main(["import", *options]) == 0
    run = tmp_path / "outputs" / "daisies" / "source"
    there = files(run)
    for name in ("config.yaml", "field.safetensors", "metrics.json", "video.mp4", "views/00.png"):
        assert name in there
    metrics = json.loads((run / "metrics.json").read_text())
    assert {"psnr_db", "ssim", "train_psnr_db", "seconds", "peak_memory_mb", "device", "parameters"} <= metrics.keys()
    config = OmegaConf.load(run / "config.yaml")
    assert config.capture == str(capture_folder) and config.model == str(checkpoint) and config.scene.width == 32
    field = load_field(run / "field.safetensors")
    assert isinstance(field, OfficialField)
    model = torch.load(checkpoint, weights_only=False)
    torch.testing.assert_close(field.density_grid.planes[1], model["state_dict"]["density_plane.1"][0])


def test_the_render_is_the_authors(imported_once, checkpoint, capture_folder):
    capture = load_capture(capture_folder, width=32, check=False)
    model = random_model(ndc=True, masked=True, fea2denseAct="relu", gain=0.5, rayMarch_weight_thres=0.0)
    ours = load_field(imported_once / "field.safetensors").render(capture.cameras[2])["color"]
    theirs = model.render(*llff_rays(capture_folder, 2, 32, 24), white=0.0).view(24, 32, 3)
    assert (ours - theirs).abs().max() < 1e-3 and theirs.std() > 0.05


def test_it_is_edited_rendered_and_edited_on(tmp_path, imported, edit_options):
    before = (imported / "field.safetensors").read_bytes()
    assert run_command("edit", [*edit_options, "video_frames=2"]) == 0
    run = tmp_path / "outputs" / "daisies" / "a-red-flower"
    assert (imported / "field.safetensors").read_bytes() == before
    edited, source = load_field(run / "field.safetensors"), load_field(imported / "field.safetensors")
    assert isinstance(edited, OfficialField)
    assert not torch.equal(edited.color_grid.planes[0], source.color_grid.planes[0])
    assert json.loads((run / "metrics.json").read_text())["iterations"] == 3
    assert run_command("render", [str(run), "frames=2", "threads=1", "width=32", "depth=true"]) == 0
    options = ["--run", str(run), "--tgt", "a red tulip", *edit_options[6:]]
    assert run_command("edit", [o for o in options if not o.startswith("scene.")]) == 0
    assert (tmp_path / "outputs" / "daisies" / "a-red-flower-then-a-red-tulip" / "metrics.json").exists()


def test_its_shape_is_edited_inside_a_region(tmp_path, imported, edit_options):
    assert run_command("edit", [*edit_options, "edit=shape", "at=0.5,0.5,view000", "radius=0.3"]) == 0
    edited = load_field(tmp_path / "outputs" / "daisies" / "a-red-flower-shape-at" / "field.safetensors")
    assert isinstance(edited, LocalField) and isinstance(edited.target, OfficialField)
    assert 0 < edited.region.sum() < edited.region.numel()


def test_an_edit_that_is_stopped_goes_on_to_the_same_field(tmp_path, imported, edit_options, monkeypatch):
    from checks import stops_at

    from cds3d.editor import Editor

    assert run_command("edit", [*edit_options, "output=whole"]) == 0
    with monkeypatch.context() as patched:
        stops_at(patched, Editor, 2)
        assert run_command("edit", [*edit_options, "output=parts", "save_every=1"]) == 130
    assert run_command("edit", [*edit_options, "output=parts", "save_every=1", "resume=true"]) == 0
    assert (tmp_path / "whole" / "field.safetensors").read_bytes() == (
        tmp_path / "parts" / "field.safetensors"
    ).read_bytes()


def test_it_is_refitted_to_pictures(tmp_path, imported, edit_options, capture_folder):
    assert run_command("edit", ["--views", str(capture_folder / "images"), *edit_options[4:6], *TINY,
                                "refit.iterations=2", "refit.mask_threshold=0", "field.batch=64"]) == 0  # fmt: skip
    assert isinstance(load_field(tmp_path / "outputs/daisies/images-views/field.safetensors"), OfficialField)


def test_it_is_exported(imported):
    assert main(["export", str(imported), "points", "points=100", "threads=1"]) == 0


def test_the_photos_tell_whether_the_world_is_mirrored(tmp_path, checkpoint, capture_folder, caplog):
    """Photos are put in the place of the capture's that are renders of the model."""
    import imageio.v3 as iio

    model = random_model(ndc=True, masked=True, fea2denseAct="relu", gain=0.5, rayMarch_weight_thres=0.0)
    for mirrored in (True, False):
        folder = tmp_path / str(mirrored)
        shutil.copytree(capture_folder, folder)
        for view, photo in enumerate(sorted((folder / "images").iterdir())):
            color = model.render(*llff_rays(folder, view, 64, 48, mirrored), white=0.0).view(48, 64, 3)
            iio.imwrite(photo, (255 * color).round().byte().numpy(), quality=98)
        assert main(["import", str(checkpoint), str(folder), *TINY]) == 0
        metrics = json.loads((tmp_path / "outputs" / str(mirrored) / "source" / "metrics.json").read_text())
        assert f"mirrored={str(mirrored).lower()}" in caplog.text and metrics["psnr_db"] > 27
        assert "less than the mean" not in caplog.text


def test_what_one_says_oneself_holds(tmp_path, checkpoint, capture_folder):
    options = [str(checkpoint), str(capture_folder), *TINY, "mirrored=false", "background=white", "output=x"]
    assert main(["import", *options]) == 0
    space = load_field(tmp_path / "x" / "field.safetensors").space
    assert space.stretch[0] > 0 and space.background == 1.0


def test_a_capture_that_is_another_is_told(checkpoint, capture_folder, caplog, tmp_path):
    assert main(["import", str(checkpoint), str(capture_folder), *TINY, "mirrored=true"]) == 0
    assert "is " + str(capture_folder) + " the capture that it was trained on?" in caplog.text
    far = random_model(aabb=torch.tensor([[500.0, 500, 500], [501, 501, 501]])).save(tmp_path / "far.th")
    assert main(["import", str(far), str(capture_folder), *TINY, "overwrite=true"]) == 0
    assert "6 of 6 cameras of" in caplog.text and "do not see the model's box" in caplog.text


@pytest.mark.parametrize(
    "options, told",
    [
        ([], "cds3d import model.th my_scene"),
        (["model.th"], "cds3d import model.th my_scene"),
        (["model.th", "CAPTURE"], "model.th: no such file"),
        (["model.th", "nowhere"], "nowhere: no such folder"),
        (["MODEL", "CAPTURE", "background=grey"], "background=grey has to be white, black or null"),
        (["MODEL", "CAPTURE", "mirrored=maybe"], "mirrored=maybe"),
        (["MODEL", "CAPTURE", "video_width=1"], "video_width=1"),
        (["CAPTURE/poses_bounds.npy", "CAPTURE"], "poses_bounds.npy is damaged, or no checkpoint"),
    ],
)
def test_what_is_wrong_is_one_line(options, told, checkpoint, capture_folder, tmp_path, capsys):
    places = {"MODEL": str(checkpoint), "CAPTURE": str(capture_folder)}
    options = [o.replace("CAPTURE/", f"{capture_folder}/") for o in options]
    assert told in fails(capsys, "import", *(places.get(o, o) for o in options))
    assert not (tmp_path / "outputs").exists()


def test_a_finished_run_is_not_overwritten_by_chance(imported, checkpoint, capture_folder, capsys):
    before = (imported / "field.safetensors").read_bytes()
    assert "overwrite=true" in fails(capsys, "import", checkpoint, capture_folder, *TINY)
    assert (imported / "field.safetensors").read_bytes() == before
