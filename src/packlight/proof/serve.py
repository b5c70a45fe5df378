"""Serves a folder to a browser on this machine, with a page that checks it.

The page is packlight's own and not the folder's verify.html, which may be anyone's; both are the
same where nobody changed it. The folder's files are sent as they are, and run by nobody but
onnxruntime-web. Only the loopback is listened on, and every path begins with a random token.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from packlight.errors import MissingExtra, RuntimeCrashed
from packlight.graph.model import load_model
from packlight.proof.intact import read_manifest_bytes
from packlight.proof.page import page_policy, write_page
from packlight.proof.verification import Check, Status, Verification
from packlight.runtime.browser import runtime_files, show_page
from packlight.runtime.page_server import PageServer
from packlight.strict_json import parse_json

PAGE = "packlight:check.html"
"""Where the page is: no file can have this name, and so none can take its place."""

_ANSWER_BYTES = 1 << 20
_MOST_FILES = 10_000
_STATUSES: dict[str, Status] = {
    "passed": "passed",
    "failed": "failed",
    "not-checked": "not-checked",
}


@contextlib.contextmanager
def serve_folder(folder: Path, original: Path | None = None) -> Iterator[tuple[PageServer, str]]:
    """Serve a folder's plain files, and the page; give the server, and what is missing.

    original: the model that was compressed, for the page to time too. What is missing: a sentence
    where onnxruntime-web is not installed, else ''.
    Raises UnusableProof for a folder without a manifest, UnusableModel for an unusable original.
    """
    read_manifest_bytes(folder)
    files: dict[str, Path | bytes] = {}
    with os.scandir(folder) as entries:
        for entry in itertools.islice(entries, _MOST_FILES):
            if entry.is_file(follow_symlinks=False):
                # As a page's encodeURIComponent writes names.
                files[quote(entry.name, safe="!~*'()")] = folder / entry.name
    if original is not None:
        load_model(original)
        files["original/model.onnx"] = original
    missing = ""
    try:
        files |= {f"ort/{name}": path for name, path in runtime_files().items()}
    except MissingExtra as error:
        missing = str(error)
    files[quote(PAGE, safe=":")] = write_page().encode("utf-8")
    policy = f"{page_policy()}; frame-ancestors 'none'"
    with PageServer(files, limit_bytes=_ANSWER_BYTES, policy=policy) as server:
        yield server, missing


def verify_in_browser(
    folder: Path, original: Path | None = None, *, options: tuple[str, ...] = ()
) -> Verification:
    """Let a headless browser check a folder. options: of the browser, beside the usual ones.

    Raises MissingExtra where no browser is installed, and what else keeps it from answering.
    """
    with serve_folder(folder, original) as (server, _):
        answer = show_page(server, PAGE, f"checking {folder}", options=options)
    return read_answer(answer, folder)


def read_answer(answer: bytes | None, folder: Path) -> Verification:
    """What the page found. Raises RuntimeCrashed where that makes no sense."""
    where = "The browser's answer"
    advice = "do not trust this folder"
    value = parse_json(answer or b"", where, kind=RuntimeCrashed, advice=advice)
    try:
        checks = tuple(_check(one) for one in value["checks"])
        seal, browser = str(value["seal"])[:64], str(value["browser"])[:400]
    except (KeyError, TypeError, AttributeError) as error:
        raise RuntimeCrashed(f"{where} makes no sense ({error}): {advice}.") from None
    return Verification(folder, checks, seal, {"browser": browser})


def _check(value: Mapping[str, Any]) -> Check:
    figures = {
        str(key)[:40]: item if isinstance(item, (int, float, type(None))) else str(item)[:200]
        for key, item in value["figures"].items()
    }
    said = str(value["said"])[:2000]
    return Check(str(value["name"])[:40], _STATUSES[value["status"]], said, figures)
