"""Subjects: what is encoded how often, and that a latent's gradient reaches the parameters as through one graph."""

import copy
import threading

import pytest
import torch
import torch.nn.functional as F
from defaults import edit_config, field_views, run
from fakes import PROMPTS, FixedGradient, LinearPrior

from cds3d.editor import Editor
from cds3d.subjects import sources
from cds3d.subjects.field import FieldRates, Preservation
from cds3d.subjects.given import seen_share
from cds3d.subjects.image import LatentImage, PixelImage
from cds3d.subjects.region import EditedRegion
from cds3d.subjects.sources import source_view, turn_of
from tensorf.captures import load_capture
from tensorf.visibility import View

SHARE = 8  # one in so many of the rays outside the region is rendered


def latents(subject, step=0):
    pair = subject.pair(step)
    return pair.source, pair.target()


# --- images


@pytest.mark.parametrize(("height", "width", "latent"), [(16, 24, (2, 3)), (17, 23, (3, 3)), (9, 31, (2, 4))])
def test_latent_image_of_any_size(prior, height, width, latent):
    # Padded up to whole cells of 8 pixels: 17 -> 24 -> 3, 23 -> 24 -> 3; the result is cut back to the source's size.
    torch.manual_seed(0)
    image = torch.rand(3, height, width)
    subject = LatentImage(image, prior)
    source, target = latents(subject)
    assert source.shape == target.shape == (1, 4, *latent)
    assert torch.equal(source, target) and not source.requires_grad and not target.requires_grad
    assert subject.image().shape == (3, height, width)


def test_latent_images_border_is_repeated():
    # The mean of 8x8 pixels of a 9-pixel-wide ramp: the second cell holds column 9 eight times.
    image = (torch.arange(9.0) / 10).expand(3, 8, 9)
    source, _ = latents(LatentImage(image, LinearPrior()))
    # first cell: mean of 0 .. 0.7 = 0.35 -> -0.3 in [-1, 1]; second: 0.8 -> 0.6
    torch.testing.assert_close(source, torch.tensor([-0.3, 0.6]).expand(1, 3, 1, 2))


def test_latent_images_gradient_is_the_gradient():
    subject = LatentImage(torch.rand(3, 16, 16), LinearPrior())
    gradient = torch.randn(1, 3, 2, 2)
    pair = subject.pair(0)
    assert torch.equal(pair.backward(gradient), gradient)
    assert torch.equal(subject.parameter.grad, gradient)
    assert subject.parameter.grad is not gradient  # an optimiser may change it in place
    pair.backward(gradient)
    assert torch.equal(subject.parameter.grad, 2 * gradient)  # added


@pytest.mark.parametrize(("height", "width"), [(16, 24), (17, 23), (19, 30)])
def test_pixel_images_backward_equals_one_graph(prior, height, width):
    torch.manual_seed(1)
    image = torch.rand(3, height, width)
    subject = PixelImage(image, prior)
    torch.manual_seed(2)
    pair = subject.pair(0)
    target = pair.target()
    gradient = torch.randn(target.shape)
    pair.backward(gradient)

    torch.manual_seed(2)
    top, left = torch.randint(0, 8, (2,)).tolist()
    assert (top, left) != (0, 0)
    pixels = image[None].clone().requires_grad_()
    window = F.pad(pixels, (left, -(width + left) % 8, top, -(height + top) % 8), mode="replicate")
    assert window.shape[2] % 8 == window.shape[3] % 8 == 0
    encoded = prior.encode_image(window)
    torch.testing.assert_close(encoded.detach(), target)
    encoded.backward(gradient)
    torch.testing.assert_close(subject.parameter.grad, pixels.grad)
    assert subject.parameter.grad.abs().max() > 0


def test_pixel_images_gradients_are_added_and_a_steps_own_is_returned():
    subject = PixelImage(torch.rand(3, 16, 16), LinearPrior())
    pairs = [subject.pair(step) for step in range(2)]
    first, second = (pair.backward((k + 1) * torch.ones_like(pair.target())) for k, pair in enumerate(pairs))
    assert second.abs().sum() > 1.5 * first.abs().sum() > 0
    torch.testing.assert_close(subject.parameter.grad, first + second)


def test_pixel_images_source_is_encoded_once_an_offset():
    prior = LinearPrior()
    subject = PixelImage(torch.rand(3, 17, 23), prior)
    offsets, steps = set(), 150
    for step in range(steps):
        torch.manual_seed(step)
        source, target = latents(subject, step)
        assert source.shape == target.shape and torch.equal(source, target)  # nothing has been edited yet
        torch.manual_seed(step)
        offsets.add(tuple(torch.randint(0, 8, (2,)).tolist()))
    assert 1 < len(offsets) <= 64
    assert prior.count("encode") == steps + len(offsets)


def test_pixel_images_pixels_stay_in_range():
    subject = PixelImage(torch.rand(3, 16, 16), LinearPrior())
    run(Editor(subject, subject.prior, FixedGradient(), PROMPTS, edit_config(3, 0.4)))
    assert subject.image().min() == 0 and subject.image().max() <= 1  # a positive gradient lowers every pixel
    assert subject.image().shape == (3, 16, 16)


@pytest.mark.parametrize("kind", [LatentImage, PixelImage])
@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (torch.rand(16, 24, 3), "permute"),
        (torch.rand(4, 16, 24), "shape"),
        (torch.rand(1, 3, 16, 24), "shape"),
        (torch.rand(16, 24), "shape"),
        (torch.zeros(3, 16, 24, dtype=torch.uint8), "divide bytes by 255"),
        (255 * torch.rand(3, 16, 24), "from .* to 25"),
        (torch.rand(3, 16, 24) - 0.5, "from -0"),
        (torch.full((3, 16, 24), float("nan")), "nan"),
        (torch.rand(3, 7, 24), "24x7"),
    ],
)
def test_what_is_no_picture_is_refused(kind, wrong, told):
    with pytest.raises(ValueError, match=told):
        kind(wrong, LinearPrior())


@pytest.mark.parametrize("kind", [LatentImage, PixelImage])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_pictures_of_other_floating_point_types_are_taken(kind, dtype):
    image = torch.linspace(-1e-4, 1 + 1e-4, 3 * 16 * 24).view(3, 16, 24)
    subject, plain = kind(image.to(dtype), LinearPrior()), kind(image.to(dtype).float(), LinearPrior())
    assert subject.parameter.dtype == torch.float32 and torch.equal(subject.parameter, plain.parameter)


# --- fields


@pytest.fixture(scope="module")
def cameras(capture_folder):
    """Three of the capture's cameras, 26x19: neither a square nor a multiple of 8; latents are 3x2."""
    capture = load_capture(capture_folder, width=64)
    return [camera.resized(26, 19) for camera in capture.cameras[:3]]


def clones(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def test_source_is_encoded_once_a_camera(field, cameras, prior, monkeypatch):
    calls, encode = [], prior.encode_image
    monkeypatch.setattr(prior, "encode_image", lambda image: (calls.append(image.requires_grad), encode(image))[1])
    subject = field_views(field, cameras, prior)
    for step in range(9):  # three turns of three cameras
        source, target = latents(subject, step)
        assert source.shape == target.shape == (1, 4, 2, 3)
        assert not source.requires_grad and not target.requires_grad
        torch.testing.assert_close(source, target)  # an untouched copy looks the same
    assert calls.count(False) == 3  # the source, without gradients
    assert calls.count(True) == 9  # the target, each step


def test_every_camera_comes_once_a_turn_in_a_reproducible_order(field, cameras):
    turns = [[turn_of(9 * turn + i, 9, seed=4) for i in range(9)] for turn in range(4)]
    assert all(sorted(turn) == list(range(9)) for turn in turns)
    assert len({tuple(turn) for turn in turns}) > 1
    assert turns[0] != [turn_of(i, 9, seed=5) for i in range(9)]
    subject = field_views(field, cameras * 3, LinearPrior(), seed=4)
    assert [subject.pair(step).camera for step in (18, 19, 3)] == [turns[2][0], turns[2][1], turns[0][3]]


def place_of(camera, cameras):
    return next(i for i, other in enumerate(cameras) if other is camera)


@pytest.mark.parametrize("threads", [1, 4])
def test_views_of_the_next_steps_are_made_in_threads(field, cameras, prior, monkeypatch, threads):
    torch.set_num_threads(threads)
    made, main = [], threading.current_thread()

    def record(source, camera, prior):
        made.append((place_of(camera, cameras), torch.get_num_threads(), threading.current_thread() is main))
        return source_view(source, camera, prior)

    monkeypatch.setattr(sources, "source_view", record)
    views = sources.SourceViews(field, cameras, prior, seed=0)
    order = [views.of(step)[0] for step in range(3)]
    assert torch.get_num_threads() == threads and order == [turn_of(step, 3, 0) for step in range(3)]
    if threads == 1:
        assert made == [(camera, 1, True) for camera in order]
    else:  # in what order two threads begin is not certain
        assert sorted(made) == [(camera, 2, False) for camera in range(3)]
    assert list(views.made) == order
    direct = source_view(field, cameras[order[2]], prior)
    torch.testing.assert_close(views[order[2]].latent, direct.latent)
    assert torch.equal(views[order[2]].view.x, direct.view.x)


def test_views_are_begun_before_their_step(field, cameras, prior, monkeypatch):
    torch.set_num_threads(2)
    begun = [threading.Event() for _ in cameras]

    def record(source, camera, prior):
        begun[place_of(camera, cameras)].set()
        return source_view(source, camera, prior)

    monkeypatch.setattr(sources, "source_view", record)
    views = sources.SourceViews(field, cameras, prior, seed=0)
    views.of(0)
    assert all(event.wait(60) for event in begun)
    assert list(views.made) == [turn_of(0, 3, 0)]


def test_a_view_that_fails_in_a_thread_is_told(field, cameras, prior, monkeypatch):
    torch.set_num_threads(2)

    def fail(*asked):
        raise MemoryError("no room")

    monkeypatch.setattr(sources, "source_view", fail)
    with pytest.raises(MemoryError, match="no room"):
        sources.SourceViews(field, cameras, prior, seed=0).of(0)


def test_latent_gradient_reaches_the_field_as_through_one_graph(field, cameras, prior):
    # The direct way: the view's samples rendered at once with a graph, encoded, back-propagated.
    direct = copy.deepcopy(field).requires_grad_(True)
    subject = field_views(field, cameras, prior)
    pair = subject.pair(0)
    target = pair.target()
    torch.manual_seed(3)
    gradient = torch.randn(target.shape)
    pair.backward(gradient)

    view = View(field, cameras[pair.camera])
    color = view.color(direct).view(19, 26, 3)
    encoded = prior.encode_image(color.permute(2, 0, 1)[None])
    torch.testing.assert_close(encoded.detach(), target)
    encoded.backward(gradient)
    groups = zip(subject.target.parameter_groups().items(), direct.parameter_groups().values())
    for (name, mine), reference in groups:
        a = torch.cat([p.grad.flatten() for p in mine])
        b = torch.cat([p.grad.flatten() for p in reference])
        assert b.norm() > 0, name
        assert (a - b).norm() < 1e-3 * b.norm(), name


@pytest.mark.parametrize("region", [False, True], ids=["everywhere", "in a region"])
def test_an_exact_edit_sees_the_field_as_it_is_rendered(field, cameras, prior, region):
    given = torch.ones_like(field.occupancy) if region else None
    if region:
        given[:, :, : given.shape[2] // 2] = False
    subjects = {exact: field_views(field, cameras, prior, given=given, exact=exact) for exact in (False, True)}
    apart = {}
    for exact, subject in subjects.items():
        pair = subject.pair(0)
        with torch.no_grad():
            for plane in (subject.target.target if region else subject.target).density_grid.planes:
                plane.copy_(8 * plane.flip(1))  # surfaces are elsewhere
        picture = subject.target.render(cameras[pair.camera])["color"]
        apart[exact] = (pair.target() - prior.encode_image(picture.permute(2, 0, 1)[None])).abs().max()
        pair.backward(torch.ones_like(pair.source))
        shown = subject.pictures()["source_and_edit"][:, cameras[pair.camera].width :]
        assert torch.equal(shown, picture) == exact
    assert apart[True] < 1e-5 < 1e-4 < apart[False]
    moved = subjects[True].target.target if region else subjects[True].target
    assert all(p.grad.abs().max() > 0 for p in moved.density_grid.planes)


def test_the_region_in_space_is_what_the_masks_show(field, cameras, monkeypatch):
    subject = field_views(field, cameras, LinearPrior(), mask_threshold=0.5)
    assert subject.region_in_space() is None  # nothing has been seen yet
    for step in range(3):
        pair = subject.pair(step)
        subject.observe(pair, pair.backward(torch.ones(1, 3, 2, 3)))

    def left(self, camera, picture):
        mask = torch.zeros(picture.shape[:2])
        mask[:, :13] = 1
        return mask

    monkeypatch.setattr(EditedRegion, "weight", left)
    region = subject.region_in_space()
    assert region.shape == field.occupancy.shape and region.any()
    share = sum(seen_share(field, View(field, camera), region) for camera in cameras) / 3
    assert share[:, 2:11].mean() > 3 * share[:, 16:].mean()
    assert field_views(field, cameras, LinearPrior()).region_in_space() is None  # everything may change
    given = torch.zeros_like(field.occupancy)
    given[0] = True
    pointed = field_views(field, cameras, LinearPrior(), given=given, find=False)
    assert torch.equal(pointed.region_in_space(), given)


def test_source_field_never_changes_and_the_target_does(field, cameras, prior):
    before = clones(field)
    subject = field_views(field, cameras, prior)
    run(Editor(subject, prior, FixedGradient(), PROMPTS, edit_config(4, 0.01)))
    assert all(torch.equal(before[k], v) for k, v in subject.source.state_dict().items())
    assert all(p.grad is None for p in subject.source.parameters())
    after = subject.target.state_dict()
    assert not any(torch.equal(before[k], after[k]) for k in before if k != "occupancy")


@pytest.mark.parametrize("given", [False, True])
def test_the_callers_field_stays_trainable(field, cameras, prior, given):
    region = torch.ones_like(field.occupancy) if given else None
    subject = field_views(field, cameras, prior, given=region)
    run(Editor(subject, prior, FixedGradient(), PROMPTS, edit_config(2, 0.01)))
    assert all(p.requires_grad and p.grad is None for p in field.parameters())


def test_an_editor_can_be_copied_while_views_come_in_threads(field, cameras, prior):
    torch.set_num_threads(2)
    editor = Editor(field_views(field, cameras, prior), prior, FixedGradient(), PROMPTS, edit_config(6, 0.01))
    editor.step()
    copied = copy.deepcopy(editor)
    run(editor)
    run(copied)
    both = (e.subject.target.parameters() for e in (editor, copied))
    assert all(torch.equal(a, b) and a is not b for a, b in zip(*both, strict=True))


def test_cameras_that_nothing_can_be_edited_through(field, cameras):
    with pytest.raises(ValueError, match="cameras is empty"):
        field_views(field, [], LinearPrior(), mask_threshold=0.5)
    with pytest.raises(ValueError, match="7x19 pixels"):
        field_views(field, [cameras[0], cameras[1].resized(7, 19)], LinearPrior())


def test_a_region_that_nobody_says_is_refused(field, cameras):
    with pytest.raises(ValueError, match="find=False"):
        field_views(field, cameras, LinearPrior(), find=False)


def test_density_lr_zero_leaves_the_shape_alone_bit_for_bit(field, cameras, prior):
    before = clones(field)
    subject = field_views(field, cameras, prior, density_lr=0.0)
    run(Editor(subject, prior, FixedGradient(), PROMPTS, edit_config(4, 0.01)))
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
    subject = field_views(field, cameras, None, line_lr=0, **{f"{name}_lr": share for name, share in shares.items()})
    groups = subject.parameter_groups(0.02)
    names = [name for name, share in shares.items() if share > 0]
    assert [g["lr"] for g in groups] == pytest.approx([0.02 * shares[name] for name in names])
    of = subject.target.parameter_groups()
    assert all(p.requires_grad == (name in names) for name in shares for p in of[name])
    for group, name in zip(groups, names, strict=True):
        assert [id(p) for p in group["params"]] == [id(p) for p in of[name]]


def test_lines_have_a_rate_of_their_own(field, cameras, prior):
    subject = field_views(field, cameras, None, network_lr=0.1, density_lr=0.5, line_lr=0.2)
    groups, of = subject.parameter_groups(0.02), subject.target.parameter_groups()
    assert [g["lr"] for g in groups] == pytest.approx([0.02, 0.01, 0.002, 0.004, 0.002])
    assert [id(p) for p in groups[3]["params"]] == [id(p) for p in of["color_lines"]]
    before = clones(field)
    still = field_views(field, cameras, prior, line_lr=0.0)
    run(Editor(still, prior, FixedGradient(), PROMPTS, edit_config(4, 0.01)))
    after = still.target.state_dict()
    assert all(torch.equal(before[k], after[k]) == (".lines." in k) for k in before if "_grid" in k)


def test_a_group_of_an_unknown_name_is_refused(field, cameras, monkeypatch):
    subject = field_views(field, cameras, None)
    groups = subject.target.parameter_groups()
    monkeypatch.setattr(subject.target, "parameter_groups", lambda: {**groups, "shape": []})
    with pytest.raises(ValueError, match="'shape' is no group"):
        subject.parameter_groups(0.01)


def test_target_is_a_copy_of_its_own(field, cameras):
    subject = field_views(field, cameras, None)
    own = {p.data_ptr() for p in subject.target.parameters()}
    assert not own & {p.data_ptr() for p in subject.source.parameters()}


def colors_gradient(pair, gradient):
    """(16, 32, 3) the gradient that `backward` gives the view's pixels; NaN for those that it leaves out."""
    caught = []
    pair.target()
    pair._color.register_hook(caught.append)
    pair.backward(gradient)
    return torch.full((16 * 32, 3), torch.nan).index_copy(0, pair._rays, caught[0]).view(16, 32, 3)


def visited(subject, gradient, step=0):
    """The subject after it has seen a step of this latent's gradient."""
    pair = subject.pair(step)
    subject.observe(pair, pair.backward(gradient))
    return subject


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
    subject = field_views(field, [camera], LinearPrior(), mask_threshold=0.5, preservation=10.0)
    visited(subject, right_is_edited)
    usual, unit = subject.region.gradient_rms, 2 / 64  # an 8x8 mean of 2 x - 1
    assert usual == pytest.approx(unit * 3**0.5 / 2, rel=0.01)  # a quarter of all pixels has it
    with torch.no_grad():
        for p in subject.target.parameters():
            p.mul_(1.1)
    source, now = (View(field, camera).render(f) for f in (subject.source, subject.target))
    assert (now - source)[:, :22].abs().max() > 1e-3  # or nothing would be tested
    seen = torch.zeros(16, 22, dtype=torch.bool)
    for _ in range(40):
        pair = subject.pair(0)
        pair.target()
        # The editing picture: the source's outside, the target's inside and in the margin of two pixels.
        assert torch.equal(pair._image[:, :22], source[:, :22])
        torch.testing.assert_close(pair._image[:, 22:].detach(), now[:, 22:])
        gradient = colors_gradient(pair, right_is_edited)
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
    subjects = [field_views(field, [camera], LinearPrior(), mask_threshold=0.5, preservation=10.0) for _ in range(2)]
    subjects[1].load_state(visited(subjects[0], right_is_edited).state())
    pairs = []
    for subject in subjects:
        torch.manual_seed(0)
        pairs.append(subject.pair(1))
        pairs[-1].target()
    assert torch.equal(pairs[0]._rays, pairs[1]._rays) and torch.equal(pairs[0]._image, pairs[1]._image)
    assert subjects[0].region.gradient_rms == subjects[1].region.gradient_rms > 0


def test_a_pair_is_fixed_when_it_is_made(field, cameras, right_is_edited):
    """What the region learns later, and what is drawn later, does not change a step that has begun."""
    subject = field_views(field, [cameras[0].resized(32, 16)], LinearPrior(), mask_threshold=0.5, preservation=10.0)
    first, second = subject.pair(0), subject.pair(0)
    before = colors_gradient(first, right_is_edited)
    visited(subject, right_is_edited, 1)
    assert torch.equal(colors_gradient(second, right_is_edited), before)
    later = colors_gradient(subject.pair(0), right_is_edited)
    assert not torch.equal(later.isnan(), before.isnan())  # by now the region is known


def test_backward_adds_gradients_and_nothing_else(field, cameras, right_is_edited):
    subject = field_views(field, [cameras[0].resized(32, 16)], LinearPrior(), mask_threshold=0.5, preservation=10.0)
    pair = subject.pair(0)
    pair.backward(right_is_edited)
    assert subject.state() == {"masks": {}, "cameras": [0]}
    once = [p.grad.clone() for p in subject.target.parameters()]
    subject.pair(0).backward(right_is_edited)
    for p, grad in zip(subject.target.parameters(), once, strict=True):
        torch.testing.assert_close(p.grad, 2 * grad)


def test_without_a_threshold_every_pixel_gets_the_gradient(field, cameras, right_is_edited):
    subject = field_views(field, [cameras[0].resized(32, 16)], LinearPrior(), preservation=10.0)
    for step in range(3):
        gradient = colors_gradient(subject.pair(step), right_is_edited)
        assert gradient[:, :24].abs().max() == 0 and gradient[:, 24:].abs().min() > 0
        visited(subject, right_is_edited, step)
    assert subject.state() == {"masks": {}, "cameras": [0]}


@pytest.mark.parametrize(
    ("kind", "good", "wrong"),
    [
        (FieldRates, dict(color_lr=1.0, network_lr=1.0, density_lr=1.0, line_lr=1.0), dict(line_lr=-1.0)),
        (FieldRates, dict(color_lr=0.0, network_lr=0.0, density_lr=1.0, line_lr=1.0), dict(density_lr=0.0)),
        (Preservation, dict(preservation=1.0, margin=0.0, inside=0.1, ray_share=1.0), dict(preservation=-1.0)),
        (Preservation, dict(preservation=1.0, margin=0.0, inside=0.1, ray_share=1.0), dict(ray_share=0.0)),
        (Preservation, dict(preservation=1.0, margin=0.0, inside=0.1, ray_share=1.0), dict(inside=1.0)),
    ],
)
def test_options_that_make_no_sense_are_refused_by_name(kind, good, wrong):
    kind(**good)
    with pytest.raises(ValueError, match=next(iter(wrong))):
        kind(**{**good, **wrong})
