"""A field that differs inside a region: whose values hold where, its file, and its views against full renders."""

import copy
from dataclasses import replace

import pytest
import torch

from tensorf.checkpoint import save_field
from tensorf.local import LocalField, cell_centers
from tensorf.render import render_view
from tensorf.renderable import load_field
from tensorf.visibility import LocalView


@pytest.fixture(params=["box", "ndc"])
def source(request, make_field, make_space):
    field = make_field(space=make_space(request.param, background=1.0), steps=40, gain=8.0, density_shift=-5.0)
    field.occupancy = torch.ones(4, 5, 6, dtype=torch.bool)
    field.occupancy[:, 0, 0] = False
    return field


@pytest.fixture
def local(source):
    """The middle of the box is edited: denser, and of other colours."""
    region = torch.zeros(4, 5, 6, dtype=torch.bool)
    region[1:3, 0:4, 2:5] = True
    field = LocalField(source, region)
    with torch.no_grad():
        for p in field.target.density_grid.parameters():
            p.mul_(1.3)
        field.target.decoder.layers[-1].bias += torch.tensor([2.0, 0, -2])
    return field


def test_each_place_has_the_values_of_its_side(local):
    x = torch.rand(500, 3) * 2 - 1
    # The region's bounds by hand: z in cells 1 and 2 of 4, y in 0 to 3 of 5, x in 2 to 4 of 6.
    low, high = torch.tensor([2 / 6, 0, 1 / 4]) * 2 - 1, torch.tensor([5 / 6, 4 / 5, 3 / 4]) * 2 - 1
    inside = ((x > low) & (x < high)).all(1)
    assert 20 < inside.sum() < 400 and torch.equal(local.inside(x), inside)
    for ask in (lambda f: f.density(x), lambda f: f.color(x, x)):
        mixed, edited, before = ask(local), ask(local.target), ask(local.source)
        assert torch.equal(mixed[inside], edited[inside]) and torch.equal(mixed[~inside], before[~inside])
        assert not torch.equal(edited, before)


def test_only_the_target_is_trained(local):
    x = torch.rand(50, 3) * 2 - 1
    (local.density(x).sum() + local.color(x, x).sum()).backward()
    assert all(p.grad is None for p in local.source.parameters())
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in local.target.parameters())


@pytest.mark.parametrize("nested", [False, True])
def test_the_given_field_keeps_its_flags_and_shares_its_numbers(source, nested):
    given = LocalField(source, torch.ones_like(source.occupancy)) if nested else source
    given.requires_grad_(True)
    local = LocalField(given, torch.zeros_like(source.occupancy))
    assert all(p.requires_grad for p in given.parameters())
    assert not any(p.requires_grad for p in local.source.parameters())
    pairs = zip(given.state_dict().values(), local.source.state_dict().values(), strict=True)
    assert all(a.data_ptr() == b.data_ptr() for a, b in pairs)  # no memory for a copy
    assert not {p.data_ptr() for p in local.target.parameters()} & {p.data_ptr() for p in given.parameters()}


def test_its_parameters_are_those_of_both(local):
    """So that an edit of an edited field can change all of it."""
    groups = local.parameter_groups()
    assert groups.keys() == local.source.parameter_groups().keys()
    assert {id(p) for group in groups.values() for p in group} == {id(p) for p in local.parameters()}
    both = [f.density_grid.total_variation().item() for f in (local.source, local.target)]
    assert local.total_variation().item() == pytest.approx(sum(both)) and both[0] != both[1]


def region_of(begin, end):
    region = torch.zeros(4, 5, 6, dtype=torch.bool)
    region[:, :, begin:end] = True
    return region


@pytest.mark.parametrize(
    ("regions", "fields"),
    [
        ([(2, 4), (2, 4), (2, 4), (2, 4)], 2),  # always the same place: what was there before shows nowhere
        ([(1, 5), (2, 4)], 3),  # inside the last: that outside of it, and its own edit
        ([(2, 4), (1, 5)], 3),
        ([(0, 2), (4, 6)], 3),  # elsewhere: its copy of the last edit shows nowhere
        ([(0, 3), (2, 5)], 4),  # half in the last: everything shows
        ([(0, 1), (2, 3), (4, 5)], 4),
        ([(0, 2), (2, 4), (4, 6)], 3),
    ],
)
def test_edits_of_edits_keep_only_what_shows(source, camera, tmp_path, regions, fields):
    field = source
    for number, bounds in enumerate(regions):
        field = LocalField(copy.deepcopy(field), region_of(*bounds))
        with torch.no_grad():
            for p in field.target.parameters():
                p += 0.02 * (number + 1)
    trained = [p.requires_grad for p in field.parameters()]
    field.save(tmp_path / "field.safetensors")
    assert [p.requires_grad for p in field.parameters()] == trained  # it may be edited further
    loaded, x = load_field(tmp_path / "field.safetensors", torch.device("cpu")), torch.rand(2000, 3) * 2 - 1
    assert torch.equal(loaded.density(x), field.density(x)) and torch.equal(loaded.color(x, x), field.color(x, x))
    assert torch.equal(render_view(loaded, camera)["color"], render_view(field, camera)["color"])
    assert sum(not isinstance(m, LocalField) and hasattr(m, "density_grid") for m in loaded.modules()) == fields
    assert isinstance(loaded, LocalField) and torch.equal(loaded.occupancy, field.occupancy)


def test_a_region_of_another_shape_is_refused(source):
    with pytest.raises(ValueError, match="shape"):
        LocalField(source, torch.zeros(4, 4, 4, dtype=torch.bool))


def test_an_open_region_is_sampled_where_the_source_is_empty(source):
    local = LocalField(source, torch.zeros_like(source.occupancy))
    assert torch.equal(local.occupancy, source.occupancy)
    region = torch.zeros_like(source.occupancy)
    region[0, 0, 0] = True
    local.open(region)
    assert torch.equal(local.occupancy, source.occupancy | region) and local.occupancy[0, 0, 0]


def test_settling_leaves_out_what_is_empty_and_no_more(local, camera):
    local.target.config = replace(local.target.config, density_shift=-20.0)
    with torch.no_grad():  # nothing right of x = -0.2 in the target
        for plane, line in zip(local.target.density_grid.planes, local.target.density_grid.lines):
            plane.zero_(), line.zero_()
        local.target.density_grid.planes[0][:, :, :2] = 300.0  # x is the plane's last axis, 6 points
        local.target.density_grid.lines[0].fill_(1.0)
    full = render_view(local, camera)["color"]
    local.settle()
    assert not local.occupancy[1:3, 0:4, 4].any() and local.occupancy[1:3, 0:4, 2].all()
    assert torch.equal(local.occupancy[~local.region], local.source.occupancy[~local.region])
    assert (render_view(local, camera)["color"] - full).abs().max() < 2e-2


@pytest.mark.parametrize("nested", [False, True])
def test_its_file_gives_it_back(local, tmp_path, nested):
    if nested:  # the edit of an edit
        region = torch.zeros_like(local.region)
        region[2:] = True
        local = LocalField(local, region)
        with torch.no_grad():
            local.target.target.basis.weight.mul_(0.5)
    local.settle()
    save_field(local, tmp_path / "field.safetensors")
    loaded = load_field(tmp_path / "field.safetensors")
    state = local.state_dict()
    assert loaded.state_dict().keys() == state.keys()
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, state[name]) and tensor.dtype == state[name].dtype, name
    x = torch.rand(200, 3) * 2 - 1
    assert torch.equal(loaded.density(x), local.density(x)) and torch.equal(loaded.color(x, x), local.color(x, x))


def test_cells_come_x_first():
    centers = cell_centers((2, 1, 4), "cpu")
    assert centers[:4].tolist() == [[-0.75, 0, -0.5], [-0.25, 0, -0.5], [0.25, 0, -0.5], [0.75, 0, -0.5]]
    assert centers[4].tolist() == [-0.75, 0, 0.5]


# --- views


def test_a_view_shows_the_source_where_nothing_is_edited(source, camera):
    region = torch.zeros_like(source.occupancy)
    region[1:3, 1:4, 2:5] = True
    local, full = LocalField(source, region), render_view(source, camera)["color"].view(-1, 3)
    view = LocalView(local, camera)
    assert 5 < len(view.index) < 63
    torch.testing.assert_close(view.color(local).detach(), full[view.index], atol=1e-5, rtol=0)


def test_a_view_follows_the_edit(local, camera):
    view, full = LocalView(local, camera), render_view(local, camera)["color"].view(-1, 3)
    before = render_view(local.source, camera)["color"].view(-1, 3)
    edit = (full - before)[view.index].square().mean()
    assert edit > 0.005  # there is an edit to see
    assert (view.color(local) - full[view.index]).square().mean() < edit / 20  # colours stand for their neighbours
    others = torch.ones(63, dtype=torch.bool)
    others[view.index] = False
    torch.testing.assert_close(full[others], before[others], atol=1e-6, rtol=0)


def test_a_view_leaves_out_what_the_occupancy_does(local, camera):
    view = LocalView(local, camera)
    before = view.color(local)
    local.occupancy = local.source.occupancy & ~local.region  # as if all of the region were empty
    after, asked = view.color(local), []
    density = local.target.density
    local.target.density = lambda x: (asked.append(len(x)), density(x))[1]
    view.color(local)
    assert asked == [0] and (after - before).abs().max() > 0.1
    late = LocalView(local, camera)  # of a camera that comes once cells are settled, or of a resumed edit
    assert torch.equal(late.index, view.index) and torch.equal(late.color(local), view.color(local))
    local.open(local.region)
    assert torch.equal(view.color(local), before) and torch.equal(late.color(local), before)  # what grows is seen


def test_what_an_edit_uncovers_is_seen(source, camera):
    """The region empties: what the source has behind it shows, though it was hidden."""
    source.config = replace(source.config, density_shift=4.0)
    region = torch.zeros_like(source.occupancy)
    region[:2] = True  # the camera looks along +z: the near half
    local = LocalField(source, region)
    view = LocalView(local, camera)
    local.target.config = replace(source.config, density_shift=-30.0)
    with torch.no_grad():
        for p in local.target.density_grid.parameters():
            p.zero_()
    full = render_view(local, camera)["color"].view(-1, 3)[view.index]
    hidden = render_view(source, camera)["color"].view(-1, 3)[view.index]
    assert (full - hidden).square().mean() > 1e-3
    assert (view.color(local) - full).square().mean() < (full - hidden).square().mean() / 20


@pytest.mark.parametrize("chunk", [1, 10, 1000])
def test_a_view_does_not_hang_on_chunks(local, camera, chunk):
    views = [LocalView(local, camera, chunk=c) for c in (chunk, 63)]
    assert torch.equal(views[0].index, views[1].index)
    torch.testing.assert_close(views[0].color(local), views[1].color(local), atol=1e-5, rtol=0)


def test_a_views_gradient_is_the_renders(local, camera):
    """Against central differences of the view's own colours, in a few parameters."""
    view, weight = LocalView(local, camera), torch.randn(3, generator=torch.Generator().manual_seed(0))
    (view.color(local) * weight).sum().backward()
    plane = local.target.density_grid.planes[0]
    places = plane.grad.abs().flatten().topk(3).indices
    for place in places.tolist():
        sums = []
        for sign in (1, -1):
            moved = copy.deepcopy(local)
            with torch.no_grad():
                flat = moved.target.density_grid.planes[0]
                at = torch.unravel_index(torch.tensor(place), flat.shape)
                flat[at] += sign * 1e-2
                sums.append(float((view.color(moved).double() * weight).sum()))
        assert plane.grad.flatten()[place].item() == pytest.approx((sums[0] - sums[1]) / 2e-2, rel=0.05)


def test_a_region_that_no_ray_meets(source, camera):
    local = LocalField(source, torch.zeros_like(source.occupancy))
    view = LocalView(local, camera)
    assert view.color(local).shape == (0, 3) and len(view.index) == 0
