"""Figures about images: one metric a file."""
