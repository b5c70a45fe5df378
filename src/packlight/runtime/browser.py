"""Runs models in a headless browser, in onnxruntime-web's WebAssembly build on one thread.

The browser is one that is installed (Chromium or Chrome, or the program that the variable
PACKLIGHT_BROWSER names). onnxruntime-web is a package of npm: `npm install onnxruntime-web`
puts it into `node_modules` of the folder, where it is found from there downwards; or
PACKLIGHT_ORT_WEB names its folder. Neither is fetched by packlight.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from packlight.errors import (
    MissingExtra,
    RuntimeCrashed,
    RuntimeOutOfMemory,
    RuntimeRefused,
    RuntimeTimedOut,
    WrongUsage,
)
from packlight.runtime import refusal, wire
from packlight.runtime.limits import Limits
from packlight.runtime.page_server import PageServer
from packlight.runtime.process import Feeds

BROWSER_VARIABLE = "PACKLIGHT_BROWSER"
PACKAGE_VARIABLE = "PACKLIGHT_ORT_WEB"

_PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_GLOBAL_MODULES = ("/usr/lib/node_modules", "/usr/local/lib/node_modules")
_PACKAGE_FILES = (
    "ort.wasm.min.mjs",
    "ort-wasm-simd-threaded.mjs",
    "ort-wasm-simd-threaded.wasm",
)
_PAGE_FILES = ("browser_page.html", "browser_page.js")
_KEEPER = Path(__file__).with_name("keeper.py")
# Nothing but this page: no address but the loopback, no reports, no updates, no sound.
_OPTIONS = (
    "--headless=new",
    "--disable-gpu",
    "--no-proxy-server",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    "--disable-background-networking",
    "--disable-background-timer-throttling",
    "--disable-backgrounding-occluded-windows",
    "--disable-breakpad",
    "--disable-client-side-phishing-detection",
    "--disable-component-update",
    "--disable-crash-reporter",
    "--disable-default-apps",
    "--disable-dev-shm-usage",
    "--disable-domain-reliability",
    "--disable-extensions",
    "--disable-features=MediaRouter,OptimizationHints,Translate",
    "--disable-renderer-backgrounding",
    "--disable-sync",
    "--metrics-recording-only",
    "--mute-audio",
    "--no-default-browser-check",
    "--no-first-run",
    "--no-pings",
    "--password-store=basic",
    "--use-mock-keychain",
)
_START_SECONDS = 60.0
_LEAST_ROUNDS = 6
_ROUNDS_LIMIT = 1_000_000
# Of the page's answer: outputs come in base64, four bytes for three.
_ANSWER_BYTES = 256 << 20
_DEFAULT = Limits()


@dataclass(frozen=True)
class BrowserRun:
    """What a browser found.

    milliseconds: [files, rounds done], interleaved: a column belongs to one round.
    outputs: of each file's first run, where they were asked for.
    runtime: "onnxruntime-web 1.30.0 WASM, Chromium 156".
    """

    milliseconds: NDArray[np.float64]
    outputs: tuple[dict[str, NDArray[Any]], ...]
    runtime: str


def why_no_browser() -> str:
    """What is missing to measure in a browser, and what to do; '' where nothing is."""
    try:
        _find_browser()
        _find_package()
    except MissingExtra as error:
        return str(error)
    return ""


def time_in_browser(
    paths: Sequence[Path],
    feeds: Feeds | Sequence[Feeds],
    *,
    rounds: int,
    seconds: float | None = None,
    limits: Limits = _DEFAULT,
) -> NDArray[np.float64]:
    """Milliseconds of each file's runs in a browser: [files, rounds done]; see run_in_browser."""
    return run_in_browser(paths, feeds, rounds=rounds, seconds=seconds, limits=limits).milliseconds


def run_in_browser(
    paths: Sequence[Path],
    feeds: Feeds | Sequence[Feeds],
    *,
    rounds: int,
    seconds: float | None = None,
    with_outputs: bool = False,
    limits: Limits = _DEFAULT,
) -> BrowserRun:
    """Run files in a headless browser, in turns, on one thread, and time each run.

    feeds: one mapping for all files, or one for each. seconds: after that long no further
    round begins, though six are always done; a tenth of it (at most a second) warms up before.
    with_outputs: bring the outputs of one run of each file too. limits: time of the whole
    (the browser's memory is bounded by its own limits: 4 GB a page).
    Raises MissingExtra where browser or package are not installed, RuntimeRefused for a file
    that cannot be loaded or run, RuntimeCrashed, RuntimeTimedOut or RuntimeOutOfMemory.
    """
    groups = [feeds] * len(paths) if isinstance(feeds, Mapping) else list(feeds)
    if not paths or not 1 <= rounds <= _ROUNDS_LIMIT or len(groups) != len(paths):
        raise WrongUsage(
            f"A browser runs at least one file in 1 to {_ROUNDS_LIMIT} rounds, with feeds for "
            f"each, not {len(paths)} in {rounds} with feeds for {len(groups)}."
        )
    package = _find_package()
    files = _files_of(package)
    job = _describe_job(paths, groups, files)
    job |= {"rounds": rounds, "seconds": seconds, "least": _LEAST_ROUNDS, "outputs": with_outputs}
    files["job.json"] = json.dumps(job, allow_nan=False).encode()
    with PageServer(files, limit_bytes=_ANSWER_BYTES) as server:
        names = [path.name for path in paths]
        answer = show_page(server, _PAGE_FILES[0], f"running {', '.join(names)}", limits=limits)
    found = _read_answer(answer, names, rounds)
    agent = re.search(r"Chrome/(\d+)", str(found.get("browser")))
    where = f"Chromium {agent[1]}" if agent else "browser"
    return BrowserRun(
        found["milliseconds"],
        found["outputs"],
        f"onnxruntime-web {_version_of(package)} WASM, {where}",
    )


def _find_browser() -> str:
    named = os.environ.get(BROWSER_VARIABLE)
    for program in [named] if named else _PROGRAMS:
        found = shutil.which(program)
        if found:
            return found
    looked = f"{BROWSER_VARIABLE} names {named!r}, which is no program" if named else "none is here"
    raise MissingExtra(
        f"Measuring in a browser needs Chromium or Chrome, and {looked}: install one, or let the "
        f"variable {BROWSER_VARIABLE} name its program."
    )


def _find_package() -> Path:
    """The folder `dist` of onnxruntime-web."""
    named = os.environ.get(PACKAGE_VARIABLE)
    here = Path.cwd()
    modules = [folder / "node_modules" for folder in (here, *here.parents)]
    modules += [Path(folder) for folder in os.environ.get("NODE_PATH", "").split(":") if folder]
    modules += [Path(folder) for folder in _GLOBAL_MODULES]
    found = [Path(named)] if named else [folder / "onnxruntime-web" for folder in modules]
    for package in found:
        if all((package / "dist" / name).is_file() for name in _PACKAGE_FILES):
            return package
    looked = f"the folder {named} does not hold it" if named else "it is not installed here"
    raise MissingExtra(
        f"Measuring in a browser needs npm's package onnxruntime-web, 1.19 or later, and {looked}: "
        f"run `npm install onnxruntime-web`, or let the variable {PACKAGE_VARIABLE} name its "
        "folder."
    )


def _version_of(package: Path) -> str:
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        content = json.loads((package / "package.json").read_text(encoding="utf-8"))
        return str(content["version"])[:40]
    return "of unknown version"


def _files_of(package: Path) -> dict[str, Path | bytes]:
    """What the page is made of, by the names it asks for."""
    room = Path(__file__).parent
    files: dict[str, Path | bytes] = {name: room / name for name in _PAGE_FILES}
    return files | {name: package / "dist" / name for name in _PACKAGE_FILES}


def _describe_job(
    paths: Sequence[Path], groups: Sequence[Feeds], files: dict[str, Path | bytes]
) -> dict[str, Any]:
    """What the page is to do; models and feeds are added to `files`."""
    models = []
    for number, (path, feeds) in enumerate(zip(paths, groups, strict=True)):
        if not path.is_file():
            raise RuntimeRefused(f"There is no file {path} to load.")
        files[f"model{number}"] = path
        entries = []
        for place, (name, value) in enumerate(feeds.items()):
            array = np.asarray(value)
            if array.dtype.name not in wire.DTYPES:
                raise RuntimeRefused(
                    f"Input {name!r} of {path.name} was given {array.dtype}; only numeric tensors "
                    "can be fed to a browser."
                )
            file = f"feed{number}.{place}"
            files[file] = array.astype(array.dtype.newbyteorder("<")).tobytes()
            entries.append(
                {"name": name, "dtype": array.dtype.name, "shape": [*array.shape], "file": file}
            )
        models.append({"file": f"model{number}", "feeds": entries})
    return {"models": models}


def runtime_files() -> dict[str, Path]:
    """The files of onnxruntime-web that a page needs, by name; those for WebGPU where it has them.

    Raises MissingExtra where it is not installed.
    """
    folder = _find_package() / "dist"
    more = [folder / "ort.webgpu.min.mjs", *folder.glob("ort-wasm-simd-threaded.*.*")]
    found = {path.name: path for path in more if path.is_file() and path.suffix != ".map"}
    return found | {name: folder / name for name in _PACKAGE_FILES}


def show_page(
    server: PageServer,
    name: str,
    doing: str,
    *,
    options: Sequence[str] = (),
    limits: Limits = _DEFAULT,
) -> bytes | None:
    """Open a page of a running server in a headless browser and give what it posts.

    doing: what it does, for messages. options: of the browser, beside those it always gets. None:
    the answer was too long. Raises MissingExtra, RuntimeCrashed or RuntimeTimedOut.
    """
    seconds, browser = limits.seconds, _find_browser()
    with _open_page(browser, server.address(name), options) as (keeper, errors):
        arrived = False
        deadline = time.monotonic() + _START_SECONDS
        while not server.answered.wait(0.05):
            if server.arrived.is_set() and not arrived:
                # Starting must not eat the time of the work.
                arrived, deadline = True, time.monotonic() + seconds
            if keeper.poll() is not None or server.left.is_set():
                if server.answered.wait(0.5):
                    break
                raise RuntimeCrashed(f"The browser died while {doing}.{_last_words(errors)}")
            if time.monotonic() < deadline:
                continue
            if not arrived:
                raise RuntimeTimedOut(
                    f"The browser {browser} did not open its page in {_START_SECONDS:g} s and was "
                    f"stopped.{_last_words(errors)}"
                )
            raise RuntimeTimedOut(
                f"The browser took longer than {seconds:g} s for {doing} and was stopped; "
                "allow more time, or use a smaller model or input."
            )
    return server.answer


@contextlib.contextmanager
def _open_page(
    browser: str, address: str, more: Sequence[str]
) -> Iterator[tuple[subprocess.Popen[bytes], IO[bytes]]]:
    """The browser's keeper, while it shows a page, and what the browser prints as errors."""
    # Chromium's sandbox does not start for root; whoever is root is in a container, as a rule.
    options = [*_OPTIONS, *more, *(["--no-sandbox"] if os.geteuid() == 0 else []), address]
    with tempfile.TemporaryFile() as errors:
        keeper = subprocess.Popen(
            [sys.executable, "-I", str(_KEEPER), browser, *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            # Ctrl-C in a terminal goes to a whole group: the keeper ends when its input does.
            process_group=0,
        )
        try:
            yield keeper, errors
        finally:
            if keeper.stdin is not None:
                keeper.stdin.close()
            try:
                keeper.wait(timeout=20)
            except subprocess.TimeoutExpired:
                keeper.kill()
                keeper.wait()


def _last_words(errors: IO[bytes]) -> str:
    size = os.fstat(errors.fileno()).st_size
    # The browser writes at the same place in the file: it must not be moved.
    text = os.pread(errors.fileno(), 1 << 14, max(0, size - (1 << 14))).decode("utf-8", "replace")
    last = next((line for line in reversed(text.splitlines()) if line.strip()), "")
    return f" Its last words: {refusal.first_sentence(last[-400:])}" if last else ""


def _read_answer(answer: bytes | None, names: Sequence[str], rounds: int) -> dict[str, Any]:
    """The page's answer, checked: it comes from where a stranger's file was run."""
    if answer is None:
        raise RuntimeRefused(
            f"The outputs of {', '.join(names)} are larger than the {_ANSWER_BYTES >> 20} MiB that "
            "a browser may answer with; use fewer samples at a time."
        )
    try:
        content = json.loads(answer)
        if "error" in content:
            name = names[content["file"]]
            doing = {"loading": "loading", "running": "running"}.get(content["doing"], "preparing")
            _refuse(f"{doing} {name} in a browser", str(content["error"]))
        table = np.array(content["milliseconds"], np.float64)
        outputs = tuple(
            {name: _decode(entry) for name, entry in each.items()} for each in content["outputs"]
        )
        if (
            table.ndim != 2
            or len(table) != len(names)
            or not 1 <= table.shape[1] <= rounds
            or not np.isfinite(table).all()
            or len(outputs) != len(names)
        ):
            raise ValueError(table.shape)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
        raise RuntimeCrashed(
            f"The browser's answer about {', '.join(names)} makes no sense; do not trust these "
            "files."
        ) from error
    return {"milliseconds": table, "outputs": outputs, "browser": content.get("browser")}


def _refuse(doing: str, message: str) -> None:
    if refusal.speaks_of_memory(message):
        raise RuntimeOutOfMemory(
            f"The browser needed more memory for {doing} than a page can have; use a smaller model "
            "or input."
        )
    said = re.sub(r"^.*?ERROR_CODE: \d+, ERROR_MESSAGE: ", "", message, flags=re.DOTALL)
    raise RuntimeRefused(f"The runtime refused {doing}: {refusal.first_sentence(said)}")


def _decode(entry: Mapping[str, Any]) -> NDArray[Any]:
    dtype, shape = entry["dtype"], entry["shape"]
    if dtype not in wire.DTYPES or not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError(entry)
    try:
        held = base64.b64decode(entry["data"], validate=True)
    except binascii.Error as error:
        raise ValueError(dtype) from error
    if math.prod(shape) * np.dtype(dtype).itemsize != len(held):
        raise ValueError(shape)
    return np.frombuffer(held, np.dtype(dtype).newbyteorder("<")).reshape(shape).astype(dtype)
