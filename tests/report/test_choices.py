"""Every choice of a recipe has words for people, and a gain that agrees with the recipe's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from packlight.errors import UnusableRecipe
from packlight.measure.evidence import Evidence
from packlight.recipe import CHOICES, parse_choice, size_only
from packlight.report.choices import GAINS, describe_choice, find_gain
from packlight.report.sections import write_layers


@pytest.mark.parametrize(
    ("word", "words"),
    [
        ("int4", "4-bit weights, 8-bit activations"),
        ("int8-wide", "8-bit weights, 16-bit activations"),
        ("int3-a4", "3-bit weights, activations rounded to 4 bits"),
        ("int8-dynamic", "8-bit weights, 8-bit activations scaled anew at each run"),
        ("weights-int4", "4-bit weights"),
        ("weights-int2-blocks", "2-bit weights in blocks of 32"),
        ("weights-shared3", "weights of 8 shared values"),
        ("weights-coded0.35", "about 0.35 bits a weight once packed"),
        ("weights-coded1", "about 1 bit a weight once packed"),
        ("float32", "left as it is"),
        ("int9", ""),
    ],
)
def test_a_choice_in_words(word: str, words: str) -> None:
    assert describe_choice(word) == words


def test_all_choices_have_words_of_their_own_and_a_gain() -> None:
    assert all(describe_choice(word) for word in CHOICES)
    gains = {word: find_gain(word) for word in CHOICES}
    assert set(gains.values()) == set(GAINS)
    assert all((gains[word] == "file") == size_only(word) for word in CHOICES)
    assert all(parse_choice(word).compute != "float" for word, gain in gains.items()
               if gain in ("speed", "exactness", "memory"))  # fmt: skip
    said = [(describe_choice(word), gains[word]) for word in CHOICES]
    assert len(set(said)) == len(said)
    with pytest.raises(UnusableRecipe):
        find_gain("int9")


def test_the_layers_are_summed_by_choice(make_evidence: Callable[..., Evidence]) -> None:
    evidence = make_evidence(packed_bytes=5_000)
    words = ("int4", "int4", "weights-nf4")
    layers = tuple(
        replace(one, choice=word, bytes_original=1000, bytes_compressed=7000)
        for one, word in zip(evidence.layers[:3], words, strict=True)
    )
    trials = tuple(replace(trial, average_bits=4.25) for trial in evidence.trials)
    html = write_layers(replace(evidence, layers=layers, trials=trials))
    whole = html.split("<details")[0]
    first, second = whole.split("<tbody>")[1].split("</tr>")[:2]
    for said in ("2<", "4-bit weights, 8-bit activations", "<code>int4</code>", "2.00 KB", "14.0"):
        assert said in first
    assert "size only, computed in float as before" in second
    assert "On average 4.25 bits a weight" in whole
    assert "packed it is 5.00&nbsp;KB" in whole
