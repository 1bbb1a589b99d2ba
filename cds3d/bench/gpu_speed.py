"""Times, peaks of memory and waits of trainings, edits and steps on a GPU, each within a budget of seconds.

What does not end within its budget is extrapolated, and says so. Seconds are of the clock.
"""

from __future__ import annotations

import collections
import gc
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from cds3d.bench.gpu_agreement import SOURCE, TARGET, Setting, field_editor, trainer_of
from cds3d.bench.random_model import ImagePair, random_prompts, random_sd
from cds3d.commands.preparing import build_objective
from cds3d.editor import Editor
from cds3d.forecast import field_edit_mb
from cds3d.guidance import load_prior
from cds3d.metrics.psnr import psnr
from cds3d.objectives.objective import Prompts
from cds3d.options import load_config
from cds3d.process_memory import memory_mb, peak_memory_mb, reset_peak_memory
from tensorf.captures import Capture
from tensorf.field import Field
from tensorf.train import Trainer

_WATCHED = 5  # steps in which waits are counted
_PILOT = 0.01  # share of a long training that tells how much fits into its budget
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Figure:
    """One measured number. target: what is asked of it on an H100, if anything is; note: how it was measured."""

    part: str
    what: str
    value: float | None
    unit: str
    target: str = ""
    note: str = ""


@dataclass(frozen=True)
class Budget:
    """Seconds, options and iterations of the parts that train and edit. pictures: of steps, pixels; repeats: of each.

    share: of the random model, `random_sd`'s. dtype: of its networks.
    """

    train: float
    edit: float
    sd_edit: float
    published: float
    train_options: tuple[str, ...]
    published_options: tuple[str, ...]
    edit_iterations: int
    pictures: tuple[tuple[int, int], ...]
    repeats: int
    share: int
    dtype: str


_TINY = ("field.batch=64", "field.resolution=16", "field.prune_rays=2000", "field.final_rays=2000")
FULL = Budget(60, 60, 90, 90, (), (), 400, ((252, 189), (512, 512)), 5, 1, "fp16")
QUICK = Budget(
    train=20,
    edit=20,
    sd_edit=20,
    published=3,
    train_options=(*_TINY, "field.iterations=8"),
    published_options=(*_TINY, "field.iterations=40"),
    edit_iterations=3,
    pictures=((64, 48),),
    repeats=1,
    share=10,
    dtype="fp16",
)


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def run_within(step: Callable[[], object], steps: int, seconds: float, device: torch.device) -> tuple[int, float]:
    """(steps made, seconds) of at most `steps`, of which none begins after `seconds`."""
    synchronise(device)
    begun, made = time.perf_counter(), 0
    while made < steps and time.perf_counter() - begun < seconds:
        step()
        made += 1
    synchronise(device)
    return made, time.perf_counter() - begun


@contextmanager
def counted_waits() -> Iterator[collections.Counter]:
    """In which lines the CPU waits for the GPU, and how often, as far as torch sees it."""
    places: collections.Counter = collections.Counter()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield places
        finally:
            torch.cuda.set_sync_debug_mode("default")
    for warning in caught:
        if "called a synchronizing" in str(warning.message):
            places[f"{Path(warning.filename).name}:{warning.lineno}"] += 1


def waits(part: str, step: Callable[[], object], device: torch.device, expected: str) -> Iterator[Figure]:
    """How often a step waits, over a few of them; nothing on a CPU."""
    if device.type != "cuda":
        return
    with counted_waits() as places:
        for _ in range(_WATCHED):
            step()
    told = ", ".join(f"{place} {n / _WATCHED:g}" for place, n in places.most_common(8))
    yield Figure(part, "waits for the GPU an iteration", sum(places.values()) / _WATCHED, "", expected, told)


# --- the parts


def time_training(device: torch.device, setting: Setting, budget: Budget) -> Iterator[Figure]:
    """The default training of the capture at the photos' own size."""
    trainer = _trainer(setting, device, budget.train_options)
    reset_peak_memory(device)
    made, seconds = run_within(trainer.step, trainer.config.iterations, budget.train, device)
    first = "on the first grids: later ones are larger"
    yield from _training_figures("train", trainer, made, seconds, trainer.config.iterations, first)
    if made == trainer.config.iterations:
        trainer.finish()
        yield Figure("train", "held-out PSNR", _held_out(trainer), "dB")
    # One step more than the run has: the last real step may end the training.
    yield from waits("train", trainer.step, device, "3")


def time_published(device: torch.device, setting: Setting, budget: Budget) -> Iterator[Figure]:
    """field=published, as many steps of all of its stages as the budget allows, scaled up to all of them."""
    whole = _trainer(setting, device, budget.published_options, "field=published").config.iterations

    def shortened(steps: int) -> Trainer:
        options = (*budget.published_options, f"field.iterations={steps}")
        return _trainer(setting, device, options, "field=published")

    steps = max(20, round(_PILOT * whole))
    made, seconds = run_within(shortened(steps).step, steps, budget.published, device)
    steps = min(whole, max(steps, round(0.8 * (budget.published - seconds) / seconds * made)))
    trainer = shortened(steps)
    reset_peak_memory(device)
    made, seconds = run_within(trainer.step, steps, budget.published, device)
    yield from _training_figures("published", trainer, made, seconds, whole, "through the same stages", "180 s")
    trainer.finish()
    reset_peak_memory(device)
    yield Figure("published", "held-out PSNR", _held_out(trainer), "dB", note=f"after {made} steps")
    yield Figure("published", "peak memory of its full renders", peak_memory_mb(device), "MB")


def _trainer(setting: Setting, device: torch.device, options: tuple[str, ...], *first: str) -> Trainer:
    full = replace(setting, train=(), width=None)
    config = load_config("train", [*first, *options])
    return trainer_of(full, "ndc", device, *first, *options, f"field.iterations={_iterations(config, 'ndc')}")


def _iterations(config, space: str) -> int:
    return config.field.iterations or config.field.by_space[space].iterations


def _training_figures(
    part: str, trainer: Trainer, made: int, seconds: float, whole: int, stages: str, target: str = ""
) -> list[Figure]:
    """stages: on which grids the steps were made, for the note where there were not all of them."""
    device = trainer.device
    size = "x".join(map(str, trainer.field.resolution))
    note = "" if made == whole else f"extrapolated from {made} steps, {seconds:.1f} s, {stages}"
    return [
        Figure(part, f"training, {whole} steps, grids of {size}", seconds / made * whole, "s", target, note),
        Figure(part, "peak memory of training", peak_memory_mb(device), "MB"),
    ]


def _held_out(trainer: Trainer) -> float:
    capture, field = trainer.capture, trainer.field
    values = [
        psnr(field.render(capture.cameras[i])["color"].cpu(), capture.images[i].float() / 255) for i in capture.test
    ]
    return sum(values) / len(values)


def time_edit(device: torch.device, setting: Setting, budget: Budget) -> Iterator[Figure]:
    """The default edit with the shipped model, of a field that is trained for it."""
    field, capture = _field(setting, device, budget)
    prior = load_prior(setting.model, device=device)
    setting = replace(setting, edit_iterations=budget.edit_iterations)
    yield from _edit_figures("edit", field, capture, prior, Prompts.of(prior, SOURCE, TARGET), setting, budget.edit)


def time_sd_edit(device: torch.device, setting: Setting, budget: Budget) -> Iterator[Figure]:
    """The default edit with a random model of Stable Diffusion v1.4's size: the time is real, the edit is nonsense."""
    field, capture = _field(setting, device, budget)
    prior = random_sd(DTYPES[budget.dtype], device, share=budget.share)
    goals = ("60 s", "8192 MB")
    setting = replace(setting, edit_iterations=budget.edit_iterations)
    yield from _edit_figures("sd-edit", field, capture, prior, random_prompts(prior), setting, budget.sd_edit, goals)


def _field(setting: Setting, device: torch.device, budget: Budget) -> tuple[Field, Capture]:
    """A field of the default size after a tenth of its training, which has its occupancy, and the capture."""
    options = budget.train_options or ("field.iterations=120", "field.prune_at=[0.6]")
    trainer = _trainer(setting, device, options)
    run_within(trainer.step, trainer.config.iterations, budget.train, device)
    trainer.finish()
    return trainer.field, trainer.capture


def _edit_figures(part, field, capture, prior, prompts, setting: Setting, seconds: float, goals=("", "")):
    device, whole = prior.device, setting.edit_iterations
    editor = field_editor(field, capture, prior, prompts, setting)
    expected = memory_mb(device) + sum(_forecast(editor, field, prompts).values())
    reset_peak_memory(device)
    turn = min(whole, len(editor.subject.cameras))
    first, preparing = run_within(editor.step, turn, seconds, device)
    made, later = run_within(editor.step, whole - first, seconds - preparing, device)
    peak = peak_memory_mb(device)
    total, note = preparing + later, ""
    if first + made < whole:
        rate = later / made if made else preparing / first
        total = preparing + rate * (whole - first)
        note = f"extrapolated from {first} + {made} iterations, {preparing:.1f} + {later:.1f} s"
    size = f"{editor.subject.cameras[0].width}x{editor.subject.cameras[0].height}"
    yield Figure(part, f"edit, {whole} iterations, {turn} of them the views' first, {size}", total, "s", goals[0], note)
    yield Figure(part, "peak memory of the edit", peak, "MB", goals[1])
    yield Figure(part, "the forecast of that peak", expected, "MB", note="made before the first iteration")
    yield from waits(part, editor.step, device, "4")


def _forecast(editor: Editor, field: Field, prompts: Prompts) -> dict[str, float]:
    views = editor.subject.cameras
    size = (views[0].height, views[0].width)
    return field_edit_mb(editor.prior, prompts.target, field, len(views), *size, editor.objective.unet_graphs)


def time_sd_steps(device: torch.device, setting: Setting, budget: Budget) -> Iterator[Figure]:
    """One CDS step on pictures, in both memory layouts of the networks: `Prior` has channels-last."""
    for layout in (torch.channels_last, torch.contiguous_format):
        yield from _sd_steps(device, budget, layout)
        gc.collect()  # the next model's peak is its own


def _sd_steps(device: torch.device, budget: Budget, layout: torch.memory_format) -> Iterator[Figure]:
    objective = build_objective(load_config("edit", ["guidance=sd14"]))
    prior = random_sd(DTYPES[budget.dtype], device, share=budget.share, layout=layout)
    prompts = random_prompts(prior)
    for width, height in budget.pictures:
        pictures = torch.rand(2, 1, 3, height, width, generator=torch.Generator().manual_seed(1)).to(device)

        def step(pictures=pictures) -> Tensor:
            pair = ImagePair(prior, *pictures)
            draw = objective.draw(pair.source, 0.0)
            return pair.backward(objective.gradient(prior, pair, prompts, draw).gradient)

        step()
        gradient = step()  # by now kernels are chosen and loaded
        reset_peak_memory(device)
        made, seconds = run_within(step, budget.repeats, 10.0, device)
        what = f"{budget.dtype}, {width}x{height}, {str(layout).removeprefix('torch.')}"
        note = "" if bool(torch.isfinite(gradient).all()) else "the gradient is not finite"
        yield Figure("sd-steps", f"CDS step, {what}", seconds / made, "s", note=note)
        yield Figure("sd-steps", f"its peak memory, {what}", peak_memory_mb(device), "MB")


PARTS: dict[str, Callable[[torch.device, Setting, Budget], Iterator[Figure]]] = {
    "train": time_training,
    "edit": time_edit,
    "sd-steps": time_sd_steps,
    "sd-edit": time_sd_edit,
    "published": time_published,
}
