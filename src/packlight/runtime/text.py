"""A language model run by some engine, in a child process of its own.

Like a graph in onnxruntime (`process.py`): the child is limited in memory and time, messages
are raw arrays, a crash is a typed error. Everything runs on the processor, with the threads
that were asked for; the same file, tokens, threads and build give the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from packlight.errors import RuntimeCrashed, RuntimeRefused, WrongUsage
from packlight.runtime.channel import Channel, Owner
from packlight.runtime.limits import Limits

_DEFAULT = Limits()
_CONTEXT_LIMIT = 1 << 20
_VOCABULARY_LIMIT = 1 << 24


@dataclass(frozen=True)
class TextModel:
    """What the engine says of a file.

    vocabulary: entries. parameters: weights. trained_context: tokens that it was trained with.
    start: the token that a text begins with, where `adds_start`. tokenizer: its family, which
    two files must share to be compared.
    """

    architecture: str
    name: str
    vocabulary: int
    parameters: int
    trained_context: int
    adds_start: bool
    start: int
    tokenizer: str


@dataclass(frozen=True)
class TextSeconds:
    """Seconds of reading a prompt at once, and of so many more tokens one by one."""

    prompt: float
    generation: float


class TextRunner(Owner):
    """An engine with one model loaded; used in a `with` statement.

    engine: its name. threads: of both prompt and generation. context: tokens that a window, or a
    prompt with its continuation, may have. every_position: False where logits of whole windows
    are not wanted but time and memory are: those are then what a person who chats would see.
    Raises RuntimeRefused where there is no model or the engine refuses it, MissingExtra where the
    engine is not installed, and the other RuntimeFailures.
    """

    engine: ClassVar[str]

    def __init__(
        self,
        path: Path,
        *,
        threads: int = 1,
        context: int = 512,
        every_position: bool = True,
        limits: Limits = _DEFAULT,
    ) -> None:
        mapped_bytes = sum(one.stat().st_size for one in self.find_weights(path))
        if threads < 1 or not 2 <= context <= _CONTEXT_LIMIT:
            raise WrongUsage(
                f"{self.engine} needs at least one thread and a context of 2 to {_CONTEXT_LIMIT} "
                f"tokens, not {threads} and {context}."
            )
        self.path = path
        self.threads = threads
        self.context = context
        self._channel = Channel(limits, mapped_bytes=mapped_bytes)
        try:
            answer, _ = self._ask(
                "load_text_model",
                {
                    "path": str(path.absolute()),
                    "threads": threads,
                    "context": context,
                    "positions": every_position,
                    "spinning": not every_position,
                },
                doing=f"loading {path.name} in {self.engine}",
            )
            try:
                self.model = _model_of(answer)
                self._positions = int(answer["positions"])
            except (KeyError, TypeError, ValueError):
                raise self._nonsense("a description") from None
        except BaseException:
            self._channel.close()
            raise

    @classmethod
    def find_weights(cls, path: Path) -> Iterable[Path]:
        """The files of a model that the engine maps. Raises as the class does."""
        raise NotImplementedError

    def tokenize(self, text: str) -> NDArray[np.int32]:
        """Tokens [n] of a text, without a start token; special tokens in it are plain text."""
        coded = np.frombuffer(text.encode("utf-8", "surrogatepass"), np.uint8)
        _, found = self._ask("tokenize", {}, {"text": coded}, doing="tokenizing a text")
        return self._tokens(found, limit=len(coded) + 8)

    def detokenize(self, tokens: ArrayLike) -> str:
        """The text of tokens [n]; what is no whole character becomes a replacement mark."""
        given = self._given(tokens, least=0)
        if not len(given):
            return ""
        _, found = self._ask("detokenize", {}, {"tokens": given}, doing="writing tokens as text")
        text = found.get("text")
        if text is None or text.dtype != np.uint8 or text.ndim != 1:
            raise self._nonsense("a text")
        return text.tobytes().decode("utf-8", "replace")

    def logits(self, window: ArrayLike) -> Iterator[NDArray[np.float32]]:
        """Logits [positions, vocabulary] of a window of tokens [n], in pieces.

        Row k of all pieces together says what follows token k, knowing tokens 0 to k of this
        window only: the cache is emptied first. A piece has at most 64 MiB, so a window of any
        length and a vocabulary of any size need no more memory than that.
        """
        tokens = self._given(window, least=1)
        if len(tokens) > self.context:
            raise WrongUsage(
                f"A window of {len(tokens)} tokens does not fit the context of {self.context}."
            )
        for begin in range(0, len(tokens), self._positions):
            part = tokens[begin : begin + self._positions]
            _, found = self._ask("logits", {"start": begin == 0}, {"tokens": part}, doing="running")
            rows = found.get("logits")
            if (
                rows is None
                or rows.dtype != np.float32
                or rows.shape != (len(part), self.model.vocabulary)
            ):
                raise self._nonsense("logits")
            if not np.isfinite(rows).all():
                place = begin + int(np.argmin(np.isfinite(rows).all(axis=1)))
                raise RuntimeRefused(
                    f"{self.path.name} gives logits that are not finite at token {place} of a "
                    "window: its weights are broken, or too coarse to compute with."
                )
            yield rows

    def generate(self, prompt: ArrayLike, count: int) -> NDArray[np.int32]:
        """The most probable continuation of tokens [n]: up to `count`, fewer at an end of text."""
        tokens = self._given(prompt, least=1)
        self._check_room(len(tokens), count)
        _, found = self._ask(
            "generate", {"count": count}, {"tokens": tokens}, doing="generating text"
        )
        return self._tokens(found, limit=count)

    def time(self, prompt: ArrayLike, count: int) -> TextSeconds:
        """Seconds to read the prompt [n] at once, and then `count` more tokens one by one.

        Only the runs themselves are timed, inside the child.
        """
        tokens = self._given(prompt, least=1)
        self._check_room(len(tokens), count)
        answer, _ = self._ask("time_text", {"count": count}, {"tokens": tokens}, doing="timing")
        try:
            found = TextSeconds(
                float(answer["prompt_seconds"]), float(answer["generation_seconds"])
            )
        except (KeyError, TypeError, ValueError):
            raise self._nonsense("times") from None
        if not (0 <= found.prompt < math.inf and 0 <= found.generation < math.inf):
            raise self._nonsense("times")
        return found

    def peak_memory_bytes(self) -> int:
        """The largest resident set of the child so far, mapped weights that were read included."""
        answer, _ = self._ask("peak_memory", {}, doing="asking for its peak memory")
        size = answer.get("bytes")
        if type(size) is not int or size <= 0:
            raise self._nonsense("a peak memory")
        return size

    def _ask(
        self,
        name: str,
        header: dict[str, Any],
        arrays: dict[str, NDArray[Any]] | None = None,
        *,
        doing: str,
    ) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        if self.path.name not in doing:
            doing = f"{doing} with {self.path.name}"
        return self._channel.request(name, {"engine": self.engine, **header}, arrays, doing=doing)

    def _given(self, tokens: ArrayLike, *, least: int) -> NDArray[np.int32]:
        found = np.asarray(tokens)
        if found.ndim != 1 or len(found) < least or (len(found) and found.dtype.kind not in "iu"):
            raise WrongUsage(
                f"{self.engine} takes a list of at least {least} whole numbers as tokens, not an "
                f"array of {found.dtype} of shape {list(found.shape)}."
            )
        if len(found) and not (found.min() >= 0 and found.max() < self.model.vocabulary):
            raise WrongUsage(
                f"Tokens of {self.path.name} lie between 0 and {self.model.vocabulary - 1}, but "
                f"were given from {found.min()} to {found.max()}: they are another tokenizer's."
            )
        return found.astype(np.int32)

    def _check_room(self, prompt: int, count: int) -> None:
        if count < 0 or prompt + count > self.context:
            raise WrongUsage(
                f"A prompt of {prompt} tokens with {count} more does not fit the context of "
                f"{self.context}."
            )

    def _tokens(self, found: dict[str, NDArray[Any]], *, limit: int) -> NDArray[np.int32]:
        tokens = found.get("tokens")
        if (
            tokens is None
            or tokens.dtype != np.int32
            or tokens.ndim != 1
            or len(tokens) > limit
            or (len(tokens) and not 0 <= tokens.min() <= tokens.max() < self.model.vocabulary)
        ):
            raise self._nonsense("tokens")
        return tokens

    def _nonsense(self, what: str) -> RuntimeCrashed:
        return RuntimeCrashed(
            f"The process of {self.engine} sent {what} of {self.path.name} that makes no sense; do "
            "not trust this file."
        )


class OpenText(Protocol):
    """Loads a model in an engine, as `TextRunner` says."""

    def __call__(
        self,
        path: Path,
        *,
        threads: int = 1,
        context: int = 512,
        every_position: bool = True,
        limits: Limits = ...,
    ) -> TextRunner:
        """The engine with the model loaded."""


@dataclass(frozen=True)
class TextRuntime:
    """What runs the files of a target.

    open: loads one. name: with its version, for reports. check: raises MissingExtra where it is
    not installed.
    """

    open: OpenText
    name: Callable[[], str]
    check: Callable[[], None]


def _model_of(answer: dict[str, Any]) -> TextModel:
    texts = answer["texts"]
    family = "/".join(
        str(texts[key]) for key in ("tokenizer.ggml.model", "tokenizer.ggml.pre") if texts[key]
    )
    found = TextModel(
        architecture=str(texts["general.architecture"]),
        name=str(texts["general.name"]),
        vocabulary=int(answer["vocabulary"]),
        parameters=int(answer["parameters"]),
        trained_context=int(answer["trained_context"]),
        adds_start=answer["adds_start"] is True,
        start=int(answer["start"]),
        tokenizer=family,
    )
    positions = int(answer["positions"])
    if not 1 <= found.vocabulary <= _VOCABULARY_LIMIT or positions < 1:
        raise ValueError(answer)
    return found
