"""What a job is asked for: JSON of the page in, arguments of `packlight.api.compress` out."""

from __future__ import annotations

from typing import Any

from packlight.serve.errors import Refused

_TEXTS = (
    *("target", "preset", "preprocess", "prune"),
    *("max_drop", "max_size", "max_latency", "max_download"),
)
_MOST_CHARACTERS = 64


def read_settings(value: object) -> dict[str, Any]:
    """The settings that were given, each of its kind; what each may say is for `compress` to judge.

    An empty text and null are as good as nothing. Raises Refused.
    """
    if not isinstance(value, dict):
        raise Refused(422, f"settings is {_kind(value)}, where an object is expected.")
    found: dict[str, Any] = {}
    for key, item in value.items():
        if item is None or item == "":
            continue
        if key in _TEXTS:
            if not isinstance(item, str) or len(item) > _MOST_CHARACTERS:
                expected = f"a text of at most {_MOST_CHARACTERS} characters"
                raise Refused(422, f"{key} is {_kind(item)}: give {expected}.", field=key)
            found[key] = item
        elif key == "heal_minutes":
            if isinstance(item, bool) or not isinstance(item, int | float):
                raise Refused(422, f"{key} is {_kind(item)}: give minutes.", field=key)
            found[key] = float(item)
        elif key == "golden":
            if not isinstance(item, bool):
                raise Refused(422, f"{key} is {_kind(item)}: give true or false.", field=key)
            found[key] = item
        else:
            raise Refused(422, f"There is no setting {key[:_MOST_CHARACTERS]!r}.")
    return found


def _kind(value: object) -> str:
    return "a long text" if isinstance(value, str) else f"a {type(value).__name__}"
