"""A server without a socket, asked as a browser would."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette", reason='pip install "packlight[serve]": starlette is not here')
pytest.importorskip("httpx2", reason="pip install httpx2, with which starlette tests")

from starlette.testclient import TestClient

from packlight.serve.app import make_app
from packlight.serve.guard import Door, Guard, make_door
from packlight.serve.state import open_state

PORT = 8765
ADDRESS = f"http://127.0.0.1:{PORT}"


class Browser:
    """A client that holds the session's cookie; `send` sends what the page sends."""

    def __init__(self, app: Guard, client: TestClient) -> None:
        self.app, self.client, self.door = app, client, app.door
        self.client.cookies.set(self.door.cookie, self.door.session)

    def get(self, path: str) -> Any:
        return self.client.get(path)

    def post(self, path: str, body: Any = None) -> Any:
        return self.client.post(path, json={} if body is None else body)

    def upload(self, path: str, content: bytes, **query: str) -> Any:
        headers = {"content-type": "application/octet-stream"}
        return self.client.post(path, content=content, params=query, headers=headers)

    def delete(self, path: str) -> Any:
        return self.client.delete(path, headers={"content-type": "application/json"})


@pytest.fixture
def open_browser(tmp_path: Path) -> Iterator[Callable[..., Browser]]:
    """Starts servers on the same state folder, one at a time; `stop` ends the last one."""
    with contextlib.ExitStack() as stack:
        last = contextlib.ExitStack()
        stack.callback(lambda: last.close())

        def start(**options: Any) -> Browser:
            nonlocal last
            last.close()
            last = contextlib.ExitStack()
            state = open_state(tmp_path / "state")
            last.callback(state.close)
            door: Door = make_door(["127.0.0.1", "localhost"], PORT, lambda link: None)
            page = tmp_path / "page"
            for name in ("index.html", "assets/page.js", "ort/ort.wasm"):
                (page / name).parent.mkdir(parents=True, exist_ok=True)
                (page / name).write_text(f"this is {name}")
            given = {"index.html": page / "index.html", "assets/page.js": page / "assets/page.js"}
            given |= {"ort/ort.wasm": page / "ort/ort.wasm"}
            app = make_app(state, door, **{"upload_limit": 1 << 20, "files": given, **options})
            client = last.enter_context(
                TestClient(app, base_url=ADDRESS, raise_server_exceptions=False)
            )
            return Browser(app, client)

        yield start


@pytest.fixture
def browser(open_browser: Callable[..., Browser]) -> Browser:
    """A browser at the page of a fresh server."""
    return open_browser()


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """The state folder of `open_browser`."""
    return tmp_path / "state"


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory, write_mlp: Callable[..., Path]) -> bytes:
    """A small model file."""
    return write_mlp(tmp_path_factory.mktemp("small") / "small.onnx", hidden=32).read_bytes()


@pytest.fixture
def no_child(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Questions to a child are answered at once with a model of one input; gives what was asked."""
    asked: list[dict[str, Any]] = []

    async def ask(request: dict[str, Any], work: Path, **options: Any) -> dict[str, Any]:
        asked.append(request)
        if request["do"] == "compress":
            raise AssertionError("no job was expected")
        return {"inputs": [{"name": "x", "shape": ["n", 16], "dtype": "float32"}], "outputs": []}

    monkeypatch.setattr("packlight.serve.site.ask_child", ask)
    monkeypatch.setattr("packlight.serve.jobs.ask_child", ask)
    return asked
