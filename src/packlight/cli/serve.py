"""`packlight serve`: a page on this machine that does what the other commands do."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from packlight.cli.commands import app
from packlight.cli.options import MORE, Debug
from packlight.cli.outcomes import one_sentence

_SERVE = """Open a page in the browser that compresses models, for those who like that better.

The page is served by this machine to this machine: models and samples stay here, and nothing is \
loaded from elsewhere. Jobs go on when the tab is closed. Needs \
`pip install "packlight\\[serve]"`.

[bold]Example[/bold]

packlight serve
"""


@app.command(help=_SERVE)
def serve(
    port: Annotated[
        int, typer.Option("--port", metavar="N", help="The port; 0 takes a free one.")
    ] = 0,
    host: Annotated[
        str,
        typer.Option(
            "--host",
            metavar="ADDRESS",
            help="The address to listen on. Any other than this machine's own lets other machines "
            "in, unencrypted.",
            rich_help_panel=MORE,
        ),
    ] = "127.0.0.1",
    no_open: Annotated[
        bool, typer.Option("--no-open", help="Only print the link, open no browser.")
    ] = False,
    state: Annotated[
        Path | None,
        typer.Option(
            "--state",
            metavar="DIR",
            help="Where models, samples, results and the history lie; without it a folder under "
            "~/.local/state.",
            show_default=False,
        ),
    ] = None,
    max_upload: Annotated[
        str,
        typer.Option(
            "--max-upload",
            metavar="2GB",
            help="Largest model, and largest samples of a model, that are taken.",
            rich_help_panel=MORE,
        ),
    ] = "2GB",
    debug: Debug = False,
) -> None:
    """Serve the page until Ctrl-C."""
    with one_sentence(debug=debug):
        from packlight.plan.budget import parse_size
        from packlight.serve.start import serve as run

        limit = parse_size(max_upload, 0, option="max-upload")
        run(
            host=host,
            port=port,
            folder=state,
            upload_limit=limit,
            browser=not no_open,
            debug=debug,
            say=lambda line: typer.echo(line, err=True),
        )
