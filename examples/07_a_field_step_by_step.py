"""Edit a field with a loop of your own: the source, its views, the objective and the editor, one by one.

    python examples/07_a_field_step_by_step.py
    python examples/07_a_field_step_by_step.py my/capture "a yellow rose" "a red rose" guidance=sd15

Options of edit.py may follow. The edited field is outputs/examples/07/field.safetensors; a second run replaces it.
"""

import sys
from pathlib import Path

from tqdm import tqdm

from cds3d import EditConfig, Editor, load_config
from cds3d.commands.edit import train_source, views_maker
from cds3d.commands.preparing import prepare
from cds3d.commands.scenes import load_scene
from cds3d.commands.sources import take_over_source
from cds3d.commands.train import source_folder
from cds3d.commands.videos import resized_to
from cds3d.options import build, data_folder, pick_device
from cds3d.script import run_script
from tensorf import load_field

FLOWER = data_folder("scenes") / "flower"  # which ships


def main(capture=FLOWER, src="a yellow flower", tgt="a red flower", *options):
    config = load_config("edit", ["scene=capture", *options])
    config.capture, config.src, config.tgt = str(capture), src, tgt
    device = pick_device(config.device)

    folder = source_folder(config)
    if not (folder / "metrics.json").exists():
        train_source(config, folder)
    take_over_source(config, folder)  # photos are read as they were for the training
    source, photos = load_field(folder / "field.safetensors", device), load_scene(config)
    cameras = [resized_to(photos.cameras[i], config.edit.width) for i in photos.train]

    prior, objective, prompts = prepare(config, device)
    views = views_maker(config)(source, cameras, prior)  # the Subject: what is seen, and what of it may change
    editor = Editor(views, prior, objective, prompts, build(EditConfig, config.edit, seed=config.seed))
    bar = tqdm(range(editor.config.iterations))
    for _ in bar:
        figures = editor.step()
        bar.set_postfix({name: f"{value:.3g}" for name, value in figures.items()})

    path = Path("outputs/examples/07/field.safetensors")
    views.edited().save(path)
    print(path)
    return path


if __name__ == "__main__":
    sys.exit(run_script(main))
