"""Reliability campaigns: commands that are killed, broken inputs, full disks, clocks that jump.

    python scripts/campaign.py kill --count 500 --seed 0
    python scripts/campaign.py kill fuzz disk clock --count 20 --only edit

Writes outputs/bench/campaign.json, or what --output says; exit code 1 if anything was lost. See docs/reliability.md.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

from campaigns import forks, tally


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="+", choices=("kill", "fuzz", "disk", "clock"))
    parser.add_argument("--count", type=int, default=20, help="kills, inputs, full disks or jumps, of each kind")
    parser.add_argument("--minutes", type=float, default=1e6, help="stop after so many, of each kind")
    parser.add_argument("--seed", type=int, default=0, help="the same seed does the same")
    parser.add_argument("--only", help="cases with this in their names alone")
    parser.add_argument("--number", type=int, help="repeat one try of a case (--only), which failed with this number")
    parser.add_argument("--output", type=Path, default=Path("outputs/bench/campaign.json"))
    parser.add_argument("--folder", type=Path, help="to work in, which is kept; else a temporary one")
    args = parser.parse_args(argv)
    forks.prepare()
    if args.folder is not None:
        args.folder.mkdir(parents=True)
        table = run(args, args.folder.resolve())
    else:
        with tempfile.TemporaryDirectory() as folder:
            table = run(args, Path(folder))
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(table, indent=1) + "\n")
    return 1 if any(of_kind["lost"] for of_kind in table["campaigns"].values()) else 0


class Order(tally.Order):
    """As asked for on the command line, which is told of a name that no case has."""

    def chosen(self, cases: list) -> list:
        try:
            return super().chosen(cases)
        except ValueError as error:
            raise SystemExit(f"error: {error}") from error


def run(args: argparse.Namespace, folder: Path) -> dict:
    """The table of all campaigns that were asked for; one line for each is printed."""
    import importlib

    from campaigns.tiny import Inputs

    inputs = Inputs(folder)
    tables = {}
    for kind in args.kinds:
        start = time.monotonic()
        count = args.count if args.number is None else 1
        order = Order(count, args.seed, args.only, start + 60 * args.minutes, args.number)
        campaign = importlib.import_module(f"campaigns.{kind}").campaign
        work = folder / kind
        work.mkdir()
        counted = campaign(inputs, work, order)
        seconds = time.monotonic() - start
        tables[kind] = counted.table() | {"wall_seconds": round(seconds, 1)}
        print(f"{counted.summary()}, {seconds:.0f} s", flush=True)
    return {"seed": args.seed, "only": args.only, "campaigns": tables}


if __name__ == "__main__":
    sys.exit(main())
