"""`packlight pack` and `packlight unpack`: a folder as one small file, and back."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from packlight.cli.commands import _load_api, _print_json, app
from packlight.cli.options import OUTPUT, Debug, Json
from packlight.cli.outcomes import one_sentence

if TYPE_CHECKING:
    from packlight.transport import Transport


_PACK = """Write a packed folder as one small file for the download.

Everything in DIR goes in, but for report.html and report.json. `packlight unpack` gives \
the very same bytes back. It takes longer than zip and saves more, most of all for weights of \
few bits.

[bold]Examples[/bold]

packlight pack net.packed

packlight pack net.packed --out download/net.plz --with-report
"""
_UNPACK = """Give back the folder that a .plz file holds, byte for byte.

Nothing is written where the file is damaged, or the folder exists.

[bold]Example[/bold]

packlight unpack net.plz --out net/
"""


@app.command(help=_PACK, no_args_is_help=True)
def pack(
    folder: Annotated[
        Path,
        typer.Argument(metavar="DIR", help="The folder that compress wrote.", show_default=False),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="FILE",
            help="The file; without it DIR.plz next to the folder.",
            rich_help_panel=OUTPUT,
            show_default=False,
        ),
    ] = None,
    with_report: Annotated[
        bool,
        typer.Option(
            "--with-report",
            help="Pack report.html and report.json as well.",
            rich_help_panel=OUTPUT,
        ),
    ] = False,
    force: Annotated[
        bool,
        typer.Option("--force", help="Replace the file, should it exist.", rich_help_panel=OUTPUT),
    ] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Pack DIR, say what became of each file."""
    with one_sentence(debug=debug):
        from packlight.cli.progress import show_progress

        with show_progress(sys.stderr) as progress:
            done = _load_api().pack(
                folder, out, with_report=with_report, force=force, progress=progress
            )
        _show(done, as_json=as_json, packing=True)


@app.command(help=_UNPACK, no_args_is_help=True)
def unpack(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A .plz file.", show_default=False)],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="DIR",
            help="The folder, which must not exist; without it the file's name without .plz.",
            rich_help_panel=OUTPUT,
            show_default=False,
        ),
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Unpack FILE, say what came out."""
    with one_sentence(debug=debug):
        from packlight.cli.progress import show_progress

        with show_progress(sys.stderr) as progress:
            done = _load_api().unpack(file, out, progress=progress)
        _show(done, as_json=as_json, packing=False)


def _show(done: Transport, *, as_json: bool, packing: bool) -> None:
    if as_json:
        _print_json(_to_json(done, packing=packing))
    else:
        from packlight.cli.render import print_transport

        print_transport(done, packing=packing)


def _to_json(done: Transport, *, packing: bool) -> dict[str, Any]:
    files = [
        {
            "name": file.name,
            "size_bytes": file.size_bytes,
            "tensors_packed_bytes": file.packed_bytes,
        }
        | ({"methods": list(file.methods)} if packing else {})
        for file in done.files
    ]
    return {
        "output": str(done.path),
        "size_bytes": done.size_bytes,
        "packed_bytes": done.packed_bytes,
        "files": files,
        "left_out": list(done.left_out),
    }
