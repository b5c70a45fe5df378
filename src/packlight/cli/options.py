"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

OUTPUT = "Output"
BUDGET = "What you allow and ask for"

ModelFile = Annotated[
    Path,
    typer.Argument(metavar="MODEL", help="The model, an .onnx or .pt2 file.", show_default=False),
]
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
Bits = Annotated[
    str | None,
    typer.Option(
        "--bits",
        metavar="4.5",
        help="Bits a weight of a language model, over the whole of it.",
        rich_help_panel=BUDGET,
        show_default=False,
    ),
]
Scheme = Annotated[
    str | None,
    typer.Option(
        "--scheme",
        metavar="NAME",
        help="How a language model is stored for vLLM: w4a16 (without it), w8a16, w8a8, fp8, "
        "nvfp4, 2:4 or 50%.",
        rich_help_panel=BUDGET,
        show_default=False,
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
