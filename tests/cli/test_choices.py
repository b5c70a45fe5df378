from __future__ import annotations

import json

from typer.testing import CliRunner

from packlight.cli import app
from packlight.recipe import CHOICES, parse_choice

run = CliRunner().invoke


def test_every_choice_is_listed_once_with_its_bits() -> None:
    done = run(app, ["choices"])
    assert done.exit_code == 0
    rows = [line.split() for line in done.stdout.splitlines() if line.startswith("  ")]
    assert sorted(row[0] for row in rows) == sorted(CHOICES)
    assert all("a weight" in " ".join(row) for row in rows)
    int4 = next(row for row in rows if row[0] == "int4")
    assert " ".join(int4) == "int4 4 bits a weight 4-bit weights, 8-bit activations"


def test_size_only_stands_under_its_own_title() -> None:
    out = run(app, ["choices"]).stdout
    faster, rest = out.split("Smaller and finer")
    assert "int8-dynamic" in faster and "weights-int4" not in faster
    assert "  weights-int4 " in rest.split("Smaller file only")[1]


def test_the_same_for_programs() -> None:
    found = json.loads(run(app, ["choices", "--json"]).stdout)
    assert [one["choice"] for one in found] == list(CHOICES)
    assert all(one["bits"] == parse_choice(one["choice"]).bits for one in found)
    nf4 = next(one for one in found if one["choice"] == "weights-nf4")
    assert (nf4["size_only"], nf4["computed"], nf4["gain"]) == (True, "float", "file")
