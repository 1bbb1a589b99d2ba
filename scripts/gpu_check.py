"""Run this once on a machine with a GPU: does it compute what the CPU computes, how fast, and in how much memory?

python scripts/gpu_check.py                       # all of it, in under ten minutes
python scripts/gpu_check.py --only fields steps   # some parts
python scripts/gpu_check.py --quick               # tiny sizes; --device cpu: the same without a GPU, to try the script

Parts that compare with the CPU, in this process: fields (renders and gradients of VM and CP in NDC, box and unbounded
space), steps (latents and CDS's gradient with networks in fp32, TF32, fp16, bf16), edits (of a field and an image),
training, tcnn (only where tinycudann is installed). Parts that measure: train, edit, sd-steps and sd-edit (a random
model of Stable Diffusion v1.4's size), published. What does not end within its share of the time is extrapolated and
says so.

A part that fails does not stop the others. The exit code is 0 if all comparisons are within their limits, else 1.
`outputs/bench/gpu.json` has everything, `gpu.md` beside it tables to paste into docs/performance.md.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cds3d  # noqa: E402, F401  before torch

# isort: split

import torch  # noqa: E402

from cds3d.bench import gpu_agreement, gpu_speed  # noqa: E402
from cds3d.jobs import usable_cores  # noqa: E402
from cds3d.options import data_folder, pick_device  # noqa: E402
from tensorf.errors import UserError  # noqa: E402
from tensorf.files import write_text  # noqa: E402

PARTS = (*gpu_agreement.PARTS, *gpu_speed.PARTS)


def run_part(part: str, device: torch.device, setting, budget) -> dict:
    """Its checks or figures as far as it came, its seconds, and the error that ended it, if one did."""
    found, begun, error = [], time.perf_counter(), None
    agreement = part in gpu_agreement.PARTS
    arguments = (device, setting) if agreement else (device, setting, budget)
    try:
        for item in (gpu_agreement if agreement else gpu_speed).PARTS[part](*arguments):
            print("  " + (told_check if agreement else told_figure)(asdict(item) | _passed(item)), flush=True)
            found.append(asdict(item) | _passed(item))
    except Exception as failure:  # whatever it is, the other parts are still of use
        error = f"{type(failure).__name__}: {failure}".strip().splitlines()[0]
        print(f"  {part} failed: {error}", flush=True)
    return {
        "checks" if agreement else "figures": found,
        "seconds": time.perf_counter() - begun,
        "error": error,
        "skipped": part == "tcnn" and error is not None and error.startswith("UserError: decoder=tcnn needs"),
    }


def _passed(item) -> dict:
    return {"passed": item.passed} if isinstance(item, gpu_agreement.Check) else {}


def told_check(check: dict) -> str:
    verdict = "pass" if check["passed"] else "FAIL"
    return f"{verdict}  {check['what']}: {check['value']:.3g} ({check['unit']} {check['limit']:g})"


def told_figure(figure: dict) -> str:
    target = f" (target {figure['target']})" if figure["target"] else ""
    note = f", {figure['note']}" if figure["note"] else ""
    return f"{figure['what']}: {figure['value']:.4g} {figure['unit']}{target}{note}"


def held(parts: dict[str, dict]) -> bool:
    """Whether all comparisons were made and are within their limits."""
    compared = [p for p in parts.values() if "checks" in p and not p["skipped"]]
    return all(p["error"] is None and all(c["passed"] for c in p["checks"]) for p in compared)


def tables(result: dict) -> str:
    """Markdown: the comparisons, the measurements, and what failed."""
    lines = [f"`python scripts/gpu_check.py`, {result['machine']}:", ""]
    checks = [c for p in result["parts"].values() for c in p.get("checks", ())]
    if checks:
        lines += ["| compared with the CPU | | limit | |", "|---|---|---|---|"]
        lines += [
            f"| {c['what']} | {c['value']:.3g} | {c['unit']} {c['limit']:g} | {'yes' if c['passed'] else '**no**'} |"
            for c in checks
        ] + [""]
    figures = [f | {"part": name} for name, p in result["parts"].items() for f in p.get("figures", ())]
    if figures:
        lines += ["| part | measured | | target on an H100 | |", "|---|---|---|---|---|"]
        lines += [
            f"| {f['part']} | {f['what']} | {f['value']:.4g} {f['unit']} | {f['target']} | {f['note']} |"
            for f in figures
        ] + [""]
    for name, part in result["parts"].items():
        if part["error"]:
            lines += [f"{name} {'was left out' if part['skipped'] else 'failed'}: {part['error']}"]
    return "\n".join(lines) + "\n"


def alive(device: torch.device) -> bool:
    """Whether the GPU still answers: after a failed assertion in a kernel it does not, in this process."""
    try:
        gpu_speed.synchronise(device)
        return True
    except RuntimeError:
        return False


def machine(device: torch.device) -> str:
    name = "no GPU"
    if device.type == "cuda":
        gpu = torch.cuda.get_device_properties(device)
        name = f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GB, CUDA {torch.version.cuda}"
    return f"{name}, {torch.get_num_threads()} CPU threads, torch {torch.__version__}"


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does everything run, and agree?")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, cpu")
    parser.add_argument("--model", default="pocket", help="what guidance.path takes; not of the sd- parts")
    parser.add_argument("--capture", type=Path, default=data_folder("scenes") / "flower", help="forward-facing")
    parser.add_argument("--json", type=Path, default=Path("outputs/bench/gpu.json"), help="where the figures go")
    args = parser.parse_args(argv)
    device = pick_device(args.device)
    torch.set_num_threads(usable_cores())
    setting = (gpu_agreement.quick_setting if args.quick else gpu_agreement.full_setting)(args.capture, args.model)
    budget = gpu_speed.QUICK if args.quick else gpu_speed.FULL
    result = {"machine": machine(device), "quick": args.quick, "parts": {}}
    print(result["machine"])
    for place, part in enumerate(args.only):
        print(f"{part}:", flush=True)
        result["parts"][part] = run_part(part, device, setting, budget)
        write_results(args.json, result)
        gc.collect()
        if device.type == "cuda" and alive(device):
            torch.cuda.empty_cache()
        elif not alive(device) and (rest := args.only[place + 1 :]):
            result["parts"] |= in_another_process(args, rest)
            break
    write_results(args.json, result)
    passed = held(result["parts"])
    print(f"{args.json}: comparisons {'held' if passed else 'did NOT hold'}; tables in {args.json.with_suffix('.md')}")
    return 0 if passed else 1


def in_another_process(args: argparse.Namespace, parts: list[str]) -> dict[str, dict]:
    """The results of the other parts, from a process whose GPU answers."""
    file = args.json.with_name("gpu_rest.json")
    file.unlink(missing_ok=True)  # of an earlier check
    options = [*(["--quick"] if args.quick else []), "--device", args.device, "--model", args.model]
    options += ["--capture", str(args.capture), "--json", str(file), "--only", *parts]
    subprocess.run([sys.executable, __file__, *options], check=False)
    done = json.loads(file.read_text())["parts"] if file.exists() else {}
    return {part: done.get(part, _failed(part, "the process ended without a result")) for part in parts}


def _failed(part: str, error: str) -> dict:
    found = "checks" if part in gpu_agreement.PARTS else "figures"
    return {found: [], "seconds": 0.0, "error": error, "skipped": False}


def write_results(file: Path, result: dict) -> None:
    write_text(file, json.dumps(result, indent=2) + "\n")
    write_text(file.with_suffix(".md"), tables(result))


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except UserError as error:
        raise SystemExit(f"error: {error}") from error
