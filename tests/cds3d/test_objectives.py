"""Objectives by hand: CDS, equations 1 to 7, on vectors whose scores and softmaxes can be written out."""

import math
from itertools import permutations

import pytest
import torch
import torch.nn.functional as F
from cds3d.objectives.scores import classifier_free, dds_gradient, sds_gradient
from fakes import PROMPTS, LinearDenoiser

from cds3d.objectives.objective import SCORE_SCALE, Objective, Prompts
from cds3d.objectives.patchnce import contrastive_loss, patch_nce
from tensorf.errors import UserError


def test_classifier_free_by_hand_and_in_the_papers_form():
    # Equation 1, scale 7.5: 1 + 7.5 (3 - 1) = 16; 2 + 7.5 (0 - 2) = -13.
    null, text = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 0.0])
    guided = classifier_free(null, text, 7.5)
    assert guided.tolist() == [16.0, -13.0]
    w = 6.5  # the paper's (1 + w) text - w null, with 1 + w = 7.5: 7.5 * 3 - 6.5 * 1 = 16
    assert torch.equal(guided, (1 + w) * text - w * null)
    assert torch.equal(classifier_free(null, text, 1.0), text)  # no guidance beyond the condition


def test_score_gradients_by_hand():
    eps_tgt, eps_src, noise = torch.tensor([0.5, 2.0]), torch.tensor([1.5, -1.0]), torch.tensor([0.25, 1.0])
    assert sds_gradient(eps_tgt, noise).tolist() == [0.25, 1.0]  # equation 2: guided noise less the true noise
    assert dds_gradient(eps_tgt, eps_src).tolist() == [-1.0, 3.0]  # equations 4 and 7: target's less source's


def as_map(*vectors):
    """Feature vectors side by side: (C, 1, n)."""
    return torch.tensor(vectors).T[:, None].contiguous()


def test_patch_nce_of_two_orthogonal_positions():
    # Equations 5 and 6. Unit vectors e1, e2 in both branches: the positive's similarity is 1, the other's 0, and the
    # excluded diagonal's -10. With temperature 0.5 the logits are (2, -20, 0), in either order of the negatives:
    # loss = -log(e^2 / (e^2 + e^-20 + e^0)) = log(1 + e^-2 + e^-22).
    maps = as_map([1.0, 0.0], [0.0, 1.0])
    losses = patch_nce(maps, maps, patches=10, temperature=0.5)
    expected = math.log(1 + math.exp(-2) + math.exp(-22))
    assert losses.shape == (2,)
    torch.testing.assert_close(losses, torch.full((2,), expected))


def test_patch_nce_of_three_known_positions():
    # Reference e1, e2, -e1; target (3, 4), e2, e1 (lengths do not count: (3, 4) becomes (0.6, 0.8)). Similarities:
    #   e1:  own 0.6, others (0, 1)      e2: own 1, others (0.8, 0)      -e1: own -1, others (-0.6, 0)
    reference = as_map([1.0, 0.0], [0.0, 1.0], [-1.0, 0.0])
    target = as_map([3.0, 4.0], [0.0, 1.0], [1.0, 0.0])

    def loss(own, *others):
        return -own + math.log(math.exp(own) + sum(math.exp(o) for o in others) + math.exp(-10))

    expected = sorted([loss(0.6, 0, 1), loss(1, 0.8, 0), loss(-1, -0.6, 0)])
    losses = patch_nce(reference, target, patches=3, temperature=1.0)
    assert sorted(losses.tolist()) == pytest.approx(expected, abs=1e-6)  # positions come in random order


def test_reference_is_detached():
    torch.manual_seed(0)
    reference, target = (torch.randn(5, 3, 4, requires_grad=True) for _ in range(2))
    patch_nce(reference, target, patches=12, temperature=0.07).mean().backward()
    assert reference.grad is None
    assert target.grad.abs().sum() > 0


def test_identical_features_give_the_least_loss_of_all_permutations():
    # Four distinct unit vectors; moving any of them to another place raises the loss.
    maps = as_map([1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.6, -0.8])
    losses = {
        order: patch_nce(maps, maps[:, :, list(order)], patches=4, temperature=0.07).mean().item()
        for order in permutations(range(4))
    }
    assert min(losses, key=losses.get) == (0, 1, 2, 3)
    assert sorted(losses.values())[1] > losses[0, 1, 2, 3] + 0.1


def test_positions_are_the_same_for_both_branches_without_replacement_and_at_most_patches():
    # One-hot features on 40 positions: with the same distinct positions in both branches every positive has
    # similarity 1 and every negative 0, so each loss is log(1 + (n - 1) e^(-1/tau) + e^(-11/tau)). A position drawn
    # twice would be its own negative (similarity 1), a position drawn in one branch only a positive of 0.
    maps, tau = torch.eye(40).view(40, 5, 8), 0.5
    for patches, n in [(7, 7), (40, 40), (256, 40)]:
        losses = patch_nce(maps, maps, patches=patches, temperature=tau)
        assert losses.shape == (n,)
        expected = math.log(1 + (n - 1) * math.exp(-1 / tau) + math.exp(-11 / tau))
        torch.testing.assert_close(losses, torch.full((n,), expected))


def test_positions_are_drawn_afresh():
    torch.manual_seed(1)
    reference, target = torch.randn(2, 6, 9, 9).unbind()
    first, second = (patch_nce(reference, target, patches=5, temperature=0.1) for _ in range(2))
    assert not torch.equal(first.sort().values, second.sort().values)


def slow_contrastive_loss(pairs, sizes, temperature):
    """The same by loops over positions in plain Python floats; every position is used."""
    total = 0.0
    for reference, target in pairs:
        for p in sizes:
            height, width = reference.shape[1] // p, reference.shape[2] // p
            patches = []
            for maps in (reference.double(), target.double()):
                rows = []
                for y in range(height):
                    for x in range(width):
                        mean = maps[:, y * p : (y + 1) * p, x * p : (x + 1) * p].mean((1, 2))
                        rows.append(mean / mean.norm())
                patches.append(rows)
            losses = []
            for i, own in enumerate(patches[0]):
                logits = [float(own @ patches[1][i]) / temperature]
                logits += [
                    (-10.0 if j == i else float(own @ other)) / temperature for j, other in enumerate(patches[1])
                ]
                top = max(logits)
                losses.append(top + math.log(sum(math.exp(v - top) for v in logits)) - logits[0])
            total += sum(losses) / len(losses)
    return total


@pytest.mark.parametrize("sizes", [(1,), (2,), (3,), (1, 2), (1, 2, 3)])
def test_contrastive_loss_equals_a_plain_double_loop(sizes):
    # Odd maps that are not squares, as 252x189 images give them; 11x8 positions keep the loops short.
    torch.manual_seed(2)
    pairs = [(torch.randn(4, 11, 8), torch.randn(4, 11, 8)), (torch.randn(3, 5, 7), torch.randn(3, 5, 7))]
    loss = contrastive_loss(pairs, patch_sizes=sizes, patches=1000, temperature=0.3)
    assert loss.item() == pytest.approx(slow_contrastive_loss(pairs, sizes, 0.3), rel=1e-5)


def test_contrastive_loss_on_the_latent_size_of_252x189():
    torch.manual_seed(3)
    pairs = [(torch.randn(3, 23, 31), torch.randn(3, 23, 31))]
    loss = contrastive_loss(pairs, patch_sizes=(3,), patches=1000, temperature=0.07)  # 7 x 10 patches
    assert loss.item() == pytest.approx(slow_contrastive_loss(pairs, (3,), 0.07), rel=1e-5)


def test_centred_features_are_compared_less_what_they_have_in_common():
    torch.manual_seed(5)
    reference, target = torch.randn(6, 5, 4), torch.randn(6, 5, 4)
    common = reference.mean((1, 2), keepdim=True)
    centred = contrastive_loss([(reference, target)], patches=100, center=True)
    assert centred.item() == pytest.approx(
        contrastive_loss([(reference - common, target - common)], patches=100).item()
    )
    # A vector added to every position hides the rest from plain cosines, not from centred ones.
    shifted = [(reference + 100, target + 100)]
    assert contrastive_loss(shifted, patches=100, center=True).item() == pytest.approx(centred.item(), rel=1e-3)
    assert contrastive_loss(shifted, patches=100).item() == pytest.approx(math.log(20) + math.log(4), abs=0.1)


def test_centring_does_not_differentiate_the_reference():
    torch.manual_seed(6)
    reference, target = torch.randn(4, 3, 3, requires_grad=True), torch.randn(4, 3, 3, requires_grad=True)
    contrastive_loss([(reference, target)], patches=9, center=True).backward()
    assert reference.grad is None and target.grad.abs().sum() > 0


def test_layers_smaller_than_a_patch_are_left_out():
    torch.manual_seed(4)
    small, large = (torch.randn(4, 1, 3), torch.randn(4, 1, 3)), (torch.randn(4, 4, 4), torch.randn(4, 4, 4))
    both = contrastive_loss([small, large], patch_sizes=(2,), patches=100)
    assert both.item() == pytest.approx(contrastive_loss([large], patch_sizes=(2,), patches=100).item())
    with pytest.raises(UserError, match=r"objective.patch_sizes=\[2\]: all are larger"):
        contrastive_loss([small], patch_sizes=(2,))


# --- Objective.gradient, with a denoiser that is linear in z_t (fakes.py)


def latents(seed=0, shape=(1, 4, 6, 5)):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)


def gradient_of(objective, z_tgt, z_src, prompts=PROMPTS, seed=5):
    torch.manual_seed(seed)
    model = LinearDenoiser()
    gradient, figures = objective.gradient(model, z_tgt, objective.begin(model, z_src, prompts), prompts)
    return gradient, figures, model


def drawn_noise(model):
    return next(call[2] for call in model.calls if call[0] == "noise")


def test_sds_gradient_in_closed_form():
    # Equation 2. Guided noise: (g z_t + 0) + 7.5 (3 - 0) = 0.5 (0.6 z + 0.8 n) + 22.5; less n, times 2000/4096.
    z_tgt, z_src = latents()
    gradient, _, model = gradient_of(Objective("sds", 7.5), z_tgt, z_src)
    noise = drawn_noise(model)
    expected = 2000 / 4096 * (0.5 * (0.6 * z_tgt + 0.8 * noise) + 22.5 - noise)
    torch.testing.assert_close(gradient, expected)
    assert gradient.shape == z_tgt.shape


def test_dds_gradient_in_closed_form():
    # Equations 4 and 7. The noise cancels: g 0.6 (z - z_src) + 7.5 (3 - 2) = 0.3 (z - z_src) + 7.5, times 2000/4096.
    z_tgt, z_src = latents()
    gradient, figures, _ = gradient_of(Objective("dds", 7.5), z_tgt, z_src)
    torch.testing.assert_close(gradient, SCORE_SCALE * (0.3 * (z_tgt - z_src) + 7.5), atol=1e-5, rtol=1e-5)
    assert SCORE_SCALE == 2000 / 4096  # 0.488, the published step at 64x64
    assert figures["score_gradient_rms"] == pytest.approx(gradient.square().mean().sqrt().item())


def test_dds_of_identical_branches_is_zero():
    z, _ = latents()
    same = Prompts(PROMPTS.null, PROMPTS.target, PROMPTS.target)
    gradient, _, _ = gradient_of(Objective("dds", 7.5), z, z.clone(), same)
    assert gradient.abs().max() == 0


def test_score_scale_does_not_depend_on_the_size():
    for shape in [(1, 4, 64, 64), (1, 4, 23, 31)]:
        z = torch.zeros(shape)
        gradient, _, _ = gradient_of(Objective("dds", 7.5), z, z)
        torch.testing.assert_close(gradient, torch.full(shape, 2000 / 4096 * 7.5))


@pytest.mark.parametrize("features", ["self", "score"])
def test_cds_is_dds_plus_the_contrastive_gradient(features):
    # Equations 5 to 7; the contrastive gradient by central differences in float64 of the loss of z -> features(z_t).
    z_tgt, z_src = latents(1, (1, 2, 4, 3))
    options = dict(weight=3.0, patch_sizes=(1, 2), patches=100, temperature=0.5)
    cds, figures, model = gradient_of(Objective("cds", 7.5, features=features, **options), z_tgt, z_src)
    dds, _, _ = gradient_of(Objective("dds", 7.5), z_tgt, z_src)
    noise = drawn_noise(model).double()

    def maps(z, text):
        z_t = 0.6 * z + 0.8 * noise
        return (0.5 * z_t + text if features == "score" else z_t**2)[0]

    def loss(z):
        return slow_contrastive_loss([(maps(z_src.double(), 2.0), maps(z, 3.0))], (1, 2), 0.5)

    expected, h = torch.zeros_like(z_tgt, dtype=torch.float64), 1e-5
    for i in range(z_tgt.numel()):
        step = torch.zeros(z_tgt.numel(), dtype=torch.float64)
        step[i] = h
        step = step.view(z_tgt.shape)
        expected.view(-1)[i] = (loss(z_tgt.double() + step) - loss(z_tgt.double() - step)) / (2 * h)
    assert expected.abs().max() > 1e-3
    torch.testing.assert_close((cds - dds).double(), 3.0 * expected, atol=2e-6, rtol=1e-4)
    assert figures["contrastive_loss"] == pytest.approx(loss(z_tgt.double()), rel=1e-5)


def test_weight_zero_makes_cds_equal_to_dds():
    z_tgt, z_src = latents()
    cds, _, model = gradient_of(Objective("cds", 7.5, weight=0.0), z_tgt, z_src)
    dds, _, _ = gradient_of(Objective("dds", 7.5), z_tgt, z_src)
    assert torch.equal(cds, dds)
    assert not cds.requires_grad
    assert all(call[3] is None for call in model.calls if call[0] == "predict")  # and catches no features


@pytest.mark.parametrize(("kind", "rows"), [("sds", [2]), ("dds", [3, 1]), ("cds", [3, 1])])
def test_one_t_and_one_noise_for_all_branches(kind, rows):
    z_tgt, z_src = latents()
    _, figures, model = gradient_of(Objective(kind, 7.5), z_tgt, z_src)
    noises = [call[2] for call in model.calls if call[0] == "noise"]
    assert all(torch.equal(n, noises[0]) for n in noises)
    assert {call[1] for call in model.calls} == {figures["t"]}
    assert [call[2] for call in model.calls if call[0] == "predict"] == rows


def test_t_is_drawn_from_the_whole_range_inclusive():
    z_tgt, z_src = latents(shape=(1, 1, 1, 1))
    objective = Objective("dds", 7.5, t_min=50, t_max=53)
    drawn = {gradient_of(objective, z_tgt, z_src, seed=seed)[1]["t"] for seed in range(60)}
    assert drawn == {50, 51, 52, 53}
    defaults = Objective("dds", 7.5)
    assert (defaults.t_min, defaults.t_max) == (50, 949)


def test_the_target_latent_is_left_alone():
    z_tgt, z_src = latents()
    before = z_tgt.clone()
    gradient, _, _ = gradient_of(Objective("cds", 7.5), z_tgt, z_src)
    assert torch.equal(z_tgt, before) and z_tgt.grad is None and not z_tgt.requires_grad
    assert not gradient.requires_grad and torch.isfinite(gradient).all()


@pytest.mark.parametrize(
    "options",
    [
        dict(kind="csd"),
        dict(kind="cds", features="mid"),
        dict(kind="cds", weight=-3.0),
        dict(kind="cds", temperature=0.0),
        dict(kind="cds", patches=0),
        dict(kind="cds", patch_sizes=(1, 0)),
        dict(kind="cds", patch_sizes=()),
    ],
)
def test_unusable_options_are_refused(options):
    with pytest.raises(ValueError):
        Objective(scale=7.5, **options)


def test_average_pooling_is_the_patch():
    # A 2x2 patch is the mean of its four positions before normalising; 4x4 maps give 4 patches.
    torch.manual_seed(6)
    reference, target = torch.randn(2, 3, 4, 4).unbind()
    pooled = [F.avg_pool2d(x[None], 2)[0] for x in (reference, target)]
    torch.testing.assert_close(
        contrastive_loss([(reference, target)], patch_sizes=(2,), patches=50),
        contrastive_loss([tuple(pooled)], patch_sizes=(1,), patches=50),
    )
