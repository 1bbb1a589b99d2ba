"""Break one line at a time, and see whether a test notices.

    python scripts/mutants.py                        # all of tests/mutants.yaml: half an hour on a quiet core
    python scripts/mutants.py --only runs.py         # those whose file's name has this in it
    python scripts/mutants.py --against HEAD~3       # the list of now, against the code of another commit

Each mutant is a change of one line that would give wrong results, and the tests that mirror that line. Works on a copy
of the commit, so that the working tree stays as it is; writes a table and a JSON file.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
LIST = ROOT / "tests" / "mutants.yaml"


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="mutants of files with this in their names")
    parser.add_argument("--against", default="HEAD", help="a commit (HEAD)")
    parser.add_argument("--seconds", type=float, default=600, help="limit for one mutant's tests (600)")
    parser.add_argument("--output", type=Path, default=Path("outputs/bench/mutants.json"))
    args = parser.parse_args(argv)
    chosen = [m for m in yaml.safe_load(LIST.read_text()) if args.only in m["file"]]
    if not chosen:
        raise SystemExit(f"error: --only {args.only}: {LIST.relative_to(ROOT)} has no file with this in its name")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        copy_of(args.against, folder)
        for mutant in chosen:
            rows.append(mutant | tried(mutant, Path(folder), args.seconds))
            print(f"{rows[-1]['outcome']:5} {mutant['file']}: {mutant['notices']}", flush=True)
    fell = sum(row["outcome"] == "fell" for row in rows)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps({"mutants": len(rows), "fell": fell, "rows": rows}, indent=1) + "\n")
    print(f"{fell} of {len(rows)} fell; {args.output}")
    return 0 if fell == len(rows) else 1


def copy_of(commit: str, folder: str) -> None:
    archive = subprocess.run(["git", "archive", commit], cwd=ROOT, check=True, capture_output=True).stdout
    subprocess.run(["tar", "x", "-C", folder], input=archive, check=True)


def tried(mutant: dict, folder: Path, limit: float) -> dict:
    """outcome: "fell" if a test fails, "lived" if none does, "gone" if the line is not there once, "hung"."""
    path = folder / mutant["file"]
    whole, start = path.read_text(), time.monotonic()
    if whole.count(mutant["line"]) != 1:
        return {"outcome": "gone"}
    path.write_text(whole.replace(mutant["line"], mutant["becomes"]))
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *mutant["tests"].split()]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "PYTHONPATH": str(folder)}
    try:
        code = subprocess.run(command, cwd=folder, env=environment, capture_output=True, timeout=limit).returncode
    except subprocess.TimeoutExpired:
        return {"outcome": "hung"}
    finally:
        path.write_text(whole)
    outcome = {0: "lived", 1: "fell"}.get(code, f"pytest ended with {code}")
    return {"outcome": outcome, "seconds": round(time.monotonic() - start, 1)}


if __name__ == "__main__":
    sys.exit(main())
