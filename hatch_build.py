"""Builds the page of `packlight serve` into the package, where npm is there to do it.

Without npm, or where its registry is out of reach, packlight is built without the page, and
`packlight serve` says so. An editable installation takes whatever `make page` has built.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class PageHook(BuildHookInterface):
    """Runs before the files of a wheel or a source distribution are gathered."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build the page if it is not there yet."""
        root = Path(self.root)
        page = root / "src" / "packlight" / "serve" / "page"
        npm = shutil.which("npm")
        if version == "editable" or (page / "index.html").is_file():
            return
        if npm is None:
            self.app.display_warning("npm is not here: packlight serve will have no page")
            return
        try:
            for command in (("ci", "--ignore-scripts"), ("run", "build")):
                subprocess.run([npm, *command], cwd=root / "web", check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            shutil.rmtree(page, ignore_errors=True)
            self.app.display_warning(f"packlight serve will have no page: {error}")
