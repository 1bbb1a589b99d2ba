"""A small classifier of the procedural world's images: which species, colour and material does this show?

It stands in for CLIP where edits of the world are judged. It sees pixels, not latents, and was trained on renders that
the diffusion model never saw (`scripts/train_pocket.py --stage judge`).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from cds3d.pocket.weights_path import WEIGHTS
from cds3d.pocket.world.raycast import render
from cds3d.pocket.world.scenes import COLORS, MATERIALS, SPECIES, Attributes, build_scene, training_view
from tensorf.errors import UserError, reason
from tensorf.files import atomic

FILE = WEIGHTS / "judge.safetensors"
NAMES = {
    "species": tuple(name for names in SPECIES.values() for name in names),
    "color": tuple(COLORS),
    "material": MATERIALS,
}
WIDTH, HEIGHT = 128, 96
_UNSEEN = -100  # cross-entropy's label for what an image does not show


class Judge(nn.Module):
    """(n, 3, H, W) images in [0, 1], any size -> {"species": (n, 12), "color": (n, 8), "material": (n, 3)} logits."""

    def __init__(self):
        super().__init__()
        widths = (3, 16, 32, 64, 96)
        layers: list[nn.Module] = []
        for before, after in zip(widths, widths[1:]):
            layers += [nn.Conv2d(before, after, 3, 2, 1), nn.GroupNorm(4, after), nn.SiLU()]
        layers += [nn.Conv2d(96, 128, 3, 1, 1), nn.GroupNorm(4, 128), nn.SiLU()]
        self.body = nn.Sequential(*layers)
        self.heads = nn.ModuleDict({name: nn.Linear(256, len(values)) for name, values in NAMES.items()})

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        if images.shape[2:] != (HEIGHT, WIDTH):
            images = F.interpolate(images, (HEIGHT, WIDTH), mode="bilinear", antialias=True, align_corners=False)
        x = self.body(images * 2 - 1)
        pooled = torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1)
        return {name: head(pooled) for name, head in self.heads.items()}


def load_judge(path: Path = FILE) -> Judge:
    """UserError if the file is missing or is not a judge of this world."""
    judge = Judge()
    try:
        judge.load_state_dict(load_file(path))
    except (OSError, RuntimeError, SafetensorError) as error:
        raise UserError(
            f"{path} is no judge ({reason(error)}): python scripts/train_pocket.py --stage judge makes it"
        ) from error
    return judge.eval().requires_grad_(False)


def labels(attributes: Attributes) -> dict[str, int]:
    """What an image of these attributes shows; an attribute that it does not show is left out."""
    shown = {"species": attributes.species}
    if attributes.painted:
        shown["color"] = attributes.color
    if attributes.subject == "object":
        shown["material"] = attributes.material
    return {name: NAMES[name].index(value) for name, value in shown.items()}


def agrees(judge: Judge, images: Tensor, wanted: dict[str, int]) -> Tensor:
    """(n,) bool: the judge's first choices for images (n, 3, H, W) are `wanted` in every attribute that it names."""
    logits = judge(images)
    right = torch.ones(len(images), dtype=torch.bool, device=images.device)
    for name, value in wanted.items():
        right &= logits[name].argmax(1) == value
    return right


def held_out_accuracy(judge: Judge, seeds: range) -> float:
    """The share of these seeds' renders, at pocket's size, in which the judge sees what is there."""
    right = []
    for seed in seeds:
        attributes = Attributes.sample(seed)
        image = torch.from_numpy(render(build_scene(attributes)).image).permute(2, 0, 1)[None].float() / 255
        right.append(bool(agrees(judge, image, labels(attributes))[0]))
    return float(np.mean(right))


def small_render(seed: int) -> np.ndarray:
    """(96, 128, 3) uint8."""
    return render(*training_view(Attributes.sample(seed), WIDTH, HEIGHT), supersample=2).image


def train_judge(seeds: range, *, steps: int, batch: int = 32, lr: float = 3e-3, pool=map) -> Judge:
    """Train on the renders of `seeds`, blurred, noisy and toned at random as edits' results are. `pool`: a map."""
    torch.manual_seed(0)
    rendered = tqdm(pool(small_render, seeds), total=len(seeds), desc="judge's renders", unit="image")
    images = torch.from_numpy(np.stack(list(rendered))).permute(0, 3, 1, 2)
    shown = [labels(Attributes.sample(seed)) for seed in seeds]
    targets = {name: torch.tensor([s.get(name, _UNSEEN) for s in shown]) for name in NAMES}
    judge = Judge().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(judge.parameters(), lr, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, steps)
    for _ in tqdm(range(steps), desc="judge", unit="step"):
        chosen = torch.randint(len(images), (batch,))
        logits = judge(_disturbed(images[chosen].float() / 255))
        loss = sum(F.cross_entropy(logits[name], targets[name][chosen], ignore_index=_UNSEEN) for name in NAMES)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return judge.eval().requires_grad_(False)


def _disturbed(x: Tensor) -> Tensor:
    """(n, 3, H, W): mirrored, shifted, blurred, toned and noisy, each image by its own amount."""
    n, device = len(x), x.device
    some = lambda: torch.rand(n, 1, 1, 1, device=device)  # noqa: E731
    x = torch.where(some() < 0.5, x.flip(3), x)
    shift = torch.randint(-8, 9, (2,)).tolist()
    x = F.pad(x, (8, 8, 8, 8), mode="replicate")
    x = x[..., 8 + shift[0] : 8 + shift[0] + HEIGHT, 8 + shift[1] : 8 + shift[1] + WIDTH]
    blurred = F.interpolate(F.avg_pool2d(x, 4), size=x.shape[2:], mode="bilinear", align_corners=False)
    x = x + some() * (blurred - x)
    x = x * (0.85 + 0.3 * some()) + 0.1 * (torch.rand(n, 3, 1, 1, device=device) - 0.5)
    return (x + 0.06 * some() * torch.randn_like(x)).clamp(0, 1).contiguous(memory_format=torch.channels_last)


def save_judge(judge: Judge, path: Path = FILE) -> None:
    with atomic(path) as partial:
        save_file({k: v.contiguous() for k, v in judge.state_dict().items()}, partial)
