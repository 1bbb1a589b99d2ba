"""Objectives compared on edits with known truth: SDS, DDS and CDS, images and fields.

    python scripts/bench_edits.py --quick               # minutes
    python scripts/bench_edits.py --full                # hours on two cores
    python scripts/bench_edits.py tasks=[cat-cow] fields=[] objectives=[bounds] output=outputs/bench/bounds   # no edits
    python scripts/bench_edits.py tasks=[color] cases=4 options='["objective.weight=6"]' output=outputs/bench/heavy

The same as `cds3d bench`; --help lists every option. Writes edits.json, edits.md and contact sheets.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cds3d.cli import run_command  # noqa: E402

if __name__ == "__main__":
    sys.exit(run_command("bench", sys.argv[1:]))
