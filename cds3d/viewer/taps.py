"""Taps on touch screens, which viser's page takes for drags.

A browser gives a touch to the element that it begins on: that element has "captured" it from the start. viser's page
leaves every captured touch to the handles in the scene, so a tap never becomes a click. The page is served with lines
that give a touch back as it begins. A handle that is touched captures the touch again. Where a second finger comes
down, the first one was no tap, although it may rest in its place.
"""

from __future__ import annotations

import functools
import gzip

from websockets.http11 import Response

_SCRIPT = b"""<script>{
  let first;
  addEventListener("pointerdown", (event) => {
    if (event.target.tagName !== "CANVAS") return;
    if (event.isPrimary) event.target.releasePointerCapture(first = event.pointerId);
    else dispatchEvent(new PointerEvent("pointercancel", { pointerId: first }));
  }, true);
}</script>"""


def add_taps(answer: Response) -> None:
    """Let the page in an answer know taps. Other answers stay as they are."""
    encoding = answer.headers.get("Content-Encoding", "identity")
    if not answer.headers.get("Content-Type", "").startswith("text/html") or encoding not in ("gzip", "identity"):
        return
    answer.body = _with_taps(answer.body, encoding == "gzip")
    if "Content-Length" in answer.headers:  # else a second one would be added
        del answer.headers["Content-Length"]
    answer.headers["Content-Length"] = str(len(answer.body))


@functools.lru_cache(maxsize=2)  # viser's page, zipped and not
def _with_taps(page: bytes, zipped: bool) -> bytes:
    page = gzip.decompress(page) if zipped else page
    page = page.replace(b"<head>", b"<head>" + _SCRIPT, 1)
    return gzip.compress(page) if zipped else page
