"""`verify.html`: checks the folder that it lies in, in a browser, with nothing from elsewhere."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from importlib.resources import files


@cache
def write_page() -> str:
    """The page: its style and script stand in it, and its policy allows these two alone."""
    page = _read("page.html").replace("{policy}", page_policy())
    return page.replace("{style}", _style()).replace("{script}", _read("page.js"))


@cache
def page_policy() -> str:
    """The page's Content-Security-Policy: its own style and script, and what lies beside it."""
    style, script = _hash(_style()), _hash(_read("page.js"))
    return (
        f"default-src 'none'; script-src {script} 'self' 'wasm-unsafe-eval'; "
        f"style-src {style}; connect-src 'self'; base-uri 'none'; form-action 'none'"
    )


def _style() -> str:
    """The report's style, and what this page has beyond."""
    return (files("packlight.report") / "page.css").read_text(encoding="utf-8") + _read("page.css")


def _read(name: str) -> str:
    return (files("packlight.proof") / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"
