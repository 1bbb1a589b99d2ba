"""Edit only what lies in a ball around a point of a photo, and check that nothing else has moved.

    python examples/03_edit_where_you_point.py
    python examples/03_edit_where_you_point.py my/capture "a yellow rose" "a red rose" 0.4,0.5,IMG_12 0.3 guidance=sd15

The click is u,v,photo, u and v from 0 to 1; then comes the ball's radius. Options of edit.py may follow. The edit is in
outputs/examples/03; a second run replaces it.
"""

import sys

import torch

from cds3d.commands.edit import edit_command
from cds3d.options import data_folder, load_config
from cds3d.script import run_script
from tensorf.renderable import load_field

FLOWER = data_folder("scenes") / "flower"  # which ships


def main(capture=FLOWER, src="a yellow flower", tgt="a red flower", at="0.5,0.4,view000", radius="0.4", *options):
    place = ["output=outputs/examples/03", "overwrite=true", f"at={at}", f"radius={radius}"]
    config = load_config("edit", ["scene=capture", *place, *options])
    config.capture, config.src, config.tgt = capture, src, tgt
    folder = edit_command(config)

    edited = load_field(folder / "field.safetensors")  # a LocalField: `target` inside the region, `source` outside
    points = torch.rand(10_000, 3) * 2 - 1
    inside = edited.inside(points)
    changed = (edited.density(points) - edited.source.density(points)).abs() > 1e-3
    print(f"the ball holds {inside.float().mean():.1%} of the scene's box")
    print(f"of places outside, {changed[~inside].float().mean():.1%} have changed")
    return folder


if __name__ == "__main__":
    sys.exit(run_script(main))
