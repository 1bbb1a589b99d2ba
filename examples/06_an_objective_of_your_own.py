"""Edit an image with an objective that you have written: DDS that looks at large t first.

    python examples/06_an_objective_of_your_own.py
    python examples/06_an_objective_of_your_own.py my.png "a cat" "a dog" guidance=sd15

Options of edit.py may follow. It writes outputs/examples/06/descending.png.
docs/extending.md shows how such a file becomes objective=NAME of every command.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from cds3d import OBJECTIVES, EditConfig, Editor, LatentImage, Prompts, load_config, load_prior
from cds3d.commands.images import read_image
from cds3d.objectives.objective import Draw
from cds3d.options import build, data_folder
from cds3d.pictures import write_image
from cds3d.script import run_script

CAT = data_folder("scenes") / "cat/images/view000.jpg"  # which ships


@dataclass(frozen=True)
class Descending(OBJECTIVES["dds"]):
    """DDS whose t falls with the edit's progress, within a window of 200 steps."""

    def draw(self, latent, progress, generator=None):
        low = round((self.t_max - 200) * (1 - progress) + self.t_min * progress)
        t = int(torch.randint(low, low + 201, (1,), generator=generator))
        noise = torch.randn(latent.shape, generator=generator, dtype=torch.float32)  # on the CPU: devices agree
        return Draw(t, noise.to(latent.device), generator)


def main(image=CAT, src="a cat", tgt="a pig", *options):
    config = load_config("edit", ["edit=latent", "objective=dds", *options])
    picture = read_image(Path(image), config.guidance.image_width)
    prior = load_prior(config.guidance.path, dtype=config.guidance.dtype, device=config.device)
    objective = build(Descending, config.objective, group="objective")
    subject = LatentImage(picture, prior)
    edit = build(EditConfig, config.edit, group="edit", seed=config.seed)
    editor = Editor(subject, prior, objective, Prompts.of(prior, src, tgt), edit)
    for _ in tqdm(range(editor.config.iterations)):
        editor.step()
    path = Path("outputs/examples/06/descending.png")
    write_image(path, subject.image().permute(1, 2, 0))
    print(path)


if __name__ == "__main__":
    sys.exit(run_script(main))
