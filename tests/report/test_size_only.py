"""The report says which gains are of size only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from packlight.measure.evidence import Evidence
from packlight.report.sections import write_kept


def test_layers_that_compute_in_float_are_counted(make_evidence: Callable[..., Evidence]) -> None:
    layers = make_evidence().layers[:3]
    words = ("weights-nf4", "weights-nf4", "int4")
    chosen = tuple(replace(one, choice=word) for one, word in zip(layers, words, strict=True))
    text = write_kept(make_evidence(layers=chosen))
    assert "Size only, computed in float as before: 2 layers (weights-nf4)." in text
    fast = tuple(replace(one, choice="int8") for one in layers)
    assert "Size only" not in write_kept(make_evidence(layers=fast))
