"""Train a radiance field from photos with poses, edit it towards a prompt, and render both from a new camera.

    python examples/02_edit_a_field.py
    python examples/02_edit_a_field.py my/capture "a yellow rose" "a red rose" guidance=sd15

Options of edit.py may follow. Five minutes on two cores with the flower that ships. The edit is in outputs/examples/02;
a second run replaces it.
"""

import sys

import imageio.v3 as iio
import torch

from cds3d.commands.edit import edit_command
from cds3d.commands.scenes import load_scene
from cds3d.commands.train import source_folder
from cds3d.commands.videos import cameras_along, path_kind
from cds3d.options import data_folder, load_config
from cds3d.pictures import side_by_side, to_uint8
from cds3d.runs import read_config
from cds3d.script import run_script
from tensorf.renderable import load_field

FLOWER = data_folder("scenes") / "flower"  # which ships


def main(capture=FLOWER, src="a yellow flower", tgt="a red flower", *options):
    config = load_config("edit", ["scene=capture", "output=outputs/examples/02", "overwrite=true", *options])
    config.capture, config.src, config.tgt = capture, src, tgt
    folder = edit_command(config)  # trains the source field first, if it is not there

    source = load_field(source_folder(config) / "field.safetensors")
    edited = load_field(folder / "field.safetensors")
    photos = load_scene(read_config(folder))
    camera = cameras_along(photos, path_kind(photos, "auto"), frames=8)[3]
    with torch.no_grad():
        views = [field.render(camera)["color"] for field in (source, edited)]
    iio.imwrite(folder / "new_view.png", to_uint8(side_by_side(*views)))
    print(folder / "new_view.png")
    return folder


if __name__ == "__main__":
    sys.exit(run_script(main))
