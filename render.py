"""Render a video of a run's field.

    python render.py outputs/flower/a-red-flower path=spiral frames=120

The same as `cds3d render`; --help lists every option.
"""

import sys

from cds3d.cli import run_command

if __name__ == "__main__":
    sys.exit(run_command("render", sys.argv[1:]))
