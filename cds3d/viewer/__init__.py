"""The viewer: a field in a browser, edits started and watched from there. `cds3d view`, `view.py`.

guard.py     who may connect
sight.py     from a browser's camera to a picture of the fields
window.py    one browser window: its render thread and its controls
job.py       an edit in a process of its own: start, stop, resume, progress
places.py    the ball or box that an edit stays in, with handles
app.py       all of it together
"""
