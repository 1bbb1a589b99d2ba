"""How much memory the edit of a field needs with published models, as forecast: no weights and no GPU are needed.

    python scripts/forecast_memory.py                      # Stable Diffusion v1.4 and XL in bf16, objective=cds
    python scripts/forecast_memory.py --models sd --dtype fp32 objective=dds edit.width=504

The networks have their published sizes and random weights. What autograd keeps is counted on a pass over zeros, as
edit.py does before its first iteration (`cds3d/forecast.py`). fp16 takes what bf16 takes, but for XL's VAE on a GPU
without bf16, which is fp32 then. The scene is the shipped flower, unless scene= or capture= names another. On a CPU
this needs 4 GB of memory for v1.4 and 9 GB for XL, and some minutes. Prints a table, writes forecast.json.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cds3d  # noqa: E402, F401  before torch

# isort: split

import torch  # noqa: E402

from cds3d.bench.random_model import random_prompts, random_sd, random_sdxl, text_parameters  # noqa: E402
from cds3d.commands.edit import check_scene  # noqa: E402
from cds3d.commands.preparing import build_objective, is_local  # noqa: E402
from cds3d.commands.scenes import load_scene  # noqa: E402
from cds3d.commands.train import field_options  # noqa: E402
from cds3d.forecast import field_edit_mb, parameter_mb  # noqa: E402
from cds3d.guidance.loading import DTYPES  # noqa: E402
from cds3d.options import load_config, pick_device  # noqa: E402
from tensorf.cameras import size_for_width  # noqa: E402
from tensorf.errors import UserError  # noqa: E402
from tensorf.files import write_text  # noqa: E402
from tensorf.train import Trainer  # noqa: E402

MODELS = {"sd": ("Stable Diffusion v1.4", random_sd, "sd14"), "sdxl": ("Stable Diffusion XL", random_sdxl, "sdxl")}


def forecast_of(model: str, dtype: str, options: list[str], device: torch.device) -> dict:
    """A row of forecast.json: MB of weights, text encoders too, and of what an edit adds, by part."""
    name, build, guidance = MODELS[model]
    config = load_config("edit", [f"guidance={guidance}", *options])
    check_scene(config)
    capture = load_scene(config)
    trainer = Trainer(capture, *field_options(config, capture.space), torch.device("cpu"))
    trainer.field.resample(*trainer.final_size())
    prior = build(DTYPES[dtype], device)
    camera = capture.cameras[0]
    width, height = size_for_width(camera.width, camera.height, config.edit.width)
    graphs = build_objective(config).unet_graphs
    prompt, views = random_prompts(prior).target, len(capture.train)
    kind = dict(local=is_local(config), redrawn="redraw" in config.edit)
    parts = field_edit_mb(prior, prompt, trainer.field, views, height, width, graphs, **kind)
    text = text_parameters(model == "sdxl") * DTYPES[dtype].itemsize / 2**20
    weights = parameter_mb(prior.unet) + parameter_mb(prior.vae) + text
    return {
        "model": name,
        "dtype": dtype,
        "view": f"{width}x{height}",
        "views": views,
        "weights_mb": weights,
        **{f"{part}_mb": mb for part, mb in parts.items()},
        "total_mb": weights + sum(parts.values()),
    }


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("options", nargs="*", metavar="key=value", help="options of edit.py")
    parser.add_argument("--models", default=",".join(MODELS), help="sd, sdxl or sd,sdxl")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="bf16")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1")
    parser.add_argument("--output", type=Path, default=Path("outputs/bench"), help="forecast.json goes here")
    args = parser.parse_intermixed_args(argv)
    models = args.models.split(",")
    if unknown := [model for model in models if model not in MODELS]:
        parser.error(f"--models: {unknown[0]!r} is none of {', '.join(MODELS)}")
    device, rows = pick_device(args.device), []
    for model in models:
        row = forecast_of(model, args.dtype, args.options, device)
        gc.collect()
        if not rows:
            print("| model | type | view | weights, GB | field and views, GB | networks' maps, GB | all, GB |")
            print("|---|---|---|---|---|---|---|")
        rows.append(row)
        rest = row["total_mb"] - row["weights_mb"] - row["networks_mb"]
        figures = (row["weights_mb"], rest, row["networks_mb"], row["total_mb"])
        cells = " | ".join(f"{mb / 1024:.1f}" for mb in figures)
        print(f"| {row['model']} | {row['dtype']} | {row['view']} | {cells} |", flush=True)
    write_text(args.output / "forecast.json", json.dumps({"options": args.options, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        raise SystemExit(f"error: {error}") from error
