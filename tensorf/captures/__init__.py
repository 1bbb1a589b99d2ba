"""Captures: photos with known poses, the entrance of the data way (photos + poses -> Capture -> train).

    capture = load_capture(Path("scenes/flower"), width=504)

One reader a format (`llff.py`, `transforms.py`, `colmap.py`, `nsvf.py`) lists the views as the files state them;
`images.py` loads the photos as pinhole images; `geometry.py` places the cameras in a normalised world; `capture.py`
joins them.
"""

from tensorf.captures.capture import Capture, load_capture

__all__ = ["Capture", "load_capture"]
