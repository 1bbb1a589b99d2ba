"""Edit a radiance field, or an image, towards a prompt.

    python edit.py --tgt "a red flower"                        # CDS, pocket, 400 iterations on scene=flower
    python edit.py --tgt "a red flower" objective=dds
    python edit.py --image scenes/cat/images/view000.jpg --src "a cat" --tgt "a pig"

The same as `cds3d edit`; --help lists every option.
"""

import sys

from cds3d.cli import run_command

if __name__ == "__main__":
    sys.exit(run_command("edit", sys.argv[1:]))
