"""`edit=redraw`: after an edit of the shape, the prior draws the views anew, and the field is fitted to its pictures.

A field that has followed the gradients of an objective still carries traces of its source, such as stripes of the old
coat, and haze. SDEdit (Meng et al., ICLR 2022) takes them away: some noise is added to a view, and the prior removes it
under the target's prompt. As in Instruct-NeRF2NeRF (Haque et al., ICCV 2023), the field is fitted to each new picture
before the next view is rendered. So the next view already shows what was drawn before, and the pictures agree. The
noise becomes less from view to view: the first views say what is where, the later ones only clean it.

A prior draws things badly that are small in its picture. So it is shown a crop around all that has changed, and what it
draws is put back into the view.
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
from cds3d.editor import Editor, cloned
from cds3d.fitting import fit_step
from cds3d.guidance.prior import CELL, Prior
from cds3d.masks import averaged, dilated
from cds3d.objectives.objective import Prompts
from cds3d.subjects.field import FieldRates, moved_groups
from cds3d.subjects.given import sees
from cds3d.subjects.image import LatentImage
from cds3d.subjects.local import LocalViews
from cds3d.subjects.sources import as_batch, spread, turn_of
from tensorf.adam import Adam
from tensorf.errors import UserError
from tensorf.local import LocalField
from tensorf.precision import full_precision
from tensorf.seeds import seed_of_step

log = logging.getLogger("cds3d")

_SETTLE = 3  # rounds, by default of 8 steps, after which empty cells are no longer sampled: as `subjects/local.py`'s 25
_BLUR = 0.02  # side of the square over which differences are averaged, a share of the width: one pixel is no change
_RIM = 0.01  # share of the changed pixels, at either side, that a crop need not hold: stray ones would make it wide
_LEAST = 0.3  # of a view's width and height that a crop shows: less of it are a few blurred pixels


@dataclass(frozen=True)
class RedrawConfig:
    """How views are drawn anew, and how the field is fitted to them. Raises ValueError for what makes no sense."""

    views: int | None  # None is all
    strength: float  # share of the noise schedule, in (0, 1], for the first view
    strength_end: float  # and for the last
    steps: int  # of DDIM, for the whole schedule
    scale: float  # of classifier-free guidance
    zoom: float  # crops, in sizes of what has changed; 0 takes whole views
    change: float  # difference of colours in [0, 1] to the source, from which on a pixel counts as changed
    grow: float  # how far around what had changed a redrawn pixel is taken, as a share of the crop's width
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
        for name in ("change", "grow", "close"):
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
        self._redraws = min(len(self.cameras), config.views or len(self.cameras))
        self._scheduler = ddim(prior, config.steps, "edit.redraw.steps")
        self.round = 0
        self._optimizer: Adam | None = None

    @property
    def iteration(self) -> int:
        return self.editor.iteration + self.round

    @property
    def iterations(self) -> int:
        """Steps of the edit and rounds of redrawing."""
        return self.editor.config.iterations + self._redraws + self.config.polish

    @torch.enable_grad()
    @full_precision
    def step(self) -> dict:
        """One iteration; returns its figures. UserError if a gradient is not finite, or if no region is found.

        Beyond the last iteration the field is polished further.
        """
        if self._unedited:
            return self.editor.step()
        if self._optimizer is None:
            self._begin()
        camera = self._turn(self.round)
        if self.round < self._redraws:
            share = self.round / max(1, self._redraws - 1)
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
        """Open the whole region again, and choose the cameras: far from each other, with the region in view."""
        self.target.open(self.target.region)
        source, region = self.target.source, self.target.region
        seeing = [i for i, camera in enumerate(self.cameras) if sees(camera, source, region)]
        seeing = seeing or list(range(len(self.cameras)))
        self._chosen = [seeing[k] for k in spread([self.cameras[i] for i in seeing], self.config.views)]
        self._pictures: dict[int, Tensor] = {}
        self._optimizer = Adam(moved_groups(self.target.target, self.rates, self.config.lr), betas=(0.9, 0.99))
        self._rates = [group["lr"] for group in self._optimizer.param_groups]

    def _turn(self, turn: int) -> int:
        """The camera of a round. Where fewer cameras than rounds see the region, they come again."""
        return self._chosen[turn_of(turn, len(self._chosen), self.seed)]

    def _fit(self, camera: int, k: int) -> float:
        """The k-th step of a round towards one picture; returns the mean squared error before it."""
        view, picture = self.subject.view(camera), self._pictures[camera]
        done = (self.round + k / self.config.fits) / (self._redraws + self.config.polish)
        error = fit_step(self._optimizer, self._rates, done, self.target, view, picture)
        if math.isnan(error):
            raise UserError(
                f"the fit to the redrawn views is no longer finite at iteration {self.iteration}: lower "
                f"edit.redraw.lr (now {self.config.lr}) and go on from the state before it with resume=true"
            )
        return error

    @torch.no_grad()
    def _redrawn(self, camera: int, strength: float) -> Tensor:
        """(H, W, 3): what the camera should see. Outside of the region, far from what has changed, and where little
        differs, it is the source.

        The prior is shown a crop around what has changed, enlarged to the size of the view. What has changed outside of
        the crop stays as it is.
        """
        config = self.config
        source, seen, inside = (as_batch(p) for p in (self._source(camera), self._seen(camera), self._inside(camera)))
        changed = differs(seen, source, config.change)
        crop = Crop.around(changed, config.zoom)
        old = LatentImage(crop.enlarged(source)[0].clamp(0, 1), self.prior)
        start = old.encoded(crop.enlarged(seen)[0].clamp(0, 1))
        latent = self._drawn(start, free_cells(crop.enlarged(inside)).to(start), strength)
        # Both by the VAE, whose own errors are no change.
        new, before = (old.decoded(z)[None].to(source) for z in (latent, old.source))
        taken = differs(new, before, config.change) * widened(crop.enlarged(changed), config.grow)
        taken = closed(taken, config.close)
        soft = averaged(dilated(taken, 1), 3)  # 1 on what is taken, fading over the two pixels around it
        mask = crop.put_back(soft, torch.zeros_like(inside)) * inside
        around = crop.filled(torch.where(changed > 0, seen, source), source)
        return torch.lerp(around, crop.put_back(new, source), mask)[0].permute(1, 2, 0).contiguous()

    def _drawn(self, start: Tensor, free: Tensor, strength: float) -> Tensor:
        """SDEdit of a latent (1, C, h, w) where `free` (1, 1, h, w) is 1; elsewhere it stays."""
        prior = self.prior
        noise = noise_like(start, torch.Generator().manual_seed(seed_of_step(self.seed, self.round)))
        every = self._scheduler.timesteps.tolist()
        timesteps = [t for t in every if t < strength * len(prior.alphas)] or every[-1:]
        z = prior.noised(start, timesteps[0], noise)
        for t, after in zip(timesteps, [*timesteps[1:], None]):
            predicted = guided(prior, z, t, self.prompts.null, self.prompts.target, self.config.scale)
            z = self._scheduler.step(predicted, t, z).prev_sample
            z = torch.lerp(start if after is None else prior.noised(start, after, noise), z, free)
        return z

    def _source(self, camera: int) -> Tensor:
        """(H, W, 3): the source's picture."""
        return self.subject.sources[camera].image

    def _seen(self, camera: int) -> Tensor:
        """(H, W, 3) in [0, 1]: what the camera sees now."""
        view, source = self.subject.view(camera), self._source(camera)
        return source.view(-1, 3).index_copy(0, view.index, view.color(self.target)).view_as(source).clamp(0, 1)

    def _inside(self, camera: int) -> Tensor:
        """(H, W, 1), 1 where a ray passes through the region."""
        inside = torch.zeros_like(self._source(camera)[..., :1])
        inside.view(-1)[self.subject.view(camera).index] = 1
        return inside

    @torch.no_grad()
    def pictures(self) -> dict[str, Tensor]:
        """The edit's; then of the camera of the last round: redrawn picture beside what the field shows (H, 2 W, 3)."""
        if self.round == 0:
            return self.subject.pictures()
        camera = self._turn(self.round - 1)
        return {"picture_and_edit": torch.cat([self._pictures[camera], self._seen(camera)], 1)}

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
                size = (self.cameras[camera].height, self.cameras[camera].width, 3)
                if picture.shape != size:
                    raise ValueError(f"a redrawn view is {tuple(picture.shape)}, not {size}")
                self._pictures[camera] = picture.to(self.target.device)
            self.target.occupancy = occupancy


@dataclass(frozen=True)
class Crop:
    """A part of pictures of one size, of about their aspect, in whole pixels. enlarged: bicubic, to that size."""

    top: int
    left: int
    height: int
    width: int

    @staticmethod
    def around(changed: Tensor, zoom: float) -> Crop:
        """changed (1, 1, H, W), 1 or 0: a crop `zoom` times as large as what is 1, and all for 0 or without any."""
        height, width = changed.shape[2:]
        rows, columns = changed[0, 0].nonzero().float().T
        if zoom == 0 or len(rows) == 0:
            return Crop(0, 0, height, width)
        spans = torch.stack([rows, columns]).quantile(rows.new_tensor([_RIM, 1 - _RIM]), dim=1).T.tolist()
        share = max((end - begin + 1) / side for (begin, end), side in zip(spans, (height, width), strict=True))
        share = min(1.0, max(_LEAST, zoom * share))
        sizes = [max(1, round(share * side)) for side in (height, width)]
        corner = [
            min(max(0, round((begin + end + 1 - size) / 2)), side - size)
            for (begin, end), size, side in zip(spans, sizes, (height, width), strict=True)
        ]
        return Crop(*corner, *sizes)

    def enlarged(self, picture: Tensor) -> Tensor:
        """(1, C, H, W) -> the crop of it, at as many pixels; colours can leave their range a little."""
        part = self._of(picture)
        return part if part.shape == picture.shape else F.interpolate(part, picture.shape[2:], mode="bicubic")

    def put_back(self, drawn: Tensor, picture: Tensor) -> Tensor:
        """(1, C, H, W): `picture` with `drawn`, an enlarged crop, in its place."""
        result = picture.clone()
        self._of(result).copy_(F.interpolate(drawn, (self.height, self.width), mode="bilinear", antialias=True))
        return result

    def filled(self, picture: Tensor, other: Tensor) -> Tensor:
        """(1, C, H, W): `picture` with the same place of `other` in its place."""
        result = picture.clone()
        self._of(result).copy_(self._of(other))
        return result

    def _of(self, picture: Tensor) -> Tensor:
        return picture[..., self.top : self.top + self.height, self.left : self.left + self.width]


def differs(picture: Tensor, other: Tensor, change: float) -> Tensor:
    """(1, 3, H, W) each -> (1, 1, H, W): 1 where a colour differs by more than `change` on average nearby, else 0."""
    side = 2 * round(_BLUR * picture.shape[3] / 2) + 1
    apart = averaged((picture - other).abs().amax(1, keepdim=True), side)
    return (apart > change).to(picture)


def widened(mask: Tensor, share: float) -> Tensor:
    """(1, 1, H, W) in [0, 1] -> 1 or 0: what is above 0.5, and around it as far as `share` of the width."""
    return dilated((mask > 0.5).to(mask), round(share * mask.shape[3]))


def closed(mask: Tensor, share: float) -> Tensor:
    """(1, 1, H, W), 1 or 0: with its gaps closed that are narrower than `share` of the width."""
    radius = round(share * mask.shape[3] / 2)
    return -dilated(-dilated(mask, radius), radius)


def free_cells(inside: Tensor) -> Tensor:
    """(1, 1, H, W) in [0, 1] -> (1, 1, h, w): 1 for latent cells that show mostly what is inside, else 0."""
    padded = F.pad(inside, (0, -inside.shape[3] % CELL, 0, -inside.shape[2] % CELL), mode="replicate")
    return (F.avg_pool2d(padded, CELL) > 0.5).to(inside)
