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
COUNT = 200  # prompts; the sheet shows the first ones
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
                rows.append((_prompt(attributes), attributes))
    return rows


def random_prompts(count: int) -> list[tuple[str, Attributes]]:
    """Of scenes that nothing was trained on."""
    scenes = [Attributes.sample_evenly(HELD_OUT_SEED + 300_000 + i) for i in range(count)]
    return [(_prompt(scene), scene) for scene in scenes]


def _prompt(scene: Attributes) -> str:
    """With everything that the judge looks at."""
    look = scene.color if scene.painted else scene.material if scene.subject == "object" else ""
    words = f"{look} {scene.species}".strip()
    return f"{article(words)} {words} {GROUNDS[scene.ground]}"


@torch.no_grad()
def draw_samples(
    folder: Path, *, count: int = COUNT, guidance_scale: float = 4.0, steps: int = 50, device: str = "cpu"
) -> dict:
    """Write `samples.jpg` into the pipeline folder; returns how often the judge agrees with `count` prompts.

    sample_judge_agreement: with all that a prompt says; sample_judge_agreement_color and so on: with that word.
    """
    judge = load_judge(folder / "judge.safetensors")
    pipeline = StableDiffusionPipeline.from_pretrained(folder, low_cpu_mem_usage=False).to(device)
    pipeline.set_progress_bar_config(disable=True)
    shown = prompts()
    asked = [*shown, *random_prompts(max(0, count - len(shown)))][:count]
    tiles, right = [], {"": []}
    for number, (prompt, attributes) in enumerate(tqdm(asked, desc="samples", unit="image")):
        image = pipeline(
            prompt,
            width=WIDTH,
            height=HEIGHT,
            guidance_scale=guidance_scale,
            num_inference_steps=steps,
            generator=torch.Generator().manual_seed(number),
        ).images[0]
        pixels = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[None].float() / 255
        wanted = labels(attributes)
        for name, words in [("", wanted), *((f"_{word}", {word: value}) for word, value in wanted.items())]:
            right.setdefault(name, []).append(bool(agrees(judge, pixels, words)[0]))
        if number < len(shown):
            tile = image.resize((WIDTH * 3 // 4, HEIGHT * 3 // 4), Image.LANCZOS)
            caption = prompt if right[""][-1] else f"{prompt} (judge: no)"
            ImageDraw.Draw(tile).text((3, 2), caption, fill="white", stroke_width=1, stroke_fill="black")
            tiles.append(np.asarray(tile))
    blank = np.zeros_like(tiles[0])
    tiles += [blank] * (-len(tiles) % _COLUMNS)
    rows = [np.concatenate(tiles[i : i + _COLUMNS], 1) for i in range(0, len(tiles), _COLUMNS)]
    Image.fromarray(np.concatenate(rows)).save(folder / "samples.jpg", quality=85)
    return {
        "sample_prompts": len(asked),
        "sample_guidance_scale": guidance_scale,
        "sample_steps": steps,
        **{f"sample_judge_agreement{name}": round(float(np.mean(r)), 3) for name, r in right.items()},
        "judge_heldout_accuracy": round(held_out_accuracy(judge, _UNSEEN), 3),
    }
