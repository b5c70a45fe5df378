"""`packlight verify DIR --browser`: serves the page until Ctrl-C, and prints what it found."""

from __future__ import annotations

import contextlib
from pathlib import Path

import typer

from packlight.cli.commands import _print_json
from packlight.cli.outcomes import INTERRUPTED
from packlight.cli.render import print_verification
from packlight.proof.serve import PAGE, read_answer, serve_folder, verify_in_browser


def check_in_browser(folder: Path, original: Path | None, *, as_json: bool) -> int:
    """Serve the folder's page; give the exit status of what it found.

    as_json: a headless browser opens it, and what it found is printed as JSON.
    """
    if as_json:
        found = verify_in_browser(folder, original)
        _print_json(found.to_json())
        return found.exit_status
    status = INTERRUPTED
    with serve_folder(folder, original) as (server, missing):
        typer.echo(f"Open this address in a browser on this machine:\n\n  {server.address(PAGE)}\n")
        if missing:
            typer.echo(f"The files are checked, the answers are not: {missing}\n", err=True)
        typer.echo("Ctrl-C ends it.", err=True)
        with contextlib.suppress(KeyboardInterrupt):
            server.answered.wait()
            found = read_answer(server.answer, folder)
            print_verification(found)
            status = found.exit_status
            server.closing.wait()  # the page can be used for as long as it is wanted
    return status
