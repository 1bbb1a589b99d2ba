"""Subjects: what is encoded how often, and that a latent's gradient reaches the parameters as through one graph."""

import copy

import pytest
import torch
import torch.nn.functional as F
from fakes import PROMPTS, FixedGradient, LinearGuidance

from cds3d.editor import EditConfig, Editor
from cds3d.subjects.field import SHARE, FieldViews
from cds3d.subjects.image import LatentImage, PixelImage
from cds3d.subjects.region import EditedRegion
from tensorf.captures import load_capture
from tensorf.checkpoint import load_field
from tensorf.visibility import View


def latents(subject, step=0):
    return subject.source_latent(step), subject.target_latent()


# --- images


@pytest.mark.parametrize(("height", "width", "latent"), [(16, 24, (2, 3)), (17, 23, (3, 3)), (9, 31, (2, 4))])
def test_latent_image_of_any_size(guidance, height, width, latent):
    # Padded up to whole cells of 8 pixels: 17 -> 24 -> 3, 23 -> 24 -> 3; the result is cut back to the source's size.
    torch.manual_seed(0)
    image = torch.rand(3, height, width)
    subject = LatentImage(image, guidance)
    source, target = latents(subject)
    assert source.shape == target.shape == (1, 4, *latent)
    assert torch.equal(source, target) and not source.requires_grad and not target.requires_grad
    assert subject.image().shape == (3, height, width)


def test_latent_images_border_is_repeated():
    # The mean of 8x8 pixels of a 9-pixel-wide ramp: the second cell holds column 9 eight times.
    image = (torch.arange(9.0) / 10).expand(3, 8, 9)
    source, _ = latents(LatentImage(image, LinearGuidance()))
    # first cell: mean of 0 .. 0.7 = 0.35 -> -0.3 in [-1, 1]; second: 0.8 -> 0.6
    torch.testing.assert_close(source, torch.tensor([-0.3, 0.6]).expand(1, 3, 1, 2))


def test_latent_images_gradient_is_the_gradient():
    subject = LatentImage(torch.rand(3, 16, 16), LinearGuidance())
    gradient = torch.randn(1, 3, 2, 2)
    subject.backward(gradient)
    assert torch.equal(subject.parameter.grad, gradient)
    assert subject.parameter.grad is not gradient  # an optimiser may change it in place


@pytest.mark.parametrize(("height", "width"), [(16, 24), (17, 23), (19, 30)])
def test_pixel_images_backward_equals_one_graph(guidance, height, width):
    torch.manual_seed(1)
    image = torch.rand(3, height, width)
    subject = PixelImage(image, guidance)
    torch.manual_seed(2)
    _, target = latents(subject)
    gradient = torch.randn(target.shape)
    subject.backward(gradient)

    torch.manual_seed(2)
    top, left = torch.randint(0, 8, (2,)).tolist()
    assert (top, left) != (0, 0)
    pixels = image[None].clone().requires_grad_()
    window = F.pad(pixels, (left, -(width + left) % 8, top, -(height + top) % 8), mode="replicate")
    assert window.shape[2] % 8 == window.shape[3] % 8 == 0
    encoded = guidance.encode_image(window)
    torch.testing.assert_close(encoded.detach(), target)
    encoded.backward(gradient)
    torch.testing.assert_close(subject.parameter.grad, pixels.grad)
    assert subject.parameter.grad.abs().max() > 0


def test_pixel_images_source_is_encoded_once_an_offset():
    guidance = LinearGuidance()
    subject = PixelImage(torch.rand(3, 17, 23), guidance)
    offsets, steps = set(), 150
    for step in range(steps):
        torch.manual_seed(step)
        source, target = latents(subject, step)
        assert source.shape == target.shape and torch.equal(source, target)  # nothing has been edited yet
        torch.manual_seed(step)
        offsets.add(tuple(torch.randint(0, 8, (2,)).tolist()))
    assert 1 < len(offsets) <= 64
    assert guidance.count("encode") == steps + len(offsets)


def test_pixel_images_pixels_stay_in_range():
    subject = PixelImage(torch.rand(3, 16, 16), LinearGuidance())
    config = EditConfig(iterations=3, lr=0.4, optimizer="adam")
    Editor(subject, subject.guidance, FixedGradient(), PROMPTS, config).run()
    assert subject.image().min() == 0 and subject.image().max() <= 1  # a positive gradient lowers every pixel
    assert subject.image().shape == (3, 16, 16)


# --- fields


@pytest.fixture()
def field(source_run):
    return load_field(source_run / "field.safetensors")


@pytest.fixture(scope="module")
def cameras(capture_folder):
    """Three of the capture's cameras, 26x19: neither a square nor a multiple of 8; latents are 3x2."""
    capture = load_capture(capture_folder, width=64)
    return [camera.resized(26, 19) for camera in capture.cameras[:3]]


def clones(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def test_source_is_encoded_once_a_camera(field, cameras, guidance, monkeypatch):
    calls, encode = [], guidance.encode_image
    monkeypatch.setattr(guidance, "encode_image", lambda image: (calls.append(image.requires_grad), encode(image))[1])
    subject = FieldViews(field, cameras, guidance)
    for step in range(9):  # three turns of three cameras
        source, target = latents(subject, step)
        assert source.shape == target.shape == (1, 4, 2, 3)
        assert not source.requires_grad and not target.requires_grad
        torch.testing.assert_close(source, target)  # an untouched copy looks the same
    assert calls.count(False) == 3  # the source, without gradients
    assert calls.count(True) == 9  # the target, each step


def test_every_camera_comes_once_a_turn_in_a_reproducible_order(field, cameras):
    many = cameras * 3
    subject, again, other = (FieldViews(field, many, None, seed=seed) for seed in (4, 4, 5))
    turns = [[subject.camera_index(9 * turn + i) for i in range(9)] for turn in range(4)]
    assert all(sorted(turn) == list(range(9)) for turn in turns)
    assert len({tuple(turn) for turn in turns}) > 1
    assert turns[2] == [again.camera_index(18 + i) for i in range(9)]  # no need to have seen the first turns
    assert turns[0] != [other.camera_index(i) for i in range(9)]


def test_latent_gradient_reaches_the_field_as_through_one_graph(field, cameras, guidance):
    # The direct way: the view's samples rendered at once with a graph, encoded, back-propagated.
    direct = copy.deepcopy(field).requires_grad_(True)
    subject = FieldViews(field, cameras, guidance)
    _, target = latents(subject)
    torch.manual_seed(3)
    gradient = torch.randn(target.shape)
    subject.backward(gradient)

    view = View(field, cameras[subject.camera_index(0)])
    color = view.color(direct).view(19, 26, 3)
    encoded = guidance.encode_image(color.permute(2, 0, 1)[None])
    torch.testing.assert_close(encoded.detach(), target)
    encoded.backward(gradient)
    groups = zip(subject.target.parameter_groups().items(), direct.parameter_groups().values())
    for (name, mine), reference in groups:
        a = torch.cat([p.grad.flatten() for p in mine])
        b = torch.cat([p.grad.flatten() for p in reference])
        assert b.norm() > 0, name
        assert (a - b).norm() < 1e-3 * b.norm(), name


def test_source_field_never_changes_and_the_target_does(field, cameras, guidance):
    before = clones(field)
    subject = FieldViews(field, cameras, guidance)
    Editor(subject, guidance, FixedGradient(), PROMPTS, EditConfig(iterations=4, lr=0.01)).run()
    assert all(torch.equal(before[k], v) for k, v in subject.source.state_dict().items())
    assert all(p.grad is None for p in subject.source.parameters())
    after = subject.target.state_dict()
    assert not any(torch.equal(before[k], after[k]) for k in before if k != "occupancy")


def test_density_lr_zero_leaves_the_shape_alone_bit_for_bit(field, cameras, guidance):
    before = clones(field)
    subject = FieldViews(field, cameras, guidance, density_lr=0.0)
    Editor(subject, guidance, FixedGradient(), PROMPTS, EditConfig(iterations=4, lr=0.01)).run()
    after = subject.target.state_dict()
    shape = [k for k in before if k.startswith("density_grid")]
    color = [k for k in before if k.startswith("color_grid")]
    assert shape and all(torch.equal(before[k], after[k]) for k in shape)
    assert all(p.grad is None for p in subject.target.parameter_groups()["density"])  # nor is time spent on it
    assert color and not any(torch.equal(before[k], after[k]) for k in color)


@pytest.mark.parametrize(
    "shares",
    [
        {"color": 1.0, "density": 1.0, "network": 0.1},
        {"color": 0.5, "density": 0.25, "network": 2.0},
        {"color": 1.0, "density": 0.0, "network": 0.1},
        {"color": 0.0, "density": 0.0, "network": 0.1},
    ],
)
def test_rates_are_shares_of_the_edits(field, cameras, shares):
    subject = FieldViews(field, cameras, None, line_lr=0, **{f"{name}_lr": share for name, share in shares.items()})
    groups = subject.parameter_groups(0.02)
    names = [name for name, share in shares.items() if share > 0]
    assert [g["lr"] for g in groups] == pytest.approx([0.02 * shares[name] for name in names])
    of = subject.target.parameter_groups()
    assert all(p.requires_grad == (name in names) for name in shares for p in of[name])
    for group, name in zip(groups, names, strict=True):
        assert [id(p) for p in group["params"]] == [id(p) for p in of[name]]


def test_lines_have_a_rate_of_their_own(field, cameras, guidance):
    subject = FieldViews(field, cameras, None, network_lr=0.1, density_lr=0.5, line_lr=0.2)
    groups, of = subject.parameter_groups(0.02), subject.target.parameter_groups()
    assert [g["lr"] for g in groups] == pytest.approx([0.02, 0.01, 0.002, 0.004, 0.002])
    assert [id(p) for p in groups[3]["params"]] == [id(p) for p in of["color_lines"]]
    before = clones(field)
    still = FieldViews(field, cameras, guidance, line_lr=0.0)
    Editor(still, guidance, FixedGradient(), PROMPTS, EditConfig(iterations=4, lr=0.01)).run()
    after = still.target.state_dict()
    assert all(torch.equal(before[k], after[k]) == (".lines." in k) for k in before if "_grid" in k)


def test_target_is_a_copy_of_its_own(field, cameras):
    subject = FieldViews(field, cameras, None)
    own = {p.data_ptr() for p in subject.target.parameters()}
    assert not own & {p.data_ptr() for p in subject.source.parameters()}


def colors_gradient(subject, gradient):
    """(16, 32, 3) the gradient that `backward` gives the view's pixels; NaN for those that it leaves out."""
    caught = []
    subject._color.register_hook(caught.append)
    subject.backward(gradient)
    return torch.full((16 * 32, 3), torch.nan).index_copy(0, subject._rays, caught[0]).view(16, 32, 3)


@pytest.fixture
def right_is_edited():
    """A latent's gradient: the prompts disagree about the last eight of 32 columns."""
    gradient = torch.zeros(1, 3, 2, 4)
    gradient[..., 3] = 1.0
    return gradient


def test_pixels_outside_the_edited_region_are_pulled_to_the_source(field, cameras, right_is_edited, monkeypatch):
    camera = cameras[0].resized(32, 16)
    right = torch.zeros(16, 32)
    right[:, 24:] = 1
    monkeypatch.setattr(EditedRegion, "weight", lambda self, camera, picture: right)
    subject = FieldViews(field, [camera], LinearGuidance(), gate=0.5, hold=10.0)
    latents(subject)
    subject.backward(right_is_edited)
    usual, unit = subject.region.usual, 2 / 64  # an 8x8 mean of 2 x - 1
    assert usual == pytest.approx(unit * 3**0.5 / 2, rel=0.01)  # a quarter of all pixels has it
    with torch.no_grad():
        for p in subject.target.parameters():
            p.mul_(1.1)
    source, now = (View(field, camera).render(f) for f in (subject.source, subject.target))
    assert (now - source)[:, :22].abs().max() > 1e-3  # or nothing would be tested
    seen = torch.zeros(16, 22, dtype=torch.bool)
    for _ in range(40):
        latents(subject)
        # The editing picture: the source's outside, the target's inside and in the margin of two pixels.
        assert torch.equal(subject._image[:, :22], source[:, :22])
        torch.testing.assert_close(subject._image[:, 22:].detach(), now[:, 22:])
        gradient = colors_gradient(subject, right_is_edited)
        assert torch.allclose(gradient[:, 24:], torch.full((16, 8, 3), unit), rtol=1e-4)
        assert (gradient[:, 22:24] == 0).all()
        chosen = ~gradient[:, :22].isnan().any(-1)
        assert abs(float(chosen.float().mean()) - 1 / SHARE) < 0.02
        expected = SHARE * 10 * usual * (now - source)[:, :22][chosen]
        torch.testing.assert_close(gradient[:, :22][chosen], expected, rtol=1e-3, atol=1e-7)
        seen |= chosen
    assert seen.all()  # others each time


def test_a_resumed_region_is_the_one_that_was_saved(field, cameras, right_is_edited):
    camera = cameras[0].resized(32, 16)
    subjects = [FieldViews(field, [camera], LinearGuidance(), gate=0.5, hold=10.0) for _ in range(2)]
    latents(subjects[0])
    subjects[0].backward(right_is_edited)
    subjects[1].load_state(subjects[0].state())
    for subject in subjects:
        torch.manual_seed(0)
        latents(subject, 1)
    assert torch.equal(subjects[0]._rays, subjects[1]._rays) and torch.equal(subjects[0]._image, subjects[1]._image)
    assert subjects[0].region.usual == subjects[1].region.usual > 0


def test_a_gradient_that_is_not_finite_reaches_the_field_but_not_the_region(field, cameras):
    subject = FieldViews(field, [cameras[0].resized(32, 16)], LinearGuidance(), gate=0.5, hold=10.0)
    latents(subject)
    subject.backward(torch.full((1, 3, 2, 4), torch.nan))
    assert subject.state() == EditedRegion(0.5).state()
    assert any(not torch.isfinite(p.grad).all() for p in subject.target.parameters() if p.grad is not None)


def test_without_a_gate_every_pixel_gets_the_gradient(field, cameras, right_is_edited):
    subject = FieldViews(field, [cameras[0].resized(32, 16)], LinearGuidance(), hold=10.0)
    for _ in range(3):
        latents(subject)
        gradient = colors_gradient(subject, right_is_edited)
        assert gradient[:, :24].abs().max() == 0 and gradient[:, 24:].abs().min() > 0
    assert subject.state() == EditedRegion(0.5).state()
