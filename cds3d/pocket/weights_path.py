"""Where the shipped weights are; in a module of its own, so that asking imports no model."""

from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"
