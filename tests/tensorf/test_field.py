"""Fields: sums of products by hand, resampling and cropping that keep values, decoders and their refusals."""

import math
import sys

import pytest
import torch
import torch.nn.functional as F
from field_defaults import field_config

from tensorf.errors import UserError
from tensorf.field import CP, VM
from tensorf.shading import MLPDecoder, encode


def grid_point(index, resolution):
    """(1, 3) in [-1, 1]: the position of grid point `index` (x, y, z)."""
    return torch.tensor([[2 * i / (n - 1) - 1 for i, n in zip(index, resolution)]])


def fill(parameters, values):
    with torch.no_grad():
        for p, value in zip(parameters, values):
            p.copy_(value.expand_as(p) if torch.is_tensor(value) else torch.full_like(p, value))


def test_vm_value_at_a_grid_point_by_hand():
    grid = VM((1, 1, 1), (3, 4, 5))
    assert [tuple(p.shape) for p in grid.planes] == [(1, 4, 3), (1, 5, 3), (1, 5, 4)]  # rows are the second axis
    assert [tuple(p.shape) for p in grid.lines] == [(1, 5, 1), (1, 4, 1), (1, 3, 1)]
    fill(grid.parameters(), [0.0] * 6)
    with torch.no_grad():
        grid.planes[0][0, 2, 1] = 3.0  # xy plane at y = 2, x = 1
        grid.lines[0][0, 3] = 0.5  # z = 3
        grid.planes[1][0, 3, 1] = -2.0  # xz plane at z = 3, x = 1
        grid.lines[1][0, 2] = 4.0  # y = 2
    at = grid(grid_point((1, 2, 3), (3, 4, 5)))
    assert at[0].tolist() == pytest.approx([1.5, -8.0, 0.0], abs=1e-4)  # 3 * 0.5, -2 * 4
    # Half a cell further in z: every factor along z halves, 1.5 / 2 and -8 / 2.
    halfway = grid_point((1, 2, 3), (3, 4, 5)) + torch.tensor([[0.0, 0, 0.25]])
    assert grid(halfway)[0].tolist() == pytest.approx([0.75, -4.0, 0.0], abs=1e-4)
    # A whole cell further in x: both planes have nothing there.
    assert grid(grid_point((2, 2, 3), (3, 4, 5)))[0].tolist() == pytest.approx([0, 0, 0], abs=1e-4)


def test_vm_third_mode_is_yz_by_x():
    grid = VM((1, 1, 1), (3, 4, 5))
    fill(grid.parameters(), [0.0] * 6)
    with torch.no_grad():
        grid.planes[2][0, 4, 1] = 5.0  # z = 4, y = 1
        grid.lines[2][0, 0] = 0.2  # x = 0
    assert grid(grid_point((0, 1, 4), (3, 4, 5)))[0].tolist() == pytest.approx([0, 0, 1.0], abs=1e-4)


def test_cp_value_at_a_grid_point_by_hand():
    grid = CP((1, 1, 0), (3, 4, 5))  # components of the modes are added up: 2
    fill(grid.parameters(), [0.0] * 3)
    with torch.no_grad():
        for line, index, pair in zip(grid.lines, (1, 2, 3), ((3.0, 1.0), (-2.0, 4.0), (0.5, 0.25))):
            line[:, index, 0] = torch.tensor(pair)
    values = grid(grid_point((1, 2, 3), (3, 4, 5)))
    assert values[0].tolist() == pytest.approx([-3.0, 1.0], abs=1e-4)  # 3 * -2 * 0.5, 1 * 4 * 0.25


def test_opacity_rate_by_hand(make_field):
    # Cube of side 2: diagonal 2 sqrt(3); the step is a twelfth of it, the density's scale 25.
    field = make_field(steps=12, density_gain=3.0)
    fill(field.density_grid.parameters(), [0.5] * 6)  # 3 modes of 2 components, 0.25 each: 1.5; 3 x 1.5 - 3 = 1.5
    expected = math.log1p(math.exp(1.5)) * 25 * 2 * math.sqrt(3) / 12
    assert (field.density(torch.rand(4, 3)) * field.step).tolist() == pytest.approx([expected] * 4, rel=1e-5)


@pytest.mark.parametrize("decomposition", ["vm", "cp"])
def test_shapes_and_ranges(make_field, decomposition):
    field = make_field(decomposition)
    x = torch.rand(17, 3) * 2 - 1
    rate, color = field.density(x) * field.step, field.color(x, F.normalize(torch.randn(17, 3), dim=1))
    assert rate.shape == (17,) and (rate >= 0).all()
    assert color.shape == (17, 3) and (color > 0).all() and (color < 1).all()
    assert field.color(x[:0], x[:0]).shape == (0, 3) and field.density(x[:0]).shape == (0,)
    assert field.density_grid.total_variation() > 0 and field.density_grid.l1() > 0


@pytest.mark.parametrize("decomposition", ["vm", "cp"])
def test_every_parameter_is_in_one_group(make_field, decomposition):
    field = make_field(decomposition)
    grouped = [id(p) for group in field.parameter_groups().values() for p in group]
    assert sorted(grouped) == sorted(id(p) for p in field.parameters())


def test_total_variation_by_hand():
    grid = VM((1, 1, 1), (3, 3, 3))
    fill(grid.parameters(), [0.0] * 6)
    with torch.no_grad():
        grid.planes[0][0] = torch.tensor([[0.0, 0, 0], [0, 0, 0], [2, 2, 2]])
    # Down the rows: 3 of 6 differences are 2, mean square 2; along them none. The other planes are flat.
    assert grid.total_variation().item() == pytest.approx(2.0)
    assert grid.l1().item() == pytest.approx(6 / 9)
    line = CP((1, 0, 0), (3, 3, 3))
    fill(line.parameters(), [0.0, 1.0, torch.tensor([0.0, 1.0, 3.0]).view(1, 3, 1)])
    assert line.total_variation().item() == pytest.approx((1 + 4) / 2)


def corners():
    return torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 3)


@pytest.mark.parametrize("decomposition", ["vm", "cp"])
def test_resampling_keeps_values_at_the_corners(make_field, decomposition):
    field = make_field(decomposition, resolution=(5, 4, 3))
    before = field.density(corners()) * field.step, field.color(corners(), F.normalize(corners(), dim=1))
    field.resample((8, 9, 7), field.steps)
    assert field.resolution == (8, 9, 7)
    after = field.density(corners()) * field.step, field.color(corners(), F.normalize(corners(), dim=1))
    for a, b in zip(before, after):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("decomposition", ["vm", "cp"])
def test_resampling_keeps_a_linear_ramp_everywhere(make_field, decomposition):
    field = make_field(decomposition, resolution=(5, 4, 3), steps=10)
    with torch.no_grad():
        for p in field.density_grid.parameters():
            rows, columns = (torch.linspace(0, 1, n) for n in p.shape[1:])
            p.copy_((0.5 + rows[:, None] + 0.3 * columns).expand_as(p))
    x = torch.rand(200, 3) * 2 - 1
    before = field.density(x) * field.step
    field.resample((9, 6, 11), 10)
    assert torch.allclose(field.density(x) * field.step, before, rtol=1e-4)
    assert before.std() > 0.1 * before.mean()
    # Twice the steps are half as long each: so are the rates.
    field.resample((9, 6, 11), 20)
    assert torch.allclose(field.density(x) * field.step, before / 2, rtol=1e-4)


def test_resampled_parameters_are_trainable(make_field):
    field = make_field()
    field.resample((8, 8, 8), 12)
    field.density(torch.zeros(1, 3)).sum().backward()
    assert all(p.is_leaf and p.requires_grad and p.grad is not None for p in field.density_grid.parameters())


@pytest.mark.parametrize("kind", ["box", "ndc"])
@pytest.mark.parametrize("decomposition", ["vm", "cp"])
def test_shrinking_keeps_what_is_inside(make_field, make_space, kind, decomposition):
    field = make_field(decomposition, make_space(kind), resolution=(9, 9, 5), steps=100)
    field.occupancy = torch.zeros(3, 4, 5, dtype=torch.bool)
    # Grid points every 0.25 along x and y, 0.5 along z. From (-0.3, -1, 0.1) to (0.6, 0.5, 0.4):
    # x: -0.3 lies above point 2 (-0.5), 0.6 below point 7 (0.75); y: points 0 (-1) to 6 (0.5); z: 2 (0) to 3 (0.5).
    target = torch.tensor([[-0.3, -1, 0.1], [0.6, 0.5, 0.4]])
    points = target[0] + torch.rand(200, 3) * (target[1] - target[0])
    dirs = F.normalize(torch.randn(200, 3), dim=1)
    x = field.space.normalise(points)
    rate, color, step = field.density(x) * field.step, field.color(x, dirs), field.space.t_span / field.steps
    field.shrink(target)
    assert torch.allclose(field.space.box, torch.tensor([[-0.5, -1, 0], [0.75, 0.5, 0.5]]), atol=1e-6)
    assert field.resolution == (6, 7, 2)
    assert field.occupancy.all()
    x = field.space.normalise(points)
    new_step = field.space.t_span / field.steps
    assert new_step == pytest.approx(step, rel=0.5 / field.steps)  # a whole number of them
    assert kind == "box" or field.steps == 100
    assert torch.allclose(field.density(x) * field.step, rate * new_step / step, rtol=1e-3)
    assert torch.allclose(field.color(x, dirs), color, atol=1e-4)


def test_shrinking_to_the_whole_box_changes_nothing(make_field):
    field = make_field()
    before = {k: v.clone() for k, v in field.state_dict().items()}
    box, steps = field.space.box.clone(), field.steps
    field.shrink(box)
    assert torch.equal(field.space.box, box) and field.steps == steps
    assert all(torch.equal(v, before[k]) for k, v in field.state_dict().items())


def test_unknown_names_are_refused(make_field):
    with pytest.raises(ValueError, match="decomposition=tucker.*vm or cp"):
        make_field("tucker")
    with pytest.raises(ValueError, match="decoder=siren.*mlp or tcnn"):
        make_field(decoder="siren")


@pytest.mark.parametrize(
    "options",
    [
        {"density_components": ()},
        {"color_components": (8, 8)},
        {"color_components": (8, 8, 0)},
        {"color_components": (0, 0, 0), "decomposition": "cp"},
        {"color_components": (8, 8, -1), "decomposition": "cp"},
        {"frequencies": ()},
        {"frequencies": (0, -1)},
        {"feature_dim": 2},
        {"hidden": 0},
    ],
)
def test_sizes_of_no_field_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        field_config(**options)
    field_config(decomposition="cp", density_components=(0, 0, 1))  # CP adds them up


def test_tcnn_without_tinycudann_names_both_remedies(make_field, monkeypatch):
    monkeypatch.setitem(sys.modules, "tinycudann", None)  # importing it fails, installed or not
    with pytest.raises(UserError) as caught:
        make_field(decoder="tcnn")
    assert "github.com/NVlabs/tiny-cuda-nn" in str(caught.value)
    assert "decoder=mlp needs nothing" in str(caught.value)


def test_encode_by_hand():
    a, b = 0.3, -0.7
    encoded = encode(torch.tensor([[a, b]]), 2)[0].tolist()
    sines = [math.sin(v) for v in (a, 2 * a, b, 2 * b)]
    cosines = [math.cos(v) for v in (a, 2 * a, b, 2 * b)]
    assert encoded == pytest.approx([a, b, *sines, *cosines], abs=1e-6)
    x = torch.randn(3, 4)
    assert torch.equal(encode(x, 0), x)


def test_decoder_takes_encoded_features_and_directions():
    decoder = MLPDecoder(feature_dim=4, hidden=8, frequencies=(2, 1))
    assert decoder.layers[0].in_features == 4 * 5 + 3 * 3  # each with a sine and a cosine a frequency
    assert decoder(torch.randn(6, 4), torch.randn(6, 3)).shape == (6, 3)


@pytest.mark.parametrize("components", [(4, 2, 2), (3, 1, 2)])
def test_results_do_not_hang_on_the_number_of_threads(make_field, components):
    field = make_field(color_components=components, density_components=components)
    x, before, results = torch.rand(50, 3) * 2 - 1, torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            field.zero_grad()
            rate = field.density(x) * field.step
            (rate.sum() + field.color(x, x).square().sum()).backward()
            results.append([rate.detach(), *(p.grad.clone() for p in field.parameters())])
    finally:
        torch.set_num_threads(before)
    for one, two in zip(*results):
        assert torch.allclose(one, two, rtol=1e-4, atol=1e-5)


def test_config_defaults_are_a_field_that_starts_as_thin_fog(make_space):
    from tensorf.field import Field

    field = Field(field_config(), make_space(), (16, 16, 16), 64)
    rate = field.density(torch.rand(100, 3) * 2 - 1) * field.step
    assert 0.3 < rate.mean() * 64 < 2  # the longest ray meets something everywhere and is not stopped by it


@pytest.mark.parametrize("axis", [1, 2])
def test_total_variation_looks_along_both_axes_of_a_plane(axis):
    grid = VM((1, 1, 1), (3, 4, 5))
    fill(grid.parameters(), [0.0] * 6)
    with torch.no_grad():  # 0, 2, 4 across one axis: squared steps of 4, the mean over all pairs of neighbours
        steps = 2.0 * torch.arange(grid.planes[0].shape[axis])
        grid.planes[0].copy_(steps.view(1, -1, 1) if axis == 1 else steps.view(1, 1, -1))
    assert grid.total_variation().item() == pytest.approx(4.0)


def test_the_first_features_are_the_diffuse_colour():
    decoder = MLPDecoder(5, 8, (0, 0))
    fill(decoder.parameters(), [0.0] * 6)
    features = torch.tensor([[0.0, 2.0, -1.0, 9.0, 9.0]])
    color = decoder(features, torch.tensor([[0.0, 0.0, 1.0]]))
    torch.testing.assert_close(color, torch.sigmoid(features[:, :3]))
