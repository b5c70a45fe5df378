"""The door: what a user hands over for a language model, opened and checked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from packlight.errors import UnusableSamples, WrongUsage
from packlight.language.ask import read_ask
from packlight.language.forecast import LanguageForecast
from packlight.language.recipe import read_language_recipe
from packlight.language.result import LanguageResult
from packlight.language.shorten import outline
from packlight.language.story import compress_language_model
from packlight.language.targets import LANGUAGE_TARGETS
from packlight.llm.checkpoint import Checkpoint, open_checkpoint
from packlight.llm.text import Tokenize, Windows, open_tokenizer, read_windows
from packlight.plan.workers import parse_workers
from packlight.progress import Progress
from packlight.runtime.llamacpp import LlamaCpp
from packlight.scratch import Scratch


def enter(
    model: str | Path,
    *,
    data: object,
    target: str,
    bits: str | float | None,
    max_size: str | float | None,
    max_drop: str | float | None,
    prune: str | float | None = None,
    recipe: str | Path | None,
    scheme: str | None,
    pins: Mapping[str, str],
    scratch: Path | None,
    seed: int,
    workers: int | str,
    dry_run: bool,
    progress: Progress,
) -> LanguageResult | LanguageForecast:
    """Open a Hugging Face folder or a GGUF file and a text, and make the model smaller.

    data: a text, Markdown or `.jsonl` file, or a folder of them. bits: a weight, over all
    tensors. max_size: of the file. max_drop: of the agreement on the most probable token.
    scheme: for vLLM. prune: share of the blocks that goes.
    scratch: a folder for unfinished files, with which a killed run goes on.
    workers: processes, or a Ray cluster that sees the folders of the model and of unfinished
    files; with a text, of which all windows pass through a block before the next, they share out
    the windows.
    Raises PacklightError with a sentence for the user.
    """
    path = Path(model)
    given = None if recipe is None else read_language_recipe(Path(recipe))
    progress.stage("reading the model and the text")
    checkpoint = open_checkpoint(path)
    ask = read_ask(
        target=target if given is None else given.target,
        original_bytes=checkpoint.size_bytes,
        bits=bits,
        max_size=max_size,
        max_drop=max_drop,
        pins=pins,
        types=None if given is None else given.types or None,
        scheme=scheme if given is None or scheme else given.scheme or None,
        prune=prune,
        removed=() if given is None else given.removed,
    )
    LANGUAGE_TARGETS[ask.target].check(outline(checkpoint, ask), ask)
    if given is not None and given.text and data is None:
        raise WrongUsage(
            f"{recipe} was made with a text, without which the file would be another: give --data."
        )
    if (ask.prune or ask.removed) and data is None:
        raise WrongUsage(
            "Which blocks of a language model are missed least, and what makes up for them, is "
            "measured on a text: give --data, or leave --prune out."
        )
    workers = parse_workers(workers) if isinstance(workers, str) else workers
    windows = None if data is None else _windows(checkpoint, data)
    inputs = [path, *(Path(one) for one in (data, recipe) if isinstance(one, str | Path))]
    unfinished = Scratch(scratch)
    try:
        return compress_language_model(
            checkpoint,
            ask,
            windows,
            unfinished,
            inputs=inputs,
            seed=seed if given is None else given.seed,
            workers=workers,
            dry_run=dry_run,
            progress=progress,
        )
    finally:
        unfinished.tidy()


def _windows(checkpoint: Checkpoint, data: object) -> Windows:
    if not isinstance(data, str | Path):
        raise UnusableSamples(
            f"The data of a language model is the path to a text, not a {type(data).__name__}."
        )
    config = checkpoint.config
    if checkpoint.path.is_dir():
        return _read(checkpoint, Path(data), open_tokenizer(checkpoint.path))
    with LlamaCpp(checkpoint.path, context=min(config.context or 512, 512)) as model:
        return _read(checkpoint, Path(data), lambda text: model.tokenize(text).tolist())


def _read(checkpoint: Checkpoint, path: Path, tokenize: Tokenize) -> Windows:
    config = checkpoint.config
    return read_windows(
        path,
        tokenize,
        vocabulary=config.vocabulary,
        context=config.context or None,
        begin=_start_token(checkpoint),
    )


def _start_token(checkpoint: Checkpoint) -> int | None:
    """The token that every text begins with, where the tokenizer says that one does."""
    pairs = checkpoint.metadata or {}
    adds = pairs.get("tokenizer.ggml.add_bos_token")
    start = pairs.get("tokenizer.ggml.bos_token_id")
    if adds is None or start is None or not adds.content or not isinstance(start.content, int):
        return None
    return start.content
