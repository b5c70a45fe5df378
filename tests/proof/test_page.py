"""The page that checks a folder in a browser: with a real one where it is installed."""

from __future__ import annotations

import base64
import contextlib
import functools
import hashlib
import http.client
import http.server
import json
import re
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import numpy_helper

from packlight.errors import RuntimeCrashed, UnusableProof
from packlight.proof import Verification
from packlight.proof.page import page_policy, write_page
from packlight.proof.serve import PAGE, read_answer, serve_folder, verify_in_browser
from packlight.runtime import browser
from packlight.runtime.browser import why_no_browser

needs_browser = pytest.mark.skipif(bool(why_no_browser()), reason=why_no_browser())
Reseal = Callable[..., None]
# A software WebGPU, where the browser has one.
WEBGPU = ("--enable-unsafe-webgpu",)


def said(found: Verification, name: str) -> str:
    return next(f"{one.status}: {one.said}" for one in found.checks if one.name == name)


# What it is made of ------------------------------------------------------------------------------


def test_the_page_allows_its_own_script_and_style_alone() -> None:
    page = write_page()
    assert page_policy() in page
    assert page_policy().startswith("default-src 'none'; ")
    for tag in ("script", "style"):
        (text,) = re.findall(rf"<{tag}[^>]*>(.*?)</{tag}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in page_policy()
    assert "innerHTML" not in page and "http://" not in page and "https://" not in page
    assert not re.search(r"\son[a-z]+=|\ssrc=|\shref=\"[^#]", page)


def test_only_plain_files_are_served_and_the_page_is_our_own(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("1")
    (folder / "link").symlink_to(tmp_path / "secret")
    (folder / "a b?.bin").write_bytes(b"2")
    (folder / "verify.html").write_text("<script>steal()</script>")
    with serve_folder(folder) as (server, _):

        def ask(name: str) -> tuple[int, bytes, str]:
            link = http.client.HTTPConnection(server.origin.removeprefix("http://"))
            with contextlib.closing(link):
                link.request("GET", server.address(name).removeprefix(server.origin))
                answer = link.getresponse()
                return answer.status, answer.read(), answer.headers["Content-Security-Policy"]

        assert ask("a%20b%3F.bin")[:2] == (200, b"2")
        for name in ("link", "../secret", "packed", "original/model.onnx"):
            assert ask(name)[0] == 404
        status, page, policy = ask(PAGE)
        assert (status, page) == (200, write_page().encode())
        assert policy == f"{page_policy()}; frame-ancestors 'none'"
        assert ask("verify.html")[2] == policy, "under which its script does not run"
    (folder / "manifest.json").unlink()
    with pytest.raises(UnusableProof, match=r"holds no manifest\.json"), serve_folder(folder):
        pass


@pytest.mark.parametrize(
    "answer",
    [
        None,
        b"x",
        b"[]",
        b"{}",
        b'{"checks": 1, "seal": "", "browser": ""}',
        b'{"checks": [{}], "seal": "", "browser": ""}',
        b'{"checks": [{"name": "a", "status": "fine", "said": "", "figures": {}}], "seal": "",'
        b' "browser": ""}',
    ],
)
def test_an_answer_that_makes_no_sense_is_a_crash(answer: bytes | None) -> None:
    with pytest.raises(RuntimeCrashed):
        read_answer(answer, Path("packed"))


# In a browser ------------------------------------------------------------------------------------


@needs_browser
def test_a_whole_folder_is_proven_in_a_browser(whole: Path, original: Path) -> None:
    found = verify_in_browser(whole, original, options=WEBGPU)
    assert (found.verdict, found.exit_status) == ("proven", 0), str(found)
    assert [one.name for one in found.checks] == ["manifest", "files", "answers", "webgpu"]
    assert found.seal == json.loads((whole / "manifest.json").read_text())["sha256"]
    answers = found.checks[2]
    assert "WebAssembly: 8 golden samples" in answers.said
    assert "same class on 8 of 8" in answers.said
    assert answers.figures["ms"] > 0 and answers.figures["original_ms"] > 0
    assert answers.figures["share_of_range"] < 1e-5
    assert "WebGPU" in found.checks[3].said
    assert "Chrome" in found.machine["browser"]


@needs_browser
def test_changes_are_found_in_a_browser(folder: Path, reseal: Reseal) -> None:
    path = folder / "recipe.yaml"
    content = path.read_bytes()
    path.write_bytes(b"x" + content[1:])
    found = verify_in_browser(folder)
    assert found.exit_status == 4
    assert said(found, "files").startswith("failed: recipe.yaml was changed")
    assert said(found, "answers").startswith("not-checked")
    path.write_bytes(content)
    # A changed model whose hashes were changed with it: only its answers tell.
    model = onnx.load(folder / "model.onnx")
    weight = next(one for one in model.graph.initializer if one.name == "w3")
    changed = numpy_helper.to_array(weight).copy()
    changed[:, 2] *= 1.1
    weight.CopyFrom(numpy_helper.from_array(changed, "w3"))
    onnx.save(model, folder / "model.onnx")
    reseal(folder)
    found = verify_in_browser(folder)
    assert said(found, "answers").startswith("failed: WebAssembly: other answers than promised")


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002
        pass


@pytest.fixture
def static(folder: Path) -> Iterator[int]:
    """Any static server, in the folder; its port."""
    handler = functools.partial(_Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def see(address: str, profile: Path) -> str:
    """The page's elements once it is done."""
    done = subprocess.run(
        [
            browser._find_browser(),
            *(one for one in browser._OPTIONS if "host-resolver" not in one),
            "--no-sandbox",
            f"--user-data-dir={profile}",
            "--host-resolver-rules=MAP proof.test 127.0.0.1",
            "--virtual-time-budget=30000",
            "--dump-dom",
            address,
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.stdout


@needs_browser
def test_any_static_server_does_for_the_hashes(
    folder: Path, static: int, reseal: Reseal, tmp_path: Path
) -> None:
    claims: dict[str, Any] = {"model": "<img src=x onerror=alert(1)>\u202e", "verdict": "met"}
    reseal(folder, claims=claims)
    # The name is not the loopback's, so that the browser's own SHA-256 is not there.
    seen = see(f"http://proof.test:{static}/verify.html", tmp_path / "profile")
    assert 'data-verdict="intact"' in seen
    assert "are as they were written" in seen
    assert "onnxruntime-web is not beside this page" in seen
    assert "&lt;img src=x onerror=alert(1)&gt;\\u202e" in seen and "<img" not in seen
    (folder / "report.json").write_text("[]\n")
    seen = see(f"http://proof.test:{static}/verify.html", tmp_path / "profile")
    assert 'data-verdict="failed"' in seen and "report.json was changed" in seen
