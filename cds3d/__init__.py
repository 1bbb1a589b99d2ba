"""Text-guided editing of images and radiance fields with Contrastive Denoising Score."""

import tensorf.runtime  # noqa: F401  (thread and memory policy: has to come before torch)

__version__ = "0.1.0"
