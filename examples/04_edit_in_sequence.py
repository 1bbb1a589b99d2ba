"""Edit an edited field on: a yellow flower becomes red, and then a tulip.

    python examples/04_edit_in_sequence.py
    python examples/04_edit_in_sequence.py my/capture "a yellow rose" "a red rose" "a red tulip" guidance=sd15

Options of edit.py may follow. The edits are in outputs/examples/04-first and 04-second; a second run replaces them.
"""

import json
import sys

from cds3d.commands.edit import edit_command
from cds3d.options import data_folder, load_config
from cds3d.script import run_script

FLOWER = data_folder("scenes") / "flower"  # which ships


def main(capture=FLOWER, first="a yellow flower", second="a red flower", third="a red tulip", *options):
    config = load_config("edit", ["scene=capture", "output=outputs/examples/04-first", "overwrite=true", *options])
    config.capture, config.src, config.tgt = capture, first, second
    run = edit_command(config)

    config = load_config("edit", ["output=outputs/examples/04-second", "overwrite=true", *options])
    config.run, config.tgt = str(run), third  # scene and source prompt come with the run
    folder = edit_command(config)

    metrics = json.loads((folder / "metrics.json").read_text())
    print("before it:", [step["tgt"] for step in metrics["history"]])
    print(f"PSNR to the field before: {metrics['psnr_to_source_db']:.1f} dB")
    print(f"PSNR to the first field: {metrics['first_psnr_to_source_db']:.1f} dB")
    return folder


if __name__ == "__main__":
    sys.exit(run_script(main))
