"""scripts/bench_captures.py on tiny captures, and what training says when it goes wrong."""

import json
import logging
import shutil

import imageio.v3 as iio
import numpy as np
import pytest
from checks import load_script as script
from fakes import TINY_FIELD

from cds3d.commands.train import train_command
from cds3d.options import load_config
from cds3d.pocket.world.capture import write_capture
from cds3d.pocket.world.scenes import Attributes
from tensorf.errors import UserError

OPTIONS = [*TINY_FIELD, "threads=1"]


@pytest.fixture
def folders(tmp_path):
    for name, seed in (("one", 3), ("two", 4)):
        write_capture(tmp_path / name, Attributes.sample(seed), views=10, width=48, height=36)
    return tmp_path / "one", tmp_path / "two"


def test_captures_are_trained_and_compared(tmp_path, folders, capsys):
    bench, output = script("bench_captures"), tmp_path / "bench"
    folders[1].rename(tmp_path / "images")
    folders[1].mkdir()
    inside = (tmp_path / "images").rename(folders[1] / "images")  # has the name of the folder above it
    assert bench.main([str(folders[0]), str(inside), *OPTIONS, f"--output={output}"]) == 0
    rows = json.loads((output / "captures.json").read_text())["captures"]
    assert set(rows) == {"one", "two"}
    for row in rows.values():
        assert row["space"] == "ndc" and row["seconds"] > 0 and -1 <= row["ssim"] <= 1
        assert row["psnr_db"] > 0 and row["train_psnr_db"] > 0
    sheet = iio.imread(output / "captures" / "one.png")
    assert sheet.shape == (2 * 36, 3 * 48, 3)  # two held-out views: photo, render, depth
    for name, row in rows.items():
        metrics = json.loads((output / "captures" / name / "metrics.json").read_text())
        assert metrics["psnr_db"] == row["psnr_db"]
    table = capsys.readouterr().out
    assert "train_psnr_db" in table and "two" in table


def test_options_of_videos_are_taken(tmp_path):
    with pytest.raises(UserError, match="no such folder"):  # of the capture: the option is known
        script("bench_captures").main(["scene.frames=30", "nowhere.mp4"])
    (tmp_path / "walk.mp4").write_bytes(b"no video")
    assert script("bench_captures").main([str(tmp_path / "walk.mp4"), "scene.frames=30", f"--output={tmp_path}"]) == 1


def test_a_capture_that_fails_does_not_stop_the_others(tmp_path, folders, capsys):
    (folders[0] / "poses_bounds.npy").write_bytes(b"no array")
    bench, output = script("bench_captures"), tmp_path / "bench"
    assert bench.main([*map(str, folders), *OPTIONS, f"--output={output}"]) == 1
    assert set(json.loads((output / "captures.json").read_text())["captures"]) == {"two"}
    assert "one: error:" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["field.iterations=3"], "no capture is given"),
        (["nowhere/at/all"], "nowhere/at/all"),
        (["{one}", "{one}"], "two captures are named one"),
        (["{one}", "field.iteration=3"], "unknown option field.iteration"),
        (["{one}", "output=there"], "output=there: use --output"),
        (["{one}", "capture={one}"], "capture=.*name the folder alone"),
        (["{one}", "scene=flower"], "scene=flower: name the scene's folder alone"),
    ],
)
def test_mistakes_are_told_before_anything_is_trained(tmp_path, folders, arguments, said):
    arguments = [a.format(one=folders[0]) for a in arguments]
    with pytest.raises(UserError, match=said):
        script("bench_captures").main([*arguments, f"--output={tmp_path / 'bench'}"])
    assert not (tmp_path / "bench").exists()


def warnings_of(capture, output, caplog):
    config = load_config("train", ["scene=capture", *OPTIONS, "video_frames=0", f"output={output}"])
    config.capture = str(capture)
    with caplog.at_level(logging.WARNING):
        train_command(config)
    return [r.getMessage() for r in caplog.records]


def test_photos_that_do_not_belong_to_the_poses_are_told(tmp_path, folders, caplog):
    photos = sorted((folders[0] / "images").iterdir())
    rng = np.random.default_rng(0)
    for photo in photos:  # nothing of it can be known from other photos
        iio.imwrite(photo, np.kron(rng.integers(0, 256, (9, 12, 3)), np.ones((4, 4, 1))).astype(np.uint8))
    said = warnings_of(folders[0], tmp_path / "run", caplog)
    assert len(said) == 1 and "does not show the scene" in said[0] and "scene.order" in said[0]
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert "train_psnr_db" in metrics


def test_long_runs_tell_what_they_cost(tmp_path, folders, caplog):
    options = ["scene=capture", "field=published", "field.iterations=20000", f"output={tmp_path / 'run'}"]
    config = load_config("train", [*options, "video_frames=0", "scene.width=48"])
    config.capture = str(folders[0])
    from cds3d.commands import train

    class Stop(Exception):
        pass

    def stop(*arguments, **options):
        raise Stop

    with pytest.MonkeyPatch.context() as patch, caplog.at_level(logging.INFO, "cds3d"), pytest.raises(Stop):
        patch.setattr(train, "drive", stop)
        train_command(config)
    line = next(r.getMessage() for r in caplog.records if "steps of" in r.getMessage())
    assert "20000 steps of 4096 rays" in line and "hours" in line
    shutil.rmtree(tmp_path / "run")
