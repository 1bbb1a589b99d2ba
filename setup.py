"""pip install . gives the package, its configurations, its scenes and pocket's weights."""

from pathlib import Path

from setuptools import find_packages, setup

setup(
    name="cds3d",
    version="0.1.0",
    description="Text-guided editing of images and radiance fields with Contrastive Denoising Score",
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.10",
    packages=[*find_packages(include=["cds3d*", "tensorf*"]), "cds3d.configs", "cds3d.scenes"],
    package_dir={"cds3d.configs": "configs", "cds3d.scenes": "scenes"},
    package_data={
        "cds3d": ["py.typed", "pocket/weights/*", "pocket/weights/*/*"],
        "tensorf": ["py.typed"],
        "cds3d.configs": ["*.yaml", "*/*.yaml"],
        "cds3d.scenes": ["*/*", "*/images/*"],
    },
    install_requires=[
        "torch>=2.6",
        "diffusers>=0.39",  # earlier ones fail with transformers>=5.6, and pip cannot be told of pairs
        "transformers>=4.48",
        "safetensors>=0.4",
        "hydra-core>=1.3,<2",
        "imageio>=2.34",
        "imageio-ffmpeg>=0.5",
        "numba>=0.60",
        "numpy>=1.26",
        "opencv-python-headless>=4.8",
        "pillow>=10.1",
        "pyyaml>=6",
        "tensorboard>=2.15",
        "torchmetrics>=1.2",
        "tqdm>=4.66",
    ],
    extras_require={
        "colmap": ["pycolmap>=4.2"],
        "heic": ["pillow-heif>=0.18"],
        "ray": ["ray>=2.40", "fsspec>=2024.2"],
        "viewer": ["viser>=1.1.1,<1.2"],
        "docs": ["mkdocs>=1.6,<2", "mkdocs-material>=9.5", "mkdocstrings[python]>=0.26"],
        "test": ["pytest>=8", "pytest-xdist>=3.5"],
    },
    entry_points={"console_scripts": ["cds3d = cds3d.cli:main"]},
)
