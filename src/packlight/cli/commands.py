"""Commands on models: options in, one call of the Python API, something readable out."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from packlight.cli.options import (
    MORE,
    OUTPUT,
    AnyModel,
    Data,
    Debug,
    DryRun,
    Force,
    Golden,
    Json,
    Preprocess,
    Seed,
)
from packlight.cli.outcomes import one_sentence
from packlight.errors import WrongUsage
from packlight.version import __version__

_BUDGET = "What you allow and ask for"

app = typer.Typer(
    name="packlight",
    help=(
        "Makes a trained model smaller and faster, and proves that it still does its job.\n\n"
        "Start with [bold]packlight compress model.onnx --data samples.npz[/bold]."
    ),
    epilog=(
        "Exit status: 0 budget met, 3 best effort, 4 not worth it, 2 wrong usage or unusable "
        "input, 130 interrupted, 1 a fault of packlight."
    ),
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_COMPRESS = """Make a model smaller and faster, and prove that it still does its job.

Writes a folder with model.onnx, report.html (open it in a browser), report.json, recipe.yaml, \
and what `packlight verify` needs. The original is only read. Without --data a model can be \
compressed, but nobody can say whether it still gives the right answers.

[bold]Examples[/bold]

packlight compress net.onnx --data photos/

packlight compress net.onnx --data samples.npz --max-drop 1% --out packed/

packlight compress net.onnx --data samples.npz --max-size 25% --target browser

packlight compress net.onnx --data samples.npz --preset smallest --max-drop 0.5%

Exit status: 0 budget met, 3 best effort, 4 not worth it, 2 wrong usage or unusable input.
"""
_INSPECT = """Show where a model's bytes and milliseconds are, and what in it is redundant.

Nothing is written. With --data the time is measured on samples of yours, without it on \
made-up ones. Of a language model nothing is run: what it is made of, and how large GGUF files \
of it would be.

[bold]Example[/bold]

packlight inspect net.onnx
"""
_COMPARE = """Put two model files side by side on the same samples: quality, speed, memory, size.

Any two ONNX files will do, packed by packlight or by anyone else.

[bold]Example[/bold]

packlight compare net.onnx net.packed/model.onnx --data samples.npz
"""
_TARGETS = """List the devices, their runtimes, and what each of them runs fast.

Language models have targets of their own: llama.cpp and ollama.

[bold]Example[/bold]

packlight targets
"""


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"packlight {__version__}")
        raise typer.Exit


@app.callback()
def _packlight(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    pass


@app.command(help=_COMPRESS, no_args_is_help=True)
def compress(
    model: AnyModel,
    data: Data = None,
    preprocess: Preprocess = None,
    target: Annotated[
        str,
        typer.Option(
            "--target",
            metavar="NAME",
            help="The device it is meant for; see [bold]packlight targets[/bold]. For a language "
            "model: llama.cpp, ollama, onnxruntime or vllm.",
        ),
    ] = "laptop",
    max_drop: Annotated[
        str | None,
        typer.Option(
            "--max-drop",
            metavar="1%",
            help="Largest loss of quality: of right answers where samples have labels, else of "
            "sameness with the original.",
            rich_help_panel=_BUDGET,
            show_default=False,
        ),
    ] = None,
    max_size: Annotated[
        str | None,
        typer.Option(
            "--max-size",
            metavar="5MB|25%",
            help="Largest size, in bytes or as a share of the original.",
            rich_help_panel=_BUDGET,
            show_default=False,
        ),
    ] = None,
    max_latency: Annotated[
        str | None,
        typer.Option(
            "--max-latency",
            metavar="10ms|40%",
            help="Longest time of one run, or as a share of the original's.",
            rich_help_panel=_BUDGET,
            show_default=False,
        ),
    ] = None,
    max_download: Annotated[
        str | None,
        typer.Option(
            "--max-download",
            metavar="1MB|5%",
            help="Largest size of the packed file (see [bold]packlight pack[/bold]).",
            rich_help_panel=_BUDGET,
            show_default=False,
        ),
    ] = None,
    bits: Annotated[
        str | None,
        typer.Option(
            "--bits",
            metavar="4.5",
            help="Bits a weight of a language model, over the whole of it.",
            rich_help_panel=_BUDGET,
            show_default=False,
        ),
    ] = None,
    scheme: Annotated[
        str | None,
        typer.Option(
            "--scheme",
            metavar="NAME",
            help="How a language model is stored for vLLM: w4a16 (without it), w8a16, w8a8, fp8, "
            "nvfp4, 2:4 or 50%.",
            rich_help_panel=_BUDGET,
            show_default=False,
        ),
    ] = None,
    preset: Annotated[
        str,
        typer.Option(
            "--preset",
            metavar="NAME",
            help="What you want most, the budget kept: balanced (fast, then small), fastest, "
            "smallest (the download), lossless (nothing is rounded).",
            rich_help_panel=_BUDGET,
        ),
    ] = "balanced",
    prune: Annotated[
        str | None,
        typer.Option(
            "--prune",
            metavar="30%|auto",
            help="Remove the channels and residual branches that are missed least, and make two "
            "layers of low rank of one, so that this share of the multiplications goes; fit the "
            "rest to the original. auto: as much as the loss of quality allows. Without it "
            "something goes only where fewer bits do not reach the budget, or with --preset "
            "fastest; 0%: nothing goes. Of a language model (with --data) this share of its "
            "blocks goes, and nothing unasked.",
            rich_help_panel=MORE,
            show_default=False,
        ),
    ] = None,
    heal_minutes: Annotated[
        float,
        typer.Option(
            "--heal-minutes",
            metavar="N",
            help="Train the compressed model towards the original for so long, with its rounding "
            "in the loop; after --prune two thirds of the time go to what is left before anything "
            "is rounded. Weights rounded for entropy coding (weights-coded) keep their codes. An "
            "interrupted run goes on when the same command is given again. Needs "
            'no labels, but PyTorch (pip install "packlight\\[heal]").',
            rich_help_panel=MORE,
        ),
    ] = 0.0,
    metric: Annotated[
        str | None,
        typer.Option(
            "--metric",
            metavar="NAME|file.py:function",
            help="How quality is measured: a name, or your own Python function.",
            rich_help_panel=MORE,
            show_default=False,
        ),
    ] = None,
    recipe: Annotated[
        Path | None,
        typer.Option(
            "--recipe",
            metavar="FILE",
            help="Do what this recipe.yaml says, instead of searching. With `pins:` or `forbid:` "
            "in it: search, and keep to them.",
            rich_help_panel=MORE,
            show_default=False,
        ),
    ] = None,
    pin: Annotated[
        list[str] | None,
        typer.Option(
            "--pin",
            metavar="LAYER=CHOICE",
            help="This layer gets this choice (see [bold]packlight choices[/bold]), whatever the "
            "search finds; may be given again.",
            rich_help_panel=MORE,
            show_default=False,
        ),
    ] = None,
    forbid: Annotated[
        list[str] | None,
        typer.Option(
            "--forbid",
            metavar="CHOICE",
            help="No layer gets this choice; may be given again.",
            rich_help_panel=MORE,
            show_default=False,
        ),
    ] = None,
    workers: Annotated[
        str,
        typer.Option(
            "--workers",
            metavar="N|auto|ray://HOST:PORT",
            help="Processes that try candidates at the same time or, of a language model, share "
            "out the windows of its text (without --data its tensors); or a Ray cluster.",
            rich_help_panel=MORE,
        ),
    ] = "1",
    seed: Seed = 0,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="DIR",
            help="The folder for the result; without it MODEL.packed in the current directory "
            "(net.onnx goes to net.packed).",
            rich_help_panel=OUTPUT,
            show_default=False,
        ),
    ] = None,
    force: Force = False,
    golden: Golden = True,
    dry_run: DryRun = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Compress MODEL, save the result, print the verdict."""
    with one_sentence(debug=debug):
        from packlight.cli.progress import show_progress
        from packlight.report.folder import check_output

        folder = out if out is not None else Path(f"{model.stem}.packed")
        if not dry_run:
            inputs = [model, *([Path(data)] if data else []), *([recipe] if recipe else [])]
            check_output(folder, force=force, inputs=inputs)
        api = _load_api()
        kept = "unfinished" if api.is_language_model(model) else "healing"
        with show_progress(sys.stderr) as progress:
            found = api.compress(
                model,
                data=data,
                target=target,
                max_drop=max_drop,
                max_size=max_size,
                max_latency=max_latency,
                max_download=max_download,
                bits=bits,
                scheme=scheme,
                preset=preset,
                recipe=recipe,
                pin=_pins(pin or ()),
                forbid=tuple(forbid or ()),
                prune=prune,
                heal_minutes=heal_minutes,
                checkpoints=folder.with_name(f"{folder.name}.{kept}"),
                workers=workers,
                golden=golden,
                metric=metric,
                preprocess=preprocess,
                seed=seed,
                dry_run=dry_run,
                progress=progress,
            )
            if not dry_run:
                found.save(folder, force=force)
        if dry_run:
            _print_json(found.to_json()) if as_json else _print_lines(found.lines)
            return
        if as_json:
            _print_json({**found.to_json(), "output": str(folder)})
        else:
            from packlight.cli.render import print_result

            print_result(found, folder)
        status = int(found.exit_status)
    raise typer.Exit(status)


def _pins(texts: Sequence[str]) -> dict[str, str]:
    """`LAYER=CHOICE` texts as a mapping; a layer's name may hold = itself."""
    pins = {}
    for text in texts:
        name, equals, word = text.rpartition("=")
        if not equals or not name.strip() or not word.strip():
            raise WrongUsage(f"--pin {text!r}: give LAYER=CHOICE, as in /conv1/Conv=int8.")
        pins[name.strip()] = word.strip()
    return pins


@app.command(help=_INSPECT, no_args_is_help=True)
def inspect(
    model: AnyModel,
    data: Data = None,
    preprocess: Preprocess = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Print the anatomy of MODEL."""
    with one_sentence(debug=debug):
        from packlight.cli.progress import show_progress

        options = {} if preprocess is None else {"preprocess": preprocess}
        with show_progress(sys.stderr) as progress:
            anatomy = _load_api().inspect(model, data=data, progress=progress, **options)
        if as_json:
            _print_json(anatomy)
        else:
            from packlight.cli.render import print_anatomy

            print_anatomy(anatomy)


@app.command(help=_COMPARE, no_args_is_help=True)
def compare(
    first: Annotated[
        Path, typer.Argument(metavar="A", help="A model file: the original.", show_default=False)
    ],
    second: Annotated[
        Path,
        typer.Argument(metavar="B", help="Another: the one to judge.", show_default=False),
    ],
    data: Annotated[
        str,
        typer.Option(
            "--data",
            metavar="PATH",
            help="The samples that both are run on: .npz, .npy, pictures or .wav files.",
            show_default=False,
        ),
    ],
    preprocess: Preprocess = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Print A and B side by side."""
    with one_sentence(debug=debug):
        from packlight.cli.progress import show_progress

        with show_progress(sys.stderr) as progress:
            comparison = _load_api().compare(
                first, second, data=data, preprocess=preprocess, progress=progress
            )
        if as_json:
            _print_json(comparison.evidence_json())
        else:
            typer.echo(str(comparison))


@app.command(help=_TARGETS)
def targets(as_json: Json = False, debug: Debug = False) -> None:
    """Print what is known of each target."""
    with one_sentence(debug=debug):
        known = _load_api().targets()
        if as_json:
            _print_json(known)
        else:
            from packlight.cli.render import print_targets

            print_targets(known)


def _load_api() -> Any:
    """`packlight.api`, imported when a command needs it, so that `--help` answers at once."""
    return importlib.import_module("packlight.api")


def _print_json(value: object) -> None:
    from packlight.report import to_plain

    typer.echo(json.dumps(to_plain(value), indent=2, allow_nan=False))


def _print_lines(lines: tuple[str, ...]) -> None:
    from packlight.report.visible import visible

    for line in lines:
        typer.echo(visible(line, limit=2000))
