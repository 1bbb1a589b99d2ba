"""Classifier Score Distillation (Yu et al., ICLR 2024): what the prompt adds, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass

from cds3d.guidance.prior import Query
from cds3d.objectives.objective import Objective, Step


@dataclass(frozen=True)
class CSD(Objective):
    """versus: "source" gives eps(z_t, target) - eps(z_t, source), the paper's form for edits; None gives
    (1 - a_t^2) (eps(z_t, target) - eps(z_t, null)), its form for generation. Two forwards; `scale` is the factor.
    """

    versus: str | None

    def __post_init__(self):
        super().__post_init__()
        if self.versus not in ("source", None):
            raise ValueError(f"versus={self.versus} is unknown; use source or null")

    def gradient(self, prior, pair, prompts, draw) -> Step:
        z_t = prior.noised(pair.target(), draw.t, draw.noise)
        other = prompts.source if self.versus == "source" else prompts.null
        text, less = prior.ask(Query(z_t, draw.t, prompts.target), Query(z_t, draw.t, other))
        factor = 1.0 if self.versus == "source" else 1 - prior.alphas[draw.t].double()
        return self.step(draw, self.scaled(self.scale * factor * (text.noise - less.noise)))
