"""Pocket: a procedural, captioned 3D world (`world/`), and a small diffusion model that is trained on it (`model/`)."""
