"""Training on eight tiny photos: it learns, it resumes bit for bit, and its small parts are worked out by hand."""

import io
from dataclasses import replace

import pytest
import torch
from field_defaults import field_config, train_config

from tensorf import train
from tensorf.captures import load_capture
from tensorf.errors import UserError
from tensorf.field import Field
from tensorf.losses import away_from_points, distortion
from tensorf.occupancy import Samples
from tensorf.render import render_view
from tensorf.settings import finest_resolution, grid_resolution, step_count
from tensorf.space import Space, space_of
from tensorf.train import PixelBatches, Trainer

CPU = torch.device("cpu")
FIELD = field_config(density_components=(2, 1, 1), color_components=(4, 2, 2), feature_dim=6, hidden=16)
SHORT = train_config(
    iterations=40,
    batch=256,
    resolution=32,
    lr_grid=0.05,
    lr_network=1e-2,
    prune_at=(0.1, 0.4, 0.5),
    prune_rays=5000,  # for photos of 1,728 pixels these do
    final_rays=5000,
)
MARGIN = SHORT.sightings_margin


def photo_error(field, capture):
    """Mean squared error over one training view."""
    view = capture.train[0]
    return (render_view(field, capture.cameras[view])["color"] - capture.images[view] / 255).square().mean().item()


def plain(capture):
    """The variance of the same photo: what the best single colour gets wrong."""
    photo = capture.images[capture.train[0]] / 255
    return (photo - photo.mean((0, 1))).square().mean().item()


@pytest.mark.parametrize(("decomposition", "components"), [("vm", (2, 1, 1)), ("cp", (8, 8, 8))])
def test_a_forward_facing_capture_is_learnt(ndc_capture, decomposition, components):
    config = replace(FIELD, decomposition=decomposition, density_components=components)
    trainer = Trainer(ndc_capture, config, SHORT, CPU)
    before = photo_error(trainer.field, ndc_capture)
    while trainer.iteration < 40:
        trainer.step()
    trainer.finish()
    after = photo_error(trainer.field, ndc_capture)
    assert after < 0.3 * before and after < 0.3 * plain(ndc_capture)
    assert trainer.field.resolution == grid_resolution(trainer.field.space, trainer.resolution, SHORT.depth_resolution)
    assert trainer.field.occupancy.numel() > 1


def test_a_capture_in_a_box_is_learnt(box_capture):
    # Nothing is dense yet when pruning starts, and the grid is coarse: pruning must not leave an empty field.
    config = replace(FIELD, density_gain=1.0)  # the slower it gets dense, the harder
    trainer = Trainer(box_capture, config, replace(SHORT, prune_at=train_config("box").prune_at), CPU)
    before = photo_error(trainer.field, box_capture)
    while trainer.iteration < 40:
        trainer.step()
    assert trainer.field.occupancy.any()
    after = photo_error(trainer.field, box_capture)
    assert after < 0.3 * before and after < 0.4 * plain(box_capture)


@pytest.mark.parametrize("kind", ["ndc", "box"])
def test_pruning_a_coarse_field_has_no_holes(ndc_capture, box_capture, kind):
    # Cells finer than the steps along a ray would be empty for no other reason than that no sample fell into them;
    # a camera half a step ahead of one that was measured from would see the gaps.
    capture = ndc_capture if kind == "ndc" else box_capture
    trainer = Trainer(capture, replace(FIELD, density_shift=-3.0), replace(SHORT, stages=(1.0,), upsample_at=()), CPU)
    camera = capture.cameras[capture.train[2]]
    camera = camera.with_pose(torch.cat([camera.pose[:, :3], (camera.position + 0.045 * camera.forward)[:, None]], 1))
    before = render_view(trainer.field, camera)["opacity"]
    trainer.finish()
    after = render_view(trainer.field, camera)["opacity"]
    assert before.mean() > 0.5 and trainer.field.occupancy.numel() > 1
    assert (before - after).abs().mean() < 0.01


RESUMED = {
    # Saved after 6 of 12 iterations; the second pruning is the one that shrinks a box.
    "changes before": dict(upsample_at=(2 / 12, 5 / 12), prune_at=(1 / 12, 3 / 12, 4 / 12)),
    "changes after": dict(upsample_at=(7 / 12, 10 / 12), prune_at=(6 / 12, 8 / 12, 9 / 12)),
    "changes around": dict(upsample_at=(3 / 12, 9 / 12), prune_at=(1 / 12, 5 / 12, 7 / 12)),
}


@pytest.mark.parametrize(
    ("kind", "changes"),
    [("ndc", "changes around"), ("box", "changes before"), ("box", "changes after"), ("box", "changes around")],
)
def test_resuming_is_bit_for_bit(world_folder, kind, changes):
    capture = load_capture(world_folder, space=kind, bound=0.6)  # the cameras stand outside such a box, 1 away
    config = replace(
        SHORT, iterations=12, batch=64, resolution=24, l1=1e-3, view_noise=0.1, exposure=0.01, **RESUMED[changes]
    )
    unbroken, file = Trainer(capture, FIELD, config, CPU), io.BytesIO()
    while unbroken.iteration < 12:
        if unbroken.iteration == 6:
            torch.save(unbroken.state_dict(), file)
        last = unbroken.step()
    file.seek(0)
    torch.manual_seed(99)  # whatever else the process has drawn meanwhile
    resumed = Trainer(capture, FIELD, config, CPU)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert resumed.iteration == 6
    assert torch.equal(resumed.pixels.space.box, resumed.field.space.box)  # rays enter the box as it is by now
    while resumed.iteration < 12:
        again = resumed.step()
    assert again == last
    a, b = unbroken.field, resumed.field
    assert (a.resolution, a.steps) == (b.resolution, b.steps)
    assert torch.equal(a.space.box, b.space.box)
    state = b.state_dict()
    assert all(torch.equal(v, state[k]) for k, v in a.state_dict().items())
    assert torch.equal(unbroken.exposure.gains, resumed.exposure.gains) and unbroken.exposure.gains.any()
    # And the run had in it what this test is about.
    assert a.resolution != grid_resolution(space_of(capture), 7, config.depth_resolution)
    assert torch.equal(a.space.box, space_of(capture).box) is (kind == "ndc")


def test_a_device_is_named_as_for_load_field(ndc_capture):
    for name in ("auto", "cpu"):
        assert isinstance(Trainer(ndc_capture, FIELD, SHORT, name).device, torch.device)
    with pytest.raises(UserError, match="^device=tpu cannot be used"):
        Trainer(ndc_capture, FIELD, SHORT, "tpu")


def test_the_seed_decides_everything(ndc_capture):
    config = replace(SHORT, iterations=4, batch=32, prune_at=())
    runs = []
    for seed in (0, 0, 1):
        trainer = Trainer(ndc_capture, FIELD, replace(config, seed=seed), CPU)
        runs.append([trainer.step() for _ in range(4)])
    assert runs[0] == runs[1] != runs[2]


def test_a_state_is_a_snapshot(ndc_capture):
    trainer = Trainer(ndc_capture, FIELD, replace(SHORT, batch=32, exposure=0.01, prune_at=()), CPU)
    trainer.step()
    state, file = trainer.state_dict(), io.BytesIO()
    torch.save(state, file)
    trainer.step()
    file.seek(0)
    as_it_was = torch.load(file, weights_only=True)
    torch.testing.assert_close(state, as_it_was, rtol=0, atol=0)
    trainer.load_state_dict(state)
    first = trainer.step()
    torch.testing.assert_close(state, as_it_was, rtol=0, atol=0)  # whoever resumes from it does not go on in it
    trainer.load_state_dict(state)
    assert trainer.step() == first


@pytest.mark.parametrize("started", [False, True])
def test_the_global_random_state_is_left_alone(ndc_capture, make_field, started):
    start = make_field(space=space_of(ndc_capture)) if started else None
    torch.manual_seed(5)
    before = torch.get_rng_state()
    Trainer(ndc_capture, FIELD, replace(SHORT, batch=32), CPU, start=start).step()
    assert torch.equal(torch.get_rng_state(), before)


def test_a_new_field_follows_from_the_seed_alone(ndc_capture):
    fields = []
    for state in (1, 2):
        torch.manual_seed(state)
        fields.append(Trainer(ndc_capture, FIELD, replace(SHORT, seed=7), CPU).field)
    torch.manual_seed(7)
    own = Field(FIELD, fields[0].space, fields[0].resolution, fields[0].steps)
    fields.append(own)
    first, *others = (field.state_dict() for field in fields)
    assert all(torch.equal(first[name], other[name]) for other in others for name in first)


def test_a_loss_that_is_not_finite_is_told(ndc_capture):
    trainer = Trainer(ndc_capture, FIELD, replace(SHORT, batch=16), CPU)
    trainer.step()
    with torch.no_grad():
        trainer.field.basis.weight.fill_(float("nan"))
    with pytest.raises(UserError, match="no longer finite at iteration 1: lower lr_grid "):
        trainer.step()


def packed(ray, t, rays):
    ray, t = torch.tensor(ray), torch.tensor(t)
    return Samples(torch.zeros(len(ray), 3), ray, t, t, torch.searchsorted(ray, torch.arange(rays)), rays)


def test_distortion_by_hand():
    # Ray 0: two samples 0.4 apart; ray 1 is empty; ray 2: three samples; ray 3: all weight at one place.
    samples = packed([0, 0, 2, 2, 2, 3], [0.2, 0.6, 0.0, 1.0, 2.0, 0.3], rays=4)
    weights = torch.tensor([0.5, 0.25, 0.4, 0.3, 0.2, 1.0])
    first = 2 * 0.5 * 0.25 * 0.4
    third = 2 * (0.4 * 0.3 * 1 + 0.4 * 0.2 * 2 + 0.3 * 0.2 * 1)
    assert distortion(weights, samples, span=1.0).item() == pytest.approx((first + third) / 4, rel=1e-5)
    assert distortion(weights, samples, span=2.0).item() == pytest.approx((first + third) / 8, rel=1e-5)
    assert distortion(weights[:0], packed([], [], rays=4), 1.0).item() == 0


def test_distortion_gradient_is_that_of_all_pairs():
    generator = torch.Generator().manual_seed(0)
    ray = torch.randint(5, (40,), generator=generator).sort().values
    samples = packed(ray.tolist(), torch.rand(40, generator=generator).sort().values.tolist(), rays=5)
    weights = torch.rand(40, generator=generator).requires_grad_()
    same = (ray[:, None] == ray).float()
    pairs = weights[:, None] * weights * (samples.t[:, None] - samples.t).abs() * same
    (expected,) = torch.autograd.grad(pairs.sum() / 5, weights)
    (actual,) = torch.autograd.grad(distortion(weights, samples, 1.0), weights)
    assert torch.allclose(actual, expected, atol=1e-6)


def space(kind, *size):
    half = torch.tensor(size) / 2
    return Space(kind, torch.stack([-half, half]), 1.0, 10.0, torch.eye(3, 4))


def test_grid_resolution_of_a_box_has_cubic_voxels():
    # 4 x 2 x 1 at 40 along the longest: 40, 20, 10. A thin box keeps 8.
    assert grid_resolution(space("box", 4.0, 2, 1), 40, 0.33) == (40, 20, 10)
    assert grid_resolution(space("box", 4.0, 4, 0.1), 40, 0.33) == (40, 40, 8)


def test_grid_resolution_of_ndc_has_a_third_in_depth():
    # 2 x 1.5 in the image, depth -1 to 1 whatever its extent: 60, 45, 20.
    assert grid_resolution(space("ndc", 2.0, 1.5, 2), 60, 0.33) == (60, 45, 20)
    assert grid_resolution(space("ndc", 1.0, 2.0, 2), 60, 0.33) == (30, 60, 20)


def test_step_count():
    # Cube: the diagonal is sqrt(3) sides, one sample a voxel: 1.732 * 100. NDC: 0.45 * 100.
    config = train_config(samples_per_voxel=1.0, ndc_samples=0.45)
    assert step_count(space("box", 2.0, 2, 2), 100, config) == 173
    assert step_count(space("ndc", 2.0, 1.5, 2), 100, config) == 45
    assert step_count(space("unbounded", 2.0, 2, 2), 100, config) == 100
    few = [step_count(space("ndc", 2.0, 1.5, 2), 10, config), step_count(space("box", 2.0, 2, 2), 5, config)]
    assert few == [16, 16]
    assert step_count(space("box", 2.0, 2, 2), 100, replace(config, samples_per_voxel=2.0)) == 346


def test_grids_are_no_finer_than_the_photos(box_capture):
    focal = max(c.fx for c in box_capture.cameras)
    config = train_config(points_per_pixel=0.5, unbounded_points_per_pixel=0.25)
    # A pixel at distance 1 is 1 / focal wide: a box of side 2 is 2 focal pixels.
    assert finest_resolution(box_capture, space("box", 2.0, 1, 1), config) == round(focal)
    # Contracted space is twice as wide as its inner box.
    assert finest_resolution(box_capture, space("unbounded", 2.0, 2, 2), config) == round(focal)
    assert finest_resolution(box_capture, space("ndc", 3.0, 2, 9), config) == round(1.5 * focal)
    config = replace(SHORT, resolution=10_000, points_per_pixel=0.2)
    trainer = Trainer(box_capture, FIELD, config, CPU)
    assert trainer.final_size()[0] == (finest_resolution(box_capture, trainer.field.space, config),) * 3


@pytest.mark.parametrize(
    "wrong",
    [
        dict(iterations=0), dict(batch=1), dict(resolution=4), dict(seed=-1), dict(lr_grid=0.0),
        dict(lr_network=float("nan")), dict(lr_decay=1.5), dict(early_batch=0.0), dict(tv_density=-1.0),
        dict(distortion=float("inf")), dict(points_per_pixel=0.0), dict(stages=()), dict(stages=(0.5, 0.5, 1.0)),
        dict(stages=(0.3, 0.6, 0.9)), dict(upsample_at=(0.1,)), dict(upsample_at=(0.4, 0.2)),
        dict(prune_at=(0.5, 0.2)), dict(prune_at=(1.0,)), dict(prune_thresholds=(0.1,)), dict(sightings=-0.1),
        dict(prune_rays=0), dict(final_rays=0), dict(final_threshold=1.0), dict(prune_tolerant=-0.1),
        dict(prune_most=1.0), dict(occupancy_cells=3), dict(cells_per_point=0.0), dict(sightings_batch=0.0),
        dict(sightings_margin=0.0), dict(depth_resolution=1.5),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_trained_with_are_named(wrong):
    with pytest.raises(ValueError, match=f"^{next(iter(wrong))}="):
        train_config(**wrong)


def test_lists_may_be_empty(ndc_capture):
    config = replace(SHORT, iterations=4, stages=(1.0,), upsample_at=(), prune_at=(), distortion=0.01)
    trainer = Trainer(ndc_capture, FIELD, config, CPU)
    while trainer.iteration < 4:
        trainer.step()
    assert trainer.field.occupancy.all()


def test_an_unbounded_capture_is_learnt(world_folder):
    capture = load_capture(world_folder, space="unbounded", bound=0.6)
    trainer = Trainer(capture, FIELD, SHORT, CPU)
    before = photo_error(trainer.field, capture)
    while trainer.iteration < 40:
        trainer.step()
    trainer.finish()
    after = photo_error(trainer.field, capture)
    assert after < 0.4 * before and after < 0.4 * plain(capture)
    assert torch.equal(trainer.field.space.box, space_of(capture).box)  # which does not shrink


def test_held_out_pixels_are_compared(ndc_capture):
    trainer = Trainer(ndc_capture, FIELD, SHORT, CPU)
    view = ndc_capture.test[0]
    photo = ndc_capture.images[view].float() / 255
    color = render_view(trainer.field, ndc_capture.cameras[view])["color"].clamp(0, 1)
    expected = -10 * (color - photo).square().mean().log10().item()
    state = torch.get_rng_state()
    assert len(ndc_capture.test) == 1 and trainer.held_out_psnr() == pytest.approx(expected, abs=0.3)
    assert torch.equal(torch.get_rng_state(), state)
    assert Trainer(replace(ndc_capture, test=[]), FIELD, SHORT, CPU).held_out_psnr() is None


@pytest.mark.parametrize("kind", ["ndc", "box", "unbounded"])
def test_rays_to_matched_points_are_kept_clear(world_folder, kind):
    capture = load_capture(world_folder, space=kind)
    field = Trainer(capture, FIELD, SHORT, CPU).field
    camera = capture.cameras[capture.train[0]]
    depth = 1.5 if kind == "ndc" else 1.0
    point = (camera.position + depth * camera.forward).expand(5, 3)
    rays = field.space.cast(camera.position.expand(5, 3).contiguous(), camera.forward.expand(5, 3))
    jitter = torch.rand(5)
    there = field.space.normalise(point[:1]) if kind != "ndc" else None
    if there is None:
        t = field.space.parameter(point[:1], rays[:1])
        there = field.space.normalise(rays.origins[:1] + t * rays.directions[:1])
    lies = lambda x: 1e4 * ((x - there).norm(dim=1) < 0.03)  # noqa: E731
    field.resample(field.resolution, 100)
    field.density = lies
    assert away_from_points(field, rays, point, jitter, MARGIN) < 0.01
    field.density = lambda x: torch.zeros(len(x))
    assert away_from_points(field, rays, point, jitter, MARGIN) == 1
    field.density = lambda x: torch.full((len(x),), 1e4)  # all of it right before the camera
    assert away_from_points(field, rays, point, jitter, MARGIN) > 0.99


def test_matched_points_are_trained_with(ndc_capture):
    view = ndc_capture.train[0]
    camera = ndc_capture.cameras[view]
    points = (camera.position + 2 * camera.forward).expand(40, 3)
    capture = replace(ndc_capture, sightings=(torch.full((40,), view), points))
    runs = []
    for weight in (0.0, 0.5):
        trainer = Trainer(capture, FIELD, replace(SHORT, iterations=60, sightings=weight, sightings_until=1.0), CPU)
        for _ in range(30):
            trainer.step()
        rays = trainer.field.space.cast(camera.position[None], camera.forward[None])
        runs.append(away_from_points(trainer.field, rays, points[:1], torch.tensor([0.5]), MARGIN).item())
    assert runs[1] < runs[0] - 0.1


@pytest.mark.parametrize("kind", ["ndc", "box"])
def test_pixel_batches_pair_rays_with_their_pixels(ndc_capture, box_capture, kind):
    capture = ndc_capture if kind == "ndc" else box_capture
    torch.manual_seed(0)
    images = torch.randint(0, 256, capture.images.shape, dtype=torch.uint8)  # every pixel another colour
    capture = replace(capture, images=images)
    where = space_of(capture)
    rays, colors, photos = PixelBatches(capture, capture.train, where, CPU).draw(64, torch.Generator().manual_seed(0))
    assert len(rays) == 64 and colors.shape == (64, 3)
    all_rays = [where.rays(capture.cameras[i]) for i in capture.train]
    known = torch.cat([torch.cat([r.origins, r.directions], 1) for r in all_rays])
    pixels = torch.cat([images[i].reshape(-1, 3) for i in capture.train])
    distance, match = (torch.cat([rays.origins, rays.directions], 1)[:, None] - known).norm(dim=2).min(1)
    assert distance.max() < 1e-4
    assert torch.equal((colors * 255).round().to(torch.uint8), pixels[match])
    assert len(match.unique()) > 55  # of 12,096 pixels
    for name in ("viewdirs", "t_near", "t_far"):
        expected = torch.cat([getattr(r, name) for r in all_rays])[match]
        assert torch.allclose(getattr(rays, name), expected, atol=1e-4), name
    views = match // (capture.images.shape[1] * capture.images.shape[2])
    assert len(views.unique()) == len(capture.train)
    assert torch.equal(photos, views)


def test_grids_go_on_training_after_a_box_that_could_not_shrink(ndc_capture):
    trainer = Trainer(ndc_capture, FIELD, replace(SHORT, batch=16, exposure=0.01), CPU)
    trainer.field.occupancy = torch.ones(4, 4, 4, dtype=torch.bool)
    trainer._shrink()
    held = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for part in (trainer.field, trainer.exposure) for p in part.parameters()}


@pytest.mark.parametrize("kind", ["ndc_capture", "box_capture"])
def test_regularisers_are_added_up_with_their_weights(request, kind):
    none = dict(tv_density=0.0, tv_color=0.0, l1=0.0, distortion=0.0, prune_at=(0.1,))

    def total(progress=0.5, iteration=4, **weights):
        trainer = Trainer(request.getfixturevalue(kind), FIELD, replace(SHORT, batch=64, **{**none, **weights}), CPU)
        trainer.iteration = iteration
        rays, _, _ = trainer.pixels.draw(64, torch.Generator().manual_seed(0))
        rendering = train.render_rays(trainer.field, rays)
        grids = trainer.field.density_grid, trainer.field.color_grid
        scattered = distortion(rendering.weights, rendering.samples, trainer.field.space.t_span)
        parts = grids[0].total_variation(), grids[1].total_variation(), grids[0].l1(), scattered
        return trainer._regulariser(rendering, progress).item(), [part.item() for part in parts]

    assert total()[0] == 0.0
    smooth, (density, color, absolute, scattered) = total(tv_density=2.0)
    assert smooth == pytest.approx(2 * density) and density > 0
    assert total(tv_color=3.0)[0] == pytest.approx(3 * color) and color > 0
    assert total(l1=5.0)[0] == pytest.approx(4 * 5 * absolute) and absolute > 0
    assert total(tv_density=2.0, l1=5.0, iteration=5)[0] == 0.0  # every fourth step
    assert total(distortion=7.0)[0] == pytest.approx(0.5**2 * 7 * scattered) and scattered > 0
    assert total(distortion=7.0, progress=0.05)[0] == 0.0  # before the first pruning


def test_rates_fall_to_their_share_and_near_density_learns_less(ndc_capture, box_capture, world_folder, monkeypatch):
    trainer = Trainer(ndc_capture, FIELD, replace(SHORT, batch=16, lr_decay=0.01, prune_at=(), exposure=0.01), CPU)
    trainer.iteration = 20  # of 40
    trainer.step()
    rates = [group["lr"] for group in trainer.optimizer.param_groups]
    assert rates == pytest.approx([0.05 * 0.1, 0.05 * 0.1, 1e-2 * 0.1, SHORT.lr_exposure * 0.1])  # 0.01 ** (1 / 2)
    told, render = [], train.render_rays

    def rendered(*arguments, near=0.0):
        told.append(near)
        return render(*arguments, near=near)

    monkeypatch.setattr(train, "render_rays", rendered)
    unbounded = load_capture(world_folder, space="unbounded", bound=0.6)
    for capture in (ndc_capture, unbounded, box_capture):
        trainer = Trainer(capture, FIELD, replace(SHORT, batch=16), CPU)
        trainer.step()
    assert told == [0.0, 1.0, pytest.approx(float(trainer.field.space.extent.max()) / 3)]


def test_view_directions_are_noisy_in_training_alone(ndc_capture, monkeypatch):
    seen, render = [], train.render_rays

    def rendered(field, rays, *arguments, **named):
        seen.append(rays)
        return render(field, rays, *arguments, **named)

    monkeypatch.setattr(train, "render_rays", rendered)
    for noise in (0.0, 0.1):
        trainer = Trainer(ndc_capture, FIELD, replace(SHORT, batch=4000, view_noise=noise, prune_at=()), CPU)
        trainer.step()
    exact, noisy = (rays.viewdirs for rays in seen)
    assert torch.equal(seen[0].directions, seen[1].directions)
    assert torch.allclose(noisy.norm(dim=1), torch.ones(2000))
    sine = torch.linalg.cross(exact, noisy).norm(dim=1)  # two axes across, each of standard deviation 0.1
    assert sine.square().mean().sqrt().item() == pytest.approx(0.1 * 2**0.5, rel=0.05)
    trainer.held_out_psnr()
    assert torch.equal(seen[2].viewdirs, trainer.held_out.draw(4096, train.seeded(CPU, 0))[0].viewdirs)


def test_space_decides_when_to_prune():
    first = [train_config(kind).prune_at[0] for kind in ("box", "ndc", "unbounded")]
    assert first[0] < first[1] <= first[2]


def test_occupancy_is_measured_when_and_as_asked(ndc_capture, monkeypatch):
    measured, trainer = [], None

    def measure(field, rays, threshold, *, cells, most):
        measured.append((trainer.iteration, len(rays), threshold, cells, most))
        return torch.ones(2, 2, 2, dtype=torch.bool)

    monkeypatch.setattr(train, "measure", measure)
    config = replace(
        SHORT, iterations=20, batch=16, stages=(0.5, 1.0), upsample_at=(0.4,), prune_at=(0.2, 0.3, 0.5),
        prune_thresholds=(0.01, 0.02), prune_tolerant=0.25, final_threshold=0.03, prune_most=0.04, prune_rays=70,
        final_rays=90, occupancy_cells=30, cells_per_point=1.25,
    )  # fmt: skip
    trainer = Trainer(ndc_capture, FIELD, config, CPU)
    coarse = max(trainer.field.resolution)
    while trainer.iteration < 20:
        trainer.step()
    trainer.finish()
    assert round(1.25 * coarse) < 30 < 1.25 * max(trainer.field.resolution)
    assert measured == [
        (4, 70, 0.01, round(1.25 * coarse), 0.04),
        (6, 70, 0.02, round(1.25 * coarse), 0.04),
        (10, 70, 0.02, 30, 0.04),
        (20, 90, 0.03, 30, 0.04),
    ]


def test_rays_to_matched_points_are_a_share_of_the_batch(ndc_capture, monkeypatch):
    camera = ndc_capture.cameras[ndc_capture.train[0]]
    points = (camera.position + 2 * camera.forward).expand(3, 3)
    capture = replace(ndc_capture, sightings=(torch.full((3,), ndc_capture.train[0]), points))
    asked = []

    def away(field, rays, points, jitter, margin):
        asked.append((len(rays), len(points), len(jitter), margin))
        return torch.zeros(())

    monkeypatch.setattr(train, "away_from_points", away)
    for share, expected in ((0.75, 12), (0.01, 1)):
        config = replace(SHORT, batch=16, sightings=0.1, sightings_batch=share, sightings_margin=1.5)
        Trainer(capture, FIELD, config, CPU).step()
        assert asked.pop() == (expected, expected, expected, 1.5) and not asked


def test_matched_points_count_twice_in_every_second_step(ndc_capture, monkeypatch):
    camera = ndc_capture.cameras[ndc_capture.train[0]]
    points = (camera.position + 2 * camera.forward).expand(3, 3)
    capture = replace(ndc_capture, sightings=(torch.full((3,), ndc_capture.train[0]), points))
    config = replace(
        SHORT, iterations=8, sightings=0.1, sightings_until=0.5, upsample_at=(), stages=(1.0,), prune_at=()
    )
    asked = []

    def steepness(field, *ignored):  # a loss whose gradient is 1 for each number of the first line
        asked.append(trainer.iteration)
        return field.density_grid.lines[0].sum()

    monkeypatch.setattr(train, "away_from_points", steepness)
    trainer, plain = (Trainer(capture, FIELD, replace(config, sightings=s), CPU) for s in (0.1, 0.0))
    for iteration in range(8):
        plain.field.load_state_dict(trainer.field.state_dict())
        trainer.step(), plain.step()
        with_points, without = (t.field.density_grid.lines[0].grad for t in (trainer, plain))
        weight = {0: 2 * 0.1, 2: 2 * 0.1 * 0.5}.get(iteration, 0.0)  # it fades out by the middle of the run
        assert torch.allclose(with_points - without, torch.full_like(without, weight), atol=1e-5), iteration
    assert asked == [0, 2]


def test_the_margin_around_matched_points_counts_in_steps(make_field, make_space):
    field = make_field(space=make_space(), steps=40)
    origin, direction = torch.tensor([[0.0, 0, -0.95]]), torch.tensor([[0.0, 0, 1]])
    rays, jitter = field.space.cast(origin, direction), torch.tensor([0.5])
    at = 0.2
    field.density = lambda x: 1e4 * (x[:, 2] > at)  # a wall: all weight is within a step behind its front
    behind = lambda steps: torch.tensor([[0.0, 0, at + steps * field.step]])  # noqa: E731
    loss = lambda steps, margin: away_from_points(field, rays, behind(steps), jitter, margin).item()  # noqa: E731
    assert loss(3, 4.5) == pytest.approx(0, abs=1e-4) and loss(3, 1.5) == pytest.approx(1, abs=1e-4)
    assert loss(6, 4.5) == pytest.approx(1, abs=1e-4) and loss(6, 7.5) == pytest.approx(0, abs=1e-4)


def test_photos_with_rays_that_ndc_cannot_hold_are_refused_before_training(ndc_capture):
    cameras = [replace(c, fx=1.5, fy=1.5) for c in ndc_capture.cameras]
    with pytest.raises(UserError, match="sideways"):
        PixelBatches(
            replace(ndc_capture, cameras=cameras), ndc_capture.train, space_of(ndc_capture), torch.device("cpu")
        )


def test_a_field_that_is_trained_on_keeps_its_size(ndc_capture, make_field):
    """The stages are for fields that begin coarse."""
    start = make_field(space=space_of(ndc_capture), resolution=(14, 12, 10), steps=20)
    config = replace(
        SHORT, iterations=10, batch=64, stages=(0.3, 1.0), upsample_at=(0.3,), prune_at=(), early_batch=0.5
    )
    trainer = Trainer(ndc_capture, start.config, config, CPU, start=start)
    drawn, draw = [], trainer.pixels.draw
    trainer.pixels.draw = lambda count, generator: drawn.append(count) or draw(count, generator)
    while trainer.iteration < 10:
        trainer.step()
        assert trainer.field.resolution == (14, 12, 10) and trainer.field.steps == 20
    assert drawn == [64] * 10
