"""Figures by hand."""

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from cds3d.metrics.clip import clip_direction, view_direction
from cds3d.metrics.consistency import project, view_consistency
from cds3d.metrics.depth import depth_error, true_depth
from cds3d.metrics.edges import edge_f1, edges
from cds3d.metrics.pretrained import load_network, located, unreadable
from cds3d.metrics.psnr import psnr
from cds3d.metrics.ssim import ssim, ssim_map
from cds3d.metrics.truth import Truth, mean_figures, picture_figures
from cds3d.pocket.world.scenes import look_camera
from tensorf.space import Space


def grey(value, height=4, width=6):
    return torch.full((height, width, 3), float(value))


def test_psnr_by_hand():
    assert psnr(grey(0.5), grey(0.6)) == pytest.approx(20, abs=1e-4)  # MSE 0.01: -10 log10(0.01) = 20
    half = grey(0.5)
    half[:2] = 0.7  # half of the pixels differ by 0.2: MSE 0.02 -> 16.9897
    assert psnr(half, grey(0.5)) == pytest.approx(-10 * math.log10(0.02), abs=1e-4)


def test_psnr_within_a_mask():
    image, mask = grey(0.5), torch.zeros(4, 6, dtype=torch.bool)
    image[:2], mask[:2] = 0.6, True
    assert psnr(image, grey(0.5), mask) == pytest.approx(20, abs=1e-4)
    assert psnr(image, grey(0.5), ~mask) == 100
    assert psnr(image, grey(0.5)) == pytest.approx(-10 * math.log10(0.005), abs=1e-4)


def test_psnr_of_equal_images_and_of_no_pixels():
    assert psnr(grey(0.3), grey(0.3)) == pytest.approx(100)
    assert math.isnan(psnr(grey(0.3), grey(0.4), torch.zeros(4, 6, dtype=torch.bool)))


def test_ssim_of_equal_images_is_one_and_falls_with_noise():
    torch.manual_seed(0)
    image = torch.rand(24, 20, 3)
    noise = torch.randn_like(image)
    values = [ssim(image, image + s * noise) for s in (0.0, 0.05, 0.5)]
    assert values[0] == pytest.approx(1, abs=1e-6)
    assert values[0] > values[1] > values[2]
    assert ssim(image, image + 0.5 * noise) == pytest.approx(ssim(image + 0.5 * noise, image), abs=1e-5)


def test_ssim_of_constant_images_by_hand():
    # No variance: only the luminance term is left, (2 a b + c) / (a^2 + b^2 + c), c = 0.01^2.
    expected = (2 * 0.5 * 0.8 + 1e-4) / (0.25 + 0.64 + 1e-4)
    assert ssim(grey(0.5, 16, 16), grey(0.8, 16, 16)) == pytest.approx(expected, abs=1e-3)


def truth_of(image, changed):
    return Truth(image, changed, torch.ones_like(changed))


def test_figures_of_an_edit_by_hand():
    # Camera 1: the true edit changes the upper half from 0.5 to 0.6. The source is 0.1 away there (20 dB), the edit
    # 0.01 (40 dB): a gain of 20. Below, the edit strays 0.1 from the source: 20 dB kept.
    changed = torch.zeros(16, 24, dtype=torch.bool)
    changed[:8] = True
    truth, edit = grey(0.5, 16, 24), grey(0.6, 16, 24)
    truth[:8], edit[:8] = 0.6, 0.61
    seen = picture_figures(edit, grey(0.5, 16, 24), truth_of(truth, changed))
    # Camera 2 does not see the change: it counts for what is kept only, 0.01 away everywhere (40 dB).
    nowhere = truth_of(grey(0.5, 16, 24), torch.zeros(16, 24, dtype=torch.bool))
    unseen = picture_figures(grey(0.51, 16, 24), grey(0.5, 16, 24), nowhere)
    figures = mean_figures([seen, unseen])
    assert figures["edit_truth_psnr_db"] == pytest.approx(40, abs=1e-2)
    assert figures["edit_gain_db"] == pytest.approx(20, abs=1e-2)
    assert figures["kept_psnr_db"] == pytest.approx(30, abs=1e-2)
    names = {"edit_truth_psnr_db", "edit_gain_db", "edit_truth_ssim", "kept_psnr_db", "structure"}
    assert seen.keys() == names == unseen.keys()
    assert mean_figures([unseen]).keys() == {"kept_psnr_db"}  # nan is left out: JSON has none
    assert mean_figures([]) == {}


def test_structure_is_that_around_the_subject():
    """Edges far from it do not count."""
    image = torch.zeros(32, 80, 3)
    image[10:22, 14:26], image[10:22, 54:66] = 1, 1
    subject = torch.zeros(32, 80, dtype=torch.bool)
    subject[:, :40] = True
    edit = image.clone()
    edit[:, 40:] = 0
    truth = Truth(image, torch.ones_like(subject), subject)
    assert picture_figures(edit, image, truth)["structure"] == 1


def test_figures_of_an_edit_that_does_nothing():
    changed = torch.ones(16, 24, dtype=torch.bool)
    changed[12:] = False
    source = grey(0.5, 16, 24)
    figures = picture_figures(source, source, truth_of(grey(0.7, 16, 24), changed))
    assert figures["edit_gain_db"] == 0
    assert figures["kept_psnr_db"] == pytest.approx(100)


def test_ssim_of_a_part_is_the_mean_of_its_windows():
    torch.manual_seed(0)
    a = torch.rand(24, 30, 3)
    b, mask = a.clone(), torch.zeros(24, 30, dtype=torch.bool)
    b[:, 18:] = torch.rand(24, 12, 3)
    mask[:, :12] = True  # windows reach five pixels further
    assert ssim(a, b, mask) == pytest.approx(1, abs=1e-5) and ssim(a, b) < 0.9
    assert ssim(a, b, ~mask) == pytest.approx(ssim_map(a, b)[:, 12:].mean().item())


def test_ssim_map_is_one_where_images_agree():
    torch.manual_seed(0)
    image = torch.rand(30, 40, 3)
    other = image.clone()
    other[:, :12] = torch.rand(30, 12, 3)
    values = ssim_map(image, other)
    assert values.shape == (30, 40)
    assert values[:, 25:].min() > 0.999 and values[:, :6].mean() < 0.5


def plain_ssim(a, b):
    """Wang et al., 2004, equation 13, over all 11x11 windows that lie in the pictures."""
    offset = torch.arange(11.0) - 5
    line = torch.exp(-(offset**2) / (2 * 1.5**2))
    window = (line[:, None] * line / (line[:, None] * line).sum())[None, None]

    def mean(x):
        return torch.nn.functional.conv2d(x.permute(2, 0, 1)[:, None], window)

    (ma, mb), c1, c2 = (mean(a), mean(b)), 0.01**2, 0.03**2
    va, vb, cov = mean(a * a) - ma**2, mean(b * b) - mb**2, mean(a * b) - ma * mb
    return (((2 * ma * mb + c1) * (2 * cov + c2)) / ((ma**2 + mb**2 + c1) * (va + vb + c2))).mean().item()


def test_ssim_is_that_of_windows_within_the_picture():
    torch.manual_seed(0)
    image = torch.rand(30, 40, 3)
    other = (image + 0.3 * torch.rand(30, 40, 3)).clamp(0, 1)
    other[10:20, 10:30] = torch.rand(10, 20, 3)
    assert ssim(image, other) == pytest.approx(plain_ssim(image, other), abs=1e-4)
    assert ssim(image[:10], other[:10]) == pytest.approx(ssim_map(image[:10], other[:10]).mean().item())


def test_ssim_of_small_pictures():
    torch.manual_seed(0)
    a, b = torch.rand(2, 6, 9, 3)
    assert ssim(a, a) == pytest.approx(1, abs=1e-5) and ssim(a, b) == pytest.approx(ssim_map(a, b).mean().item())
    for few in (a[:5], a[:, :4]):
        with pytest.raises(ValueError, match="at least 6 pixels"):
            ssim(few, few)


@pytest.mark.parametrize("metric", [psnr, ssim, ssim_map])
def test_pictures_of_two_shapes_are_not_compared(metric):
    image = torch.rand(12, 12, 3)
    for other in (image[:1], image[..., :1], image.permute(2, 0, 1), image[None]):
        with pytest.raises(ValueError, match="different shapes"):
            metric(image, other)


def test_the_truth_of_a_view_by_hand():
    """What differs by more than 15 of 255 in some channel; and the subject of before and after, with 6 pixels more."""
    before = SimpleNamespace(image=np.full((20, 30, 3), 100, np.uint8), subject=np.zeros((20, 30), bool))
    after = SimpleNamespace(image=before.image.copy(), subject=before.subject.copy())
    after.image[0, 0, 2], after.image[0, 1, 0], after.image[0, 2, 1] = 116, 84, 115
    after.image[5, 5] = 255, 0, 51
    before.subject[10, 10], after.subject[10, 20] = True, True
    truth = Truth.of(before, after)
    assert truth.changed.nonzero().tolist() == [[0, 0], [0, 1], [5, 5]]
    assert truth.image.dtype == torch.float32 and truth.image[5, 5].tolist() == pytest.approx([1, 0, 0.2])
    expected = torch.zeros(20, 30, dtype=torch.bool)
    expected[4:17, 4:27] = True  # two squares of 13 pixels, which meet
    assert torch.equal(truth.subject, expected)


def test_directions_of_clip_are_differences():
    # The pictures move by (3, 4), the prompts by (0, 3): a cosine of 0.8.
    before, after = torch.tensor([5.0, 1]), torch.tensor([8.0, 5])
    source, target = torch.tensor([2.0, 1]), torch.tensor([2.0, 4])
    assert clip_direction(before, after, source, target) == pytest.approx(0.8)
    assert view_direction(before[None], after[None], source, target) == pytest.approx(0.8)


# --- Networks that judge ---


def test_a_network_is_loaded_without_code_and_frozen(tmp_path):
    told = {}

    class Kind:
        @staticmethod
        def from_pretrained(**given):
            told.update(given)
            return torch.nn.Linear(2, 2).half(), {"missing_keys": [], "mismatched_keys": []}

    network = load_network(Kind, str(tmp_path), option="--x", example="a/b", device=torch.device("cpu"), layers=3)
    assert told["weights_only"] is True and told["layers"] == 3
    assert told["pretrained_model_name_or_path"] == str(tmp_path) and "revision" not in told
    assert not network.training and network.weight.dtype == torch.float32 and not network.weight.requires_grad


def test_a_revision_of_a_hub_id():
    assert located("openai/clip") == {"pretrained_model_name_or_path": "openai/clip"}
    assert located("openai/clip@v1.0") == {"pretrained_model_name_or_path": "openai/clip", "revision": "v1.0"}


def test_a_folder_may_look_like_a_hub_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("openai/clip@v1.0").mkdir(parents=True)
    assert located("openai/clip@v1.0") == {"pretrained_model_name_or_path": "openai/clip@v1.0"}
    told = str(unreadable("openai/clip@v1.0", "--clip", "a/b", ValueError("torn")))
    assert told == "--clip openai/clip@v1.0 cannot be loaded (torn): it has to be a folder of a model such as a/b"


# --- Edges ---


def square(left, size=12, height=32, width=40):
    image = torch.zeros(height, width, 3)
    image[10 : 10 + size, left : left + size] = 1
    return image


def test_edges_of_a_square_are_its_outline():
    found = edges(square(14))
    rows, columns = found.nonzero().T
    assert abs(rows.min() - 10) <= 1 and abs(rows.max() - 21) <= 1
    assert abs(columns.min() - 14) <= 1 and abs(columns.max() - 25) <= 1
    assert not found[13:19, 17:23].any()  # nothing inside
    assert 30 < found.sum() < 80  # a line of a pixel or two around 48 pixels, not a band
    assert not edges(torch.full((20, 20, 3), 0.4)).any()


def plain_edges(image):
    """By loops: blurred by the binomials of 4, Sobel's slopes, the strongest channel, ridges along x or y."""
    height, width = image.shape[:2]
    at = lambda x, i, j: x[min(max(i, 0), height - 1), min(max(j, 0), width - 1)]  # noqa: E731
    weights, smooth, slope = (1, 4, 6, 4, 1), (1, 2, 1), (-1, 0, 1)
    cells = [(i, j) for i in range(height) for j in range(width)]
    blurred, across = np.zeros(image.shape), np.zeros((*image.shape, 2))
    for i, j in cells:
        blurred[i, j] = (
            sum(weights[a] * weights[b] * at(image, i + a - 2, j + b - 2) for a in range(5) for b in range(5)) / 256
        )
    for i, j in cells:
        for a in range(3):
            for b in range(3):
                seen = at(blurred, i + a - 1, j + b - 1) / 4
                across[i, j, :, 0] += smooth[a] * slope[b] * seen
                across[i, j, :, 1] += slope[a] * smooth[b] * seen
    lengths = np.sqrt((across**2).sum(-1))
    length = np.pad(lengths.max(2), 1)
    found = np.zeros((height, width), bool)
    for i, j in cells:
        x, y = across[i, j, lengths[i, j].argmax()]
        own, near = length[i + 1, j + 1], ((0, -1), (0, 1)) if abs(x) >= abs(y) else ((-1, 0), (1, 0))
        before, behind = (length[i + 1 + a, j + 1 + b] for a, b in near)
        found[i, j] = own >= before and own > behind and own > 0.15
    return torch.from_numpy(found)


@pytest.mark.parametrize("contrast", [0.6, 1.0])
def test_edges_are_those_of_plain_loops(contrast):
    image = contrast * torch.rand(17, 15, 3, generator=torch.Generator().manual_seed(0))
    found = edges(image)
    assert torch.equal(found, plain_edges(image.double().numpy())) and 5 < found.sum() < 150


def test_edge_f1_by_hand():
    one = square(14)
    assert edge_f1(one, one) == 1
    assert edge_f1(square(15), one) > 0.95  # within two pixels
    assert edge_f1(square(24), one) < 0.5
    assert edge_f1(torch.zeros_like(one), one) == 0
    assert math.isnan(edge_f1(torch.zeros_like(one), torch.zeros_like(one)))
    # Two squares against one: every edge of the one is found, half of the two's are right: F1 = 2 / 3.
    both = torch.zeros(32, 80, 3)
    both[:, :40], both[:, 40:] = one, one
    half = both.clone()
    half[:, 40:] = 0
    assert edge_f1(both, half) == pytest.approx(2 / 3, abs=0.02)
    region = torch.zeros(32, 80, dtype=torch.bool)
    region[:, :40] = True
    assert edge_f1(both, half, region) == 1


def test_edges_of_equal_brightness_count():
    image = torch.zeros(20, 20, 3)
    image[:, :10, 0], image[:, 10:, 1] = 0.7, 0.7  # red beside green
    assert edges(image)[:, 8:12].any(1).all()


# --- Geometry: a plane seen from two places ---


def plane_views(kind, places=(-0.3, 0.0, 0.4), scale=1.0):
    """The plane z = 0 with a pattern, seen by three cameras; exact depths as `Space.depth` counts them.

    places: x of the cameras, from 4 away. scale: of everything.
    """
    reference = look_camera((0, 0, 4 * scale), (0, 0, 0), width=48, height=36)
    box = scale * torch.tensor([[-3.0, -3, -3], [3, 3, 3]])
    space = Space(kind, box, 1.0 * scale, 9.0 * scale, reference.pose)
    cameras = [look_camera((x * scale, 0.1 * scale, 4 * scale), (0, 0, 0), width=48, height=36) for x in places]
    views = []
    for camera in cameras:
        origins, directions = camera.pixel_rays()
        points = (origins - origins[:, 2:] / directions[:, 2:] * directions).view(36, 48, 3)
        color = torch.stack([0.5 + 0.4 * torch.sin(3 / scale * points[..., k]) for k in (0, 1, 0)], -1)
        depth = space.depth_of(camera, points)
        views.append({"color": color, "depth": depth, "opacity": torch.ones_like(depth)})
    return space, cameras, views


@pytest.mark.parametrize("kind", ["ndc", "box"])
def test_a_painted_plane_is_consistent(kind):
    space, cameras, views = plane_views(kind)
    assert view_consistency(space, cameras, views) > 40
    views[1]["color"] = views[1]["color"].flip(1)
    assert view_consistency(space, cameras, views) < 20
    assert math.isnan(view_consistency(space, cameras[:1], views[:1]))


def test_what_one_camera_does_not_see_does_not_count():
    space, cameras, views = plane_views("box")
    views[1]["depth"] = views[1]["depth"] * 2  # farther than where the other two's points are
    assert math.isnan(view_consistency(space, cameras[:2], views[:2]))


@pytest.mark.parametrize("scale", [0.1, 1.0])
def test_only_what_both_see_of_one_surface_counts(scale):
    """A plane that leaves the picture, where it is hidden, and where there is nothing."""
    space, cameras, views = plane_views("box", (-1.5, 1.5), scale)
    whole = view_consistency(space, cameras, views)
    assert whole > 35
    for key, value in (("depth", 9.0 * scale), ("opacity", 0.0)):
        spoiled = {k: v.clone() for k, v in views[1].items()}
        spoiled[key][:, 20:30] = value
        spoiled["color"][:, 21:29] = 0
        assert view_consistency(space, cameras, [views[0], spoiled]) == pytest.approx(whole, abs=3)
    views[1]["depth"] = views[1]["depth"] * 1.02  # 3% may be rounding
    assert view_consistency(space, cameras, views) == pytest.approx(whole, abs=3)
    views[1]["depth"] = views[1]["depth"] * 1.02
    assert view_consistency(space, cameras, views) != pytest.approx(whole, abs=0.01)


def test_two_views_of_nothing_are_not_consistent():
    space, cameras, views = plane_views("ndc")
    for k in (0, 1):
        seen = views[k]["opacity"]
        views[k]["opacity"] = torch.zeros_like(seen)
        assert math.isnan(view_consistency(space, cameras[:2], views[:2]))
        views[k]["opacity"] = seen


def test_project_by_hand():
    camera = look_camera((0, 0, 4), (0, 0, 0), width=48, height=36)
    space = Space("box", torch.tensor([[-3.0, -3, -3], [3, 3, 3]]), 1.0, 9.0, camera.pose)
    points = torch.tensor([[[0.0, 0, 0], [0, 0, 9]]])
    place, depth = project(space, camera, points)
    assert place[0, 0].tolist() == pytest.approx([0, 0], abs=1e-5) and depth[0, 0] == 4
    assert place[0, 1].min() > 1  # behind the camera: outside the image


def test_depth_error_by_hand():
    truth = torch.tensor([[2.0, 4.0, torch.inf]])
    mask = torch.ones(1, 3, dtype=torch.bool)
    assert depth_error(torch.tensor([[2.2, 3.0, 7.0]]), truth, mask) == pytest.approx((0.1 + 0.25) / 2)
    assert math.isnan(depth_error(truth, truth, torch.zeros(1, 3, dtype=torch.bool)))


def test_true_depths_are_in_the_fields_world():
    # The field's world is twice as large as the capture, and turned: a depth of 3 there is 6 here, along the axis. In a
    # box, fields count depths along the rays.
    turned = torch.eye(4)
    turned[:3, :3] = 2 * torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    camera = look_camera([0.0, 0.0, -8.0], [0.0, 0.0, 0.0], width=4, height=3)
    space = Space("box", torch.tensor([[-1.0, -1, -1], [1, 1, 1]]), 0.1, 100.0, torch.eye(3, 4), 0.0)
    depth = np.full((3, 4), 3.0, np.float32)
    depth[0, 0] = np.inf
    found = true_depth(SimpleNamespace(world_from_capture=turned), space, camera, depth)
    assert found[0, 0] == math.inf
    ahead = Space("ndc", space.box, 0.1, 100.0, camera.pose, 0.0)  # in NDC they count depths along the axis
    along = true_depth(SimpleNamespace(world_from_capture=turned), ahead, camera, depth)
    torch.testing.assert_close(along[1:], torch.full((2, 4), 6.0))
    lengths = camera.pixel_rays()[1].norm(dim=1).view(3, 4)  # of rays of unit depth
    torch.testing.assert_close(found[1:], 6 * lengths[1:])
