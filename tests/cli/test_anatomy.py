from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from packlight.cli.anatomy import show_anatomy
from packlight.cli.render import print_anatomy
from packlight.graph.anatomy import Anatomy
from packlight.report.table import render_plain

Make = Callable[..., Anatomy]


def test_layers_stand_costliest_first_and_the_rest_is_summed(make_anatomy: Make) -> None:
    lines = render_plain(show_anatomy(make_anatomy()), width=120).splitlines()
    rows = [line.split() for line in lines if line.startswith("conv")]
    assert " ".join(rows[0]) == ("conv29 Conv 8×4×3×3 1.03 KB 3 % 58.0 million 7 % 0.290 ms 7 %")
    assert len(rows) == 20
    total = next(line for line in lines if line.startswith("10 others together"))
    assert " ".join(total.split()[3:]) == "10.0 KB 33 % 90.0 million 10 % 0.450 ms 10 %"


def test_without_times_the_largest_stand_first_and_no_time_is_shown(make_anatomy: Make) -> None:
    bare = make_anatomy()
    layers = tuple(replace(layer, ms=None, macs=None) for layer in bare.layers)
    operators = tuple(replace(operator, ms=None) for operator in bare.operators)
    text = render_plain(show_anatomy(replace(bare, layers=layers, operators=operators)))
    assert text.index("conv29") < text.index("conv28")
    assert "time" not in text
    assert "19 Relu, 30 Conv" in text


def test_head_and_findings(make_anatomy: Make) -> None:
    text = render_plain(show_anatomy(make_anatomy()), width=120)
    for words in (
        "net.onnx, 1.09 MB",
        "x: float32[batch, 3, 32, 32]",
        "pytorch 2.1, opset ai.onnx 17",
        "272,474 (1.09 MB, 91.8 % of them in the layers below)",
        "- MatMul: both inputs are computed (m)",
        "- dead nodes, 2.05 KB to save: Unread. (a, b, c, d and 1 more)",
        "not measured",
    ):
        assert words in text
    nothing = make_anatomy(redundancies=(), layers=(), operators=(), not_layers=())
    assert "nothing was found" in render_plain(show_anatomy(nothing))


def test_names_cannot_steer_the_terminal(
    make_anatomy: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = make_anatomy()
    layer = replace(whole.layers[0], name="[b]\x1b[2J\u202e", ms=99.0)
    print_anatomy(replace(whole, layers=(layer,), path="\x07"))
    out = capsys.readouterr().out
    assert "[b]\\x1b[2J\\u202e" in out
    assert not set("\x1b\x07\u202e") & set(out)
