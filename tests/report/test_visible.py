from __future__ import annotations

import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from packlight.report.visible import escape, escape_prose, visible


@given(st.text(st.characters(), max_size=60))
def test_nothing_invisible_and_no_markup_passes(text: str) -> None:
    shown = escape(text)
    assert not any(c in shown for c in "<>\"'")
    assert all(unicodedata.category(c)[0] != "C" for c in shown)
    shown.encode("utf-8")  # lone surrogates have been spelled out


def test_names_that_attack_are_spelled_out() -> None:
    assert escape("</script>") == "&lt;/script&gt;"
    assert visible("a\x1b[31mb\u202ec\u2066\x00") == "a\\x1b[31mb\\u202ec\\u2066\\x00"
    assert visible("\ud800") == "\\ud800"


def test_ordinary_letters_of_any_script_stay() -> None:
    assert visible("Überschicht 层 слой طبقة 0.5×") == "Überschicht 层 слой طبقة 0.5×"


def test_long_names_are_cut_in_the_middle() -> None:
    shown = visible("a" * 1_000_000 + "tail", limit=41)
    assert len(shown) == 41
    assert shown.endswith("tail")


def test_line_ends_stay_only_where_asked_for() -> None:
    assert visible("a\nb") == "a\\nb"
    assert visible("a\nb", keep="\n") == "a\nb"


def test_numbers_keep_their_unit_on_the_line() -> None:
    assert escape_prose("at 1.5 % of 20 MB") == "at 1.5&nbsp;% of 20&nbsp;MB"
    assert escape_prose("4 <b>") == "4 &lt;b&gt;"
