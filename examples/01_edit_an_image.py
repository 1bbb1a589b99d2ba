"""Edit an image towards a prompt, and look at the figures.

    python examples/01_edit_an_image.py
    python examples/01_edit_an_image.py my.png "a cat" "a dog" guidance=sd15

Options of edit.py may follow. Half a minute on a CPU with pocket, the small model that ships. The edit is in
outputs/examples/01; a second run replaces it.
"""

import json
import sys

from cds3d.commands.edit import edit_command
from cds3d.options import data_folder, load_config
from cds3d.script import run_script

CAT = data_folder("scenes") / "cat/images/view000.jpg"  # which ships


def main(image=CAT, src="a cat", tgt="a pig", *options):
    config = load_config("edit", ["edit=latent", "output=outputs/examples/01", "overwrite=true", *options])
    config.image, config.src, config.tgt = image, src, tgt
    folder = edit_command(config)
    metrics = json.loads((folder / "metrics.json").read_text())
    print(f"{folder / 'edited.png'}: {metrics['psnr_to_source_db']:.1f} dB from the source")
    return folder


if __name__ == "__main__":
    sys.exit(run_script(main))
