"""Models of TensoRF's authors (github.com/apchenstu/TensoRF): their checkpoints, and a field that computes as they do.

    model = read_official(Path("model.th"))       # reading.py
    field = official_field(model, capture)        # placing.py: among the cameras of the capture it was trained on

The field (`field.py`) is a `Renderable` like any other. Its samples, opacities and colours are those of the authors'
renderer, in the authors' coordinates (`space.py`).
"""
