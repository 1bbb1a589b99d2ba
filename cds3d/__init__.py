"""Text-guided editing of images and radiance fields with Contrastive Denoising Score."""

import os

import tensorf.runtime  # noqa: F401  (thread and memory policy: has to come before torch)

# At its import transformers tells that torchvision is missing, which nothing here uses.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

__version__ = "0.1.0"
