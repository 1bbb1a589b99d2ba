"""The paper's claims, tried on edits with known truth; each writes a table, a sheet and JSON.

python scripts/claims.py table1      # CDS keeps more structure than DDS at equal accuracy (CDS, Table 1)
python scripts/claims.py figure5     # CDS's gradients show more of the source's structure
python scripts/claims.py figure6     # self-attention features beat cross-attention features and the score
python scripts/claims.py figure7     # a stronger weight keeps more and edits less
python scripts/claims.py figure11    # patch size and number of patches
python scripts/claims.py centre      # features with and without what all positions have in common
python scripts/claims.py features    # why: cosines, loss and gradient of each layer

--cases N scenes a task (default 4). Runs are kept under outputs/claims, shared by the claims, and not done twice. What
is written goes to outputs/bench/claims (--output).
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
from cds3d.commands.preparing import build_objective, configured_prior  # noqa: E402
from cds3d.guidance import Query  # noqa: E402
from cds3d.objectives.objective import Prompts, classifier_free  # noqa: E402
from cds3d.objectives.patchnce import contrastive_loss  # noqa: E402
from cds3d.options import load_config, pick_device  # noqa: E402
from cds3d.pocket.world.raycast import render  # noqa: E402
from cds3d.pocket.world.scenes import build_scene  # noqa: E402
from cds3d.subjects.image import LatentPair  # noqa: E402
from tensorf.errors import UserError  # noqa: E402

CATS = ["cat-dog", "cat-cow", "cat-pig"]
MIXED = ["color", "cat-pig"]
DDS, CDS = ("dds", ()), ("cds", ())
_STEADY = "guidance.image_scale_end=null"  # as in the paper: guidance does not fall


def cds(*options: str) -> tuple[str, tuple[str, ...]]:
    return "cds", options


# claim -> (tasks, variants: label -> (objective, options of edit.py))
SWEEPS = {
    "table1": (CATS, {"SDS": ("sds", ()), "DDS": DDS, "CDS": CDS}),
    "figure6": (
        MIXED,
        {
            "none (DDS)": DDS,
            "score": cds("objective.features=score"),
            "cross-attention": cds("objective.features=cross"),
            "self-attention": CDS,
        },
    ),
    "figure7": (
        MIXED,
        {
            "weight 0 (DDS)": DDS,
            "weight 1": cds("objective.weight=1.0"),
            "weight 3 (default)": CDS,
            "weight 10": cds("objective.weight=10.0"),
            "weight 30": cds("objective.weight=30.0"),
        },
    ),
    "figure11": (
        MIXED,
        {
            "sizes 1": cds("objective.patch_sizes=[1]"),
            "sizes 1, 2 (default)": CDS,
            "sizes 2, 4": cds("objective.patch_sizes=[2,4]"),
            "8 patches": cds("objective.patches=8"),
            "32 patches": cds("objective.patches=32"),
        },
    ),
    "centre": (
        MIXED,
        {
            "as they are, weight 3": cds("objective.center=false"),
            "as they are, weight 50": cds("objective.center=false", "objective.weight=50.0"),
            "centred, weight 3 (default)": CDS,
        },
    ),
}


def runs_of(task: str, objective: str, options: tuple[str, ...], args: argparse.Namespace) -> tuple[list[dict], Path]:
    """Runs of one variant on one task, and the folder of their pictures; claims share them."""
    name = "-".join([objective, *("".join(c if c.isalnum() or c == "." else "-" for c in o) for o in options)])
    folder = args.work / f"{args.cases}-cases" / name / task  # claims of fewer cases have runs of their own
    config = load_config("bench", [])
    config.update(tasks=[task], cases=args.cases, fields=[], objectives=[objective])
    config.update(options=[_STEADY, *options, *args.options], overwrite=args.overwrite)
    config.update(output=str(folder), jobs=args.jobs, device=args.device)
    return json.loads(bench_command(config).read_text())["runs"], folder / "edits" / task


def sweep(claim: str, args: argparse.Namespace) -> None:
    tasks, variants = SWEEPS[claim]
    rows, everything, named, sheet = {}, [], [], {task: [] for task in tasks}
    for label, (objective, options) in variants.items():
        runs = []
        for task in tasks:
            done, folder = runs_of(task, objective, options, args)
            runs += done
            sheet[task] = sheet[task] or [folder / f"000-{objective}-0-{which}.png" for which in ("source", "truth")]
            sheet[task].append(folder / f"000-{objective}-0-edit.png")
        everything += runs
        named += [run | {"objective": "cds" if (objective, options) == CDS else label} for run in runs]
        rows[label] = report.summarise([run | {"pool": "all"} for run in runs])["all"][objective]
        rows[label]["by_task"] = {task: row[objective] for task, row in report.summarise(runs).items()}
    args.output.mkdir(parents=True, exist_ok=True)
    less = report.paired(named)  # of each variant, its figures less those of CDS with the defaults in the same scene
    less = less.get("all images") or next(iter(less.values()), {})
    result = {"cases_a_task": args.cases, "variants": rows, "less_default_cds": less}
    if claim == "table1":  # the paper's claim is about equal accuracy: structure and background at equal progress
        result["cds_less_dds_at_equal_progress"] = report.equal_progress(everything)
    (args.output / f"{claim}.json").write_text(json.dumps(result, indent=1) + "\n")
    columns = [c for c in report.COLUMNS if c[0] in ("edit_gain_db", "kept_psnr_db", "structure", "accuracy")]
    lines = ["| variant | cases | " + " | ".join(heading for _, heading, _ in columns) + " |"]
    lines.append("|---" * (len(columns) + 2) + "|")
    for label, row in rows.items():
        cells = [report.cell(row, key, decimals) for key, _, decimals in columns]
        lines.append(f"| {label} | {row['cases']} | " + " | ".join(cells) + " |")
    if less:
        lines += ["", "Each variant less CDS with the defaults in the same scene:", ""]
        lines += ["| variant | cases | gain, dB | kept, dB | edge F1 |", "|---|---|---|---|---|"]
    for label, row in less.items():
        cells = [report.cell(row, key, decimals) for key, decimals in zip(report.COMPARED, (1, 1, 2), strict=True)]
        lines.append(f"| {label} | {row['cases']} | " + " | ".join(cells) + " |")
    for task, row in result.get("cds_less_dds_at_equal_progress", {}).items():
        kept, structure = report.cell(row, "kept_db", 1), report.cell(row, "structure", 3)
        lines += ["", f"{task}, CDS minus DDS at equal gain: kept {kept or 'none'} dB, edge F1 {structure or 'none'}; "]
        lines[-1] += f"{row['cases']} cases, {row['left_out']} left out."
    (args.output / f"{claim}.md").write_text("\n".join(lines) + "\n")
    report.contact_sheet(args.output / f"{claim}.jpg", list(sheet.items()), ["source", "true edit", *variants])
    print("\n".join(lines))


def figure5(args: argparse.Namespace) -> None:
    """Mean length of DDS's and CDS's gradients near the source latent, over the same draws of t and noise."""
    config = load_config("edit", ["edit=latent", *args.options])
    prior = configured_prior(config, pick_device(args.device))
    pictures, figures = [], []
    for task in CATS:
        for case in cases(task, args.cases):
            before, after = (render(build_scene(a)) for a in (case.source, case.target))
            image = torch.from_numpy(before.image).permute(2, 0, 1)[None].float() / 255
            z = prior.encode_image(image).detach()
            prompts = Prompts.of(prior, case.src, case.tgt)
            subject = torch.from_numpy(before.subject | after.subject)[None, None].float()
            inside = F.interpolate(subject, z.shape[2:], mode="area")[0, 0] > 0.5
            row, maps = {"task": task, "seed": case.source.seed}, {}
            for kind in ("dds", "cds"):
                own = load_config("edit", ["edit=latent", f"objective={kind}", *args.options])
                objective = build_objective(own)
                total = torch.zeros(z.shape[2:])
                for draw in range(args.draws):
                    torch.manual_seed(draw)
                    # The target has to have left the source a little: at the source PatchNCE is near its minimum.
                    start = z + 0.1 * torch.randn(z.shape).to(z.device)
                    pair = LatentPair(z, torch.nn.Parameter(start))
                    step = objective.gradient(prior, pair, prompts, objective.draw(z, 0.0))
                    total += step.gradient[0].norm(dim=0).cpu()
                maps[kind] = total / args.draws
                row[f"{kind}_share_inside"] = float(total[inside].sum() / total.sum())
                row[f"{kind}_inside_over_outside"] = float(total[inside].mean() / total[~inside].mean())
            figures.append(row)
            pictures.append((f'"{case.src}" to "{case.tgt}"', before.image, maps))
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "figure5.json").write_text(json.dumps(figures, indent=1) + "\n")
    files = []
    for k, (title, image, maps) in enumerate(pictures[:: args.cases]):
        paths = [args.work / "figure5" / f"{k}-{name}.png" for name in ("source", *maps)]
        paths[0].parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(paths[0])
        for path, values in zip(paths[1:], maps.values()):
            grey = (values / values.max() * 255).byte().numpy()
            Image.fromarray(grey).resize((image.shape[1], image.shape[0]), Image.BICUBIC).save(path)
        files.append((title, paths))
    report.contact_sheet(args.output / "figure5.jpg", files, ["source", "DDS gradient", "CDS gradient"])
    dds, cds = ([f[f"{kind}_inside_over_outside"] for f in figures] for kind in ("dds", "cds"))
    less = [a - b for a, b in zip(cds, dds, strict=True)]  # both saw the same scene and the same draws
    for key, values in (("dds_inside_over_outside", dds), ("cds_inside_over_outside", cds), ("cds less dds", less)):
        low, high = report.interval(values)
        print(f"{key}: {np.mean(values):.2f} ({low:.2f} to {high:.2f}), {len(values)} cases")


def features(args: argparse.Namespace) -> None:
    """Each up-sampling self-attention layer: how alike its positions are, and what PatchNCE makes of it.

    The last rows are of the score, as objective.features=score has it and with guidance, as the paper's section 3.2.
    """
    config = load_config("edit", ["edit=latent", *args.options])
    prior = configured_prior(config, pick_device(args.device))
    found: dict[str, list[dict]] = {}
    cds = build_objective(config)
    options = {name: getattr(cds, name) for name in ("patch_sizes", "patches", "temperature")}
    for case in [c for task in MIXED for c in cases(task, args.cases)]:
        before, after = (
            prior.encode_image(torch.from_numpy(render(build_scene(a)).image).permute(2, 0, 1)[None].float() / 255)
            for a in (case.source, case.target)
        )
        z = before + 0.1 * (after - before)  # a tenth of the way to the true edit
        source, target = (prior.embed(text) for text in (case.src, case.tgt))
        for t in (200, 500, 800):
            torch.manual_seed(t)
            noise = torch.randn(z.shape).to(z.device)
            moving = z.detach().requires_grad_()
            null, z_src, z_t = prior.embed(""), prior.noised(before.detach(), t, noise), prior.noised(moving, t, noise)
            reference, without = prior.ask(Query(z_src, t, source, "self"), Query(z_src, t, null))
            current, freely = prior.ask(Query(z_t, t, target, "self", grad=True), Query(z_t, t, null, grad=True))
            maps = {str(n + 1): pair for n, pair in enumerate(zip(reference.features, current.features))}
            maps["score"] = reference.noise[0], current.noise[0]
            pairs = (without, reference), (freely, current)
            maps["guided score"] = tuple(classifier_free(a.noise, b.noise, cds.scale)[0] for a, b in pairs)
            for layer, (ref, now) in maps.items():
                size = f"{ref.shape[0]} x {ref.shape[2]} x {ref.shape[1]}"
                for name, center in (("as they are", False), ("centred", True)):
                    loss = contrastive_loss([(ref, now)], **{**options, "center": center})
                    (gradient,) = torch.autograd.grad(loss, moving, retain_graph=True)
                    centred = ref - (ref.mean((1, 2), keepdim=True) if center else 0)
                    unit = F.normalize(centred.flatten(1).T, dim=1)
                    row = {
                        "cosine": float((unit @ unit.T).mean()),
                        "loss": loss.item(),
                        "gradient": gradient.square().mean().sqrt().item(),
                    }
                    found.setdefault(f"| {layer} | {size} | {name} |", []).append(row)
    lines = [
        "| layer | channels x width x height | features | mean cosine of two positions | PatchNCE | gradient, RMS |"
    ]
    lines.append("|---" * 6 + "|")
    for label, rows in found.items():
        mean = {key: np.mean([row[key] for row in rows]) for key in rows[0]}
        lines.append(f"{label} {mean['cosine']:.3f} | {mean['loss']:.2f} | {mean['gradient']:.5f} |")
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "features.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("claim", choices=[*SWEEPS, "figure5", "features"])
    parser.add_argument("--cases", type=int, default=4, help="scenes a task (4)")
    parser.add_argument("--draws", type=int, default=32, help="of t and noise, for figure5 (32)")
    parser.add_argument("--options", nargs="*", default=[], help="more options of edit.py for every run")
    parser.add_argument("--overwrite", action="store_true", help="do runs again that were made with other settings")
    parser.add_argument("--jobs", type=int, help="runs at a time (all cores)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--work", type=Path, default=Path("outputs/claims"))
    parser.add_argument("--output", type=Path, default=Path("outputs/bench/claims"))
    args = parser.parse_args(argv)
    try:
        if args.claim in ("figure5", "features"):
            {"figure5": figure5, "features": features}[args.claim](args)
        else:
            sweep(args.claim, args)
    except UserError as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
