"""Rendering: weights by hand and against a slow loop, compositing, chunks, and gradients by finite differences."""

import math
import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from tensorf import lookup
from tensorf import render as rendering
from tensorf.render import Samples, march, render_rays, render_view, weights_of


def packed(counts):
    """Samples with `counts[i]` samples on ray i; positions and ray parameters are of no interest."""
    ray = torch.repeat_interleave(torch.tensor(counts))
    first = torch.searchsorted(ray, torch.arange(len(counts)))
    zeros = torch.zeros(len(ray))
    return Samples(torch.zeros(len(ray), 3), ray, zeros, zeros, first, len(counts))


def slow_weights(rate, ray):
    """NeRF's equation 3, sample by sample, in float64."""
    weights, transmittance, last = [], 1.0, -1
    for r, k in zip(rate.double().tolist(), ray.tolist()):
        transmittance = 1.0 if k != last else transmittance
        weights.append((1 - math.exp(-r)) * transmittance)
        transmittance, last = transmittance * math.exp(-r), k
    return torch.tensor(weights, dtype=torch.float64)


def test_weights_of_five_samples_by_hand():
    # Ray 0: rates ln 2, ln 2 halve the light twice: 1/2, 1/4. Ray 1 has none. Ray 2: ln 4 leaves a quarter, 0 takes
    # nothing, ln 2 takes half of that quarter.
    rate = torch.tensor([math.log(2), math.log(2), math.log(4), 0.0, math.log(2)])
    expected = torch.tensor([0.5, 0.25, 0.75, 0.0, 0.125])
    assert torch.allclose(weights_of(rate, packed([2, 0, 3])), expected, atol=1e-7)


@pytest.mark.parametrize("seed", range(4))
def test_weights_equal_a_slow_loop(seed):
    torch.manual_seed(seed)
    counts = torch.randint(0, 7, (60,))
    counts[[0, 7, 8, -1]] = 0
    samples = packed(counts.tolist())
    rate = torch.rand(len(samples.ray)) ** 4 * 8
    assert torch.allclose(weights_of(rate, samples).double(), slow_weights(rate, samples.ray), atol=1e-6)


def test_weights_do_not_hang_on_what_comes_before():
    # 200,000 samples of rate 5 before a ray: their sum is a million, where float32 knows no step below 1/16.
    samples = packed([200_000, 3])
    rate = torch.cat([torch.full((200_000,), 5.0), torch.tensor([0.1, 0.2, 0.3])])
    expected = slow_weights(torch.tensor([0.1, 0.2, 0.3]), torch.zeros(3))
    assert torch.allclose(weights_of(rate, samples)[-3:].double(), expected, atol=1e-6)


@pytest.mark.parametrize("counts", [[0], [0, 0, 0]])
def test_no_samples_have_no_weights(counts):
    assert weights_of(torch.zeros(0), packed(counts)).shape == (0,)


def test_weights_gradient_by_hand():
    # w_1 = 1 - exp(-r_1), w_2 = exp(-r_1) (1 - exp(-r_2)); at r = (ln 2, ln 2): dw_1/dr_1 = 1/2, dw_2/dr_1 = -1/4,
    # dw_2/dr_2 = exp(-r_1 - r_2) = 1/4.
    rate = torch.full((2,), math.log(2)).requires_grad_()
    first, second = weights_of(rate, packed([2]))
    assert torch.allclose(torch.autograd.grad(first, rate, retain_graph=True)[0], torch.tensor([0.5, 0]))
    assert torch.allclose(torch.autograd.grad(second, rate)[0], torch.tensor([-0.25, 0.25]))


def test_march_samples_the_middles_of_equal_steps(make_field, make_space, camera):
    field = make_field(steps=12)
    rays = make_space().rays(camera)[31:32]  # the centre pixel: along z from depth 2 to 4 of the cube
    dt = 2 * math.sqrt(3) / 12  # the diagonal in twelve steps
    samples = march(field, rays)
    # 2 / dt = 6.93: steps 0 to 6, the last with its middle at 6.5 dt = 1.876.
    assert torch.allclose(samples.t, 2 + (torch.arange(7) + 0.5) * dt, atol=1e-5)
    assert torch.allclose(samples.x[:, 2], -1 + (torch.arange(7) + 0.5) * dt, atol=1e-5)
    early = march(field, rays, torch.zeros(1))
    assert torch.allclose(early.t, 2 + torch.arange(7) * dt, atol=1e-5)


def test_march_leaves_out_empty_cells(make_field, make_space, camera):
    field = make_field(steps=12)
    field.occupancy = torch.zeros(2, 1, 1, dtype=torch.bool)
    field.occupancy[1] = True  # z > 0 only
    samples = march(field, make_space().rays(camera))
    assert len(samples.x) > 0 and (samples.x[:, 2] > 0).all()
    assert (samples.ray.diff() >= 0).all() and (samples.x.abs() <= 1).all()


@pytest.mark.parametrize("decomposition", ["vm", "cp"])
def test_rendering_equals_a_loop_over_rays(make_field, make_space, camera, decomposition, monkeypatch):
    monkeypatch.setattr(rendering, "COLORS", 10_000)  # nobody stands for another
    space = make_space(background=1.0)
    field, rays = make_field(decomposition, space), space.rays(camera)
    out = render_rays(field, rays)
    samples = march(field, rays)
    with torch.no_grad():
        weights = slow_weights(field.density(samples.x) * samples.step, samples.ray)
        colors = field.color(samples.x, rays.viewdirs[samples.ray]).double()
    for k in range(len(rays)):
        mine = samples.ray == k
        opacity = weights[mine].sum()
        color = (weights[mine, None] * colors[mine]).sum(0) + (1 - opacity)  # over white
        assert torch.allclose(out.color[k].double(), color, atol=1e-3), k
        assert abs(out.opacity[k].item() - opacity) < 2e-3
        if opacity > 0.1:
            assert out.depth[k].item() == pytest.approx(((weights * samples.t)[mine].sum() / opacity).item(), rel=0.02)
    assert out.opacity.max() > 0.5 and out.opacity.min() < 0.5  # the field has both


def test_background_shows_where_the_field_is_clear(make_field, make_space, camera):
    black = render_view(make_field(space=make_space()), camera)
    white = render_view(make_field(space=make_space(background=1.0)), camera)
    assert torch.equal(black["opacity"], white["opacity"])
    shown = (1 - black["opacity"])[..., None].expand(7, 9, 3)
    assert torch.allclose(white["color"] - black["color"], shown, atol=1e-6)


@pytest.mark.parametrize("background", [0.0, 1.0])
def test_rays_past_the_box_are_background(make_field, make_space, camera, background):
    field = make_field(space=make_space(background=background))
    away = camera.with_pose(torch.cat([torch.eye(3), torch.tensor([[9.0], [9], [-3]])], 1))
    view = render_view(field, away)
    assert (view["color"] == background).all() and (view["opacity"] == 0).all()
    assert view["depth"].isfinite().all()


def test_opacity_is_what_the_rates_absorb(make_field, make_space, camera):
    field, rays = make_field(), make_space().rays(camera)
    samples = march(field, rays)
    total = torch.zeros(len(rays)).index_add(0, samples.ray, field.density(samples.x) * samples.step)
    assert torch.allclose(render_rays(field, rays).opacity, 1 - torch.exp(-total), atol=1e-5)


@pytest.mark.parametrize("kind", ["box", "ndc"])
@pytest.mark.parametrize("chunk", [1, 10, 63, 4096])
def test_render_view_does_not_hang_on_chunks(make_field, make_space, camera, kind, chunk):
    space = make_space(kind)
    field = make_field(space=space)
    whole = render_rays(field, space.rays(camera))
    view = render_view(field, camera, chunk)
    assert view["color"].shape == (7, 9, 3) and not view["color"].requires_grad
    assert torch.allclose(view["color"].view(-1, 3), whole.color, atol=1e-5)
    assert torch.allclose(view["opacity"].view(-1), whole.opacity, atol=1e-5)
    assert torch.allclose(view["depth"].view(-1), whole.depth, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("shift", [-9.0, -6.5, -3.0])
def test_a_few_colours_a_ray_are_enough(make_field, make_space, camera, shift, monkeypatch):
    field = make_field(steps=100, density_shift=shift)
    asked = []
    color = field.color
    monkeypatch.setattr(field, "color", lambda x, d: asked.append(len(x)) or color(x, d))
    fast = render_view(field, camera)
    assert asked[-1] <= 2 * rendering.COLORS * 63
    monkeypatch.setattr(rendering, "COLORS", 10_000)
    full = render_view(field, camera)
    assert asked[-1] > 2 * asked[-2]
    assert (full["color"] - fast["color"]).abs().max() < 2 / 255  # two levels of a grey
    assert torch.allclose(full["opacity"], fast["opacity"], atol=1e-6)  # the same weights, in another order


@pytest.mark.parametrize("decomposition", ["vm", "cp"])
@pytest.mark.parametrize("kind", ["box", "ndc"])
def test_gradients_equal_finite_differences(make_field, make_space, camera, decomposition, kind, monkeypatch):
    monkeypatch.setattr(rendering, "COLORS", 10_000)  # another choice of samples would make a jump
    space = make_space(kind, background=1.0)
    field, rays = make_field(decomposition, space, gain=4.0), space.rays(camera)
    with torch.no_grad():
        for p in field.parameter_groups()["network"]:
            p.mul_(3)  # colours that differ clearly: a fresh decoder's are all nearly grey
    torch.manual_seed(3)
    direction = torch.randn(len(rays), 3)

    def loss():
        out = render_rays(field, rays)
        return (out.color * direction).double().sum() + out.opacity.double().square().sum()

    loss().backward()
    for name, p in field.named_parameters():
        step = torch.randn_like(p)
        step *= 2e-3 * max(p.detach().norm().item(), 1.0) / step.norm()
        with torch.no_grad():
            p += step
            above = loss().item()
            p -= 2 * step
            below = loss().item()
            p += step
        expected = 2 * (p.grad * step).sum().item()
        scale = 2 * p.grad.norm().item() * step.norm().item()  # the steepest direction's
        assert scale > 1e-4, name
        assert abs(above - below - expected) < 0.03 * abs(expected) + 0.02 * scale, name


def test_positions_get_no_gradient_and_rendering_needs_none(make_field, make_space, camera):
    field = make_field()
    with torch.no_grad():
        out = render_rays(field, make_space().rays(camera))
    assert not out.color.requires_grad
    assert ((out.color >= 0) & (out.color <= 1 + 1e-6)).all()


def test_near_samples_get_the_square_of_their_distance_as_a_share(make_field, make_space, camera):
    field, rays = make_field(), make_space().rays(camera)
    samples = march(field, rays)
    rates = []
    density = field.density
    field.density = lambda x: rates.append(density(x)) or rates[-1]
    gradients = []
    for near in (0.0, 3.0):
        out = render_rays(field, rays, near=near)
        gradients.append(torch.autograd.grad(out.opacity.sum(), rates[-1])[0])
    share = (samples.t / 3).clamp(max=1).square()
    assert share.min() < 0.9 and share.max() == 1
    assert torch.allclose(gradients[1], gradients[0] * share, atol=1e-6)
    assert torch.equal(render_rays(field, rays, near=3.0).color, render_rays(field, rays).color)


def test_colours_places_move_against_the_samples(make_field, camera, monkeypatch):
    field, told = make_field(), []
    shade = rendering.shade

    def watched(field, samples, weights, viewdirs, turn):
        told.append(turn)
        return shade(field, samples, weights, viewdirs, turn)

    monkeypatch.setattr(rendering, "shade", watched)
    rays = field.space.rays(camera)
    jitter = torch.linspace(0, 0.99, len(rays.origins))
    render_rays(field, rays, jitter)
    render_rays(field, rays)
    assert torch.equal(told[0], 1 - jitter) and told[1] == 0.5


class _Live(TorchDispatchMode):
    """peak: bytes of all tensors that are made while it is active and were alive at once."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self.known = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_flatten(result)[0]:
            if isinstance(tensor, torch.Tensor) and (storage := tensor.untyped_storage())._cdata not in self.known:
                self.known.add(storage._cdata)
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._gone, storage._cdata, storage.nbytes())
        return result

    def _gone(self, known, size):
        self.known.discard(known)
        self.now -= size


def test_memory_of_a_view_on_a_gpu_hangs_on_the_chunk_not_on_the_view(make_field, camera, monkeypatch):
    monkeypatch.setattr(lookup, "kernels", lambda: None)  # what a GPU runs
    field, peaks = make_field(resolution=(16, 16, 16), steps=200), []
    for factor in (4, 12):
        with _Live() as live:
            render_view(field, camera.resized(9 * factor, 7 * factor), chunk=256)
        peaks.append(live.peak)
    more_rays = 9 * 7 * (12**2 - 4**2)
    march = 256 * 200 * 16  # t and the position of every step of a chunk's rays
    assert peaks[0] > march
    assert peaks[1] - peaks[0] < 200 * more_rays  # a ray and its colour, not the steps along it
