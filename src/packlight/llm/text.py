"""Text that a user gives, as windows of tokens: for calibration, for choosing, for the proof.

Plain text, Markdown, chats (`.jsonl`) or a folder of them; read as a stream up to a bound, cut
into windows of equal length. The three parts are contiguous stretches of the text, so that no
window, and no sentence but at two borders, serves two of them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from packlight.errors import MissingExtra, UnusableModel, UnusableSamples

Tokens: TypeAlias = NDArray[np.int32]
Tokenize: TypeAlias = Callable[[str], Sequence[int]]
"""Gives the token ids of a text, without any that mark its beginning or end."""

CALIBRATION = 128
SEARCH = 16
PROOF = 48
LENGTH = 2048
SHORTEST = 64
"""Tokens of the shortest window: below, attention has seen too little to be like real use."""

FEWEST = 12
"""Windows that a text must give: 8 for calibration, 1 for choosing, 3 for the proof."""

MOST_BYTES = 16 << 20
MOST_LINE_BYTES = 4 << 20
MOST_FILES = 10_000
MOST_TOKENIZER_BYTES = 128 << 20
_PIECE = 1 << 16
_SUFFIXES = (".txt", ".md", ".jsonl")


@dataclass(frozen=True)
class Windows:
    """A text as windows of tokens [n, length]; no window is in two parts.

    source: what the text came from. found: the tokens that were read. fingerprint: of all three
    parts, so that a run can tell whether it is the one that was begun.
    """

    source: str
    calibration: Tokens
    search: Tokens
    proof: Tokens
    found: int

    @property
    def length(self) -> int:
        """Tokens in a window."""
        return int(self.calibration.shape[1])

    @property
    def fingerprint(self) -> str:
        """A digest of the windows of all parts."""
        digest = hashlib.sha256()
        for part in (self.calibration, self.search, self.proof):
            digest.update(repr(part.shape).encode())
            digest.update(np.ascontiguousarray(part, "<i4").tobytes())
        return digest.hexdigest()


def read_windows(
    path: Path,
    tokenize: Tokenize,
    *,
    vocabulary: int,
    context: int | None = None,
    calibration: int = CALIBRATION,
    search: int = SEARCH,
    proof: int = PROOF,
    length: int = LENGTH,
    begin: int | None = None,
) -> Windows:
    """Read a text and cut it into windows for calibration, choosing and the proof.

    vocabulary: tokens that the model knows. context: tokens it can take at once. length: tokens
    of a window, no more than the context; a shorter text gets shorter windows, so that there are
    enough of them. begin: the token that starts a sequence, where the model wants one: it then
    stands first in every window.
    Raises UnusableSamples where the text is too short, unreadable, or has unknown tokens.
    """
    length = min(length, context or length)
    wanted = (calibration, search, proof)
    found: list[Tokens] = []
    for piece in _pieces(read_texts(path)):
        tokens = np.asarray(tokenize(piece), np.int64)
        if tokens.size and (tokens.min() < 0 or tokens.max() >= vocabulary):
            raise UnusableSamples(
                f"{path.name}: the tokenizer gives token {int(tokens.max())}, and the model knows "
                f"{vocabulary}: they do not belong together"
            )
        found.append(tokens.astype(np.int32))
    stream = np.concatenate([np.zeros(0, np.int32), *found])
    own = 0 if begin is None else 1
    while length > SHORTEST and len(stream) // (length - own) < min(sum(wanted), 4 * FEWEST):
        length = max(length // 2, SHORTEST)
    needed = FEWEST * (min(length, SHORTEST) - own)
    windows = len(stream) // (length - own)
    if windows < FEWEST:
        raise UnusableSamples(
            f"{path.name}: the text has {len(stream):,} tokens and at least {needed:,} are needed, "
            "some each for calibration, for choosing and for the proof: give a longer text, or "
            "none for a compression without data"
        )
    cut = stream[: windows * (length - own)].reshape(windows, length - own)
    if begin is not None:
        cut = np.concatenate([np.full((windows, 1), begin, np.int32), cut], axis=1)
    first, second, third = _share(windows, wanted)
    regions = _share(windows, wanted, whole=True)
    starts = (0, regions[0], regions[0] + regions[1])
    parts = [
        cut[_spread(start, size, count)]
        for start, size, count in zip(starts, regions, (first, second, third), strict=True)
    ]
    return Windows(path.name, parts[0], parts[1], parts[2], len(stream))


def read_texts(path: Path) -> Iterator[str]:
    """Yield the texts in a file, or in a folder's files in the order of their names.

    Reads no more than 16 MiB, and no files but `.txt`, `.md` and `.jsonl` in folders; links that
    lead out of a folder are left alone.
    """
    left = MOST_BYTES
    for file in _files(path):
        texts = _read_chats(file) if file.suffix.lower() == ".jsonl" else _read_plain(file)
        for text in texts:
            yield text[:left]
            left -= len(text.encode("utf-8", "surrogatepass"))
            if left <= 0:
                return


def open_tokenizer(folder: Path) -> Tokenize:
    """The tokenizer of a Hugging Face folder; no code of the folder is ever run.

    Raises UnusableModel where there is none that can be read, MissingExtra without `tokenizers`.
    """
    path = folder / "tokenizer.json"
    if path.is_file():
        if path.stat().st_size > MOST_TOKENIZER_BYTES:
            raise UnusableModel(
                f"tokenizer.json is {path.stat().st_size:,} bytes, at most "
                f"{MOST_TOKENIZER_BYTES:,} are read"
            )
        try:
            from tokenizers import Tokenizer
        except ImportError as missing:
            raise _missing("tokenizers") from missing
        try:
            fast = Tokenizer.from_file(str(path))
        except Exception as broken:  # the library raises bare exceptions
            raise UnusableModel(f"tokenizer.json cannot be read: {broken}") from broken
        fast.no_truncation()
        return lambda text: fast.encode(text, add_special_tokens=False).ids
    return _open_slow_tokenizer(folder)


def _open_slow_tokenizer(folder: Path) -> Tokenize:
    """A tokenizer that only transformers reads, such as SentencePiece's."""
    if not any((folder / name).is_file() for name in ("tokenizer.model", "vocab.json")):
        raise UnusableModel(
            f"{folder.name}/ has no tokenizer (tokenizer.json, tokenizer.model or vocab.json), "
            "without which no text can be read: add it, or compress without a text"
        )
    try:
        from transformers import AutoTokenizer
    except ImportError as missing:
        raise _missing("transformers") from missing
    try:
        slow = AutoTokenizer.from_pretrained(
            str(folder), trust_remote_code=False, local_files_only=True
        )
    except Exception as broken:
        raise UnusableModel(f"the tokenizer of {folder.name}/ cannot be read: {broken}") from broken
    return lambda text: slow(text, add_special_tokens=False)["input_ids"]


def _missing(name: str) -> MissingExtra:
    return MissingExtra(
        f"reading text needs {name}, which is not installed: pip install 'packlight[llm]'"
    )


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UnusableSamples(f"{path}: there is no such text file or folder")
    inside = path.resolve()
    found = []
    for number, file in enumerate(sorted(path.rglob("*"))):
        if number >= MOST_FILES:
            raise UnusableSamples(f"{path.name}/ holds more than {MOST_FILES:,} files: give fewer")
        if file.suffix.lower() not in _SUFFIXES or not file.is_file():
            continue
        if file.resolve().is_relative_to(inside):
            found.append(file)
    if not found:
        raise UnusableSamples(f"{path.name}/ has no .txt, .md or .jsonl file: put text there")
    return found


def _read_plain(path: Path) -> Iterator[str]:
    with _open(path) as file:
        try:
            while text := file.read(_PIECE):
                yield text
        except UnicodeDecodeError as broken:
            raise UnusableSamples(
                f"{path.name} is no text in UTF-8 ({broken.reason}): save it as UTF-8"
            ) from broken


def _read_chats(path: Path) -> Iterator[str]:
    """One chat or text a line, roles joined plainly."""
    with _open(path) as file:
        number = 0
        while True:
            number += 1
            try:
                line = file.readline(MOST_LINE_BYTES)
                if not line:
                    return
                if line.strip():
                    yield _chat_text(json.loads(line), path, number) + "\n\n"
            except (ValueError, RecursionError) as broken:
                raise UnusableSamples(
                    f"{path.name}, line {number} is no JSON in UTF-8 of at most "
                    f"{MOST_LINE_BYTES >> 20} MiB: {broken}"
                ) from broken


def _chat_text(record: Any, path: Path, number: int) -> str:
    if isinstance(record, dict):
        if isinstance(record.get("text"), str):
            return str(record["text"])
        messages = record.get("messages")
        if isinstance(messages, list) and all(_is_message(one) for one in messages):
            return "\n".join(f"{one['role']}: {one['content']}" for one in messages)
    raise UnusableSamples(
        f'{path.name}, line {number}: expected {{"messages": [{{"role", "content"}}]}} or '
        f'{{"text": ...}}'
    )


def _is_message(one: Any) -> bool:
    return isinstance(one, dict) and all(isinstance(one.get(k), str) for k in ("role", "content"))


def _open(path: Path) -> Any:
    try:
        return path.open(encoding="utf-8", newline=None)
    except OSError as broken:
        raise UnusableSamples(f"{path.name} cannot be read: {broken.strerror}") from broken


def _pieces(texts: Iterator[str]) -> Iterator[str]:
    """Join and cut texts at ends of lines, so that a tokenizer never sees much at once."""
    held = ""
    for text in texts:
        held += text
        while len(held) >= _PIECE:
            cut = max(held.rfind("\n", 0, _PIECE), held.rfind(" ", 0, _PIECE))
            cut = cut if cut > 0 else _PIECE
            yield held[:cut]
            held = held[cut:]
    if held:
        yield held


def _share(windows: int, wanted: tuple[int, int, int], *, whole: bool = False) -> list[int]:
    """How many windows each part gets: what is wanted, or its share of what there is.

    whole: how long a stretch of the text is each part's, of which its windows are taken.
    """
    total = sum(wanted)
    if windows >= total and not whole:
        return list(wanted)
    search = max(windows * wanted[1] // total, 1)
    proof = max(windows * wanted[2] // total, 3)
    return [windows - search - proof, search, proof]


def _spread(start: int, size: int, count: int) -> NDArray[np.int64]:
    """`count` indices evenly spread over `size` from `start`."""
    count = min(count, size)
    return start + (np.arange(count, dtype=np.int64) * size) // max(count, 1)
