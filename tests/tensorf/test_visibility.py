"""Views with their samples kept: they look like a full render and give the same gradients."""

import math

import pytest
import torch

from tensorf.render import render_view, shade, weights_of
from tensorf.visibility import View


@pytest.fixture(params=["box", "ndc"])
def field(request, make_field, make_space):
    """Dense enough that some rays end at a surface, with a corner that no ray may sample."""
    field = make_field(space=make_space(request.param, background=1.0), steps=40, gain=8.0, density_shift=-5.0)
    field.occupancy = torch.ones(3, 3, 3, dtype=torch.bool)
    field.occupancy[:, 0, 0] = False
    return field


def psnr(a, b):
    return -10 * math.log10(max((a - b).square().mean().item(), 1e-12))


def test_render_agrees_with_the_full_one(field, camera):
    full, fast = render_view(field, camera), View(field, camera).render(field)
    assert fast.shape == (7, 9, 3) and not fast.requires_grad
    assert full["opacity"].max() > 0.9 and full["color"].std() > 0.02  # there is something to see
    assert psnr(fast, full["color"]) > 40


@pytest.mark.parametrize("chunk", [1, 10, 1000])
def test_render_does_not_hang_on_chunks(field, camera, chunk):
    expected = View(field, camera).render(field)
    assert torch.allclose(View(field, camera, chunk=chunk).render(field, chunk), expected, atol=1e-5)


def test_a_changed_copy_is_rendered_where_the_source_was_seen(field, camera):
    view = View(field, camera)
    with torch.no_grad():
        field.decoder.layers[-1].bias += torch.tensor([1.0, 0, -1])  # colours change, shapes stay
    assert psnr(view.render(field), render_view(field, camera)["color"]) > 40


@pytest.mark.parametrize("chunk", [1, 10, 63, 8192])
def test_backward_equals_the_direct_gradient(field, camera, chunk):
    view = View(field, camera)
    torch.manual_seed(0)
    gradient = torch.randn(7, 9, 3)
    samples, scale = view.samples(torch.arange(len(view)))
    weights = weights_of(field.opacity_rate(samples.x), samples) * scale
    assert torch.zeros(len(view)).index_add(0, samples.ray, weights).max() < 1 + 1e-5  # nothing to be scaled down
    color, _ = shade(field, samples, weights, view.rays.viewdirs)
    color.backward(gradient.view(-1, 3))
    direct = {name: p.grad.clone() for name, p in field.named_parameters()}
    field.zero_grad()
    view.backward(field, gradient, chunk)
    for name, p in field.named_parameters():
        assert direct[name].abs().max() > 1e-4, name
        assert torch.allclose(p.grad, direct[name], rtol=1e-4, atol=1e-4 * direct[name].abs().max().item()), name


def test_backward_adds_up(field, camera):
    view, gradient = View(field, camera), torch.ones(7, 9, 3)
    view.backward(field, gradient)
    once = [p.grad.clone() for p in field.parameters()]
    view.backward(field, gradient)
    assert all(torch.allclose(p.grad, 2 * g, rtol=1e-4, atol=1e-5) for p, g in zip(field.parameters(), once))


def test_backward_of_nothing_leaves_nothing(field, camera):
    View(field, camera).backward(field, torch.zeros(7, 9, 3))
    assert all(p.grad is None or not p.grad.any() for p in field.parameters())


def test_gradient_of_one_pixel_in_another_chunk_is_not_lost(field, camera):
    view = View(field, camera)
    opacity = render_view(field, camera)["opacity"]
    row, column = divmod(int(opacity.argmax()), 9)
    gradient = torch.zeros(7, 9, 3)
    gradient[row, column, 1] = -1.0  # one sign, one channel: sums must not cancel
    view.backward(field, gradient, chunk=5)
    assert field.decoder.layers[-1].bias.grad[1].abs() > 1e-4


def test_a_view_of_nothing_is_background(make_field, make_space, camera):
    field = make_field(space=make_space(background=1.0))
    away = camera.with_pose(torch.cat([torch.eye(3), torch.tensor([[90.0], [90], [-3]])], 1))
    view = View(field, away)
    assert (view.render(field, 10) == 1).all()
    view.backward(field, torch.ones(7, 9, 3), 10)
    assert all(p.grad is None or not p.grad.any() for p in field.parameters())


def test_least_keeps_exactly_the_rays_with_a_large_gradient(field, camera):
    """Rays at or below `least` contribute nothing: the result is that of a gradient with those rays set to zero."""
    view = View(field, camera)
    gradient = torch.zeros(camera.height, camera.width, 3)
    gradient[:4] = 1.0
    gradient[4:] = 0.01  # its norm is 0.0173
    view.backward(field, gradient, least=0.018)
    gated = [p.grad.clone() for p in field.parameters()]
    field.zero_grad()
    large_only = gradient.clone()
    large_only[4:] = 0
    view.backward(field, large_only)
    assert any(g.abs().sum() > 0 for g in gated)
    for a, p in zip(gated, field.parameters(), strict=True):
        assert torch.allclose(a, p.grad, rtol=1e-4, atol=1e-7)
    field.zero_grad()
    view.backward(field, gradient)
    assert not all(torch.allclose(a, p.grad) for a, p in zip(gated, field.parameters(), strict=True))
