"""The viewer: a field in a browser, edits started and watched from there. `cds3d view`, `view.py`.

guard.py     who may connect
looking.py   from a browser's camera to a picture of the fields
window.py    one browser window: its render thread and its controls
photos.py    the capture's photos in a window
listing.py   the finished runs, and those that were stopped
filming.py   videos
places.py    the ball or box that an edit stays in, with handles
controls.py  the controls beside the picture
app.py       all of it together
"""
