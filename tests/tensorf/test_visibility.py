"""Views with their samples kept: they look like a full render and give the same gradients."""

import math

import pytest
import torch

from tensorf.render import render_rays, render_view
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
    assert torch.allclose(fast, full["color"], atol=1e-5)  # the residue makes up for what is left out
    view = View(field, camera)
    view.residue.zero_()
    assert psnr(view.render(field), full["color"]) > 35  # and there is little of it


@pytest.mark.parametrize("chunk", [1, 10, 1000])
def test_a_view_does_not_hang_on_chunks(field, camera, chunk):
    assert torch.allclose(View(field, camera, chunk=chunk).render(field), View(field, camera).render(field), atol=1e-5)


def test_color_of_some_rays_in_any_order(field, camera):
    view = View(field, camera)
    index = torch.randperm(len(view), generator=torch.Generator().manual_seed(0))[:20]
    assert torch.allclose(view.color(field, index), view.color(field)[index], atol=1e-6)
    assert view.color(field, index[:0]).shape == (0, 3)


def test_a_changed_copy_is_rendered_where_the_source_was_seen(field, camera):
    view = View(field, camera)
    with torch.no_grad():
        field.decoder.layers[-1].bias += torch.tensor([1.0, 0, -1])  # colours change, shapes stay
    assert psnr(view.render(field), render_view(field, camera)["color"]) > 40


def test_exact_colors_are_those_of_a_field_whose_surfaces_have_moved(field, camera):
    view = View(field, camera)
    with torch.no_grad():
        for grid in field.density_grid.planes:
            grid.copy_(grid.flip(1))
    full = render_view(field, camera)["color"]
    assert psnr(view.render(field), full) < 35  # the few samples are in the old places
    index = torch.randperm(len(view), generator=torch.Generator().manual_seed(0))[:20]
    assert torch.equal(view.exact_color(field).view_as(full), full)
    assert torch.allclose(view.exact_color(field, index, chunk=7), full.view(-1, 3)[index], atol=1e-6)
    assert view.exact_color(field, index[:0]).shape == (0, 3)


def test_exact_gradients_are_those_of_one_graph(field, camera):
    gradient = torch.randn(63, 3, generator=torch.Generator().manual_seed(0))
    render_rays(field, field.space.rays(camera)).color.backward(gradient)
    expected = {name: p.grad.clone() for name, p in field.named_parameters()}
    field.zero_grad()
    View(field, camera).exact_color(field, chunk=10).backward(gradient)
    for name, p in field.named_parameters():
        assert torch.allclose(p.grad, expected[name], rtol=1e-4, atol=1e-6), name
    assert field.density_grid.planes[0].grad.abs().max() > 1e-4


def by_hand(view, field):
    """The view's colours ray by ray and sample by sample."""
    colors, begin = [], 0
    for r, count in enumerate(view.count.tolist()):
        x, scale = view.x[begin : begin + count], view.scale[begin : begin + count]
        alpha = 1 - torch.exp(-field.density(x) * field.step)
        clear = torch.cat([torch.ones(1), torch.cumprod(1 - alpha, 0)[:-1]]) if count else alpha
        weights = alpha * clear * scale
        assert weights.sum() < 1 + 1e-5  # nothing to be scaled down
        color = field.color(x, view.viewdirs[r].expand(count, 3))
        colors.append((weights[:, None] * color).sum(0) + (1 - weights.sum()) * field.space.background)
        begin += count
    return torch.stack(colors) + view.residue


def test_color_and_gradient_equal_those_by_hand(field, camera):
    view = View(field, camera)
    torch.manual_seed(0)
    gradient = torch.randn(63, 3)
    expected = by_hand(view, field)
    expected.backward(gradient)
    direct = {name: p.grad.clone() for name, p in field.named_parameters()}
    field.zero_grad()
    color = view.color(field)
    assert torch.allclose(color, expected, atol=1e-5)
    color.backward(gradient)
    for name, p in field.named_parameters():
        assert direct[name].abs().max() > 1e-4, name
        assert torch.allclose(p.grad, direct[name], rtol=1e-4, atol=1e-4 * direct[name].abs().max().item()), name


def test_thickened_fog_is_cut_off_above_everything(field, camera):
    view = View(field, camera)
    with torch.no_grad():
        view.scale *= 10
        view.residue.zero_()
        for p in (*field.color_grid.planes, *field.decoder.parameters()):
            p.zero_()  # all colours are a half
    # Opacity 1.02 of a half before white: 0.51 - 0.02. Without the cut the densest rays would come out far darker.
    image = view.render(field)
    assert image.min() == pytest.approx(0.49, abs=1e-4) and image.max() > 0.9


def test_a_view_of_nothing_is_background(make_field, make_space, camera):
    field = make_field(space=make_space(background=1.0))
    away = camera.with_pose(torch.cat([torch.eye(3), torch.tensor([[90.0], [90], [-3]])], 1))
    view = View(field, away)
    assert (view.render(field) == 1).all()
    view.color(field).sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in field.parameters())
