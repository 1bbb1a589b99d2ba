"""A Stable-Diffusion-class model as an edit sees it: load, embed, encode and decode, answer queries."""

from cds3d.guidance.loading import load_prior
from cds3d.guidance.pipelines import prior_of_pipeline
from cds3d.guidance.prior import Pending, Prediction, Prior, Query
from cds3d.guidance.text import Prompt

__all__ = ["Pending", "Prediction", "Prior", "Prompt", "Query", "load_prior", "prior_of_pipeline"]
