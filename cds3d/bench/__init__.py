"""Edits with known truth: objectives compared over held-out scenes of the procedural world."""
