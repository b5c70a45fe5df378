from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packlight.errors import WrongUsage
from packlight.plan.budget import parse_drop, parse_latency, parse_size


@pytest.mark.parametrize(
    ("value", "drop"),
    [("1%", 0.01), ("0.5 %", 0.005), (" 0.01 ", 0.01), (0.02, 0.02), ("0%", 0), (".5%", 0.005)],
)
def test_drops(value: str | float, drop: float) -> None:
    assert parse_drop(value) == pytest.approx(drop)


@pytest.mark.parametrize(
    ("value", "size"),
    [
        ("5MB", 5_000_000),
        ("5 mb", 5_000_000),
        ("1.5MiB", 1_572_864),
        ("800KB", 800_000),
        ("2GB", 2_000_000_000),
        ("25%", 250),
        ("1e6", 1_000_000),
        (300, 300),
        (2e6, 2_000_000),
        ("700B", 700),
    ],
)
def test_sizes(value: str | float, size: int) -> None:
    assert parse_size(value, 1000) == size


@pytest.mark.parametrize(
    ("value", "ms"),
    [("10ms", 10), ("0.5s", 500), ("40%", 8), ("250us", 0.25), ("250µs", 0.25), (3, 3), ("7", 7)],
)
def test_latencies(value: str | float, ms: float) -> None:
    assert parse_latency(value, 20.0) == pytest.approx(ms)


@pytest.mark.parametrize(
    "value", ["", "%", "one", "1%%", "1 0%", "-1%", "0,5%", "nan", "inf", "1e999", "5MB", "1", "3"]
)
def test_drops_that_make_no_sense(value: str) -> None:
    with pytest.raises(WrongUsage, match="max-drop"):
        parse_drop(value)


@pytest.mark.parametrize(
    "value", ["", "0", "0%", "-5MB", "5TBB", "5ms", "0.25", "5 M B", "1_000", "1e308GB"]
)
def test_sizes_that_make_no_sense(value: str) -> None:
    with pytest.raises(WrongUsage, match="max-size"):
        parse_size(value, 1000)


@pytest.mark.parametrize("value", ["", "0", "0ms", "-1ms", "10MB", "10 m s", "ten", "1e308s"])
def test_latencies_that_make_no_sense(value: str) -> None:
    with pytest.raises(WrongUsage, match="max-latency"):
        parse_latency(value, 20.0)


@pytest.mark.parametrize("value", [True, math.nan, math.inf, [1], None])
def test_other_values_are_refused_too(value: object) -> None:
    with pytest.raises(WrongUsage):
        parse_drop(value)  # type: ignore[arg-type]


def test_the_message_says_what_was_meant() -> None:
    with pytest.raises(WrongUsage, match="did you mean 1%"):
        parse_drop("1")
    with pytest.raises(WrongUsage, match="did you mean 25%"):
        parse_size(0.25, 1000)
    with pytest.raises(WrongUsage, match="a point"):
        parse_drop("0,5%")


def test_a_metric_on_a_scale_of_its_own_may_drop_by_more_than_one() -> None:
    assert parse_drop("2.5", share=False) == 2.5


@given(st.text(max_size=12))
def test_any_text_is_a_number_or_a_sentence(text: str) -> None:
    for parse in (parse_drop, lambda t: parse_size(t, 9), lambda t: parse_latency(t, 9.0)):
        try:
            assert math.isfinite(parse(text))
        except WrongUsage as error:
            assert str(error).endswith(".")
