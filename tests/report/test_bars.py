from __future__ import annotations

import math
import re

from packlight.report.bars import Bar, draw_bars, keep_largest


def test_the_rest_is_summed_so_that_the_account_adds_up() -> None:
    bars = [Bar(f"l{i}", "Conv", float(i), i / 4) for i in range(100)]
    kept = keep_largest(bars, rows=12)
    assert len(kept) == 13
    assert kept[-1].name == "88 smaller layers together"
    assert math.isclose(sum(bar.before for bar in kept), sum(range(100)))
    assert math.isclose(sum(bar.after or 0 for bar in kept), sum(range(100)) / 4)


def test_one_layer_too_many_is_shown_not_summed() -> None:
    bars = [Bar(f"l{i}", "Conv", float(i), None) for i in range(13)]
    assert not any(bar.summed for bar in keep_largest(bars, rows=12))


def test_widths_are_shares_of_the_longest_bar() -> None:
    rows = (Bar("a", "", 200.0, 50.0), Bar("b", "", 100.0, math.nan), Bar("c", "", 900, 9, True))
    html = draw_bars(rows, caption="c", write=str, heads=("Layer", "Bytes", "Before", "After"))
    assert re.findall(r'width="([0-9.]+)%" height', html)[:4] == ["100", "100.00", "25.00", "100"]


def test_no_bars_at_all_is_an_empty_table() -> None:
    assert "<tbody" in draw_bars((), caption="c", write=str, heads=("a", "b", "c"))
