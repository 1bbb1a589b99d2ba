"""Train the source field that edits start from.

    python train_source.py scene=flower
    python train_source.py --capture some/folder        # LLFF, transforms.json or COLMAP

The same as `cds3d train`; --help lists every option.
"""

import sys

from cds3d.cli import run_command

if __name__ == "__main__":
    sys.exit(run_command("train", sys.argv[1:]))
