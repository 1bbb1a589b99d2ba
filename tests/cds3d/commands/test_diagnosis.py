"""When a field does not show its capture, a line says so."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from fakes import TINY_FIELD, TINY_SCENE

from cds3d.cli import run_command
from cds3d.commands import scenes
from cds3d.commands.diagnosis import diagnose, mean_picture_psnr
from cds3d.commands.train import field_options
from cds3d.metrics.coverage import RarelySeen
from cds3d.options import load_config
from cds3d.pictures import colored_depth, depth_range, seen_depth
from cds3d.pocket.world.capture import write_capture
from cds3d.pocket.world.scenes import Attributes
from tensorf.captures import load_capture
from tensorf.errors import UserError
from tensorf.occupancy import Samples
from tensorf.train import Trainer


@pytest.mark.parametrize(
    ("held_out", "training", "mean", "space", "words"),
    [
        (24.0, 26.0, 14.0, "unbounded", None),
        (24.0, 27.9, 14.0, "unbounded", None),
        (20.0, 29.0, 14.0, "unbounded", ["29.0 dB", "20.0 dB", "fog"]),
        (20.0, 29.0, 14.0, "box", ["fog", "scene.space=unbounded"]),
        (15.0, 16.0, 14.0, "ndc", ["15.0 dB", "14.0 dB", "does not show", "scene.order"]),
        (None, 29.0, None, "box", None),  # nothing was held out
    ],
)
def test_figures_of_failure_are_told(held_out, training, mean, space, words):
    line = diagnose(held_out, training, mean, space, named=False)
    if words is None:
        assert line is None
    else:
        assert "\n" not in line and all(word in line for word in words), line
        assert ("scene.space" in line) is (space == "box")


def test_another_order_is_named_only_where_poses_have_no_names():
    lines = [diagnose(15.0, 16.0, 14.0, "unbounded", named=named) for named in (False, True)]
    assert all("estimate the poses again" in line for line in lines)
    assert ["scene.order" in line for line in lines] == [True, False]


def never():
    raise AssertionError("not called")


def test_parts_that_hardly_any_photo_shows_are_told():
    rare = RarelySeen(0.12, 0.78, "003.png")
    line = diagnose(20.0, 29.0, 14.0, "unbounded", named=True, look=lambda: rare)
    assert "12% of what held-out photos show" in line and "78% of the error" in line and "003.png" in line
    assert "fog" not in line and "from more places" in line
    assert "fog" in diagnose(20.0, 29.0, 14.0, "unbounded", named=True, look=lambda: replace(rare, error=0.1))
    assert "near plane" in diagnose(20.0, 29.0, 14.0, "ndc", named=True, near=0.17, look=never)  # it takes seconds
    assert "mean of all photos" in diagnose(15.0, 29.0, 14.0, "ndc", named=True, look=never)
    assert diagnose(24.0, 25.0, 14.0, "unbounded", named=True, look=never) is None


def test_a_training_tells_parts_that_hardly_any_photo_shows(tmp_path, capture_folder, caplog, monkeypatch):
    monkeypatch.setattr("cds3d.commands.train.rarely_seen", lambda field, capture: RarelySeen(0.12, 0.78, "3.png"))
    options = ["--capture", str(capture_folder), *TINY_SCENE, *TINY_FIELD]
    assert run_command("train", [*options, f"output={tmp_path / 'good'}"]) == 0
    assert "held-out photos show" not in caplog.text
    monkeypatch.setattr("cds3d.commands.diagnosis._APART", -100)
    monkeypatch.setattr("cds3d.commands.train.mean_picture_psnr", lambda capture: -10.0)
    assert run_command("train", [*options, f"output={tmp_path / 'bad'}"]) == 0
    assert "12% of what held-out photos show" in caplog.text


def test_what_stands_before_the_near_plane_is_told():
    line = diagnose(24.0, 25.0, 14.0, "ndc", named=True, near=0.17)
    assert "17% of what the photos show" in line and "scene.space=unbounded" in line
    assert diagnose(24.0, 25.0, 14.0, "ndc", named=True, near=0.02) is None


@pytest.mark.parametrize("kind, share", [("ndc", 0.5), ("unbounded", 0.0)])
def test_the_share_at_the_near_plane_by_hand(make_film, kind, share):
    assert Trainer.share_at_near_plane(make_film(kind)) == pytest.approx(share, abs=0.03)


@pytest.fixture
def make_film(monkeypatch):
    """A trainer whose pixels all see something: half of them right at the near plane, half of them far behind it."""

    def make(kind):
        def rendered(field, rays):
            ray = torch.arange(len(rays))
            t = torch.where(ray % 2 == 0, 0.01, 0.7)
            none = torch.zeros(len(rays))
            samples = Samples(torch.zeros(len(rays), 3), ray, t, none, ray, len(rays))
            return SimpleNamespace(weights=torch.full((len(rays),), 0.9), samples=samples)

        monkeypatch.setattr("tensorf.train.render_rays", rendered)
        pixels = SimpleNamespace(draw=lambda count, generator: (range(count), None, None))
        field = SimpleNamespace(space=SimpleNamespace(kind=kind), t_span=1.0)
        return SimpleNamespace(field=field, pixels=pixels, device=torch.device("cpu"), config=SimpleNamespace(seed=0))

    return make


def test_the_mean_picture_by_hand(tmp_path):
    write_capture(tmp_path, Attributes.sample(3), views=8, width=16, height=12)
    capture = load_capture(tmp_path, check=False)
    capture.images[capture.train] = torch.arange(7, dtype=torch.uint8)[:, None, None, None] * 10 + 20  # mean: 50
    capture.images[capture.test] = 101
    assert capture.test and mean_picture_psnr(capture) == pytest.approx(
        -20 * torch.tensor(51 / 255).log10().item(), 1e-4
    )


def test_depth_maps_leave_out_what_is_not_seen():
    depth, opacity = torch.tensor([[0.1, 2.0, 4.0]]), torch.tensor([[0.0, 0.9, 1.0]])
    seen = seen_depth({"depth": depth, "opacity": opacity})
    assert seen.tolist() == [[torch.inf, 2.0, 4.0]]
    low, high = depth_range([seen])
    assert (low, high) == pytest.approx((2.02, 3.98))
    assert colored_depth(seen, low, high)[0, :, 0].tolist() == [0, 1, 0]  # near is white, far and nothing black
    assert depth_range([seen[:, :1]]) == (1.0, 2.0)


@pytest.mark.parametrize("preset", ["default", "fast", "published", "cp"])
@pytest.mark.parametrize("space", ["ndc", "box", "unbounded"])
def test_every_preset_is_complete_in_every_space(preset, space):
    field, training = field_options(load_config("train", [f"field={preset}"]), space)
    assert training.iterations >= 400 and sum(field.density_components) > 0


def test_published_is_vm_96_and_vm_192():
    config = load_config("train", ["field=published"])
    forward, _ = field_options(config, "ndc")
    around, training = field_options(config, "unbounded")
    assert sum(forward.density_components) + sum(forward.color_components) == 96
    assert sum(around.density_components) + sum(around.color_components) == 192
    assert (training.iterations, training.batch, training.resolution) == (30000, 4096, 300)


def test_the_space_decides_what_is_null():
    gains = [field_options(load_config("train", []), space)[0].density_gain for space in ("ndc", "box", "unbounded")]
    assert gains == [2, 8, 2]
    config = load_config("train", ["field.density_gain=5"])
    assert field_options(config, "box")[0].density_gain == 5


def test_what_is_given_goes_before_the_preset():
    config = load_config("train", ["field=published", "field.iterations=70", "field.resolution=50"])
    _, training = field_options(config, "ndc")
    assert (training.iterations, training.resolution, training.batch) == (70, 50, 4096)


@pytest.mark.parametrize(
    "option", ["field.prune_at=[0.5,0.2]", "field.stages=[]", "field.batch=1", "field.tv_color=-1"]
)
def test_wrong_settings_are_one_line(option):
    with pytest.raises(UserError, match=option.split(".", 1)[1].split("=")[0]):
        field_options(load_config("train", [option]), "box")


def test_options_of_the_scene_reach_the_reader(tmp_path, monkeypatch):
    write_capture(tmp_path / "photos", Attributes.sample(3), views=4, width=16, height=12)
    given = ["scene.order=number", "scene.check=false", "scene.space=unbounded", "scene.bound=2", "scene.test_every=3"]
    given.append("scene.outside=true")
    config = load_config("train", ["scene=capture", "scene.width=16", *given])
    config.capture = str(tmp_path / "photos")
    seen = {}

    def load(root, **options):
        seen.update(options)
        return SimpleNamespace(images=torch.zeros(1, 12, 16, 3))

    monkeypatch.setattr(scenes, "load_capture", load)
    scenes.load_scene(config)
    read = dict(width=16, space="unbounded", bound=2, order="number", check=False, test_every=3, outside=True)
    assert seen == {**read, "show_progress": True}
    config.scene.check = "maybe"
    with pytest.raises(UserError, match="scene.check=maybe"):
        scenes.load_scene(config)


def test_a_training_tells_what_lies_at_the_near_plane(tmp_path, capture_folder, caplog, monkeypatch):
    monkeypatch.setattr(Trainer, "share_at_near_plane", lambda self: 0.25)
    options = ["--capture", str(capture_folder), *TINY_SCENE, *TINY_FIELD, f"output={tmp_path / 'run'}"]
    assert run_command("train", options) == 0
    assert "25% of what the photos show lies on the near plane" in caplog.text
