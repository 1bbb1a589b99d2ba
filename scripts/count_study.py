"""Count the answers of a user study into a table: text match, structure and quality, from 1 to 5.

    python scripts/count_study.py study.key.json answers-*.json

The key is beside the page that scripts/bench_images.py --user-study wrote.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cds3d  # noqa: E402, F401  (sets the thread policy before torch starts)
from cds3d.bench.user_study import count, table  # noqa: E402
from tensorf.errors import UserError  # noqa: E402


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("key", type=Path, metavar="KEY", help="the study's key, *.key.json")
    parser.add_argument("answers", type=Path, nargs="+", metavar="ANSWERS", help="a participant's file each")
    args = parser.parse_args(argv)
    print(table(count(args.key, args.answers)))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        raise SystemExit(f"error: {error}") from error
