"""Opens the server: the state folder, a socket, a link, and a browser where one is wanted."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import threading
import webbrowser
from collections.abc import Callable
from pathlib import Path

from packlight.errors import MissingExtra, WrongUsage
from packlight.serve.history import History
from packlight.serve.state import default_folder, open_state

LOOPBACK = "127.0.0.1"
UPLOAD_BYTES = 2_000_000_000
_MOST_CONNECTIONS = 200


def serve(
    *,
    host: str = LOOPBACK,
    port: int = 0,
    folder: Path | None = None,
    upload_limit: int = UPLOAD_BYTES,
    browser: bool = True,
    debug: bool = False,
    say: Callable[[str], None],
) -> None:
    """Serve the page until Ctrl-C.

    host: an address of this machine, by which browsers call it too. port: 0 for a free one.
    folder: for state. browser: open one. debug: show where in the code faults came from.
    say: gets lines for people.
    Raises MissingExtra without the extra or the page, WrongUsage and UnusableOutput for what
    cannot be listened on or written to.
    """
    check_extra()
    import uvicorn

    from packlight.serve.app import make_app
    from packlight.serve.guard import OPENING, make_door
    from packlight.serve.page import check_page

    check_page()
    local = is_loopback(host)
    with contextlib.ExitStack() as stack:
        state = open_state(default_folder() if folder is None else folder)
        stack.callback(state.close)
        History(state.history).close()  # what is wrong with it is said now, and not by uvicorn
        listening = stack.enter_context(listen(host, port))
        port = listening.getsockname()[1]
        name = f"[{host}]" if ":" in host else host
        address = f"http://{name}:{port}"
        names = [name, *((LOOPBACK, "localhost") if local else ())]

        def show_link(link: str) -> None:
            say(f"\nFor another browser, once: {address}{OPENING}{link}")

        door = make_door(names, port, show_link)

        def begin() -> None:
            link = f"{address}{OPENING}{door.link}"
            say(f"Open this link in a browser (it is good for one):\n\n  {link}\n")
            say(f"Models, samples and results lie in {state.folder}. Ctrl-C ends this.")
            if browser and local and _has_display():
                # One that waits for its window must not keep the server waiting.
                threading.Thread(target=webbrowser.open, args=(link,), daemon=True).start()

        if not local:
            say(
                f"Warning: {host} can be reached from other machines, and what is sent is not "
                "encrypted: whoever reads along gets models, samples and the key of the session."
            )
        app = make_app(state, door, upload_limit=upload_limit, paths=local, started=begin)
        config = uvicorn.Config(
            app,
            http="h11",
            ws="none",
            lifespan="on",
            log_config=None,
            log_level="error" if debug else "critical",
            access_log=False,  # addresses hold the link's token
            proxy_headers=False,
            server_header=False,
            limit_concurrency=_MOST_CONNECTIONS,
            timeout_graceful_shutdown=1,
        )
        with contextlib.suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[listening])


def _has_display() -> bool:
    """Whether a browser would have a window, and not take over the terminal."""
    return any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))


def check_extra() -> None:
    """Raise MissingExtra where the server's libraries are not installed."""
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as missing:
        raise MissingExtra(
            "The page needs a small server, which is not installed: pip install 'packlight[serve]'"
        ) from missing


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address. Raises WrongUsage for what is none.

    An address that stands for all others is refused: browsers must call the server by a name
    that it knows.
    """
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        raise WrongUsage(f"--host {host}: give an IP address of this machine.") from None
    if address.is_unspecified:
        raise WrongUsage(
            f"--host {host} stands for every address: give the one that browsers will use, such "
            "as 192.168.1.5."
        )
    return address.is_loopback


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises WrongUsage where that is not possible."""
    if not 0 <= port <= 65535:
        raise WrongUsage(f"--port {port}: give a number from 0 (a free one) to 65535.")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((host, port))
        made.listen(128)
    except OSError as error:
        made.close()
        raise WrongUsage(
            f"Nothing can listen on {host}, port {port} ({error.strerror or error}): give another "
            "--port or --host."
        ) from None
    return made
