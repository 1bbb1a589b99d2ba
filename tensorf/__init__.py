"""Tensorial radiance fields (TensoRF, Chen et al., ECCV 2022) that train and render on a bare CPU or on CUDA."""

import tensorf.runtime  # noqa: F401  (thread and memory policy: has to come before torch)
