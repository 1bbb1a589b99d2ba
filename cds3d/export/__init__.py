"""Fields as other programs read them: a dataset of views, a preview of splats, a cloud of points."""
