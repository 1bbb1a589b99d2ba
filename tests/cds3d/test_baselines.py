"""The baselines' methods: what they give back, where they start, in which steps they inject. Layers: test_injection."""

from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionImg2ImgPipeline
from omegaconf import OmegaConf

from cds3d.baselines import BASELINES, ddpm_p2p, ddpm_pnp, dds_pnp, pnp
from cds3d.baselines.ddpm_inversion import invert, step_distribution
from cds3d.baselines.pnp import ddim_inversion
from cds3d.baselines.sampling import ddim, noises
from cds3d.commands.baselines import build_baseline
from cds3d.guidance import load_prior
from cds3d.objectives.dds import DDS
from cds3d.objectives.objective import Draw, Prompts
from cds3d.options import groups, load_config
from cds3d.pocket.weights_path import WEIGHTS
from cds3d.subjects.image import LatentImage
from tensorf.errors import UserError

SRC, TGT = "a yellow flower", "a red flower"
INVERSIONS = ("ddpm-inversion", "ddpm-p2p", "ddpm-pnp")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tiny(tiny_folder):
    return load_prior(str(tiny_folder), device=CPU)


@pytest.fixture(scope="module")
def tiny_v(tiny_v_folder):
    return load_prior(str(tiny_v_folder), device=CPU)


@pytest.fixture(scope="module")
def pocket():
    return load_prior("pocket", device=CPU)


@pytest.fixture(scope="module")
def pocket_folder():
    return WEIGHTS


@pytest.fixture(autouse=True)
def _without_gradients():
    with torch.no_grad():
        yield


def method(name, **changes):
    """As configs/baseline/<name>.yaml has it, with `changes`."""
    return replace(build_baseline(load_config("edit", ["edit=latent", f"baseline={name}"])), **changes)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def latent(seed=3, shape=(1, 4, 6, 8)):
    return torch.randn(shape, generator=generator(seed))


def edit(name, prior, source, src=SRC, tgt=TGT, seed=0, track=lambda steps, label: steps, **changes):
    return method(name, **changes).edit(prior, source, src, tgt, generator=generator(seed), track=track)


# --- one file, one entry, one YAML


def test_every_baseline_has_a_yaml_of_its_name():
    assert groups()["baseline"] == sorted([*BASELINES, "none"])
    for name, kind in BASELINES.items():
        assert type(method(name)) is kind


def test_published_settings():
    read = {name: OmegaConf.to_container(load_config("edit", [f"baseline={name}"]).baseline) for name in BASELINES}
    assert read["sdedit"] == {"kind": "sdedit", "steps": 50, "strength": 0.75, "scale": 5.0}
    shared = {"steps": 100, "source_scale": 3.5, "zero_last_map": True}
    assert read["ddpm-inversion"] == {**shared, "kind": "ddpm-inversion", "skip": 36, "target_scale": 15.0}
    p2p = {"cross_steps": 0.6, "self_steps": 0.2, "self_max_queries": 256}
    assert read["ddpm-p2p"] == {**shared, **p2p, "kind": "ddpm-p2p", "skip": 12, "target_scale": 9.0}
    plug = read["pnp"]
    assert (plug["steps"], plug["inversion_steps"], plug["inversion_prompt"], plug["scale"]) == (50, 999, "", 7.5)
    assert (plug["feature_steps"], plug["attention_steps"]) == (0.8, 0.5)


def test_dds_pnp_has_the_defaults_of_dds_and_thresholds_where_plug_and_play_stops(tiny):
    options = load_config("edit", ["objective=dds", "guidance=sd14", "baseline=dds-pnp"])
    for key in ("scale", "scale_end", "score_scale", "t_min", "t_max", "t_order"):
        assert options.baseline[key] == options.objective[key]
    timesteps = ddim(tiny, 50).timesteps.tolist()
    assert min(timesteps[:40]) == options.baseline.feature_t_min
    assert min(timesteps[:25]) == options.baseline.attention_t_min


@pytest.mark.parametrize(
    ("name", "change", "told"),
    [
        ("sdedit", {"strength": 1.1}, "strength=1.1 has to lie in 0..1"),
        ("sdedit", {"steps": 0}, "steps=0 has to be above 0"),
        ("ddpm-inversion", {"skip": 100}, "skip=100 has to lie in 0..99"),
        ("ddpm-p2p", {"cross_steps": -0.1}, "cross_steps=-0.1"),
        ("ddpm-p2p", {"skip": -1}, "skip=-1"),
        ("ddpm-pnp", {"attention_steps": 2.0}, "attention_steps=2.0"),
        ("pnp", {"feature_steps": 2.0}, "feature_steps=2.0"),
        ("pnp", {"inversion_steps": 0}, "inversion_steps=0"),
    ],
)
def test_options_that_make_no_sense(name, change, told):
    with pytest.raises(ValueError, match=told):
        method(name, **change)


# --- schedulers


def test_the_schedule_is_the_priors_own(tiny):
    scheduler = ddim(tiny, 50)
    assert torch.equal(scheduler.alphas_cumprod, tiny.alphas)
    torch.testing.assert_close(torch.cumprod(1 - scheduler.betas, 0), tiny.alphas, rtol=1e-4, atol=0)
    assert scheduler.timesteps.tolist() == list(range(981, 0, -20))
    assert scheduler.final_alpha_cumprod == tiny.alphas[0]
    with pytest.raises(UserError, match="baseline.steps=1000 has to lie in 1..999"):
        ddim(tiny, 1000)


# --- SDEdit


@pytest.mark.parametrize("prediction", ["tiny", "tiny_v", "pocket"])
def test_sdedit_is_diffusers_image_to_image(request, prediction):
    prior, folder = (request.getfixturevalue(prediction + end) for end in ("", "_folder"))
    pipeline = StableDiffusionImg2ImgPipeline.from_pretrained(folder, safety_checker=None)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, set_alpha_to_one=False)
    pipeline.set_progress_bar_config(disable=True)
    source = latent()
    options = {"strength": 0.65, "num_inference_steps": 10, "guidance_scale": 5.0, "output_type": "latent"}
    truth = pipeline(TGT, source, generator=generator(), **options).images
    edited = edit("sdedit", prior, source, steps=10, strength=0.65)
    torch.testing.assert_close(edited, truth, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("strength", "steps"), [(0.0, 0), (0.19, 1), (0.75, 7), (1.0, 10)])
def test_sdedit_runs_a_share_of_its_steps(tiny, strength, steps):
    seen = []

    def track(items, label):
        seen.extend(items)
        return items

    source = latent()
    edited = edit("sdedit", tiny, source, steps=10, strength=strength, track=track)
    assert seen == ddim(tiny, 10).timesteps.tolist()[10 - steps :] and len(seen) == steps
    assert torch.equal(edited, source) == (strength == 0)


# --- DDPM inversion


def test_a_step_is_the_schedulers_with_eta_one(tiny):
    scheduler, z = ddim(tiny, 20), [latent(seed) for seed in range(3)]
    for t in scheduler.timesteps.tolist():
        mean, sigma = step_distribution(tiny, z[0], z[1], t, t - 50)
        stepped = scheduler.step(z[1], t, z[0], eta=1.0, variance_noise=z[2]).prev_sample
        torch.testing.assert_close(mean + sigma * z[2], stepped, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("prior", ["tiny", "tiny_v", "pocket"])
@pytest.mark.parametrize("name", INVERSIONS)
def test_equal_prompts_and_scales_give_the_source_back(request, prior, name):
    prior, source = request.getfixturevalue(prior), latent()
    same = {"steps": 8, "target_scale": 3.5, "zero_last_map": False}
    for skip in (0, 5):
        edited = edit(name, prior, source, tgt=SRC, skip=skip, **same)
        torch.testing.assert_close(edited, source, atol=1e-4, rtol=1e-4)
    other = edit(name, prior, source, tgt=TGT, skip=0, **same)
    assert (other - source).abs().max() > 1e-3


def test_the_published_last_step_leaves_out_its_noise(tiny):
    source = latent()
    full, zeroed = (
        edit("ddpm-inversion", tiny, source, tgt=SRC, steps=8, skip=2, target_scale=3.5, zero_last_map=z)
        for z in (False, True)
    )
    options = {"scale": 3.5, "zero_last_map": False, "generator": generator()}
    last = invert(tiny, ddim(tiny, 8), source, SRC, **options).maps[-1, None]
    a, first = tiny.alphas[1], tiny.alphas[0]
    sigma = ((1 - first) / (1 - a) * (1 - a / first)).sqrt()
    torch.testing.assert_close(full - zeroed, sigma * last, atol=1e-5, rtol=1e-5)
    assert (full - zeroed).abs().max() > 1e-3


def test_each_timestep_has_noise_of_its_own(tiny):
    source = latent(shape=(1, 4, 16, 16))
    options = {"scale": 1.0, "zero_last_map": True, "generator": generator()}
    inversion = invert(tiny, ddim(tiny, 4), source, SRC, **options)
    noise = [
        (x - tiny.alphas[t].sqrt() * source[0]) / (1 - tiny.alphas[t]).sqrt()
        for t, x in zip(inversion.timesteps, inversion.latents[:-1])
    ]
    correlation = torch.corrcoef(torch.stack(noise).flatten(1))
    torch.testing.assert_close(correlation, torch.eye(4), atol=0.12, rtol=0)
    assert torch.stack(noise).std().item() == pytest.approx(1, abs=0.05)


def test_skip_starts_at_the_sources_latent_there(tiny, monkeypatch):
    source, calls = latent(), []
    kind = BASELINES["ddpm-inversion"]

    def predict(self, prior, src, tgt):
        return lambda step, t, z_src, z: calls.append((step, t, z_src, z)) or torch.zeros_like(z)

    monkeypatch.setattr(kind, "predict", predict)
    edit("ddpm-inversion", tiny, source, steps=10, skip=4)
    options = {"scale": 3.5, "zero_last_map": True, "generator": generator()}
    inversion = invert(tiny, ddim(tiny, 10), source, SRC, **options)
    assert [c[0] for c in calls] == list(range(6))
    assert [c[1] for c in calls] == inversion.timesteps[4:] == [501, 401, 301, 201, 101, 1]
    assert torch.equal(calls[0][3], inversion.latents[4, None])  # the edit
    for (_, _, z_src, _), kept in zip(calls, inversion.latents[4:-1]):
        assert torch.equal(z_src[0], kept)


# --- in which steps


def watch(monkeypatch, module, name):
    """Record the arguments of a context manager of `module`; returns the list."""
    calls, original = [], getattr(module, name)

    @contextmanager
    def watched(unet, *args, **options):
        calls.append((args, options))
        with original(unet, *args, **options):
            yield

    monkeypatch.setattr(module, name, watched)
    return calls


def windows(calls):
    return [(options["features"], options["attention"]) for _, options in calls]


def test_pnp_injects_in_the_first_steps(tiny, monkeypatch):
    calls = watch(monkeypatch, pnp, "injected")
    edit("pnp", tiny, latent(), steps=5, inversion_steps=10)
    assert windows(calls) == [(True, True)] * 2 + [(True, False)] * 2 + [(False, False)]
    assert all(args[1] == (0, 0, 0) for args, _ in calls)


def test_ddpm_pnp_injects_in_the_first_steps_that_are_run(tiny, monkeypatch):
    calls = watch(monkeypatch, ddpm_pnp, "injected")
    edit("ddpm-pnp", tiny, latent(), steps=9, skip=4)
    assert windows(calls) == [(True, True)] * 2 + [(True, False)] * 2 + [(False, False)]
    assert all(args[1] == (0, 1, 0, 1) for args, _ in calls)


def test_p2p_counts_its_windows_from_the_first_step_that_is_run(tiny, monkeypatch):
    cross = watch(monkeypatch, ddpm_p2p, "cross_maps_replaced")
    own = watch(monkeypatch, ddpm_p2p, "self_maps_copied")
    edit("ddpm-p2p", tiny, latent(), steps=10, skip=4, self_max_queries=12)
    assert (len(cross), len(own)) == (6, 2)  # shares of steps, not of the steps that are run
    edit("ddpm-p2p", tiny, latent(), steps=10, skip=4, cross_steps=0.3)
    assert len(cross) == 6 + 3
    assert all(args[:2] == (0, 2) for args, _ in cross)
    assert own[0][0][1:] == ((0, 1, 0), 12)


# --- what the source's branch is


def watch_rows(monkeypatch, module, count):
    """Record the rows of the forwards of `count` rows that a module asks for; returns the list."""
    calls, original = [], module.noises

    def watched(prior, t, *rows):
        if len(rows) == count:
            calls.append((t, rows))
        return original(prior, t, *rows)

    monkeypatch.setattr(module, "noises", watched)
    return calls


def test_pnp_takes_from_the_inversions_latents_under_the_empty_prompt(tiny, monkeypatch):
    calls, source = watch_rows(monkeypatch, pnp, 3), latent()
    edit("pnp", tiny, source, steps=5, inversion_steps=10, inversion_prompt=SRC, negative_prompt="a mug")
    latents = ddim_inversion(tiny, source, SRC, 10, [801, 601, 401, 201, 1])
    assert [t for t, _ in calls] == list(latents)
    for t, (of_source, null, target) in calls:
        assert torch.equal(of_source[0], latents[t]) and of_source[1] is tiny.embed("")
        assert null[1] is tiny.embed("a mug") and target[1] is tiny.embed(TGT)
        assert null[0] is target[0] and torch.equal(null[0], latents[t]) == (t == 801)


@pytest.mark.parametrize(("name", "sources"), [("ddpm-p2p", [SRC]), ("ddpm-pnp", ["", SRC])])
def test_ddpm_takes_from_the_inversions_latents(tiny, monkeypatch, name, sources):
    module = {"ddpm-p2p": ddpm_p2p, "ddpm-pnp": ddpm_pnp}[name]
    calls, source = watch_rows(monkeypatch, module, len(sources) + 2), latent()
    edit(name, tiny, source, steps=6, skip=2)
    options = {"scale": 3.5, "zero_last_map": True, "generator": generator()}
    inversion = invert(tiny, ddim(tiny, 6), source, SRC, **options)
    assert [t for t, _ in calls] == inversion.timesteps[2:]
    for i, (_, rows) in enumerate(calls):
        assert [prompt for _, prompt in rows] == [tiny.embed(text) for text in (*sources, "", TGT)]
        assert all(torch.equal(z[0], inversion.latents[2 + i]) for z, _ in rows[: len(sources)])
        assert all(torch.equal(z[0], inversion.latents[2 + i]) == (i == 0) for z, _ in rows[len(sources) :])


# --- Plug-and-Play


def test_ddim_inversion_is_undone_by_sampling(pocket):
    source, scheduler = 0.5 * latent(), ddim(pocket, 20)
    timesteps = scheduler.timesteps.tolist()
    latents = ddim_inversion(pocket, source, "", 100, timesteps)
    assert list(latents) == timesteps
    z, worst = latents[timesteps[0]], 0.0
    for t in timesteps:
        worst = max(worst, (z - latents[t]).std().item())
        z = scheduler.step(noises(pocket, t, (z, pocket.embed("")))[0], t, z).prev_sample
    assert worst < 0.1 and (z - source).std() < 0.1


def test_pnp_with_the_inversions_prompt_is_the_inversions_reconstruction(tiny, tiny_folder):
    """At its first step the target is the source: injecting there alone changes nothing, whatever the scale."""
    source, steps = latent(), 5
    scheduler = DDIMScheduler.from_pretrained(tiny_folder, subfolder="scheduler", set_alpha_to_one=False)
    scheduler.set_timesteps(steps)
    z = ddim_inversion(tiny, source, "", 10, scheduler.timesteps.tolist())[801]
    for t in scheduler.timesteps:
        text = tiny.embed("").tokens
        z = scheduler.step(tiny.unet(z, t, encoder_hidden_states=text).sample, t, z).prev_sample
    options = {"steps": steps, "inversion_steps": 10, "negative_prompt": "", "tgt": ""}
    for share in (0.0, 0.2):
        edited = edit("pnp", tiny, source, feature_steps=share, attention_steps=share, **options)
        torch.testing.assert_close(edited, z, atol=1e-4, rtol=1e-4)
    options["tgt"] = TGT
    assert (edit("pnp", tiny, source, feature_steps=0.2, attention_steps=0.2, **options) - z).abs().max() > 1e-3


def test_pnp_with_full_injection_stays_near_the_source(pocket):
    source = 0.5 * latent()
    options = {"steps": 5, "inversion_steps": 40, "negative_prompt": "", "src": "a cat"}
    same = edit("pnp", pocket, source, tgt="", feature_steps=1.0, attention_steps=1.0, **options)
    free, held = (
        edit("pnp", pocket, source, tgt="a pig", feature_steps=share, attention_steps=share, **options)
        for share in (0.0, 1.0)
    )
    assert (same - source).std() < (held - source).std() < (free - source).std()


def test_an_inversion_that_misses_sampling_steps_is_told(tiny):
    with pytest.raises(UserError, match="baseline.inversion_steps=7 does not pass all timesteps of sampling"):
        edit("pnp", tiny, latent(), steps=5, inversion_steps=7)


# --- DDS with injection


def gradients(prior, objective, src, tgt, t, moved):
    subject = LatentImage(torch.rand((3, 32, 48), generator=generator(5)), prior)
    subject.parameter += moved * torch.randn(subject.source.shape, generator=generator(6))
    draw = Draw(t, torch.randn(subject.source.shape, generator=generator(7)))
    prompts = Prompts(*map(prior.embed, ("", src, tgt)))  # which may be equal here
    return objective.gradient(prior, subject.pair(0), prompts, draw).gradient


@pytest.mark.parametrize("prior", ["tiny", "pocket"])
def test_dds_pnp_has_no_gradient_for_equal_prompts_at_the_source(request, prior):
    prior, objective = request.getfixturevalue(prior), method("dds-pnp")
    same = gradients(prior, objective, "a cat", "a cat", 700, moved=0.0)
    torch.testing.assert_close(same, torch.zeros_like(same), atol=1e-5, rtol=0)
    assert gradients(prior, objective, "a cat", "a pig", 700, moved=0.0).abs().max() > 1e-4


def test_dds_pnp_is_dds_below_its_thresholds(tiny, monkeypatch):
    objective = method("dds-pnp")
    dds = DDS(
        **{k: getattr(objective, k) for k in ("scale", "scale_end", "score_scale", "t_min", "t_max", "t_order")},
        source_share=1.0,
    )
    calls = watch(monkeypatch, dds_pnp, "injected")
    for t in (200, 201, 500, 501):
        ours, plain = (gradients(tiny, o, SRC, TGT, t, moved=0.5) for o in (objective, dds))
        assert torch.allclose(ours, plain, atol=1e-5) == (t == 200)
    assert windows(calls) == [(False, False), (True, False), (True, False), (True, True)]
    assert all(args[1] == (0, 1, 0, 1) for args, _ in calls)


def test_half_precision_gives_about_the_same(tiny, tiny_folder):
    half, source = load_prior(str(tiny_folder), dtype="bf16", device=CPU), latent()
    options = {"steps": 4, "skip": 1, "target_scale": 2.0, "source_scale": 2.0}
    a, b = (edit("ddpm-p2p", prior, source, **options) for prior in (tiny, half))
    assert b.dtype == torch.float32 and (a - b).std() < 0.05 * a.std()
