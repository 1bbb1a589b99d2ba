"""Does a GPU give what the CPU gives? Renders, gradients, steps of CDS, short edits and trainings, of both.

Where the device is the CPU itself, the other side computes as a GPU does: with torch's own operators in place of the
compiled loops (`tensorf/lookup.py`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from cds3d.commands.edit import work_maker
from cds3d.commands.preparing import build_objective
from cds3d.commands.regions import read_pointing
from cds3d.commands.train import field_options
from cds3d.commands.videos import resized_to
from cds3d.editor import EditConfig, Editor
from cds3d.guidance import Prior, Query, load_prior
from cds3d.metrics.psnr import psnr
from cds3d.objectives.objective import Prompts
from cds3d.options import build, load_config
from cds3d.subjects.image import LatentImage, LatentPair
from tensorf import lookup
from tensorf.captures import Capture, load_capture
from tensorf.field import Field
from tensorf.train import Trainer

CPU = torch.device("cpu")
SOURCE, TARGET = "a yellow flower", "a red flower"
# How far networks of a type may be off, as a share of the gradient's norm: DDS subtracts predictions that are nearly
# the same. fp16 was 1.5 to 2% off and bf16 12 to 15%, emulated on a CPU; TF32 rounds as fp16 does.
STEP_LIMITS = {"fp32": 2e-3, "tf32": 0.05, "fp16": 0.05, "bf16": 0.25}
LATENT_LIMITS = {"fp32": 1e-4, "tf32": 5e-3, "fp16": 5e-3, "bf16": 2e-2}
# Of an edit, the share of its change that may differ: masks have thresholds, and Adam enlarges small differences.
FIELD_LIMIT, IMAGE_LIMIT = 0.1, 0.05
RENDER_DB, TRAINING_DB = 60.0, 1.0
SPACES, KINDS = ("ndc", "box", "unbounded"), ("vm", "cp")
GRADIENT_LIMIT = 5e-3  # a few thin samples may be stood for by others


@dataclass(frozen=True)
class Check:
    """One comparison of two devices: `value` has to be at least or at most `limit`, as `unit` says ("dB at least")."""

    part: str
    what: str
    value: float
    limit: float
    unit: str

    @property
    def passed(self) -> bool:
        """Never if the value is not a number."""
        return self.value >= self.limit if self.unit == "dB at least" else self.value <= self.limit


@dataclass(frozen=True)
class Setting:
    """What is compared. model: `guidance.path`. width: of pictures and views, pixels; None: the
    photos' own. train: options of training; the rest are numbers of steps."""

    capture: Path
    model: str
    width: int | None
    train: tuple[str, ...]
    edit_iterations: int
    train_iterations: int


def full_setting(capture: Path, model: str) -> Setting:
    small = ("field.batch=1024", "field.resolution=96", "field.prune_rays=20000", "field.final_rays=40000")
    return Setting(capture, model, 252, small, 20, 200)


def quick_setting(capture: Path, model: str) -> Setting:
    tiny = ("field.batch=64", "field.resolution=16", "field.prune_rays=4000", "field.final_rays=4000")
    return Setting(capture, model, 48, (*tiny, "field.density_shift=0", "field.lr_grid=0.1"), 3, 8)


@contextmanager
def other_side(device: torch.device) -> Iterator[None]:
    """Compute as a GPU does: without the compiled loops also where the device is a CPU."""
    before = lookup.kernels
    lookup.kernels = (lambda: None) if device.type == "cpu" else before
    try:
        yield
    finally:
        lookup.kernels = before


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Whether a GPU's convolutions and products may round fp32 to 10 bits; torch lets convolutions by default."""
    backends = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [b.allow_tf32 for b in backends]
    for backend in backends:
        backend.allow_tf32 = allowed
    try:
        yield
    finally:
        for backend, was in zip(backends, before):
            backend.allow_tf32 = was


def relative_error(there: Tensor, here: Tensor) -> float:
    there, here = there.detach().cpu().double(), here.detach().double()
    return ((there - here).norm() / here.norm().clamp(min=1e-30)).item()


def capture_of(setting: Setting, space: str = "ndc") -> Capture:
    return load_capture(setting.capture, width=setting.width, space=space, check=False)


def trainer_of(setting: Setting, space: str, device: torch.device, *options: str) -> Trainer:
    config = load_config("train", [*setting.train, f"field.iterations={setting.train_iterations}", *options])
    return Trainer(capture_of(setting, space), *field_options(config, space), device)


def trained(setting: Setting, space: str, device: torch.device, *options: str) -> Trainer:
    trainer = trainer_of(setting, space, device, *options)
    while trainer.iteration < trainer.config.iterations:
        trainer.step()
    trainer.finish()
    return trainer


# --- the parts


def check_fields(device: torch.device, setting: Setting) -> Iterator[Check]:
    """A full render, and the gradient of a view as an edit has it, of fields trained briefly on the CPU."""
    for space in SPACES:
        for kind in KINDS:
            options = ["field=cp"] if kind == "cp" else []
            here = trained(setting, space, CPU, *options).field
            camera = capture_of(setting, space).cameras[0]
            there = copy.deepcopy(here).to(device)
            rendered = here.render(camera)["color"]
            with other_side(device):
                again = there.render(camera)["color"].cpu()
            yield Check("fields", f"render, {kind}, {space}", psnr(again, rendered), RENDER_DB, "dB at least")
            ours = _view_gradient(here, camera)
            with other_side(device):
                theirs = _view_gradient(there, camera)
            error = relative_error(theirs, ours)
            yield Check("fields", f"gradient of a view, {kind}, {space}", error, GRADIENT_LIMIT, "at most")


def _view_gradient(field: Field, camera) -> Tensor:
    """The gradient of all parameters, concatenated, for a fixed gradient of the colours."""
    field.zero_grad()
    view = field.view(camera)
    towards = torch.randn(len(view), 3, generator=torch.Generator().manual_seed(5))
    view.color(field).backward(towards.to(field.device))
    return torch.cat([p.grad.cpu().flatten() for p in field.parameters() if p.grad is not None])


def check_steps(device: torch.device, setting: Setting) -> Iterator[Check]:
    """A picture's latent, the noise predicted in it, and CDS's gradient on a latent, with networks of every type."""
    here = load_prior(setting.model, device=CPU)
    picture = capture_of(setting).images[0].permute(2, 0, 1)[None].float() / 255
    with torch.no_grad():
        latents = here.encode_image(picture), here.encode_image(picture.flip(1))  # the same with red and blue changed
    ours = _step(here, *latents)
    for name in ("fp32", "bf16") if device.type == "cpu" else STEP_LIMITS:
        there = load_prior(setting.model, dtype="fp32" if name == "tf32" else name, device=device)
        with tf32(name == "tf32"):
            with torch.no_grad():
                z = there.encode_image(picture.to(device))
            noise, gradient = _step(there, *(latent.to(device) for latent in latents))
        for what, a, b, limit in (
            ("latent of a picture", z, latents[0], LATENT_LIMITS[name]),
            ("noise in a latent", noise, ours[0], LATENT_LIMITS[name]),
            ("gradient of CDS", gradient, ours[1], STEP_LIMITS[name]),
        ):
            yield Check("steps", f"{what}, {name}", relative_error(a, b), limit, "at most")


def _step(prior: Prior, source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """(predicted noise, gradients of three steps with draws of their own)."""
    objective, prompts = build_objective(load_config("edit", [])), Prompts.of(prior, SOURCE, TARGET)
    gradients = []
    for seed in range(3):
        torch.manual_seed(seed)
        draw = objective.draw(source, 0.0)
        pair = LatentPair(source, torch.nn.Parameter(target.clone()))
        gradients.append(objective.gradient(prior, pair, prompts, draw).gradient)
    noisy = prior.noised(source, draw.t, draw.noise)
    return prior.ask(Query(noisy, draw.t, prompts.target))[0].noise, torch.cat(gradients)


def check_edits(device: torch.device, setting: Setting) -> Iterator[Check]:
    """Iterations of the edits of a field and of an image: what comes out, in pictures."""
    field = trained(setting, "ndc", CPU).field
    capture = capture_of(setting)
    image = capture.images[0].permute(2, 0, 1).float() / 255

    def edited(side: torch.device) -> tuple[Tensor, Tensor]:
        prior = load_prior(setting.model, device=side)
        editor = field_editor(copy.deepcopy(field).to(side), capture, prior, Prompts.of(prior, SOURCE, TARGET), setting)
        iterate(editor)
        subject = LatentImage(image, prior)
        config = load_config("edit", ["edit=latent", f"edit.iterations={setting.edit_iterations}"])
        of_image = build(EditConfig, config.edit, group="edit", seed=0)
        iterate(Editor(subject, prior, build_objective(config), Prompts.of(prior, SOURCE, TARGET), of_image))
        return editor.subject.edited().render(capture.cameras[0])["color"].cpu(), subject.image()

    ours, before = edited(CPU), (field.render(capture.cameras[0])["color"], image)
    with other_side(device), tf32(False):
        theirs = edited(device)
    for what, limit, there, here, source in zip(
        ("a field", "an image"), (FIELD_LIMIT, IMAGE_LIMIT), theirs, ours, before
    ):
        error = relative_error(there - source, here - source)
        yield Check("edits", f"change of {what} in {setting.edit_iterations} iterations", error, limit, "at most")


def field_editor(
    field: Field, capture: Capture, prior: Prior, prompts: Prompts, setting: Setting, *more: str
) -> Editor:
    """The default edit of a field by `setting.edit_iterations`, through the capture's training views."""
    config = load_config("edit", [f"edit.iterations={setting.edit_iterations}"])
    config.edit.width = min(config.edit.width, setting.width)
    edit = build(EditConfig, config.edit, group="edit", seed=0)
    views = [resized_to(capture.cameras[i], config.edit.width) for i in capture.train]
    make = work_maker(config, edit, read_pointing(config))
    return make(field, views, prior, build_objective(config), prompts, None)[0]


def iterate(editor: Editor) -> None:
    while editor.iteration < editor.config.iterations:
        editor.step()


def check_training(device: torch.device, setting: Setting) -> Iterator[Check]:
    """Held-out PSNR after training; a GPU draws other random numbers, so that the fields differ."""
    ours = trained(setting, "ndc", CPU).held_out_psnr()
    with other_side(device), tf32(False):
        theirs = trained(setting, "ndc", device).held_out_psnr()
    yield Check("training", "held-out PSNR, difference in dB", abs(theirs - ours), TRAINING_DB, "at most")


def check_tcnn(device: torch.device, setting: Setting) -> Iterator[Check]:
    """decoder=tcnn against decoder=mlp. UserError without tinycudann or a GPU."""
    with_tcnn = trained(setting, "ndc", device, "field.decoder=tcnn")
    plain = trained(setting, "ndc", device)
    behind = plain.held_out_psnr() - with_tcnn.held_out_psnr()
    yield Check("tcnn", "held-out PSNR behind decoder=mlp, dB", behind, 2.0, "at most")


PARTS: dict[str, Callable[[torch.device, Setting], Iterator[Check]]] = {
    "fields": check_fields,
    "steps": check_steps,
    "edits": check_edits,
    "training": check_training,
    "tcnn": check_tcnn,
}
