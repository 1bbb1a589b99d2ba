"""The loop of an edit: pair of latents -> objective's gradient -> subject's parameters -> step of the optimiser.

Knows no NeRF and no prompt's text. Each step draws its randomness from a generator of its own, so that a resumed run
is, on a CPU, bit for bit the unbroken one. torch's global random state is neither read nor changed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from cds3d.guidance.prior import Prior
from cds3d.objectives.objective import Objective, Prompts, check_timesteps, fetched
from cds3d.subjects import Subject
from tensorf.adam import Adam
from tensorf.errors import UserError
from tensorf.precision import full_precision
from tensorf.seeds import seed_of_step

OPTIMIZERS = {
    "adam": lambda groups: Adam(groups, betas=(0.9, 0.99)),
    "sgd": torch.optim.SGD,
}


@dataclass(frozen=True)
class EditConfig:
    """How an edit descends. Raises ValueError for what makes no sense."""

    iterations: int
    lr: float
    optimizer: str  # "adam" (fields and pixels) or "sgd" (latents)
    lr_decay: float  # what is left of lr at the end, falling by the same factor each iteration; 1 keeps it
    warmup: float  # share of the iterations over which lr rises, with their square; 0 starts at once
    adam_floor: float  # Adam's epsilon as a share of the RMS gradient (`Editor._raise_floor`); 0 is plain Adam
    seed: int

    def __post_init__(self):
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"optimizer={self.optimizer} is unknown; use one of {', '.join(OPTIMIZERS)}")
        if self.iterations < 1:
            raise ValueError(f"iterations={self.iterations} has to be at least 1")
        if not 0 < self.lr < math.inf:
            raise ValueError(f"lr={self.lr} has to be a number above 0")
        if not 0 < self.lr_decay <= 1:
            raise ValueError(f"lr_decay={self.lr_decay} has to be above 0 and at most 1")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup={self.warmup} has to be at least 0 and below 1")
        if not self.adam_floor >= 0:
            raise ValueError(f"adam_floor={self.adam_floor} has to be 0 or more")

    def rate(self, iteration: int) -> float:
        """The learning rate of the step after so many iterations, as a share of `lr`."""
        rise = min((iteration + 1) / (self.warmup * self.iterations), 1) ** 2 if self.warmup else 1
        return rise * self.lr_decay ** (iteration / self.iterations)


class Editor:
    """`step()` until `iteration == config.iterations` edits `subject`; `state_dict` holds all that a resume needs."""

    def __init__(
        self,
        subject: Subject,
        prior: Prior,
        objective: Objective,
        prompts: Prompts,
        config: EditConfig,
        sharing: int = 1,
    ):
        """sharing: number of consecutive steps that share one timestep under t_order=falling.

        UserError for an objective with timesteps that the prior does not have.
        """
        check_timesteps(objective, prior)
        self.sharing = sharing
        self.subject, self.prior, self.objective = subject, prior, objective
        self.prompts, self.config, self.iteration = prompts, config, 0
        self.optimizer = OPTIMIZERS[config.optimizer](subject.parameter_groups(config.lr))
        self._rates = [group["lr"] for group in self.optimizer.param_groups]

    @torch.enable_grad()
    @full_precision
    def step(self) -> dict:
        """One iteration; returns its figures. UserError, with the parameters untouched, if a gradient is not finite.

        Steps beyond the last iteration go on with the timestep and the guidance of the last one.
        """
        generator = torch.Generator().manual_seed(seed_of_step(self.config.seed, self.iteration))
        pair = self.subject.pair(self.iteration, generator)
        turn, turns = self.iteration // self.sharing, self.config.iterations // self.sharing
        objective = self.objective.at(_progress(self.iteration, self.config.iterations))
        draw = objective.draw(pair.source, _progress(turn, turns), generator)
        with self.prior.beside_others():
            step = objective.gradient(self.prior, pair, self.prompts, draw)
        self.optimizer.zero_grad()
        image_gradient = pair.backward(step.gradient)
        finite = torch.isfinite(step.gradient).all() & torch.isfinite(image_gradient).all()
        # All that is told or decided upon comes at once: a GPU is waited for each time that it is asked.
        means = self._mean_squares()
        finite, *numbers = fetched([finite, *means, *step.figures.values()])
        squares, figures = numbers[: len(means)], dict(zip(step.figures, numbers[len(means) :], strict=True))
        if not finite or not all(map(math.isfinite, squares)):
            raise UserError(
                f"the gradient is no longer finite at iteration {self.iteration}: lower edit.lr "
                f"(now {self.config.lr}) or the scale of guidance, or use guidance.dtype=fp32, and go on from the "
                "state before it with resume=true"
            )
        for group, rate, square in zip(self.optimizer.param_groups, self._rates, squares, strict=True):
            self._raise_floor(group, square)
            group["lr"] = rate * self.config.rate(self.iteration)
        self.optimizer.step()
        self.subject.observe(pair, image_gradient)
        self.iteration += 1
        return figures | self._of_groups(squares)

    def _of_groups(self, squares: list[float]) -> dict[str, float]:
        """Rate and root-mean-square gradient of each group of parameters."""
        figures = {}
        for i, (group, square) in enumerate(zip(self.optimizer.param_groups, squares, strict=True)):
            name = group.get("name", str(i))
            figures |= {f"lr/{name}": group["lr"], f"gradient_rms/{name}": square**0.5}
        return figures

    def _mean_squares(self) -> list[float | Tensor]:
        """Of each group's gradients, as they are now: tensors of one number, or 0 without gradients."""
        means = []
        for group in self.optimizer.param_groups:
            gradients = [p.grad for p in group["params"] if p.grad is not None]
            norms = [torch.linalg.vector_norm(g) for g in gradients]
            total = torch.stack(norms).square().sum().double() if norms else 0.0
            means.append(total / max(sum(g.numel() for g in gradients), 1))
        return means

    def _raise_floor(self, group: dict, mean_square: float) -> None:
        """Set Adam's epsilon to `adam_floor` times the largest root-mean-square gradient that the group has had.

        Plain Adam moves every parameter by about lr, also where the gradient is nothing but noise: the background of
        an edit drifts as fast as its subject changes. With a floor, parameters move in proportion to their gradient
        where that is below the group's usual size. The floor never falls. So when all gradients become small at the
        end, steps become small too, which plain Adam's do not. The root mean square is averaged over steps as Adam's
        own second moment is.
        """
        if self.config.optimizer != "adam" or self.config.adam_floor == 0:
            return
        if mean_square == 0:  # nothing to move, as while an edit of a shape only looks: no part of the average
            return
        decay = group["betas"][1]
        before = self.iteration if "second_moment" in group else 0  # in states of earlier versions
        group["averaged"] = group.get("averaged", before) + 1
        group["second_moment"] = decay * group.get("second_moment", 0.0) + (1 - decay) * mean_square
        unbiased = group["second_moment"] / (1 - decay ** group["averaged"])
        group["eps"] = max(group["eps"], self.config.adam_floor * unbiased**0.5)

    def state_dict(self) -> dict:
        """A snapshot: later steps leave its tensors as they are."""
        parameters = [p.detach() for group in self.optimizer.param_groups for p in group["params"]]
        return cloned(
            {
                "iteration": self.iteration,
                "seed": self.config.seed,
                "parameters": parameters,
                "optimizer": self.optimizer.state_dict(),
                "subject": self.subject.state(),
                "kind": type(self.subject).__name__,
            }
        )

    @torch.no_grad()
    def load_state_dict(self, state: dict) -> None:
        """Take what `state_dict` gave, which stays as it is. Prompts and objective are not in it, and may be others.

        UserError for a state of another seed. ValueError, with nothing changed, for that of another kind of subject, of
        other sizes, or of another optimizer.
        """
        seed = state.get("seed", self.config.seed)  # earlier versions' states have none
        if seed != self.config.seed:
            raise UserError(f"the state is of an edit with seed={seed}, and this edit has seed={self.config.seed}")
        self._check_kind(state)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        for p, saved in zip(parameters, state["parameters"], strict=True):
            p.copy_(saved)
        self.optimizer.load_state_dict(cloned(state["optimizer"]))  # with its rates, which the next step sets anew
        self.subject.load_state(cloned(state["subject"]))
        self.iteration = state["iteration"]

    def _check_kind(self, state: dict) -> None:
        """ValueError for a state that cannot be of such an edit."""
        if missing := {"iteration", "parameters", "optimizer", "subject"} - state.keys():
            raise ValueError(f"the state is not an Editor's: it has no {min(missing)}")
        mine, kind = type(self.subject).__name__, state.get("kind")  # earlier versions' states have none
        if kind is not None and kind != mine:
            raise ValueError(f"the state is of an edit of {kind}, and this edit has {mine}")
        groups, saved = self.optimizer.param_groups, state["optimizer"]["param_groups"]
        if [len(g["params"]) for g in groups] != [len(g["params"]) for g in saved]:
            raise ValueError("the state has other groups of parameters than this edit")
        if any(("betas" in g) != ("betas" in old) for g, old in zip(groups, saved, strict=True)):
            raise ValueError(f"the state is of another optimizer than this edit's, which is {self.config.optimizer}")
        sizes, theirs = [p.shape for g in groups for p in g["params"]], [p.shape for p in state["parameters"]]
        if len(sizes) != len(theirs):
            raise ValueError(f"the state has {len(theirs)} parameters, and this edit has {len(sizes)}")
        for own, other in zip(sizes, theirs, strict=True):
            if own != other:
                raise ValueError(f"the state has parameters of the size {tuple(other)}, and this edit of {tuple(own)}")


def cloned(value):
    """A copy of nested dicts, lists and tuples with clones of their tensors, on the same device."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {key: cloned(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(cloned(item) for item in value)
    return value


def _progress(step: int, steps: int) -> float:
    """From 0 at the first of so many steps to 1 at the last one, and at any beyond it."""
    return min(step / max(1, steps - 1), 1)
