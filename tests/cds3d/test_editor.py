"""The loop: where it goes, that it resumes bit for bit, and that it stops before a NaN reaches the parameters."""

import contextlib
import io

import pytest
import torch
from default_dtype import default
from defaults import changed, edit_config, field_views, objective, run
from fakes import PROMPTS, FixedGradient, LinearPrior

from cds3d.editor import EditConfig, Editor
from cds3d.objectives.objective import Prompts
from cds3d.subjects.image import LatentImage, LatentPair, PixelImage
from tensorf.captures import load_capture
from tensorf.errors import UserError
from tensorf.renderable import load_field

SCORE_SCALE = 2000 / 4096


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.fixture(params=["latent, sgd, 1", "pixels, adam, 1", "field, adam, 1", "field, adam, 2"])
def make_editor(request, prior, source_run, capture_folder):
    """A function that makes the same editor of six iterations anew; the last number is that of torch's threads."""
    kind, optimizer, threads = request.param.split(", ")
    torch.set_num_threads(int(threads))
    torch.manual_seed(0)
    image = torch.rand(3, 17, 23)
    prompts = Prompts.of(prior, "a yellow flower", "a red flower")
    capture = load_capture(capture_folder, width=64)

    def make():
        if kind == "field":
            field = load_field(source_run / "field.safetensors")
            subject = field_views(field, [c.resized(24, 18) for c in capture.cameras[:4]], prior)
        else:
            subject = (LatentImage if kind == "latent" else PixelImage)(image, prior)
        config = edit_config(6, 0.05, optimizer, lr_decay=0.5, seed=3)
        return Editor(subject, prior, objective("cds"), prompts, config)

    return make


def parameters(editor):
    return [p.detach().clone() for group in editor.optimizer.param_groups for p in group["params"]]


def test_edits_do_not_hang_on_what_the_program_computes_in(make_editor):
    plain = make_editor()
    for _ in range(2):
        plain.step()
    for surroundings in (
        default(torch.float64),
        default(torch.float16),
        torch.autocast("cpu", dtype=torch.bfloat16),
        torch.device("meta"),  # as torch.set_default_device does
    ):
        with surroundings:
            editor = make_editor()
            for _ in range(2):
                editor.step()
        for mine, theirs in zip(parameters(editor), parameters(plain), strict=True):
            assert torch.equal(mine, theirs)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda state: state.pop("optimizer"), "it has no optimizer"),
        (lambda state: state.update(kind="LatentImage"), "the state is of an edit of LatentImage, and this edit has"),
        (lambda state: state["optimizer"]["param_groups"].pop(), "has other groups of parameters"),
        (lambda state: state["optimizer"]["param_groups"][0].pop("betas"), "is of another optimizer"),
        (lambda state: state["parameters"].pop(), "has 0 parameters, and this edit has 1"),
        (
            lambda state: state["parameters"].__setitem__(0, torch.zeros(1, 3, 19, 23)),
            r"parameters of the size \(1, 3, 19, 23\), and this edit of \(1, 3, 17, 23\)",
        ),
    ],
)
def test_states_of_other_edits_are_refused_before_anything_is_changed(prior, change, told):
    prompts, config = Prompts.of(prior, "a yellow flower", "a red flower"), edit_config(6, 0.05, "adam", seed=3)
    image = torch.rand(3, 17, 23, generator=torch.Generator().manual_seed(0))
    editors = [Editor(PixelImage(image, prior), prior, objective("cds"), prompts, config) for _ in range(2)]
    editors[0].step()
    state, before = editors[0].state_dict(), parameters(editors[1])
    change(state)
    with pytest.raises(ValueError, match=told) as error:
        editors[1].load_state_dict(state)
    assert "\n" not in str(error.value) and editors[1].iteration == 0
    assert torch.equal(parameters(editors[1])[0], before[0])


def test_a_resumed_run_is_bit_for_bit_the_unbroken_one(make_editor):
    unbroken = make_editor()
    start = parameters(unbroken)
    run(unbroken)
    first = make_editor()
    for _ in range(3):
        first.step()
    state = through_a_file(first.state_dict())
    torch.manual_seed(123)  # whatever else has been drawn in between
    second = make_editor()
    second.load_state_dict(state)
    assert second.iteration == 3
    run(second)
    assert second.iteration == unbroken.iteration == 6
    assert all(torch.equal(a, b) for a, b in zip(parameters(second), parameters(unbroken), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(parameters(second), start))


def test_a_step_leaves_the_global_random_state_alone(make_editor):
    editors = []
    for seed in (1, 2):
        editor = make_editor()
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        editor.step()
        editor.step()
        assert torch.equal(torch.get_rng_state(), before)
        editors.append(editor)
    assert all(torch.equal(a, b) for a, b in zip(*map(parameters, editors), strict=True))


def test_a_state_is_a_snapshot(make_editor):
    editor = make_editor()
    editor.step()
    state, before = editor.state_dict(), parameters(editor)
    run(editor)
    end = parameters(editor)
    for _ in range(2):  # what is loaded is not changed either
        editor.load_state_dict(state)
        assert editor.iteration == 1
        assert all(torch.equal(a, b) for a, b in zip(parameters(editor), before, strict=True))
        run(editor)
        assert all(torch.equal(a, b) for a, b in zip(parameters(editor), end, strict=True))


def test_a_state_of_another_seed_is_refused():
    prior, editors = LinearPrior(), []
    for seed in (3, 4):
        subject = LatentImage(torch.rand(3, 16, 16), prior)
        editors.append(Editor(subject, prior, FixedGradient(), PROMPTS, edit_config(4, 0.1, "sgd", seed=seed)))
    with pytest.raises(UserError, match="seed=3, and this edit has seed=4"):
        editors[1].load_state_dict(editors[0].state_dict())
    earlier = {key: value for key, value in editors[0].state_dict().items() if key != "seed"}
    editors[1].load_state_dict(earlier)  # of a version that did not keep it


def test_a_step_finds_its_gradient_where_gradients_are_off(make_editor):
    plain, without = make_editor(), make_editor()
    plain.step()
    with torch.no_grad():
        without.step()
    assert all(torch.equal(a, b) for a, b in zip(parameters(plain), parameters(without), strict=True))


@pytest.mark.parametrize("t", [dict(t_max=1000), dict(t_min=-1), dict(t_min=700, t_max=600)])
def test_timesteps_that_the_prior_does_not_have_are_refused(t):
    subject, prior = LatentImage(torch.rand(3, 16, 16), LinearPrior()), LinearPrior()
    with pytest.raises(UserError, match=r"t_min\.\.t_max is .* 0\.\.999"):
        Editor(subject, prior, objective("dds", **t), PROMPTS, edit_config(4, 0.1, "sgd"))


def test_prompts_that_the_encoder_cannot_tell_apart_are_refused(prior):
    long = " ".join(["word"] * 100)
    for source, target in (("a cat", "a cat"), ("a cat", "A Cat "), (long, long + " more")):
        with pytest.raises(UserError, match="the same for the text encoder"):
            Prompts.of(prior, source, target)


def test_each_gets_every_steps_figures(prior):
    prompts = Prompts.of(prior, "a cat", "a pig")
    subject = LatentImage(torch.rand(3, 16, 16), prior)
    editor = Editor(subject, prior, objective("cds"), prompts, edit_config(4, 0.1, "sgd"))
    seen = run(editor)
    assert len(seen) == 4
    assert {"t", "score_gradient_rms", "contrastive_loss", "contrastive_gradient_rms"} <= seen[0].keys()
    assert len({f["t"] for f in seen}) > 1


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("kind", [LatentImage, PixelImage])
def test_a_gradient_that_is_not_finite_stops_before_the_parameters(bad, kind):
    prior = LinearPrior()
    subject = kind(torch.rand(3, 16, 24), prior)
    editor = Editor(subject, prior, FixedGradient(0.1, bad, bad_from=2), PROMPTS, edit_config(9, 0.05, "adam"))
    editor.step()
    editor.step()
    before = parameters(editor)
    with pytest.raises(UserError, match="iteration 2.*edit.lr"):
        editor.step()
    assert editor.iteration == 2
    assert all(torch.equal(a, b) for a, b in zip(before, parameters(editor)))
    assert all(torch.isfinite(p).all() for p in before)


def test_a_gradient_that_overflows_on_its_way_back_stops_too():
    prior = LinearPrior()
    prior.encode_image = lambda image: image[:, :, ::8, ::8] * 4  # 4 x 3e38 is infinite in float32
    subject = PixelImage(torch.rand(3, 16, 16), prior)
    editor = Editor(subject, prior, FixedGradient(3e38), PROMPTS, edit_config(9, 0.05, "sgd"))
    before = parameters(editor)
    with pytest.raises(UserError, match="no longer finite"):
        editor.step()
    assert torch.equal(before[0], parameters(editor)[0])


def test_a_look_whose_gradient_is_not_finite_stops_too(monkeypatch):
    # A step that only looks has no gradients of parameters to tell it by, and the region would learn from it.
    subject = LatentImage(torch.rand(3, 16, 16), LinearPrior())
    pair = LatentPair(subject.source, subject.parameter)
    monkeypatch.setattr(pair, "backward", lambda gradient: gradient, raising=False)
    monkeypatch.setattr(subject, "pair", lambda step, generator: pair)
    editor = Editor(
        subject, LinearPrior(), FixedGradient(1.0, float("nan"), bad_from=1), PROMPTS, edit_config(9, 0.05, "sgd")
    )
    assert editor.step()["gradient_rms/0"] == 0
    with pytest.raises(UserError, match="iteration 1"):
        editor.step()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (dict(optimizer="lion"), "adam, sgd"),
        (dict(iterations=0), "iterations=0"),
        (dict(lr=0.0), "lr=0.0"),
        (dict(adam_floor=-1.0), "adam_floor"),
        (dict(warmup=1.0), "warmup"),
        (dict(lr_decay=0.0), "lr_decay"),
        (dict(lr_decay=-1.0), "lr_decay"),
        (dict(lr_decay=1.5), "lr_decay"),
    ],
)
def test_options_that_make_no_sense_are_refused_by_name(wrong, said):
    with pytest.raises(ValueError, match=said):
        EditConfig(**changed(edit_config(4, 2.0), **wrong))


def test_dds_moves_the_latent_to_the_known_target():
    # The linear denoiser's DDS gradient is s (0.3 (z - z_src) + 7.5 (3 - 2)), zero at z* = z_src - 25. SGD with lr 5
    # leaves 1 - 5 s 0.3 = 0.268 of the way to go at each step (s = 2000/4096): after k steps z - z* = 25 x 0.268^k.
    prior = LinearPrior()
    subject = LatentImage(torch.rand(3, 16, 16), prior)
    editor = Editor(subject, prior, objective("dds"), PROMPTS, edit_config(12, 5.0, "sgd"))
    goal = subject.source - 25
    for step in range(1, 4):
        editor.step()
        left = 25 * (1 - 5 * SCORE_SCALE * 0.3) ** step
        torch.testing.assert_close(subject.parameter.detach() - goal, torch.full_like(goal, left), rtol=1e-3, atol=1e-3)
    run(editor)
    torch.testing.assert_close(subject.parameter.detach(), goal, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(subject.pair(12).source, goal + 25)  # the source stays


def test_each_group_has_its_own_rate():
    class Two(LatentImage):
        def parameter_groups(self, lr):
            self.other = torch.nn.Parameter(torch.zeros(3))
            return [{"params": [self.parameter], "lr": lr}, {"params": [self.other], "lr": lr / 4}]

        def pair(self, step, generator=None):
            self.other.grad = torch.ones(3)
            return super().pair(step, generator)

    subject = Two(torch.rand(3, 16, 16), LinearPrior())
    editor = Editor(subject, LinearPrior(), FixedGradient(1.0), None, edit_config(4, 0.4, "sgd"))
    editor.optimizer.zero_grad = lambda: None  # keeps the second group's gradient
    start = subject.parameter.detach().clone()
    editor.step()
    torch.testing.assert_close(start - subject.parameter.detach(), torch.full_like(start, 0.4))
    torch.testing.assert_close(subject.other.detach(), torch.full((3,), -0.1))


def test_the_rate_falls_to_its_share(prior):
    # SGD on a constant gradient of 1: steps of lr 0.1^(i / 4), i = 0..3.
    subject = LatentImage(torch.rand(3, 16, 16), prior)
    start = subject.parameter.detach().clone()
    run(Editor(subject, LinearPrior(), FixedGradient(1.0), None, edit_config(4, 2.0, "sgd", lr_decay=0.1)))
    expected = 2.0 * sum(0.1 ** (i / 4) for i in range(4))
    assert torch.allclose(start - subject.parameter, torch.full_like(start, expected), rtol=1e-5)


def test_the_rate_rises_with_the_square_of_the_warmups_iterations():
    config = edit_config(8, 1.0, lr_decay=0.5, warmup=0.5)
    expected = [1 / 16, 4 / 16, 9 / 16, 1, 1, 1, 1, 1]
    assert [config.rate(i) for i in range(8)] == pytest.approx([e * 0.5 ** (i / 8) for i, e in enumerate(expected)])
    assert edit_config(8, 1.0).rate(0) == 1


@pytest.mark.parametrize("floor", [0.0, 1.0])
def test_adams_first_step_by_hand(floor):
    # Adam's first step is lr g / (|g| + eps): with eps = floor x RMS gradient = 0.1, half of lr for a gradient of 0.1.
    subject = LatentImage(torch.rand(3, 16, 16), LinearPrior())
    start = subject.parameter.detach().clone()
    Editor(subject, LinearPrior(), FixedGradient(0.1), None, edit_config(4, 0.5, adam_floor=floor)).step()
    expected = 0.25 if floor else 0.5
    torch.testing.assert_close(start - subject.parameter.detach(), torch.full_like(start, expected), rtol=1e-4, atol=0)


def test_steps_without_a_gradient_do_not_lower_the_floor():
    """As while an edit of a shape only looks: the first step that moves is then as the first of all."""
    subject = LatentImage(torch.rand(3, 16, 16), LinearPrior())
    start, given = subject.parameter.detach().clone(), FixedGradient(0.0)
    editor = Editor(subject, LinearPrior(), given, None, edit_config(9, 0.5, adam_floor=1.0))
    for _ in range(4):
        editor.step()
    torch.testing.assert_close(subject.parameter.detach(), start)
    given.value = 0.1
    editor.step()
    (group,) = editor.optimizer.param_groups
    assert group["eps"] == pytest.approx(0.1, rel=1e-5)  # not 1 / sqrt(1 + 0.99 + ...) of it


def test_steps_that_share_a_timestep():
    told = []

    class Told(FixedGradient):
        def draw(self, latent, progress, generator=None):
            told.append(progress)
            return super().draw(latent, progress, generator)

    subject = LatentImage(torch.rand(3, 16, 16), LinearPrior())
    editor = Editor(subject, LinearPrior(), Told(), None, edit_config(6, 0.1, "sgd"), sharing=2)
    run(editor)
    assert told == [0, 0, 0.5, 0.5, 1, 1]
    editor.step()
    editor.step()
    assert told[6:] == [1, 1]  # beyond the last step, as in it


def test_each_step_has_the_objective_of_its_progress():
    told = []

    class Stage(FixedGradient):
        def at(self, progress):
            told.append(progress)
            return Stage(value=progress)

        def draw(self, latent, progress, generator=None):
            told.append(progress)
            return super().draw(latent, progress, generator)

    subject = LatentImage(torch.rand(3, 16, 16), LinearPrior())
    start = subject.parameter.detach().clone()
    editor = Editor(subject, LinearPrior(), Stage(), None, edit_config(4, 0.1, "sgd"))
    run(editor)
    assert told == pytest.approx([0, 0, 1 / 3, 1 / 3, 2 / 3, 2 / 3, 1, 1])
    torch.testing.assert_close(start - subject.parameter.detach(), torch.full_like(start, 0.1 * 2))  # 0 + 1/3 + 2/3 + 1
    editor.step()
    assert told[8:] == [1, 1]  # beyond the last step, as in it


def test_objectives_leave_a_core_to_the_priors_thread(monkeypatch):
    log, prior = [], LinearPrior()

    @contextlib.contextmanager
    def beside_others():
        log.append("begin")
        yield
        log.append("end")

    class Spy(FixedGradient):
        def gradient(self, *asked):
            log.append("gradient")
            return super().gradient(*asked)

    monkeypatch.setattr(prior, "beside_others", beside_others)
    subject = LatentImage(torch.rand(3, 16, 16), prior)
    monkeypatch.setattr(subject, "observe", lambda *a: log.append("observe"))
    Editor(subject, prior, Spy(), PROMPTS, edit_config(1, 0.1, "sgd")).step()
    assert log == ["begin", "gradient", "end", "observe"]
