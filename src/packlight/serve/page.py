"""Routes of the page itself: its files, as they were listed when the server started."""

from __future__ import annotations

import os
from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse, RedirectResponse, Response

from packlight.errors import MissingExtra
from packlight.serve.errors import Refused
from packlight.serve.guard import Door

FOLDER = Path(__file__).with_name("page")
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".json": "application/json",
    ".wasm": "application/wasm",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".woff2": "font/woff2",
}


def list_page(folder: Path = FOLDER) -> dict[str, Path]:
    """The files of the page by what comes after the server's address; links are left out."""
    found = {}
    for place, _, files in os.walk(folder):
        for name in files:
            path = Path(place) / name
            if not path.is_symlink():
                found[path.relative_to(folder).as_posix()] = path
    return found


def check_page(folder: Path = FOLDER) -> None:
    """Raises MissingExtra where this installation has no page."""
    if not (folder / "index.html").is_file():
        raise MissingExtra(
            "This installation of packlight has no page: run `make page` in a clone of it (which "
            "needs npm), or install a wheel of packlight, which holds the page."
        )


async def show_page(request: Request) -> Response:
    """GET /: the page. GET /assets/..., /ort/...: what it consists of."""
    files: dict[str, Path] = request.app.state.page
    name = request.scope["path"].removeprefix("/") or "index.html"
    if name not in files:
        raise Refused(404, "There is no such file of the page: it may not have been built.")
    kind = _TYPES.get(files[name].suffix, "application/octet-stream")
    return FileResponse(files[name], media_type=kind)


async def open_door(request: Request) -> Response:
    """GET /open/{token}: the link that is good for one use."""
    door: Door = request.app.state.door
    known = door.knows(request.cookies.get(door.cookie, ""))
    if not known and not door.let_in(request.path_params["token"]):
        raise Refused(
            401,
            "This link was used already, or is another server's: packlight serve printed a "
            "new one.",
        )
    answer = RedirectResponse("/", 303)
    answer.set_cookie(door.cookie, door.session, httponly=True, samesite="strict", path="/")
    return answer
