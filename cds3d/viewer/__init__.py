"""The viewer: a field in a browser, edits started and watched from there. `cds3d view`, `view.py`.

guard.py     who may connect
taps.py      taps on touch screens
looking.py   from a browser's camera to a picture of the fields
window.py    one browser window: its render thread and its controls
photos.py    the capture's photos in a window
listing.py   the finished runs, and those that were stopped
filming.py   videos
places.py    where an edit stays: the ball or box, with handles
wording.py   messages in the names of the controls
controls.py  the controls beside the picture
app.py       all of it together
"""
