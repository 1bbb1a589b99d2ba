"""`edit=redraw`: after an edit of the shape, the prior draws the views anew, and the field is fitted to its pictures.

A field that has followed the gradients of an objective still carries traces of its source, such as stripes of the old
coat, and haze. SDEdit (Meng et al., ICLR 2022) takes them away: some noise is added to a view, and the prior removes it
under the target's prompt. As in Instruct-NeRF2NeRF (Haque et al., ICCV 2023), the field is fitted to each new picture
before the next view is rendered. So the next view already shows what was drawn before, and the pictures agree. The
noise becomes less from view to view: the first views say what is where, the later ones only clean it.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from cds3d.baselines.baseline import noise_like
from cds3d.baselines.sampling import ddim, guided
from cds3d.by_pictures import spread
from cds3d.editor import Editor, cloned
from cds3d.guidance.prior import Prior
from cds3d.objectives.objective import Prompts
from cds3d.subjects.field import FieldRates, moved_groups
from cds3d.subjects.given import zoomed
from cds3d.subjects.image import LatentImage
from cds3d.subjects.local import LocalViews
from cds3d.subjects.sources import as_batch, turn_of
from tensorf.adam import Adam
from tensorf.cameras import Camera
from tensorf.errors import UserError
from tensorf.local import LocalField
from tensorf.visibility import LocalView

log = logging.getLogger("cds3d")

_SETTLE = 3  # rounds after which the cells of the region that are empty by now are no longer sampled
_LR_END = 0.1  # what is left of the rate at the end
_BLUR = 0.02  # side of the square over which differences are averaged, as a share of the width


@dataclass(frozen=True)
class RedrawConfig:
    """How views are drawn anew, and how the field is fitted to them. Raises ValueError for what makes no sense."""

    views: int | None  # None is all
    strength: float  # share of the noise schedule, in (0, 1], for the first view
    strength_end: float  # and for the last
    steps: int  # of DDIM, for the whole schedule
    scale: float  # of classifier-free guidance
    zoom: float  # crops, in sizes of the region; 0 takes whole views
    change: float  # difference of colours in [0, 1] to the source, from which on a pixel is taken
    close: float  # width of gaps that are closed, as a share of the picture's
    fits: int  # steps of the field a round
    polish: int  # rounds after the last view
    lr: float

    def __post_init__(self):
        if self.views is not None and self.views < 1:
            raise ValueError(f"views={self.views} has to be at least 1, or null for all")
        for name in ("strength", "strength_end"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)} has to be above 0 and at most 1")
        for name in ("steps", "fits"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} has to be at least 1")
        for name in ("scale", "lr"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)} has to be a number above 0")
        if not 0 <= self.zoom < math.inf:
            raise ValueError(f"zoom={self.zoom} has to be 0 or more")
        for name in ("change", "close"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} has to be at least 0 and below 1")
        if self.polish < 0:
            raise ValueError(f"polish={self.polish} has to be 0 or more")


class RedrawnShape:
    """An `Editor` of `LocalViews`, and then rounds of redrawing. It is driven like an `Editor`: `step`, `state_dict`.

    A round is one iteration: a view is drawn anew, and the field takes some steps towards all pictures so far.
    """

    def __init__(
        self,
        editor: Editor,
        subject: LocalViews,
        prior: Prior,
        prompts: Prompts,
        config: RedrawConfig,
        rates: FieldRates,
        seed: int,
    ):
        self.editor, self.subject, self.prior, self.prompts = editor, subject, prior, prompts
        self.config, self.rates, self.seed = config, rates, seed
        self.target, self.cameras = subject.target, subject.cameras
        self._chosen = spread(self.cameras, config.views)
        self._scheduler = ddim(prior, config.steps, "edit.redraw.steps")
        self.round = 0
        self._optimizer: Adam | None = None

    @property
    def iteration(self) -> int:
        return self.editor.iteration + self.round

    @property
    def iterations(self) -> int:
        """Steps of the edit and rounds of redrawing."""
        return self.editor.config.iterations + len(self._chosen) + self.config.polish

    @torch.enable_grad()
    def step(self) -> dict:
        """One iteration; returns its figures. UserError if a gradient is not finite, or if no region is found.

        Beyond the last iteration the field is polished further.
        """
        if self._unedited:
            return self.editor.step()
        if self._optimizer is None:
            self._begin()
        camera = turn_of(self.round, len(self._views), self.seed)
        if self.round < len(self._chosen):
            share = self.round / max(1, len(self._chosen) - 1)
            strength = self.config.strength + (self.config.strength_end - self.config.strength) * share
            self._pictures[camera] = self._redrawn(camera, strength)
        known = sorted(self._pictures)
        draws = torch.Generator().manual_seed(self.seed * 7919 + self.round)
        others = [known[i] for i in torch.randint(len(known), (self.config.fits - 1,), generator=draws).tolist()]
        errors = [self._fit(i, k) for k, i in enumerate([camera, *others])]
        self.round += 1
        if self.round % _SETTLE == 0:
            self.target.settle()
        return {"redraw/psnr_db": -10 * math.log10(max(sum(errors) / len(errors), 1e-10))}

    @property
    def _unedited(self) -> bool:
        """Whether steps of the edit itself are still to come."""
        return self.editor.iteration < self.editor.config.iterations

    @torch.no_grad()
    def _begin(self) -> None:
        """Open the whole region again, and look at it closely."""
        self.target.open(self.target.region)
        self.subject.forget_views()
        cameras = self._chosen
        if self.config.zoom > 0:
            cameras = zoomed(cameras, self.target.source, self.target.region, self.config.zoom)
        if not cameras:
            raise UserError("no view that is to be drawn anew shows the region: give edit.redraw.views=null")
        self._views = [_RegionView(self.target, camera, self.prior) for camera in cameras]
        self._pictures: dict[int, Tensor] = {}
        self._optimizer = Adam(moved_groups(self.target.target, self.rates, self.config.lr), betas=(0.9, 0.99))
        self._rates = [group["lr"] for group in self._optimizer.param_groups]

    def _fit(self, camera: int, k: int) -> float:
        """The k-th step of a round towards one picture; returns the mean squared error before it."""
        view = self._views[camera].local
        wanted = self._pictures[camera].view(-1, 3)[view.index]
        loss = (view.color(self.target) - wanted).square().sum() / max(1, wanted.numel())
        self._optimizer.zero_grad()
        loss.backward()
        if not math.isfinite(error := loss.item()):
            raise UserError(
                f"the fit to the redrawn views is no longer finite at iteration {self.iteration}: lower "
                f"edit.redraw.lr (now {self.config.lr}) and go on from the state before it with resume=true"
            )
        done = (self.round + k / self.config.fits) / (len(self._chosen) + self.config.polish)
        for group, rate in zip(self._optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * _LR_END**done
        self._optimizer.step()
        return error

    @torch.no_grad()
    def _redrawn(self, camera: int, strength: float) -> Tensor:
        """(H, W, 3): what the camera should see. Outside of the region, and where little differs, it is the source."""
        view, prior = self._views[camera], self.prior
        start = view.latent_of(view.seen(self.target))
        noise = noise_like(start, torch.Generator().manual_seed(self.seed * 1_000_003 + self.round))
        every = self._scheduler.timesteps.tolist()
        timesteps = [t for t in every if t < strength * len(prior.alphas)] or every[-1:]
        free = view.free(start)
        z = prior.noised(start, timesteps[0], noise)
        for t, after in zip(timesteps, [*timesteps[1:], None]):
            predicted = guided(prior, z, t, self.prompts.null, self.prompts.target, self.config.scale)
            z = self._scheduler.step(predicted, t, z).prev_sample
            z = torch.lerp(start if after is None else prior.noised(start, after, noise), z, free)
        return view.taken(z, self.config.change, self.config.close)

    @torch.no_grad()
    def pictures(self) -> dict[str, Tensor]:
        """The edit's; then of the camera of the last round: redrawn picture beside what the field shows (H, 2 W, 3)."""
        if self.round == 0:
            return self.subject.pictures()
        camera = turn_of(self.round - 1, len(self._views), self.seed)
        seen = self._views[camera].seen(self.target)
        return {"picture_and_edit": torch.cat([self._pictures[camera], seen], 1)}

    def edited(self) -> LocalField:
        """The target, with what is empty now left out."""
        return self.subject.edited()

    def region_in_space(self) -> Tensor:
        """(z, y, x) bool in the cells of the source's occupancy: where the edit could change something."""
        return self.target.region

    def state_dict(self) -> dict:
        """A snapshot: later steps leave its tensors as they are."""
        state = {"iteration": self.iteration, "editor": self.editor.state_dict(), "round": self.round}
        if self._optimizer is not None:  # the field's parameters are in the editor's state
            state |= cloned({"optimizer": self._optimizer.state_dict(), "redrawn": self._pictures})
        return state

    @torch.no_grad()
    def load_state_dict(self, state: dict) -> None:
        """Take what `state_dict` gave, which stays as it is. UserError for a state of another seed."""
        self.editor.load_state_dict(state["editor"])
        self.round, self._optimizer = 0, None
        occupancy = self.target.occupancy
        if "optimizer" in state and not self._unedited:  # else the edit has become longer: redrawing begins again
            self._begin()
            self.round = state["round"]
            self._optimizer.load_state_dict(cloned(state["optimizer"]))
            for camera, picture in state["redrawn"].items():
                if picture.shape != (full := self._views[camera].full).shape:
                    raise ValueError(f"a redrawn view is {tuple(picture.shape)}, not {tuple(full.shape)}")
                self._pictures[camera] = picture.to(full)
            self.target.occupancy = occupancy


class _RegionView:
    """One camera's view of the region: the rays through it, and the rest of the picture, which stays."""

    def __init__(self, target: LocalField, camera: Camera, prior: Prior):
        self.prior, self.local = prior, LocalView(target, camera)
        self.full = target.source.render(camera)["color"].clamp(0, 1)
        self._latent = LatentImage(as_batch(self.full)[0], prior)

    def seen(self, target: LocalField) -> Tensor:
        """(H, W, 3) in [0, 1]."""
        now = self.full.view(-1, 3).index_copy(0, self.local.index, self.local.color(target))
        return now.view_as(self.full).clamp(0, 1)

    def latent_of(self, picture: Tensor) -> Tensor:
        """(H, W, 3) -> (1, C, h, w)."""
        return self._latent.encoded(as_batch(picture)[0])

    def _inside(self) -> Tensor:
        """(1, 1, H, W), 1 where a ray passes through the region."""
        inside = torch.zeros(self.full.shape[0] * self.full.shape[1], device=self.full.device)
        inside[self.local.index] = 1
        return inside.view(1, 1, *self.full.shape[:2])

    def free(self, latent: Tensor) -> Tensor:
        """(1, 1, h, w): 1 for latent cells that show mostly the region, else 0."""
        return (F.adaptive_avg_pool2d(self._inside(), latent.shape[-2:]) > 0.5).to(latent)

    def taken(self, latent: Tensor, change: float, close: float) -> Tensor:
        """(H, W, 3): the redrawn picture where the VAE shows it differ from the source, and the source elsewhere."""
        new, old = (self._decoded(z) for z in (latent, self._latent.source))
        width = self.full.shape[1]
        side = 2 * round(_BLUR * width / 2) + 1
        apart = F.avg_pool2d((new - old).abs().amax(-1)[None, None], side, 1, side // 2, count_include_pad=False)
        mask, gap = (apart > change).float(), round(close * width / 2)
        mask = F.max_pool2d(mask, 2 * gap + 1, 1, gap)
        mask = -F.max_pool2d(-mask, 2 * gap + 1, 1, gap)
        soft = F.avg_pool2d(F.max_pool2d(mask, 3, 1, 1), 3, 1, 1, count_include_pad=False) * self._inside()
        return torch.lerp(self.full, new, soft[0, 0, :, :, None])

    def _decoded(self, latent: Tensor) -> Tensor:
        return self._latent.decoded(latent).permute(1, 2, 0).to(self.full)
