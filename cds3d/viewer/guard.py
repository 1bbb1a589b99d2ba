"""Who may connect to the viewer: this machine's own pages, or those that know the token.

viser takes connections from anywhere, so that any page that is open in the user's browser could press the viewer's
buttons. Its web server has no hook for a check; the call that starts it is wrapped while the viewer starts.
"""

from __future__ import annotations

import contextlib
import functools
import hmac
import http
import inspect
import io
from collections.abc import Callable
from http.cookies import CookieError, SimpleCookie
from unittest import mock
from urllib.parse import parse_qs, urlsplit

import viser
import websockets.asyncio.server
from websockets.datastructures import Headers
from websockets.http11 import Request, Response

from cds3d.viewer.taps import add_taps

COOKIE = "cds3d_token"
LOOPBACK = ("127.0.0.1", "localhost", "::1")


class _Server(viser.ViserServer):
    def request_share_url(self, verbose: bool = True) -> None:
        """Nothing: a browser can ask for a public address even without the button."""


def start_server(host: str, port: int, token: str | None) -> viser.ViserServer:
    """A viser server at `host` that refuses foreign pages, and those without the token if there is one.

    port: 0 takes a free one.
    """
    serve, wrapped = websockets.asyncio.server.serve, []

    def guarded(*args, process_request, **options):
        wrapped.append(process_request)
        return serve(*args, process_request=functools.partial(_checked, process_request, token), **options)

    quiet = contextlib.redirect_stdout(io.StringIO())  # it prints an address without the token
    with mock.patch.object(websockets.asyncio.server, "serve", guarded), quiet:
        server = _Server(host=host, port=port, label="cds3d", verbose=False)
    if not wrapped:
        server.stop()
        raise RuntimeError("this version of viser starts its server in another way: its connections are not guarded")
    server.gui.configure_theme(show_share_button=False, show_logo=False, control_width="large")
    server.gui.main_panel.dock_right()  # beside the picture, not on its edited half
    return server


async def _checked(then: Callable, token: str | None, connection, request: Request):
    """A refusal, or what viser answers, with the token kept in a cookie once the address has brought it."""
    problem = refusal(request, token)
    if problem is not None:
        body = problem.encode()
        headers = Headers({"Content-Type": "text/plain", "Content-Length": str(len(body)), "Connection": "close"})
        return Response(http.HTTPStatus.FORBIDDEN, "Forbidden", headers, body)
    answer = then(connection, request)
    if inspect.isawaitable(answer):
        answer = await answer
    if answer is not None:
        add_taps(answer)
    if answer is not None and token is not None and _token_of_address(request) == token:
        answer.headers["Set-Cookie"] = f"{_cookie(request)}={token}; HttpOnly; SameSite=Strict; Path=/"
    return answer


def refusal(request: Request, token: str | None) -> str | None:
    """Why a request is refused, or None.

    A page names itself in `Origin`, which has to be the address that it talks to. On this machine alone the address has
    to be this machine's too: a foreign name can be made to lead here. With a token, address or cookie have to know it.
    """
    host, origin = request.headers.get("Host", ""), request.headers.get("Origin")
    if origin is not None and _netloc(origin) != host:
        return "pages of other addresses may not use this viewer"
    if token is None:
        if urlsplit(f"//{host}").hostname not in LOOPBACK:
            return "this viewer is for this machine alone: open it at http://127.0.0.1"
        return None
    known = (_token_of_address(request), _token_of_cookie(request))
    if not any(hmac.compare_digest(value.encode(), token.encode()) for value in known):
        return "this viewer needs its token: open the address that it has printed"
    return None


def _netloc(origin: str) -> str | None:
    """Host and port of an origin; None of what is none."""
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return None


def _cookie(request: Request) -> str:
    """The cookie's name. Browsers keep one for all ports of a host, and two viewers have two tokens."""
    return f"{COOKIE}_{request.headers.get('Host', '').rpartition(':')[2]}"


def _token_of_address(request: Request) -> str:
    return parse_qs(urlsplit(request.path).query).get("token", [""])[0]


def _token_of_cookie(request: Request) -> str:
    try:
        cookie = SimpleCookie("; ".join(request.headers.get_all("Cookie")))
    except CookieError:
        return ""
    name = _cookie(request)
    return cookie[name].value if name in cookie else ""
