"""Numbers as people read them: bytes, milliseconds, percent, "3.3× smaller"."""

from __future__ import annotations

import math

_NOT_KNOWN = "not measured"


def format_number(value: float, *, digits: int = 3) -> str:
    """`value` with `digits` significant digits and no exponent between 1e-4 and 1e15."""
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else ("∞" if value > 0 else "−∞")
    if value == 0:
        return "0"
    exponent = math.floor(math.log10(abs(value)))
    if exponent < -4 or exponent >= 15:
        return f"{value:.{digits - 1}e}"
    # 999.7 rounds up to a number with one digit more before the point.
    if round(abs(value), digits - 1 - exponent) >= 10 ** (exponent + 1):
        exponent += 1
    return f"{value:,.{max(0, digits - 1 - exponent)}f}"


def format_bytes(size_bytes: float | None) -> str:
    """`size_bytes` in decimal units: `512 bytes`, `301 KB`, `1.09 MB`."""
    if size_bytes is None:
        return _NOT_KNOWN
    if abs(size_bytes) < 1000:
        return f"{size_bytes:.0f} byte" + ("" if round(abs(size_bytes)) == 1 else "s")
    value = float(size_bytes)
    for unit in ("KB", "MB", "GB", "TB"):
        value /= 1000
        if abs(value) < 999.5 or unit == "TB":
            return f"{format_number(value)} {unit}"
    raise AssertionError("unreachable")


def format_ms(latency_ms: float | None) -> str:
    """`latency_ms` in milliseconds below a second, in seconds above."""
    if latency_ms is None:
        return _NOT_KNOWN
    if latency_ms >= 999.5:
        return f"{format_number(latency_ms / 1000)} s"
    return f"{format_number(latency_ms)} ms"


def format_seconds(seconds: float) -> str:
    """A span of time for people: `8 s`, `2 min 5 s`, `1 h 3 min`."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def format_percent(share: float | None, *, signed: bool = False) -> str:
    """A share of 1 in percent: `99.4 %`; two decimals below 1 % and next to 100 %.

    What is not quite 100 % is never rounded up to it.
    """
    if share is None:
        return _NOT_KNOWN
    if not math.isfinite(share):
        return "not a number"
    percent = 100 * share
    fine = abs(percent) < 1 or 99 < abs(percent) < 100
    text = f"{percent:.2f}" if fine else f"{percent:.1f}"
    if text == "100.00" and percent < 100:
        text = "99.99"
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    if text == "-0":
        text = "0"
    sign = "+" if signed and float(text) > 0 else ""
    return f"{sign}{text} %".replace("-", "−")


def format_times(factor: float) -> str:
    """A factor above 1: `3.3`, `1.27` when small, `12` when large."""
    if factor < 1.3:
        return f"{factor:.2f}"
    return f"{factor:.1f}" if factor < 9.95 else f"{factor:,.0f}"
