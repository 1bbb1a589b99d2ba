"""The paper's claims, tried on edits with known truth; each writes a table, a sheet and JSON.

python scripts/claims.py table1      # CDS keeps more structure than DDS at equal accuracy (CDS, Table 1)
python scripts/claims.py figure5     # CDS's gradients show the source's structure
python scripts/claims.py figure6     # self-attention features beat cross-attention features and the score
python scripts/claims.py figure7     # a stronger weight keeps more and edits less
python scripts/claims.py figure11    # patch size and number of patches
python scripts/claims.py centre      # features with and without what all positions have in common

--cases N scenes a task (default 6). Runs are kept under outputs/claims and not done twice.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cds3d  # noqa: E402, F401  (sets the thread policy before torch starts)

# isort: split

import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from PIL import Image  # noqa: E402

from cds3d.bench import report  # noqa: E402
from cds3d.bench.run import bench_command  # noqa: E402
from cds3d.bench.tasks import cases  # noqa: E402
from cds3d.guidance import load_guidance  # noqa: E402
from cds3d.objectives.objective import Objective, Prompts  # noqa: E402
from cds3d.options import build, load_config  # noqa: E402
from cds3d.pocket.raycast import render  # noqa: E402
from cds3d.pocket.world import build_scene  # noqa: E402
from tensorf.errors import UserError  # noqa: E402

CATS = ["cat-dog", "cat-cow", "cat-pig"]
MIXED = ["color", "cat-pig"]
# claim -> (tasks, variants: label -> (objective, options of edit.py))
SWEEPS = {
    "table1": (CATS, {o.upper(): (o, []) for o in ("sds", "dds", "cds")}),
    "figure6": (
        MIXED,
        {
            "none (DDS)": ("dds", []),
            "score": ("cds", ["objective.features=score"]),
            "cross-attention": ("cds", ["objective.features=cross"]),
            "self-attention": ("cds", []),
        },
    ),
    "figure7": (MIXED, {f"weight {w}": ("cds", [f"objective.weight={w}"]) for w in (0.0, 0.3, 1.0, 3.0, 10.0, 30.0)}),
    "figure11": (
        MIXED,
        {
            "sizes 1": ("cds", ["objective.patch_sizes=[1]"]),
            "sizes 1, 2": ("cds", []),
            "sizes 2, 4": ("cds", ["objective.patch_sizes=[2,4]"]),
            "8 patches": ("cds", ["objective.patches=8"]),
            "32 patches": ("cds", ["objective.patches=32"]),
        },
    ),
    "centre": (
        MIXED,
        {
            f"{name}, weight {w}": ("cds", [f"objective.center={name == 'centred'}".lower(), f"objective.weight={w}"])
            for name, w in (("as they are", 3.0), ("as they are", 50.0), ("centred", 3.0), ("centred", 50.0))
        },
    ),
}


def sweep(claim: str, args: argparse.Namespace) -> None:
    tasks, variants = SWEEPS[claim]
    rows, sheets = {}, {}
    for label, (objective, options) in variants.items():
        folder = args.work / claim / "".join(c if c.isalnum() or c == "." else "-" for c in label)
        config = load_config("bench", [])
        config.update(tasks=tasks, cases=args.cases, fields=[], objectives=[objective], options=options)
        config.update(output=str(folder), jobs=args.jobs, device=args.device)
        result = json.loads(bench_command(config).read_text())
        pooled = [run | {"task": "all"} for run in result["runs"]]
        rows[label] = report.summarise(pooled)["all"][objective] | {"tasks": result["summary"]}
        sheets[label] = {task: folder / "edits" / task / f"000-{objective}-0" for task in tasks}
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / f"{claim}.json").write_text(json.dumps({"cases": args.cases, "variants": rows}, indent=1) + "\n")
    columns = [
        c for c in report.COLUMNS if c[0] in ("edit_gain_db", "kept_psnr_db", "structure", "accuracy", "seconds")
    ]
    lines = ["| variant | runs | " + " | ".join(heading for _, heading, _ in columns) + " |"]
    lines.append("|---" * (len(columns) + 2) + "|")
    for label, row in rows.items():
        cells = [report.cell(row, key, decimals) for key, _, decimals in columns]
        lines.append(f"| {label} | {row['runs']} | " + " | ".join(cells) + " |")
    (args.output / f"{claim}.md").write_text("\n".join(lines) + "\n")
    first = next(iter(sheets.values()))
    pictures = []
    for task in tasks:
        shared = [Path(f"{first[task]}-{which}.png") for which in ("source", "truth")]
        pictures.append((task, shared + [Path(f"{s[task]}-edit.png") for s in sheets.values()]))
    report.contact_sheet(args.output / f"{claim}.png", pictures, ["source", "true edit", *variants])
    print("\n".join(lines))


def figure5(args: argparse.Namespace) -> None:
    """Mean length of DDS's and CDS's gradients at the source latent, over draws of t and noise."""
    config = load_config("edit", ["edit=latent", f"device={args.device}"])
    device = torch.device("cuda" if args.device == "auto" and torch.cuda.is_available() else "cpu")
    guidance = load_guidance(config.guidance.path, dtype=config.guidance.dtype, device=device)
    pictures, figures = [], []
    for task in CATS:
        for case in cases(task, max(1, args.cases // len(CATS))):
            before, after = (render(build_scene(a)) for a in (case.source, case.target))
            image = torch.from_numpy(before.image).permute(2, 0, 1)[None].float() / 255
            z = guidance.encode_image(image).detach()
            prompts = Prompts(*(guidance.encode_text(text) for text in ("", case.src, case.tgt)))
            subject = torch.from_numpy(before.subject | after.subject)[None, None].float()
            inside = F.interpolate(subject, z.shape[2:], mode="area")[0, 0] > 0.5
            row, maps = {"task": task, "seed": case.source.seed}, {}
            for kind in ("dds", "cds"):
                objective = build(Objective, load_config("edit", [f"objective={kind}"]).objective, scale=7.5)
                total = torch.zeros(z.shape[2:])
                torch.manual_seed(0)
                for _ in range(args.draws):
                    # The target has to have left the source a little: at the source PatchNCE is near its minimum.
                    start = z + 0.1 * torch.randn(z.shape).to(z.device)
                    gradient, _ = objective.gradient(guidance, start, z, prompts)
                    total += gradient[0].norm(dim=0).cpu()
                maps[kind] = total / args.draws
                row[f"{kind}_share_inside"] = float(total[inside].sum() / total.sum())
                row[f"{kind}_inside_over_outside"] = float(total[inside].mean() / total[~inside].mean())
            figures.append(row)
            pictures.append((f'"{case.src}" to "{case.tgt}"', before.image, maps))
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "figure5.json").write_text(json.dumps(figures, indent=1) + "\n")
    files = []
    for k, (title, image, maps) in enumerate(pictures):
        paths = [args.work / "figure5" / f"{k}-{name}.png" for name in ("source", *maps)]
        paths[0].parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(paths[0])
        for path, values in zip(paths[1:], maps.values()):
            grey = (values / values.max() * 255).byte().numpy()
            Image.fromarray(grey).resize((image.shape[1], image.shape[0]), Image.BICUBIC).save(path)
        files.append((title, paths))
    report.contact_sheet(args.output / "figure5.png", files, ["source", "DDS gradient", "CDS gradient"])
    for key in ("dds_inside_over_outside", "cds_inside_over_outside"):
        low, high = report.interval([row[key] for row in figures])
        print(f"{key}: {np.mean([row[key] for row in figures]):.2f} ({low:.2f} to {high:.2f})")


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("claim", choices=[*SWEEPS, "figure5"])
    parser.add_argument("--cases", type=int, default=6, help="scenes a task (6)")
    parser.add_argument("--draws", type=int, default=32, help="of t and noise, for figure5 (32)")
    parser.add_argument("--jobs", type=int, help="runs at a time (all cores)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--work", type=Path, default=Path("outputs/claims"))
    parser.add_argument("--output", type=Path, default=Path("docs/claims"))
    args = parser.parse_args(argv)
    try:
        if args.claim == "figure5":
            figure5(args)
        else:
            sweep(args.claim, args)
    except UserError as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
