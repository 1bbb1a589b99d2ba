"""The weights that ship with the package, where they are there: a plain Stable Diffusion folder that edits flowers."""

import pytest
import torch

from cds3d.editor import EditConfig, Editor
from cds3d.guidance import load_guidance
from cds3d.metrics.truth import TrueEdit, edit_figures
from cds3d.objectives.objective import Objective, Prompts
from cds3d.options import build, load_config
from cds3d.pocket.weights_path import WEIGHTS
from cds3d.pocket.world.capture import changed_region
from cds3d.pocket.world.raycast import render
from cds3d.pocket.world.scenes import Attributes, build_scene
from cds3d.subjects.image import LatentImage

pytestmark = pytest.mark.skipif(not (WEIGHTS / "model_index.json").exists(), reason="pocket's weights are not there")


def test_pocket_is_a_plain_pipeline_of_less_than_30_mb():
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(WEIGHTS)
    assert pipeline.unet.config.in_channels == 4
    assert sum(p.stat().st_size for p in WEIGHTS.rglob("*") if p.is_file()) < 30e6


def test_pocket_edits_a_flower_that_it_has_not_seen():
    # Seed 2,000,000 and on: training took seeds from 0, its own held-out set those from 1,000,000.
    before = Attributes(2_000_011, "flower", "daisy", "yellow", "garden")
    was, now = (render(build_scene(a, 256, 192), supersample=2).image for a in (before, before.edited(color="red")))
    guidance = load_guidance("pocket", device=torch.device("cpu"))
    config = load_config("edit", ["edit=latent"])
    objective = build(Objective, config.objective, scale=float(config.guidance.scale))
    prompts = Prompts(*(guidance.encode_text(text) for text in ("", "a yellow flower", "a red flower")))
    subject = LatentImage(torch.from_numpy(was).permute(2, 0, 1).float() / 255, guidance)
    Editor(subject, guidance, objective, prompts, EditConfig(60, config.edit.lr, config.edit.optimizer)).run()
    source, edited, truth = torch.from_numpy(was).float() / 255, subject.image().permute(1, 2, 0), torch.from_numpy(now)
    changed = torch.from_numpy(changed_region(was, now))
    assert changed.float().mean() > 0.01
    figures = edit_figures([source], [edited], [TrueEdit(truth.float() / 255, changed)])
    assert figures["edit_gain_db"] > 2, figures
