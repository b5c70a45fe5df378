"""What a user may write for a budget: `1%`, `5MB`, `25%`, `10ms`.

Text in, numbers out. A text that could mean two things is refused with both
readings, since a budget that was read wrongly is a promise that nobody made.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from packlight.errors import WrongUsage
from packlight.measure.evidence import Budget
from packlight.plan.solve import Limits

_NUMBER_AND_UNIT = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)\s*([^\d\s.]*)", re.ASCII)

_BYTES: Mapping[str, float] = {
    **{"b": 1, "byte": 1, "bytes": 1},
    **{"kb": 1e3, "k": 1e3, "kib": 2**10},
    **{"mb": 1e6, "m": 1e6, "mib": 2**20},
    **{"gb": 1e9, "g": 1e9, "gib": 2**30},
}
_MILLISECONDS: Mapping[str, float] = {"ms": 1, "s": 1e3, "us": 1e-3, "µs": 1e-3, "μs": 1e-3}


def parse_drop(value: str | float, *, share: bool = True) -> float:
    """The absolute drop of the metric that is allowed: `"1%"` and `0.01` are 0.01.

    share: the metric is a share of 1 (accuracy, agreement, explained variance); a drop
        of 1 or more then makes no sense. False for a metric of the user's own scale.

    Raises WrongUsage, naming the option and what it expects.
    """
    expected = "a drop such as 1% or 0.01"
    number, unit = _split(value, option="max-drop", expected=expected)
    if unit == "%":
        number /= 100
    elif unit:
        raise _refused("max-drop", value, f"the unit {unit!r} is not known", expected)
    if number < 0:
        raise _refused("max-drop", value, "a drop cannot be negative", expected)
    if share and number >= 1:
        hint = f"that would allow to lose everything; did you mean {number:g}%?"
        raise _refused(
            "max-drop", value, hint if unit != "%" else "nothing would be left", expected
        )
    return number


def parse_size(value: str | float, original_bytes: int, *, option: str = "max-size") -> int:
    """The largest size allowed, in bytes: `"5MB"`, `"25%"` of `original_bytes`, `1500000`.

    KB, MB and GB are powers of 1000; KiB, MiB and GiB of 1024; a bare number is bytes.
    Raises WrongUsage, naming the option and what it expects.
    """
    expected = "a size such as 5MB, 800KB, or 25% of the original"
    number, unit = _split(value, option=option, expected=expected)
    if unit == "%":
        number *= original_bytes / 100
    elif unit:
        factor = _BYTES.get(unit.lower())
        if factor is None:
            raise _refused(option, value, f"the unit {unit!r} is not known", expected)
        number *= factor
    elif 0 < number < 1:
        hint = f"less than one byte; did you mean {100 * number:g}%?"
        raise _refused(option, value, hint, expected)
    if not 1 <= number < math.inf:
        raise _refused(option, value, "no file has that size", expected)
    return math.floor(number)


def parse_latency(value: str | float, original_ms: float) -> float:
    """The longest latency allowed, in milliseconds: `"10ms"`, `"0.5s"`, `"40%"` of `original_ms`.

    A bare number is milliseconds. Raises WrongUsage, naming the option and what it expects.
    """
    expected = "a time such as 10ms, 0.5s, or 40% of the original"
    number, unit = _split(value, option="max-latency", expected=expected)
    if unit == "%":
        number *= original_ms / 100
    elif unit:
        factor = _MILLISECONDS.get(unit.lower())
        if factor is None:
            raise _refused("max-latency", value, f"the unit {unit!r} is not known", expected)
        number *= factor
    if not 0 < number < math.inf:
        raise _refused("max-latency", value, "no model takes that time", expected)
    return number


def check_budget(
    max_size: str | float | None,
    max_latency: str | float | None,
    max_download: str | float | None,
) -> None:
    """Notice a budget that cannot be read before any work."""
    if max_size is not None:
        parse_size(max_size, 1 << 40)
    if max_download is not None:
        parse_size(max_download, 1 << 40, option="max-download")
    if max_latency is not None:
        parse_latency(max_latency, 1e6)


def _split(value: str | float, *, option: str, expected: str) -> tuple[float, str]:
    """The number and the unit of `value`; finite, or refused."""
    if isinstance(value, str):
        text = value.strip()
        found = _NUMBER_AND_UNIT.fullmatch(text)
        if found is None:
            comma = "," in text
            hint = "the decimal sign is a point" if comma else "that is not a number with a unit"
            raise _refused(option, value, hint, expected)
        number, unit = float(found[1]), found[2]
    elif isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _refused(option, value, f"that is a {type(value).__name__}", expected)
    else:
        number, unit = float(value), ""
    if not math.isfinite(number):
        raise _refused(option, value, "that is not a finite number", expected)
    return number, unit


def _refused(option: str, value: object, found: str, expected: str) -> WrongUsage:
    shown = repr(value) if isinstance(value, str) else str(value)
    return WrongUsage(f"--{option} {shown[:60]}: {found}. Give {expected}.")


def limits_of(budget: Budget, size_bytes: int, original_ms: float | None) -> Limits:
    """The budget as the search sees it: never slower, never larger than the original.

    size_bytes, original_ms: of the original; None: its time is not limited.
    """
    latency = 1.0
    if budget.max_latency_ms is not None and original_ms is not None:
        latency = min(latency, budget.max_latency_ms / max(original_ms, 1e-9))
    size = size_bytes - 1
    if budget.max_size_bytes is not None:
        size = min(size, budget.max_size_bytes)
    return Limits(drop=budget.max_drop, size=size, latency=latency)
