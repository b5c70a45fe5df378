"""`packlight verify`: a folder's own promises, held on this machine or in a browser."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from packlight.cli.commands import _load_api, _print_json, app
from packlight.cli.options import Debug, Json
from packlight.cli.outcomes import one_sentence

_VERIFY = """Check on this machine what a packed folder promises.

Every file is held against its hash, the model runs on the golden samples in the folder, and time \
and memory are measured here. With --original, or with the original in the folder, both are \
compared.

[bold]Examples[/bold]

packlight verify net.packed

packlight verify net.packed --original net.onnx

packlight verify net.packed --browser

Exit status: 0 proven, 3 intact (its answers could not be checked), 4 failed, 2 no proof is there.
"""


@app.command(help=_VERIFY, no_args_is_help=True)
def verify(
    folder: Annotated[
        Path,
        typer.Argument(metavar="DIR", help="The folder that compress wrote.", show_default=False),
    ],
    original: Annotated[
        Path | None,
        typer.Option(
            "--original",
            metavar="MODEL",
            help="The model that was compressed, to compare with.",
            show_default=False,
        ),
    ] = None,
    browser: Annotated[
        bool,
        typer.Option(
            "--browser",
            help="Serve the folder's verify.html on this machine, to check it in a browser; with "
            "--json a headless one does, and what it found is printed.",
        ),
    ] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Check DIR, print what was found."""
    with one_sentence(debug=debug):
        from packlight.cli.progress import show_progress

        if browser:
            from packlight.cli.verify_browser import check_in_browser

            raise typer.Exit(check_in_browser(folder, original, as_json=as_json))
        with show_progress(sys.stderr) as progress:
            found = _load_api().verify(folder, original=original, progress=progress)
        if as_json:
            _print_json(found.to_json())
        else:
            from packlight.cli.render import print_verification

            print_verification(found)
        status = int(found.exit_status)
    raise typer.Exit(status)
