"""What pocket draws by itself: a sheet to look at, and how often the judge sees what was asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image, ImageDraw
from tqdm import tqdm

from cds3d.pocket.model.judge import agrees, held_out_accuracy, labels, load_judge
from cds3d.pocket.model.training import HEIGHT, HELD_OUT_SEED, WIDTH
from cds3d.pocket.world.scenes import COLORS, GROUNDS, MATERIALS, SPECIES, Attributes, article

_COLUMNS = 6
_UNSEEN = range(HELD_OUT_SEED + 200_000, HELD_OUT_SEED + 200_300)  # of the judge too


def prompts() -> list[tuple[str, Attributes]]:
    """Every species three times, in colours or materials and on grounds that take turns."""
    rows = []
    for subject, names in SPECIES.items():
        for name in names:
            for k in range(3):
                turn = len(rows)
                color, ground = list(COLORS)[turn % len(COLORS)], list(GROUNDS)[turn % len(GROUNDS)]
                attributes = Attributes(turn, subject, name, color, ground, MATERIALS[k])
                look = color if attributes.painted else attributes.material if subject == "object" else ""
                words = f"{look} {name}".strip()
                rows.append((f"{article(words)} {words} {GROUNDS[ground]}", attributes))
    return rows


@torch.no_grad()
def draw_samples(folder: Path, *, guidance_scale: float = 6.0, steps: int = 25, device: str = "cpu") -> dict:
    """Write `samples.jpg` into the pipeline folder; returns how many prompts there were and the judge's agreement."""
    judge = load_judge(folder / "judge.safetensors")
    pipeline = StableDiffusionPipeline.from_pretrained(folder, low_cpu_mem_usage=False).to(device)
    pipeline.set_progress_bar_config(disable=True)
    tiles, right = [], []
    for number, (prompt, attributes) in enumerate(tqdm(prompts(), desc="samples", unit="image")):
        image = pipeline(
            prompt,
            width=WIDTH,
            height=HEIGHT,
            guidance_scale=guidance_scale,
            num_inference_steps=steps,
            generator=torch.Generator().manual_seed(number),
        ).images[0]
        pixels = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[None].float() / 255
        right.append(bool(agrees(judge, pixels, labels(attributes))[0]))
        tile = image.resize((WIDTH * 3 // 4, HEIGHT * 3 // 4), Image.LANCZOS)
        caption = prompt if right[-1] else f"{prompt} (judge: no)"
        ImageDraw.Draw(tile).text((3, 2), caption, fill="white", stroke_width=1, stroke_fill="black")
        tiles.append(np.asarray(tile))
    blank = np.zeros_like(tiles[0])
    tiles += [blank] * (-len(tiles) % _COLUMNS)
    rows = [np.concatenate(tiles[i : i + _COLUMNS], 1) for i in range(0, len(tiles), _COLUMNS)]
    Image.fromarray(np.concatenate(rows)).save(folder / "samples.jpg", quality=85)
    return {
        "sample_prompts": len(right),
        "sample_guidance_scale": guidance_scale,
        "sample_judge_agreement": round(float(np.mean(right)), 3),
        "judge_heldout_accuracy": round(held_out_accuracy(judge, _UNSEEN), 3),
    }
