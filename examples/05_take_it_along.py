"""Export a field's views as a dataset that nerfstudio, gsplat and this project's own trainer read.

    python examples/05_take_it_along.py outputs/flower/a-red-flower
    python train_source.py --capture outputs/examples/05      # a field of its own, trained on it

Options of cds3d export may follow. The dataset is in outputs/examples/05; a second run replaces it.
"""

import sys

from cds3d.commands.export import export_command
from cds3d.options import load_config
from cds3d.script import run_script
from tensorf.captures import load_capture
from tensorf.captures.colmap_files import load_model


def main(run="outputs/flower/a-red-flower", *options):
    config = load_config("export", ["output=outputs/examples/05", "overwrite=true", *options])
    config.run, config.format = run, "dataset"
    folder = export_command(config)

    capture = load_capture(folder, check=False)  # transforms.json, images/
    model = load_model(folder / "sparse" / "0")  # the same as a COLMAP model
    print(f"{folder}: {len(capture.train)} views to train on, {len(capture.test)} held out")
    print(f"COLMAP: {len(model.images)} images, {len(model.points)} points")
    return folder


if __name__ == "__main__":
    sys.exit(run_script(main))
