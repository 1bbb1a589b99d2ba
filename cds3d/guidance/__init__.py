"""A Stable-Diffusion-class model as an edit sees it: load, text, image to latent and back, noise, features."""

from cds3d.guidance.guidance import Guidance
from cds3d.guidance.loading import load_guidance

__all__ = ["Guidance", "load_guidance"]
