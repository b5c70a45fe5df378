"""Strings, held in NumPy arrays of objects, and counts of what occurs in sequences."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from packlight.graph.torch.values import Tensor

Text = NDArray[Any]


def string_concat(X: Text, Y: Text) -> Text:
    """One string behind the other."""
    return np.asarray(np.add(X, Y), dtype=object)


def string_split(
    X: Text, *, delimiter: str | None = None, maxsplit: int | None = None
) -> tuple[Text, Tensor]:
    """Parts of each string, filled up with empty ones, and how many there are."""
    most = -1 if maxsplit is None else maxsplit
    parts = [one.split(delimiter or None, most) for one in X.flat]
    width = max(map(len, parts), default=0)
    filled = [[*row, *[""] * (width - len(row))] for row in parts]
    table = np.asarray(filled, dtype=object).reshape(*X.shape, width)
    counts = torch.tensor([len(row) for row in parts], dtype=torch.int64)
    return table, counts.reshape(X.shape)


def string_normalizer(
    X: Text,
    *,
    case_change_action: str = "NONE",
    is_case_sensitive: int = 0,
    locale: str | None = None,
    stopwords: Sequence[str] = (),
) -> Text:
    """Without the stop words, in one case."""
    stops = set(stopwords) if is_case_sensitive else {word.lower() for word in stopwords}
    change = {"LOWER": str.lower, "UPPER": str.upper}.get(case_change_action, str)

    def normalize(words: Sequence[str]) -> Text:
        kept = [
            word for word in words if (word if is_case_sensitive else word.lower()) not in stops
        ]
        return np.asarray([change(word) for word in kept] or [""], dtype=object)

    if X.ndim == 1:
        return normalize(list(X))
    return np.stack([normalize(list(row)) for row in X])


def regex_full_match(X: Text, *, pattern: str) -> Tensor:
    """Whether a pattern matches all of a string."""
    compiled = re.compile(pattern)
    found = [compiled.fullmatch(one) is not None for one in X.flat]
    return torch.tensor(found, dtype=torch.bool).reshape(X.shape)


def tf_idf_vectorizer(
    X: Any,
    *,
    max_gram_length: int,
    max_skip_count: int,
    min_gram_length: int,
    mode: str,
    ngram_counts: Sequence[int],
    ngram_indexes: Sequence[int],
    pool_int64s: Sequence[int] | None = None,
    pool_strings: Sequence[str] | None = None,
    weights: Sequence[float] | None = None,
) -> Tensor:
    """How often each known n-gram occurs, with gaps of up to `max_skip_count` between entries."""
    pool = list(pool_strings if pool_int64s is None else pool_int64s)  # type: ignore[arg-type]
    known: dict[tuple[Any, ...], int] = {}
    bounds = [*ngram_counts, len(pool)]
    for length, (start, stop) in enumerate(pairwise(bounds), start=1):
        for place in range(start, stop, length):
            known[tuple(pool[place : place + length])] = len(known)
    rows = X if X.ndim == 2 else X.reshape(1, -1)
    counts = torch.zeros(len(rows), max(ngram_indexes) + 1)
    weight = torch.ones(len(known)) if weights is None else torch.tensor(weights)
    for number, row in enumerate(rows.tolist()):
        for length in range(min_gram_length, max_gram_length + 1):
            for skip in range(1 if length == 1 else max_skip_count + 1):
                reach = (length - 1) * (skip + 1) + 1
                for start in range(len(row) - reach + 1):
                    gram = tuple(row[start : start + reach : skip + 1])
                    if gram in known:
                        counts[number, ngram_indexes[known[gram]]] += 1
    if mode != "TF":
        spread = torch.zeros(counts.shape[1])
        spread[list(ngram_indexes)] = weight
        counts = (counts > 0) * spread if mode == "IDF" else counts * spread
    return counts if X.ndim == 2 else counts[0]


OPERATORS: Mapping[str, Callable[..., Any] | Mapping[int, Callable[..., Any]]] = {
    "RegexFullMatch": regex_full_match,
    "StringConcat": string_concat,
    "StringNormalizer": string_normalizer,
    "StringSplit": string_split,
    "TfIdfVectorizer": tf_idf_vectorizer,
}
