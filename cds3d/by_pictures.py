"""A radiance field edited by way of its pictures: views are edited as images are, then the field is fitted to them.

This is the "dataset update" of Instruct-NeRF2NeRF (Haque et al., ICCV 2023) with the objectives of this package, and
with two changes. All views share the noise and the timestep of each turn, so that their edits are alike. And the
pictures say only how the region of the edit looks; outside of it the field is the source's by construction. There are
several rounds: the next one's pictures begin as what the fitted field shows, where all views agree.

A field that is edited directly sees one view a step, and each view a few times only. Here a few views have as many
steps as a single image would have, without a renderer in between. That brings looks that need many steps, such as those
of materials.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn
from tqdm import tqdm

from cds3d.editor import EditConfig, Editor, cloned
from cds3d.fitting import fit_step
from cds3d.guidance.prior import Prior
from cds3d.masks import dilated
from cds3d.objectives.objective import Objective, Prompts
from cds3d.subjects.field import FieldRates, moved_groups
from cds3d.subjects.given import seen_share
from cds3d.subjects.image import LatentImage, LatentPair
from cds3d.subjects.region import EditedRegion, RegionConfig
from cds3d.subjects.sources import as_batch, check_cameras, spread, turn_of
from cds3d.subjects.volume import agreed_region, check_volume
from tensorf.adam import Adam
from tensorf.cameras import Camera
from tensorf.errors import UserError
from tensorf.local import LocalField
from tensorf.precision import full_precision
from tensorf.renderable import FastView, Renderable
from tensorf.seeds import seed_of_step
from tensorf.visibility import LocalView

log = logging.getLogger("cds3d")

_SETTLE = 25  # steps of the fit after which empty cells are no longer sampled, as in `subjects/local.py`


@dataclass(frozen=True)
class FitConfig:
    """How the field is fitted to the edited pictures: Adam, one picture a step, from the source's parameters on.

    Raises ValueError for what makes no sense.
    """

    views: int | None  # how many cameras' pictures are edited, spread over all of them; None is all
    rounds: int  # how often pictures are edited and the field is fitted to them
    iterations: int  # of a fit
    lr: float  # falls to a tenth
    agreement: float  # of the region, as `VolumeConfig`'s
    grow: float  # likewise
    margin: float  # how far around its mask a picture's change is taken over, as a share of its width
    detail: float  # share of what the VAE loses of the source that is put back into the edited pictures

    def __post_init__(self):
        if self.views is not None and self.views < 1:
            raise ValueError(f"views={self.views} has to be at least 1, or null for all")
        for name in ("rounds", "iterations"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} has to be at least 1")
        if not 0 < self.lr < math.inf:
            raise ValueError(f"lr={self.lr} has to be a number above 0")
        check_volume(self.agreement, self.grow)
        if not 0 <= self.margin < 1:
            raise ValueError(f"margin={self.margin} has to be at least 0 and below 1")
        if not 0 <= self.detail <= 1:
            raise ValueError(f"detail={self.detail} has to be between 0 and 1")


class ViewLatents:
    """The latents of all views as one subject (`cds3d.subjects.Subject`); each step edits that of one view, in turn.

    images: (3, H, W) in [0, 1]. seed: of t and noise, which all views of a turn share.
    """

    def __init__(self, images: Sequence[Tensor], prior: Prior, seed: int):
        self.images, self.seed = [LatentImage(image, prior) for image in images], seed
        self.turns = 0  # of earlier rounds

    def begin(self, turns: int, images: Sequence[Tensor]) -> None:
        """Go on from these pictures (3, H, W), after so many turns."""
        self.turns = turns
        for image, now in zip(self.images, images, strict=True):
            image.restart(now)

    def parameter_groups(self, lr: float) -> list[dict]:
        """As `Subject.parameter_groups`: one group, of all views' latents."""
        return [{"params": [image.parameter for image in self.images], "lr": lr}]

    def pair(self, step: int, generator: torch.Generator) -> LatentPair:
        """As `Subject.pair`. The generator is seeded anew: what the objective draws next is the same for all views."""
        turn, view = divmod(step, len(self.images))
        generator.manual_seed(seed_of_step(self.seed, self.turns + turn))
        return self.images[view].pair(turn, generator)

    def observe(self, pair: LatentPair, image_gradient: Tensor) -> None:
        """As `Subject.observe`: there is nothing to learn."""

    def state(self) -> dict:
        """As `Subject.state`: the number of earlier turns."""
        return {"turns": self.turns}

    def load_state(self, state: dict) -> None:
        """As `Subject.load_state`."""
        self.turns = state["turns"]

    def decoded(self, view: int) -> tuple[Tensor, Tensor]:
        """Two pictures (H, W, 3) of the view: its source's latent and its edited latent, decoded."""
        image = self.images[view]
        both = image.decoded(image.source), image.image()
        return tuple(picture.permute(1, 2, 0).to(image.source.device) for picture in both)


class PictureEdit:
    """Edits pictures of some views and fits the field to them. It is driven like an `Editor`: `step`, `state_dict`.

    source: the field to edit, left alone; it has to stay as it is meanwhile. cameras: the views, at the editing size.
    edit: of one picture, a round. given: (z, y, x) bool in the cells of the source's occupancy. The region lies in it;
    without `find` it is this.

    Raises ValueError for no cameras, cameras of less than 8 pixels a side, and where neither says the region.
    """

    def __init__(
        self,
        source: Renderable,
        cameras: Sequence[Camera],
        prior: Prior,
        objective: Objective,
        prompts: Prompts,
        edit: EditConfig,
        fit: FitConfig,
        rates: FieldRates,
        region: RegionConfig,
        given: Tensor | None = None,
        find: bool = True,
    ):
        check_cameras(cameras)
        if not find and given is None:
            raise ValueError("find=False needs a given region")
        self.source, self.cameras = source, [cameras[i] for i in spread(cameras, fit.views)]
        self.fit, self.rates, self.region, self.given, self.find = fit, rates, region, given, find
        self.target = LocalField(source, torch.zeros_like(source.occupancy))
        with torch.no_grad():
            self._views: list[FastView] = [source.view(c) for c in tqdm(self.cameras, desc="views", unit="view")]
        self.latents = ViewLatents([as_batch(v.full)[0] for v in self._views], prior, edit.seed)
        steps = replace(edit, iterations=edit.iterations * len(self.cameras))
        # Not a lambda, which would keep this object, and with it two fields, until the garbage collector comes.
        self._new_editor = partial(Editor, self.latents, prior, objective, prompts, steps, len(self.cameras))
        self._begin(0)

    def _begin(self, turn: int) -> None:
        """Begin round `turn`: no picture is edited yet."""
        self.round, self.fitted, self.editor = turn, 0, self._new_editor()
        self._pictures: list[Tensor] = []  # what the views should show, once they are edited
        self._local: list[LocalView] = []

    @property
    def iteration(self) -> int:
        return self.round * self._a_round + self.editor.iteration + self.fitted

    @property
    def iterations(self) -> int:
        """Steps of all rounds, of pictures and of fits."""
        return self.fit.rounds * self._a_round

    @property
    def _a_round(self) -> int:
        return self.editor.config.iterations + self.fit.iterations

    @torch.enable_grad()
    @full_precision
    def step(self) -> dict:
        """One iteration; returns its figures. UserError if a gradient is not finite, or if no region is found.

        Beyond the last iteration another round begins.
        """
        if self.fitted >= self.fit.iterations:
            turns = self.latents.turns + self.editor.iteration // len(self.cameras)
            self.latents.begin(turns, [as_batch(self._seen(i))[0] for i in range(len(self.cameras))])
            self._begin(self.round + 1)
        if self._unedited:
            return self.editor.step()
        if not self._pictures:
            self._open()
        return {"fit/psnr_db": self._fit_one()}

    @property
    def _unedited(self) -> bool:
        """Whether pictures of this round still have steps to come."""
        return self.editor.iteration < self.editor.config.iterations

    def _fit_one(self) -> float:
        """One step of the fit; returns the PSNR in dB to the view's picture."""
        if self.fitted and self.fitted % _SETTLE == 0:
            self.target.settle()
        camera = turn_of(self.fitted, len(self.cameras), self.latents.seed)
        view, picture, done = self._local[camera], self._pictures[camera], self.fitted / self.fit.iterations
        error = fit_step(self.optimizer, self._rates, done, self.target, view, picture)
        if math.isnan(error):
            raise UserError(
                f"the fit to the pictures is no longer finite at iteration {self.iteration}: lower edit.fit.lr "
                f"(now {self.fit.lr}) and go on from the state before it with resume=true"
            )
        self.fitted += 1
        return -10 * math.log10(max(error, 1e-10))

    @torch.no_grad()
    def _seen(self, camera: int) -> Tensor:
        """(H, W, 3) in [0, 1], what the camera sees of the fitted field."""
        view, before = self._local[camera], self._views[camera].full
        now = before.view(-1, 3).index_copy(0, view.index, view.color(self.target))
        return now.view_as(before).clamp(0, 1)

    @torch.no_grad()
    def _open(self, region: Tensor | None = None) -> None:
        """Find where the pictures have changed, open that region of the source, and say what its views should show.

        region: the one that was found before, when a run goes on.
        """
        decoded = [self.latents.decoded(i) for i in range(len(self.cameras))]
        masks = self._masks([edited - source for source, edited in decoded])
        if region is None and self.find:
            views = zip(self._views, masks, strict=True)
            region = agreed_region(self.source, views, self.fit.agreement, self.fit.grow, self.given, "edit.fit")
        region = self.given if region is None else region
        log.info("the region of the edit is %.2g%% of the scene's cells", 100 * float(region.float().mean()))
        self.target.target.load_state_dict(self.source.state_dict())
        self.target.open(region)
        self.optimizer = Adam(moved_groups(self.target.target, self.rates, self.fit.lr), betas=(0.9, 0.99))
        self._rates = [group["lr"] for group in self.optimizer.param_groups]
        self._local = [LocalView(self.target, camera) for camera in self.cameras]
        for view, mask, (source, edited) in zip(self._views, masks, decoded, strict=True):
            weight = dilated(mask, round(self.fit.margin * mask.shape[1]))[..., None]
            wanted = edited + self.fit.detail * (view.full - source)
            self._pictures.append(torch.lerp(view.full, wanted, weight).clamp(0, 1))

    def _masks(self, changes: list[Tensor]) -> list[Tensor]:
        """(H, W) in [0, 1] for each view: where its change is to be taken over; of what is given, only its share."""
        seen = [torch.ones_like(change[..., 0]) for change in changes]
        if self.given is not None:
            seen = [seen_share(self.source, v, self.given) for v in self._views]
        if not self.find:
            return seen
        found = EditedRegion(self.region)
        for i, (view, change, share) in enumerate(zip(self._views, changes, seen, strict=True)):
            found.add(i, change * share[..., None], view.full)
        return [share * found.weight(i, self._views[i].full) for i, share in enumerate(seen)]

    @torch.no_grad()
    def pictures(self) -> dict[str, Tensor]:
        """Of the first camera: source beside edited picture (H, 2 W, 3), or picture beside what the field shows."""
        if not self._pictures:
            before = self._views[0].full
            return {"source_and_picture": torch.cat([before, self.latents.decoded(0)[1]], 1)}
        region = seen_share(self.source, self._views[0], self.target.region)
        return {"picture_and_edit": torch.cat([self._pictures[0], self._seen(0)], 1), "region": region[..., None]}

    def edited(self) -> LocalField:
        """The field as it is to be saved."""
        self.target.settle()
        return self.target

    def region_in_space(self) -> Tensor:
        """(z, y, x) bool in the cells of the source's occupancy: where the fit could change something."""
        return self.target.region

    def state_dict(self) -> dict:
        """A snapshot: later steps leave its tensors as they are."""
        state = {"iteration": self.iteration, "round": self.round, "pictures": self.editor.state_dict()}
        if self._pictures:
            parameters = [p.detach() for group in self.optimizer.param_groups for p in group["params"]]
            state |= cloned(
                {
                    "fitted": self.fitted,
                    "parameters": parameters,
                    "optimizer": self.optimizer.state_dict(),
                    "region": self.target.region,
                    "occupancy": self.target.occupancy,
                }
            )
        return state

    @torch.no_grad()
    def load_state_dict(self, state: dict) -> None:
        """Take what `state_dict` gave, which stays as it is. UserError for a state of another seed."""
        self._begin(state["round"])
        self.editor.load_state_dict(state["pictures"])
        if "parameters" in state and not self._unedited:  # which they are again if their steps have become more
            self.fitted = state["fitted"]
            self._open(state["region"].to(self.source.device))
            parameters: list[nn.Parameter] = [p for group in self.optimizer.param_groups for p in group["params"]]
            for p, saved in zip(parameters, state["parameters"], strict=True):
                p.copy_(saved)
            self.optimizer.load_state_dict(cloned(state["optimizer"]))
            self.target.occupancy = state["occupancy"].to(self.source.device)
