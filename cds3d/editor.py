"""The loop of an edit: subject -> latents -> objective -> gradient -> subject -> optimiser.

Knows no NeRF and no prompt. Each step draws its randomness from a stream of its own, so that a resumed run is, on a
CPU, bit for bit the unbroken one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from cds3d.guidance import Guidance
from cds3d.objectives.objective import Objective, Prompts
from cds3d.subjects import Subject
from tensorf.errors import UserError

OPTIMIZERS = {
    "adam": lambda groups: torch.optim.Adam(groups, betas=(0.9, 0.99), fused=True),
    "sgd": torch.optim.SGD,
}


@dataclass(frozen=True)
class EditConfig:
    """iterations; lr; optimizer: "adam" (fields and pixels) or "sgd" (latents).

    lr_decay: what is left of lr at the end, falling by the same factor each iteration; 1 holds it.
    adam_floor: Adam's epsilon as a share of the root-mean-square gradient (`Editor._raise_floor`); 0 is plain Adam.
    """

    iterations: int
    lr: float
    optimizer: str = "adam"
    lr_decay: float = 1.0
    adam_floor: float = 0.0
    seed: int = 0

    def __post_init__(self):
        if not 0 < self.lr_decay <= 1:
            raise ValueError(f"lr_decay={self.lr_decay} has to be above 0 and at most 1")


class Editor:
    """`run` edits `subject` until `iteration == config.iterations`; `state_dict` holds all that a resume needs."""

    def __init__(
        self, subject: Subject, guidance: Guidance, objective: Objective, prompts: Prompts, config: EditConfig
    ):
        if config.optimizer not in OPTIMIZERS:
            raise UserError(f"edit.optimizer={config.optimizer} is unknown; use one of {', '.join(OPTIMIZERS)}")
        self.subject, self.guidance, self.objective = subject, guidance, objective
        self.prompts, self.config, self.iteration = prompts, config, 0
        self.optimizer = OPTIMIZERS[config.optimizer](subject.parameter_groups(config.lr))
        self._rates = [group["lr"] for group in self.optimizer.param_groups]

    def step(self) -> dict:
        """One iteration; returns its figures. UserError, with the parameters untouched, if a gradient is not finite."""
        torch.manual_seed(self.config.seed * 1_000_003 + self.iteration)
        z_src, z_tgt = self.subject.latents(self.iteration)
        gradient, figures = self.objective.gradient(self.guidance, z_tgt, z_src, self.prompts)
        self.optimizer.zero_grad()
        if torch.isfinite(gradient).all():
            self.subject.backward(gradient)
        if not (torch.isfinite(gradient).all() and self._finite_gradients()):
            raise UserError(
                f"the gradient is no longer finite at iteration {self.iteration}: lower edit.lr "
                f"(now {self.config.lr}), guidance.scale or objective.weight, or use guidance.dtype=fp32, and go on "
                "from the state before it with resume=true"
            )
        for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * self.config.lr_decay ** (self.iteration / self.config.iterations)
        self._raise_floor()
        self.optimizer.step()
        self.subject.after_step()
        self.iteration += 1
        return figures

    @torch.no_grad()
    def _raise_floor(self) -> None:
        """Set each group's Adam epsilon to `adam_floor` times the largest root-mean-square gradient the group has had.

        Plain Adam moves every parameter by about lr, also where the gradient is nothing but noise: the background of
        an edit drifts as fast as its subject changes. With a floor, parameters move in proportion to their gradient
        where that is below the group's usual size; and once the edit is done and all gradients are small, no more
        than before.
        """
        if self.config.optimizer != "adam" or self.config.adam_floor == 0:
            return
        for group in self.optimizer.param_groups:
            squares = count = 0.0
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.optimizer.state.get(p, {})
                steps = float(state["step"]) if "step" in state else 0.0
                # What Adam's corrected second moment will be after this step.
                second = p.grad.square().sum() * (1 - group["betas"][1])
                if steps:
                    second = second + state["exp_avg_sq"].sum() * group["betas"][1]
                squares += float(second) / (1 - group["betas"][1] ** (steps + 1))
                count += p.numel()
            if squares > 0:
                group["eps"] = max(group["eps"], self.config.adam_floor * (squares / count) ** 0.5)

    def _finite_gradients(self) -> bool:
        gradients = [p.grad for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        return all(bool(torch.isfinite(g.sum())) for g in gradients)

    def run(self, each: Callable[[dict], None] = lambda figures: None) -> None:
        """Iterate to the end; `each` gets every step's figures."""
        while self.iteration < self.config.iterations:
            each(self.step())

    def state_dict(self) -> dict:
        parameters = [p.detach() for group in self.optimizer.param_groups for p in group["params"]]
        return {
            "iteration": self.iteration,
            "parameters": parameters,
            "optimizer": self.optimizer.state_dict(),
            "subject": self.subject.state(),
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict) -> None:
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        for p, saved in zip(parameters, state["parameters"], strict=True):
            p.copy_(saved)
        self.optimizer.load_state_dict(state["optimizer"])  # with its rates, which the next step sets anew
        self.subject.load_state(state["subject"])
        self.iteration = state["iteration"]
