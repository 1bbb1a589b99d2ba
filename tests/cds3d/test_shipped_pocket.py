"""The weights that ship with the package, where they are there: a plain Stable Diffusion folder that edits flowers."""

import pytest
import torch
from defaults import edit_config, run

from cds3d.commands.preparing import build_objective
from cds3d.editor import Editor
from cds3d.guidance import load_prior
from cds3d.metrics.truth import Truth, picture_figures
from cds3d.objectives.objective import Prompts
from cds3d.options import load_config
from cds3d.pocket.weights_path import WEIGHTS
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
    was, now = (render(build_scene(a, 256, 192), supersample=2) for a in (before, before.edited(color="red")))
    prior = load_prior("pocket", device=torch.device("cpu"))
    config = load_config("edit", ["edit=latent"])
    prompts = Prompts.of(prior, "a yellow flower", "a red flower")
    source, truth = torch.from_numpy(was.image).float() / 255, Truth.of(was, now)
    subject = LatentImage(source.permute(2, 0, 1), prior)
    plain = edit_config(60, config.edit.lr, config.edit.optimizer)
    run(Editor(subject, prior, build_objective(config), prompts, plain))
    assert truth.changed.float().mean() > 0.01
    figures = picture_figures(subject.image().permute(1, 2, 0), source, truth)
    assert figures["edit_gain_db"] > 2, figures
