"""Where the shipped weights are; apart from `model.py`, so that asking costs no import."""

from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"
