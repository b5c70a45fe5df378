"""How far a compressed language model's predictions lie from the original's.

Two streams of logits over the same windows of tokens are compared piece by piece. Row k of a
window says what follows token k, knowing the tokens 0 to k of that window only. The last row
of a window predicts a token that lies in no window, and does not count; nor do the first
`skip` rows, which know little (llama.cpp's own tool skips half a window; here all count unless
asked otherwise). Memory: one piece of each stream, and three numbers a window and one a token.

Tokens of one window depend on each other, so all intervals resample whole windows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from packlight.errors import UnusableSamples
from packlight.maths.intervals import Interval, bootstrap_interval, wilson_interval

_BLOCK_ELEMENTS = 1 << 18
"""Logits that are turned into float64 at once."""
_SERIES_UP_TO = 1e-3

Logits = NDArray[np.floating]


@dataclass(frozen=True)
class Piece:
    """Some rows of one window of both streams.

    original, compressed: logits [n, vocabulary]. targets: the tokens that really follow [n].
    window: its number; the pieces of a window follow each other.
    """

    window: int
    original: Logits
    compressed: Logits
    targets: NDArray[np.integer]


@dataclass(frozen=True)
class TokenFigures:
    """What each prediction is worth, [n] each.

    kl: KL(original || compressed) in nats. surprise_*: -log p(the token that really follows), in
    nats. agrees: whether the most probable token is the same.
    """

    kl: NDArray[np.float64]
    surprise_original: NDArray[np.float64]
    surprise_compressed: NDArray[np.float64]
    agrees: NDArray[np.bool_]


@dataclass(frozen=True)
class Divergence:
    """A compressed model against its original on held-out text.

    tokens: predictions that were compared, in `windows` windows.
    mean_kl: mean of KL(original || compressed) in nats; p99_kl: its 99th percentile.
    top_agreement: share of predictions whose most probable token is the same.
    perplexity_*: exp(mean surprise) of each; perplexity_ratio: compressed / original.
    *_interval_95: by resampling windows; (0, inf) where one window allows no statement.
    """

    tokens: int
    windows: int
    mean_kl: float
    mean_kl_interval_95: Interval
    p99_kl: float
    top_agreement: float
    top_agreement_interval_95: Interval
    perplexity_original: float
    perplexity_compressed: float
    perplexity_ratio: float
    perplexity_ratio_interval_95: Interval


def compare_tokens(
    original: Logits, compressed: Logits, targets: NDArray[np.integer]
) -> TokenFigures:
    """Figures of n predictions from logits [n, vocabulary] of both models.

    KL = sum p (log p - log q) is summed as sum (q - p - p d) with d = log q - log p, which is the
    same because p and q each add up to 1, and has no negative terms. Where d is small, the term
    is p (d^2/2 + d^3/6 + ...), so that nothing cancels for models that hardly differ.
    Raises ValueError for shapes that do not fit, targets that are no token, and logits that are
    not finite.
    """
    if original.ndim != 2 or original.shape != compressed.shape or 0 in original.shape:
        raise ValueError(
            f"logits of shape {original.shape} and {compressed.shape} do not compare: both are "
            "[positions, vocabulary]"
        )
    count, words = original.shape
    if targets.shape != (count,) or targets.min() < 0 or targets.max() >= words:
        raise ValueError(f"{count} predictions need a token below {words} each that follows")
    kl, first, second = (np.empty(count) for _ in range(3))
    agrees = np.empty(count, np.bool_)
    step = max(1, _BLOCK_ELEMENTS // words)
    for begin in range(0, count, step):
        part = slice(begin, begin + step)
        log_p, p = _probabilities(original[part])
        log_q, q = _probabilities(compressed[part])
        off = log_q - log_p
        # p (exp(d) - 1 - d) below 0.001 to nine digits, and never below zero
        series = p * off * off * (1 / 2 + off * (1 / 6 + off * (1 / 24)))
        q -= p
        q -= p * off
        kl[part] = np.where(np.abs(off) < _SERIES_UP_TO, series, q).sum(axis=1)
        rows = np.arange(log_p.shape[0])
        first[part] = -log_p[rows, targets[part]]
        second[part] = -log_q[rows, targets[part]]
        agrees[part] = log_p.argmax(axis=1) == log_q.argmax(axis=1)
    return TokenFigures(kl, first, second, agrees)


def _probabilities(logits: Logits) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Logarithms of probabilities and themselves, [n, vocabulary], from the largest downwards."""
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    shares = np.exp(wide)
    total = shares.sum(axis=1, keepdims=True)
    if not np.isfinite(wide).all():
        raise ValueError("logits that are not finite are no predictions")
    wide -= np.log(total)
    shares /= total
    return wide, shares


class DivergenceSums:
    """What pieces add up to, for any number of files compared at the same time."""

    def __init__(self) -> None:
        self._windows: dict[int, NDArray[np.float64]] = {}
        self._kl: list[NDArray[np.float32]] = []

    def add(self, piece: Piece) -> None:
        """Compare one piece and count its tokens; pieces of all windows may come in any order."""
        found = compare_tokens(piece.original, piece.compressed, piece.targets)
        adds = (found.kl, found.surprise_original, found.surprise_compressed, found.agrees)
        added = np.array([len(found.kl), *(float(values.sum()) for values in adds)])
        self._windows[piece.window] = self._windows.get(piece.window, 0.0) + added
        self._kl.append(found.kl.astype(np.float32))

    def divergence(
        self, *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
    ) -> Divergence:
        """The divergence over all pieces so far; raises UnusableSamples where there are none."""
        if not self._windows:
            raise UnusableSamples(
                "There is no text to compare the models on: a window needs two tokens or more."
            )
        sums = np.stack([self._windows[number] for number in sorted(self._windows)])
        return _summarize(
            sums, np.concatenate(self._kl), confidence=confidence, resamples=resamples, seed=seed
        )


def compare_logits(
    pieces: Iterable[Piece], *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Divergence:
    """The divergence over all pieces, read once.

    Raises UnusableSamples where there are none, and ValueError as compare_tokens does.
    """
    sums = DivergenceSums()
    for piece in pieces:
        sums.add(piece)
    return sums.divergence(confidence=confidence, resamples=resamples, seed=seed)


def _summarize(
    sums: NDArray[np.float64],
    divergences: NDArray[np.float32],
    *,
    confidence: float,
    resamples: int,
    seed: int,
) -> Divergence:
    """sums: [windows, (tokens, kl, surprise original, surprise compressed, agreements)]."""
    tokens, kl, first, second, agreements = (float(total) for total in sums.sum(axis=0))

    def interval(column: int, less: int | None = None) -> Interval:
        if len(sums) < 2:
            return -math.inf, math.inf
        return bootstrap_interval(
            sums,
            lambda drawn: (
                (drawn[:, column] - (0.0 if less is None else drawn[:, less])) / drawn[:, 0]
            ),
            confidence=confidence,
            resamples=resamples,
            seed=seed,
        )

    kl_low, kl_high = interval(1)
    agree_low, agree_high = interval(4)
    # Windows that agree in every token say nothing of those that would not: Wilson's does.
    alone_low, alone_high = wilson_interval(agreements, int(tokens), confidence=confidence)
    ratio_low, ratio_high = interval(3, less=2)
    return Divergence(
        tokens=int(tokens),
        windows=len(sums),
        mean_kl=kl / tokens,
        mean_kl_interval_95=(max(0.0, kl_low), kl_high),
        p99_kl=float(np.quantile(divergences, 0.99)),
        top_agreement=agreements / tokens,
        top_agreement_interval_95=(
            max(0.0, min(agree_low, alone_low)),
            min(1.0, max(agree_high, alone_high)),
        ),
        perplexity_original=_exp(first / tokens),
        perplexity_compressed=_exp(second / tokens),
        perplexity_ratio=_exp((second - first) / tokens),
        perplexity_ratio_interval_95=(_exp(ratio_low), _exp(ratio_high)),
    )


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf
