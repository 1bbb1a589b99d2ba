"""Look at a field in the browser, and edit it from there.

    python view.py outputs/flower/a-red-flower
    python view.py --scene mug                     # the source field, trained if need be

python view.py --help lists the options; pip install ".[viewer]" installs what it needs. The same as `cds3d view`.
"""

import sys

from cds3d.cli import run_command

if __name__ == "__main__":
    sys.exit(run_command("view", sys.argv[1:]))
