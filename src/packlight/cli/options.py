"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

OUTPUT = "Output"
MORE = "For those who know what they want"

AnyModel = Annotated[
    Path,
    typer.Argument(
        metavar="MODEL",
        help="The model, an .onnx or .pt2 file; or a language model, a Hugging Face folder or a "
        ".gguf file.",
        show_default=False,
    ),
]
Data = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="PATH",
        help="Samples of what the model will see: an .npz or .npy file, a folder of pictures (a "
        "subfolder a class gives labels), or a folder of .wav files; for a language model a text, "
        "a .jsonl of chats, or a folder of them.",
        show_default=False,
    ),
]
Preprocess = Annotated[
    str | None,
    typer.Option(
        "--preprocess",
        metavar="HOW",
        help="How pictures become numbers: imagenet, 0..1, -1..1, 0..255, or "
        "mean=a,b,c,std=d,e,f. Without it the best is found from labels, or one is assumed and "
        "reported.",
        show_default=False,
    ),
]
Golden = Annotated[
    bool,
    typer.Option(
        "--golden/--no-golden",
        help="Put up to 8 held-out samples of yours, with both models' outputs, into the output "
        "folder, so that [bold]packlight verify[/bold] can run them on another machine.",
        rich_help_panel=OUTPUT,
    ),
]
Json = Annotated[
    bool,
    typer.Option(
        "--json", help="Print one JSON value on stdout, nothing else.", rich_help_panel=OUTPUT
    ),
]
Debug = Annotated[
    bool,
    typer.Option(
        "--debug", help="Show where in the code an error came from.", rich_help_panel=OUTPUT
    ),
]

Force = Annotated[
    bool,
    typer.Option(
        "--force",
        help="Replace the output folder, should it exist, once the new one is whole.",
        rich_help_panel=OUTPUT,
    ),
]

DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Say what would be done and what to expect; write nothing.",
        rich_help_panel=OUTPUT,
    ),
]

Seed = Annotated[
    int,
    typer.Option(
        "--seed",
        metavar="N",
        help="Same seed, inputs and versions: same bytes.",
        rich_help_panel=MORE,
    ),
]
