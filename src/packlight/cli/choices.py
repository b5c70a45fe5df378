"""`packlight choices`: all that may happen to a layer, sorted by what it gains."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from packlight.cli.commands import _print_json, app
from packlight.cli.options import Debug, Json
from packlight.cli.outcomes import one_sentence

if TYPE_CHECKING:
    from packlight.report.choices import Gain

_CHOICES = """List what may happen to a layer, for --pin, --forbid and recipe.yaml.

Nobody has to choose: compress does, layer by layer. This is for those who want to overrule it.

[bold]Example[/bold]

packlight choices
"""


@dataclass(frozen=True)
class ChoiceLine:
    """A choice as the command shows it; bits: nominal, of one weight."""

    choice: str
    bits: float
    what: str
    gain: Gain
    computed: str
    size_only: bool


@app.command(help=_CHOICES)
def choices(as_json: Json = False, debug: Debug = False) -> None:
    """Print every choice with its bits, how it is computed, and what it gains."""
    with one_sentence(debug=debug):
        lines = list_choices()
        if as_json:
            _print_json(lines)
        else:
            from packlight.cli.render import print_choices

            print_choices(lines)


def list_choices() -> tuple[ChoiceLine, ...]:
    """All choices, in the order of the recipe's own list."""
    from packlight.recipe import CHOICES, parse_choice, size_only
    from packlight.report.choices import describe_choice, find_gain

    computed = {"speed": "integers", "memory": "float or integers, from packed blocks"}
    return tuple(
        ChoiceLine(
            word,
            parse_choice(word).bits,
            describe_choice(word),
            find_gain(word),
            computed.get(find_gain(word), "float"),
            size_only(word),
        )
        for word in CHOICES
    )
