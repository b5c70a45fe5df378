"""What a route answers where it cannot do what it was asked."""

from __future__ import annotations

from typing import Any


class Refused(Exception):
    """A status, one sentence, and the field of the page that it is about (None: none of them).

    more: what the answer holds besides.
    """

    def __init__(
        self, status: int, sentence: str, *, field: str | None = None, **more: Any
    ) -> None:
        super().__init__(sentence)
        self.status, self.sentence, self.field, self.more = status, sentence, field, more

    def to_json(self) -> dict[str, Any]:
        """The body of the answer."""
        return {"error": self.sentence, "field": self.field, **self.more}
