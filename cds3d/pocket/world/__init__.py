"""The procedural world: attributes, captions, 3D scenes, their images, captures and true edits. NumPy only."""
