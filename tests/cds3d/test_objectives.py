"""Objectives by hand: CDS, equations 1 to 7, on vectors whose scores and softmaxes can be written out."""

import math
from itertools import permutations

import pytest
import torch
import torch.nn.functional as F
from defaults import changed, objective
from fakes import PROMPTS, LinearDenoiser, TwoLatents

from cds3d.commands.preparing import build_objective
from cds3d.guidance.text import Prompt
from cds3d.objectives import CDS, OBJECTIVES, contrastive, patchnce
from cds3d.objectives.ids import fixed_point_noise
from cds3d.objectives.objective import Draw, Prompts, Step, check_timesteps, classifier_free, fetched
from cds3d.objectives.patchnce import patch_nce
from cds3d.objectives.pds import posterior_factors
from cds3d.options import groups, load_config
from tensorf.errors import UserError

SCORE_SCALE = 2000 / 4096


def test_classifier_free_by_hand_and_in_the_papers_form():
    # Equation 1, scale 7.5: 1 + 7.5 (3 - 1) = 16; 2 + 7.5 (0 - 2) = -13.
    null, text = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 0.0])
    guided = classifier_free(null, text, 7.5)
    assert guided.tolist() == [16.0, -13.0]
    w = 6.5  # the paper's (1 + w) text - w null, with 1 + w = 7.5: 7.5 * 3 - 6.5 * 1 = 16
    assert torch.equal(guided, (1 + w) * text - w * null)
    assert torch.equal(classifier_free(null, text, 1.0), text)  # no guidance beyond the condition


def contrastive_loss(pairs, **options):
    """Options as published, unless said otherwise."""
    published = dict(patch_sizes=(1, 2), patches=256, temperature=0.07, center=False)
    return patchnce.contrastive_loss(pairs, **{**published, **options})


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


def test_all_that_an_objective_draws_is_the_generators():
    z = torch.rand(1, 3, 6, 7)
    cds, pair = objective("cds", features="score", patch_sizes=(1,), patches=5), TwoLatents(z, z + torch.rand_like(z))

    def gradient(seed):
        draw = cds.draw(z, 0.0, torch.Generator().manual_seed(seed))
        return cds.gradient(LinearDenoiser(), pair, PROMPTS, draw).gradient

    before = torch.get_rng_state()
    first = gradient(3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(1)
    assert torch.equal(gradient(3), first) and not torch.equal(gradient(4), first)


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
    ones = contrastive_loss([small], patch_sizes=(2, 1), patches=100)  # whichever size comes first
    assert ones.item() == pytest.approx(contrastive_loss([small], patch_sizes=(1,), patches=100).item())
    assert contrastive_loss([small], patch_sizes=(1, 2), patches=100).item() == pytest.approx(ones.item())
    whole = torch.ones(4, 2, 2)  # one patch, its own positive, and no negative
    assert contrastive_loss([(whole, whole)], patch_sizes=(2,), patches=100).item() == pytest.approx(0, abs=1e-6)


def test_the_contrastive_loss_looks_at_as_many_patches_as_it_is_told():
    maps, tau = torch.eye(40).view(40, 5, 8), 0.5  # as above: each of n losses is log(1 + (n - 1) e^(-1/tau) + ...)
    loss = contrastive_loss([(maps, maps)], patch_sizes=(1,), patches=7, temperature=tau)
    assert loss.item() == pytest.approx(math.log(1 + 6 * math.exp(-1 / tau) + math.exp(-11 / tau)), rel=1e-5)


# --- Objective.gradient, with a denoiser that is linear in z_t (fakes.py)


def latents(seed=0, shape=(1, 4, 6, 5)):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)


def gradient_of(method, z_tgt, z_src, prompts=PROMPTS, seed=5):
    torch.manual_seed(seed)
    model = LinearDenoiser()
    step = method.gradient(model, TwoLatents(z_src, z_tgt), prompts, method.draw(z_src, 0.0))
    return step.gradient, step.figures, model


def drawn_noise(model):
    return next(call[2] for call in model.calls if call[0] == "noise")


def test_sds_gradient_in_closed_form():
    # Equation 2. Guided noise: (g z_t + 0) + 7.5 (3 - 0) = 0.5 (0.6 z + 0.8 n) + 22.5; less n, times 2000/4096.
    z_tgt, z_src = latents()
    gradient, _, model = gradient_of(objective("sds"), z_tgt, z_src)
    noise = drawn_noise(model)
    expected = 2000 / 4096 * (0.5 * (0.6 * z_tgt + 0.8 * noise) + 22.5 - noise)
    torch.testing.assert_close(gradient, expected)
    assert gradient.shape == z_tgt.shape


def test_dds_gradient_in_closed_form():
    # Equations 4 and 7. The noise cancels: g 0.6 (z - z_src) + 7.5 (3 - 2) = 0.3 (z - z_src) + 7.5, times 2000/4096.
    z_tgt, z_src = latents()
    gradient, figures, _ = gradient_of(objective("dds"), z_tgt, z_src)
    torch.testing.assert_close(gradient, SCORE_SCALE * (0.3 * (z_tgt - z_src) + 7.5), atol=1e-5, rtol=1e-5)
    assert objective("dds").score_scale == SCORE_SCALE  # 0.488, the published step at 64x64
    assert figures["score_gradient_rms"] == pytest.approx(gradient.square().mean().sqrt().item())


@pytest.mark.parametrize("name", ["dds", "cds"])
def test_with_less_of_the_source_the_drawn_noise_is_subtracted(name):
    # Guided noise of the source: 0.5 (0.6 z_src + 0.8 n) + 7.5 x 2; of the target the same with z and 3.
    z_tgt, z_src = latents()
    options = {} if name == "dds" else dict(weight=0.0)
    for share in (0.0, 0.3, 1.0):
        gradient, _, model = gradient_of(objective(name, source_share=share, **options), z_tgt, z_src)
        noise = drawn_noise(model)
        target, source = (0.5 * noisy(z, noise) + 7.5 * y for z, y in ((z_tgt, 3), (z_src, 2)))
        expected = SCORE_SCALE * (target - share * source - (1 - share) * noise)
        torch.testing.assert_close(gradient, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["cds", "dds", "ids", "ids-cds"])
def test_only_shapes_have_less_than_the_whole_source(name):
    shares = {
        e: load_config("edit", [f"objective={name}", f"edit={e}"]).objective.source_share for e in groups()["edit"]
    }
    assert shares == {e: 0.5 if e in ("shape", "redraw") else 1.0 for e in shares}


def test_dds_of_identical_branches_is_zero():
    z, _ = latents()
    same = Prompts(PROMPTS.null, PROMPTS.target, PROMPTS.target)
    gradient, _, _ = gradient_of(objective("dds"), z, z.clone(), same)
    assert gradient.abs().max() == 0


def test_score_scale_does_not_depend_on_the_size():
    for shape in [(1, 4, 64, 64), (1, 4, 23, 31)]:
        z = torch.zeros(shape)
        gradient, _, _ = gradient_of(objective("dds"), z, z)
        torch.testing.assert_close(gradient, torch.full(shape, 2000 / 4096 * 7.5))


@pytest.mark.parametrize("features", ["self", "score"])
def test_cds_is_dds_plus_the_contrastive_gradient(features):
    # Equations 5 to 7; the contrastive gradient by central differences in float64 of the loss of z -> features(z_t).
    z_tgt, z_src = latents(1, (1, 2, 4, 3))
    options = dict(weight=3.0, patch_sizes=(1, 2), patches=100, temperature=0.5)
    cds, figures, model = gradient_of(objective("cds", features=features, **options), z_tgt, z_src)
    dds, _, _ = gradient_of(objective("dds"), z_tgt, z_src)
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


@pytest.mark.parametrize("given", [torch.float16, torch.float32])  # as features are; as the score is
def test_the_contrastive_gradient_survives_half_precision(given):
    """On large features, of many positions, it is below 6e-8, where half precision ends."""
    cds, start = objective("cds", patches=1024, temperature=10.0, patch_sizes=(1,)), Step(torch.zeros(1, 2, 32, 32), {})
    z, reference = torch.randn(2, 1, 2, 32, 32, generator=torch.Generator().manual_seed(4))
    pulls = []
    for dtype in (torch.float32, torch.float16):
        moving = z.clone().requires_grad_()
        seen = (moving[0].to(dtype) * 3000).to(given)
        step = cds.with_contrast(start, Draw(0, z), moving, (reference[0].to(dtype).to(given),), (seen,))
        pulls.append(step.gradient)
    torch.testing.assert_close(pulls[1], pulls[0], rtol=0.02, atol=0.02 * pulls[0].abs().max().item())


def test_weight_zero_makes_cds_equal_to_dds():
    z_tgt, z_src = latents()
    cds, _, model = gradient_of(objective("cds", weight=0.0), z_tgt, z_src)
    dds, _, _ = gradient_of(objective("dds"), z_tgt, z_src)
    assert torch.equal(cds, dds)
    assert not cds.requires_grad
    assert all(call[3] is None for call in model.calls if call[0] == "predict")  # and catches no features


class Timed(LinearDenoiser):
    """Refuses every t but one. asked: how many predictions."""

    def __init__(self, t):
        super().__init__()
        self.t, self.asked, self.alphas = t, 0, sd_alphas().float()

    def noised(self, z, t, noise):
        assert t == self.t
        return super().noised(z, t, noise)

    def denoised(self, z_t, t, noise):
        assert t == self.t
        return super().denoised(z_t, t, noise)

    def submit(self, *queries):
        assert [q.t for q in queries] == [self.t] * len(queries)
        self.asked += len(queries)
        return super().submit(*queries)


@pytest.mark.parametrize(
    ("name", "t", "forwards"),
    [("sds", 300, 2), ("dds", 300, 4), ("cds", 300, 4), ("pds", 300, 4), ("csd", 300, 2), ("nfsd", 100, 2),
     ("nfsd", 300, 3), ("ids", 300, 10), ("ids-cds", 300, 10), ("ssd", 300, 4), ("ssd-cds", 300, 5)],
)  # fmt: skip
def test_every_forward_is_at_the_steps_own_t(name, t, forwards):
    z_tgt, z_src = latents(1, (1, 2, 4, 3))
    model = Timed(t)
    objective(name).gradient(model, TwoLatents(z_src, z_tgt), PROMPTS, Draw(t, torch.randn_like(z_src)))
    assert model.asked == forwards


def test_t_of_another_prior_is_refused():
    model = LinearDenoiser()
    for group, wrong in (("objective", dict(t_max=1000)), ("edit.redraw", dict(t_min=950)), ("x", dict(t_min=-1))):
        with pytest.raises(UserError, match=rf"^{group}.t_min..t_max is -?\d+..\d+: it has to lie in 0..999$"):
            check_timesteps(objective("dds", **wrong), model, *([group] if group != "objective" else []))
    check_timesteps(objective("dds", t_min=0, t_max=999), model)
    check_timesteps(objective("dds", t_min=7, t_max=7), model)


def test_prompts_that_are_the_same_to_the_prior_are_refused():
    """The fake reads their lengths."""
    prompts = Prompts.of(LinearDenoiser(), "a cat", "a zebra")
    assert [p.tokens.item() for p in (prompts.null, prompts.source, prompts.target)] == [0, 5, 7]
    with pytest.raises(UserError, match="--src.*--tgt.*same for the text encoder"):
        Prompts.of(LinearDenoiser(), "a cat", "a dog")


def test_fetched_are_numbers_in_their_order():
    numbers = fetched([1.5, torch.tensor(2.25), 3, torch.tensor(4.0, requires_grad=True)])
    assert numbers == [1.5, 2.25, 3, 4.0] and not any(isinstance(number, torch.Tensor) for number in numbers)
    assert fetched([torch.tensor(2)]) == [2]
    assert fetched(iter([torch.tensor(0.1, dtype=torch.float64), torch.tensor(1)])) == [0.1, 1.0]
    assert fetched([]) == [] and fetched([7]) == [7]


@pytest.mark.parametrize(("kind", "rows"), [("sds", [2]), ("dds", [4]), ("cds", [3, 1])])
def test_one_t_and_one_noise_for_all_branches(kind, rows):
    z_tgt, z_src = latents()
    _, figures, model = gradient_of(objective(kind), z_tgt, z_src)
    noises = [call[2] for call in model.calls if call[0] == "noise"]
    assert all(torch.equal(n, noises[0]) for n in noises)
    assert {call[1] for call in model.calls} == {figures["t"]}
    assert [call[2] for call in model.calls if call[0] == "predict"] == rows


def test_t_is_drawn_from_the_whole_range_inclusive():
    z_tgt, z_src = latents(shape=(1, 1, 1, 1))
    dds = objective("dds", t_min=50, t_max=53)
    drawn = {gradient_of(dds, z_tgt, z_src, seed=seed)[1]["t"] for seed in range(60)}
    assert drawn == {50, 51, 52, 53}
    defaults = objective("dds")
    assert (defaults.t_min, defaults.t_max) == (50, 949)


def test_the_target_latent_is_left_alone():
    z_tgt, z_src = latents()
    before = z_tgt.clone()
    gradient, _, _ = gradient_of(objective("cds"), z_tgt, z_src)
    assert torch.equal(z_tgt, before) and z_tgt.grad is None and not z_tgt.requires_grad
    assert not gradient.requires_grad and torch.isfinite(gradient).all()


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("cds", dict(features="mid")),
        ("cds", dict(weight=-3.0)),
        ("cds", dict(temperature=0.0)),
        ("cds", dict(patches=0)),
        ("cds", dict(patch_sizes=(1, 0))),
        ("cds", dict(patch_sizes=())),
        ("dds", dict(t_order="rising")),
        ("dds", dict(score_scale=0.0)),
        ("dds", dict(scale_end=float("nan"))),
        ("dds", dict(source_share=1.5)),
        ("cds", dict(source_share=float("nan"))),
        ("ids", dict(source_share=-0.1)),
        ("pds", dict(stride=0)),
        ("pds", dict(stride=21)),
        ("csd", dict(versus="target")),
        ("ids", dict(noise_steps=-1)),
        ("ids", dict(noise_rate=math.inf)),
        ("cds", dict(weight=math.inf)),
    ],
)
def test_options_that_make_no_sense_are_refused_by_name(name, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        OBJECTIVES[name](**changed(objective(name), **wrong))


@pytest.mark.parametrize(
    ("name", "least"),
    [("cds", dict(patches=1, patch_sizes=(1,))), ("ids", dict(noise_steps=0)), ("ids", dict(noise_rate=0.0)),
     ("pds", dict(stride=1)), ("pds", dict(stride=20, t_min=20)), ("dds", dict(source_share=0.0))],
)  # fmt: skip
def test_options_at_their_limits_are_taken(name, least):
    assert changed(objective(name), **least) | least == changed(objective(name), **least)
    OBJECTIVES[name](**changed(objective(name), **least))


def test_every_file_in_configs_is_an_objective_and_every_objective_has_one():
    kinds = {type(objective(name)) for name in groups()["objective"]}
    assert kinds == set(OBJECTIVES.values())
    assert {"cds", "dds", "sds", "ids-cds", "ssd-cds"} <= set(groups()["objective"])


def test_average_pooling_is_the_patch():
    # A 2x2 patch is the mean of its four positions before normalising; 4x4 maps give 4 patches.
    torch.manual_seed(6)
    reference, target = torch.randn(2, 3, 4, 4).unbind()
    pooled = [F.avg_pool2d(x[None], 2)[0] for x in (reference, target)]
    torch.testing.assert_close(
        contrastive_loss([(reference, target)], patch_sizes=(2,), patches=50),
        contrastive_loss([tuple(pooled)], patch_sizes=(1,), patches=50),
    )


# --- the other objectives, each against a plain reading of its formula with the linear denoiser:
# eps(z_t, y) = 0.5 z_t + y, with y = 0 for no text, 2 for the source's and 3 for the target's.


def noisy(z, noise):
    return 0.6 * z + 0.8 * noise


def test_guidance_goes_straight_from_scale_to_scale_end():
    falling = objective("dds", scale=5.0, scale_end=1.0)
    assert [falling.at(p).scale for p in (0.0, 0.25, 0.5, 1.0)] == [5.0, 4.0, 3.0, 1.0]
    assert falling.scale == 5.0  # what it was made with
    steady = objective("dds", scale=5.0, scale_end=None)
    assert [steady.at(p).scale for p in (0.0, 0.5, 1.0)] == [5.0, 5.0, 5.0]


@pytest.mark.parametrize("name", groups()["objective"])
def test_guidance_falls_with_pocket_on_images_for_differences_of_guided_noise(name):
    def end(edit, guidance):
        return load_config("edit", [f"objective={name}", f"edit={edit}", f"guidance={guidance}"]).objective.scale_end

    falls = 1.0 if name in ("dds", "cds", "ids", "ids-cds") else None
    assert [end("latent", "pocket"), end("pixels", "pocket")] == [falls, falls]
    assert [end("field", "pocket"), end("shape", "pocket"), end("latent", "sd14"), end("latent", "sdxl")] == [None] * 4


def test_score_scale_null_is_the_authors():
    z = torch.zeros(1, 4, 5, 8)
    gradient, _, _ = gradient_of(objective("dds", score_scale=None), z, z)
    torch.testing.assert_close(gradient, torch.full(z.shape, 2000 / 40 * 7.5))


def test_t_falls_from_its_largest_to_its_smallest():
    falling = objective("dds", t_order="falling", t_min=100, t_max=900)
    z = torch.zeros(1, 4, 2, 2)
    assert [falling.draw(z, p).t for p in (0.0, 0.25, 0.5, 1.0)] == [900, 700, 500, 100]
    torch.manual_seed(0)
    first, second = falling.draw(z, 0.0).noise, falling.draw(z, 0.0).noise
    assert not torch.equal(first, second)


def test_csd_by_its_formula():
    z_tgt, z_src = latents()
    gradient, _, model = gradient_of(objective("csd", scale=4.0), z_tgt, z_src)
    torch.testing.assert_close(gradient, torch.full_like(z_tgt, SCORE_SCALE * 4.0 * (3 - 2)), atol=1e-5, rtol=1e-5)
    assert [call[2] for call in model.calls if call[0] == "predict"] == [2]
    # For generation: (1 - a^2) (eps(target) - eps(null)), with a^2 = 0.36.
    config = load_config("edit", ["objective=csd", "objective.scale=4", "objective.versus=null"])
    gradient, _, _ = gradient_of(build_objective(config), z_tgt, z_src)
    expected = torch.full_like(z_tgt, SCORE_SCALE * 4.0 * 0.64 * 3)
    torch.testing.assert_close(gradient, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("t", [100, 199, 200, 700])
def test_nfsd_by_its_formula(t):
    # Small t: eps_null + s (eps_y - eps_null); others: eps_null - eps_negative + s (...). The negative prompt is "bad",
    # which the fake embeds as its length, 3.
    z_tgt, z_src = latents()
    nfsd = objective("nfsd", t_min=t, t_max=t, negative_prompt="bad")
    gradient, _, model = gradient_of(nfsd, z_tgt, z_src)
    null = 0.5 * noisy(z_tgt, drawn_noise(model))
    delta = null if t < 200 else torch.full_like(null, -3.0)
    torch.testing.assert_close(gradient, SCORE_SCALE * (delta + 7.5 * 3), atol=1e-4, rtol=1e-4)


def test_ssd_by_its_formula():
    z_tgt, z_src = latents()
    ssd = objective("ssd", t_min=400, t_max=400, t_order="random", identity=5.0)
    far = Prompts(PROMPTS.null, PROMPTS.source, Prompt(torch.full((1, 1, 1), 7.0)))
    gradient, _, model = gradient_of(ssd, z_tgt, z_src, far)
    noise = drawn_noise(model)
    z_t, z_s = noisy(z_tgt, noise), noisy(z_src, noise)
    half = 0.5
    expected = (
        half * 2 * ((0.5 * z_t + 2) - 0.5 * z_s)
        + half * 7.5 * (7 - 2)
        + 5.5 * (7 - 0)
        + 5.0 * math.exp(0.4) * (z_t - z_s)
    )
    torch.testing.assert_close(gradient, SCORE_SCALE * expected, atol=1e-5, rtol=1e-5)
    assert objective("ssd").identity == 0.075  # as published


@pytest.mark.parametrize("pair", [("ssd-cds", "ssd"), ("ids-cds", "ids")])
def test_combinations_add_the_contrastive_gradient(pair):
    z_tgt, z_src = latents(1, (1, 2, 4, 3))
    still = dict(t_min=300, t_max=300, t_order="random")
    both, figures, _ = gradient_of(objective(pair[0], **still), z_tgt, z_src)
    alone, _, _ = gradient_of(objective(pair[1], **still), z_tgt, z_src)
    pull = both - alone
    assert pull.square().mean().sqrt().item() == pytest.approx(float(figures["contrastive_gradient_rms"]), rel=1e-3)
    assert figures["contrastive_gradient_rms"] > 1e-4


def sd_alphas():
    return (1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2).cumprod(0)


def test_pds_factors_are_the_posteriors():
    """psi and chi from the definition: the stochastic latents of both branches, for numbers z, z' and noises e, e'."""
    alphas, t, stride = sd_alphas(), 301, 2
    at_t, at_s = alphas[t], alphas[t - stride]
    beta = 1 - at_t / alphas[t - 1]
    generator = torch.Generator().manual_seed(0)
    z, z_src, eps, eps_src, n_t, n_s = torch.randn(6, generator=generator, dtype=torch.float64)

    def stochastic_latent(x0, predicted):
        x_t, x_s = at_t.sqrt() * x0 + (1 - at_t).sqrt() * n_t, at_s.sqrt() * x0 + (1 - at_s).sqrt() * n_s
        guess = (x_t - (1 - at_t).sqrt() * predicted) / at_t.sqrt()
        mean = at_s.sqrt() * beta / (1 - at_t) * guess + (1 - beta).sqrt() * (1 - at_s) / (1 - at_t) * x_t
        return (x_s - mean) / (beta * (1 - at_s) / (1 - at_t)).sqrt()

    expected = stochastic_latent(z, eps) - stochastic_latent(z_src, eps_src)
    psi, chi = posterior_factors(alphas, t, stride)
    assert psi * (z - z_src) + chi * (eps - eps_src) == pytest.approx(float(expected), rel=1e-6)
    # As the authors' code gives them at some t: psi, chi.
    table = {21: (1.61, 0.232), 101: (0.314, 0.115), 301: (0.079, 0.084), 501: (0.032, 0.082), 901: (0.006, 0.103)}
    for step, (psi, chi) in table.items():
        assert posterior_factors(alphas, step, 2) == pytest.approx((psi, chi), abs=6e-3)
    assert posterior_factors(alphas, 301, 1)[0] == pytest.approx(0, abs=1e-6)  # a stride of 1 leaves DDS


def test_pds_gradient_in_closed_form():
    z_tgt, z_src = latents()
    model, pds = LinearDenoiser(), objective("pds", t_min=301, t_max=301, scale=7.5)
    model.alphas = sd_alphas().float()
    step = pds.gradient(model, TwoLatents(z_src, z_tgt), PROMPTS, Draw(301, torch.zeros_like(z_src)))
    psi, chi = posterior_factors(model.alphas, 301, 2)
    delta = 0.3 * (z_tgt - z_src) + 7.5
    torch.testing.assert_close(step.gradient, SCORE_SCALE * (psi * (z_tgt - z_src) + chi * delta), atol=1e-5, rtol=1e-4)


def test_ids_moves_the_noisy_source_towards_its_own_denoising():
    # One step: z_t' = z_t - rate d|z - z0(z_t)| / dz_t, with z0 = (z_t - 0.8 (0.5 z_t + g)) / 0.6 = z_t - g 0.8 / 0.6,
    # and g = 7.5 x 2, so that the derivative of the distance is minus the unit vector of z - z0.
    z, _ = latents()
    noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(1))
    found = fixed_point_noise(LinearDenoiser(), z, PROMPTS, Draw(0, noise), scale=7.5, steps=1, rate=2.0)
    z_t = noisy(z, noise)
    away = z - (z_t - 0.8 / 0.6 * 15)
    moved = z_t + 2.0 * away / away.norm()
    torch.testing.assert_close(found, (moved - 0.6 * z) / 0.8, atol=1e-5, rtol=1e-4)
    same = fixed_point_noise(LinearDenoiser(), z, PROMPTS, Draw(0, noise), scale=7.5, steps=0, rate=2.0)
    torch.testing.assert_close(same, noise, atol=1e-5, rtol=1e-5)


def test_ids_is_dds_with_the_prepared_noise():
    z_tgt, z_src = latents()
    ids, noise = objective("ids", noise_rate=3.0), torch.randn(z_src.shape, generator=torch.Generator().manual_seed(2))
    model = LinearDenoiser(gain=0.5)
    step = ids.gradient(model, TwoLatents(z_src, z_tgt), PROMPTS, Draw(500, noise))
    prepared = fixed_point_noise(LinearDenoiser(), z_src, PROMPTS, Draw(500, noise), scale=7.5, steps=3, rate=3.0)
    noises = [call[2] for call in model.calls if call[0] == "noise"][1:]
    assert all(torch.allclose(n, prepared, atol=1e-5) for n in noises) and not torch.allclose(
        prepared, noise, atol=0.01
    )
    dds = objective("dds").gradient(LinearDenoiser(), TwoLatents(z_src, z_tgt), PROMPTS, Draw(500, prepared))
    torch.testing.assert_close(step.gradient, dds.gradient)


@pytest.mark.parametrize(
    ("name", "through"),
    [("sds", 0), ("dds", 0), ("cds", 1), ("pds", 0), ("ids", 2), ("ssd", 0), ("ssd-cds", 1)],
)
def test_which_objectives_go_back_through_the_unet(name, through):
    assert objective(name).unet_graphs == through
    assert isinstance(objective("ids-cds"), CDS)


def test_all_options_of_the_contrastive_loss_reach_it(monkeypatch):
    told = {}

    def loss(pairs, **options):
        told.update(options)
        return sum(current.sum() for _, current in pairs)

    monkeypatch.setattr(contrastive, "contrastive_loss", loss)
    options = dict(patch_sizes=(4,), patches=17, temperature=0.5, center=True)
    gradient_of(objective("cds", **options), *latents())
    assert told == options | {"generator": None}
