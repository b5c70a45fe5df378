from __future__ import annotations

import math

import pytest

from packlight.report.units import (
    format_bytes,
    format_ms,
    format_number,
    format_percent,
    format_seconds,
    format_times,
)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 bytes"),
        (1, "1 byte"),
        (999, "999 bytes"),
        (1000, "1.00 KB"),
        (999_400, "999 KB"),
        (999_700, "1.00 MB"),
        (1_094_689, "1.09 MB"),
        (301_234, "301 KB"),
        (7_500_000_000_000_000, "7,500 TB"),
        (None, "not measured"),
    ],
)
def test_bytes_are_decimal(value: int | None, text: str) -> None:
    assert format_bytes(value) == text


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0.994, "99.4 %"),
        (1.0, "100 %"),
        (0.99999, "99.99 %"),  # not quite all is never called all
        (0.0012, "0.12 %"),
        (0.917, "91.7 %"),
        (-0.001, "−0.1 %"),
        (0.0, "0 %"),
        (-1e-9, "0 %"),
        (math.nan, "not a number"),
    ],
)
def test_percent(share: float, text: str) -> None:
    assert format_percent(share) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.4812, "0.481"), (12.34, "12.3"), (1234.5, "1,234"), (0.9996, "1.00"), (0, "0")],
)
def test_three_digits(value: float, text: str) -> None:
    assert format_number(value) == text


def test_times_and_spans() -> None:
    assert format_times(3.29) == "3.3"
    assert format_times(1.27) == "1.27"
    assert format_times(12.4) == "12"
    assert format_ms(0.0) == "0 ms"
    assert format_ms(1234.0) == "1.23 s"
    assert [format_seconds(s) for s in (8.4, 125, 3780)] == ["8 s", "2 min 5 s", "1 h 3 min"]
