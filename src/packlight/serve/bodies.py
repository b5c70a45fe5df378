"""What requests hold: small JSON read whole, files written to the disk piece by piece."""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from starlette.requests import Request

from packlight.durable import is_full
from packlight.errors import WrongUsage
from packlight.serve.errors import Refused
from packlight.strict_json import parse_json

_MOST_JSON_BYTES = 1 << 16
_PIECE_BYTES = 1 << 20


async def read_json(request: Request) -> dict[str, Any]:
    """The JSON object in a body; an empty body is {}. Raises Refused."""
    _check_type(request, "application/json")
    content = bytearray()
    async for piece in request.stream():
        content += piece
        if len(content) > _MOST_JSON_BYTES:
            raise Refused(413, f"The request has more than {_MOST_JSON_BYTES} bytes.")
    try:
        found = parse_json(
            bytes(content) or b"{}", "The request", kind=WrongUsage, advice="mend it"
        )
        json.dumps(found, ensure_ascii=False).encode("utf-8")
    except WrongUsage as error:
        raise Refused(400, str(error)) from None
    except (UnicodeEncodeError, RecursionError):  # half a surrogate pair, which no text holds
        raise Refused(400, "The request holds what is no text, or is nested too deep.") from None
    return found


async def receive_file(request: Request, path: Path, *, limit: int, field: str) -> int:
    """Write a body to a file, of at most `limit` bytes; give its size.

    The file appears once it is whole; nothing is left where it is too large, empty, or the sender
    goes away. Raises Refused.
    """
    _check_type(request, "application/octet-stream")
    too_large = Refused(
        413,
        f"The file has more than the {limit} bytes that are left of what this server takes: start "
        "it with a larger --max-upload.",
        field=field,
    )
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > limit:
        raise too_large
    handle, part = tempfile.mkstemp(dir=path.parent, suffix=".part")
    size = 0
    try:
        with os.fdopen(handle, "wb", buffering=0) as file:
            kept = bytearray()
            async for piece in request.stream():
                size += len(piece)
                if size > limit:
                    raise too_large
                kept += piece
                if len(kept) >= _PIECE_BYTES:
                    await asyncio.to_thread(file.write, kept)
                    kept = bytearray()
            await asyncio.to_thread(file.write, kept)
        if size == 0:
            raise Refused(422, "The file is empty: choose it again.", field=field)
        Path(part).rename(path)
    except OSError as error:
        if not is_full(error):
            raise
        raise Refused(507, "The disk is full: free some space.", field=field) from None
    finally:
        Path(part).unlink(missing_ok=True)
    return size


def _check_type(request: Request, expected: str) -> None:
    found = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if found != expected:
        raise Refused(415, f"This needs the Content-Type {expected}, not {found or 'none'}.")
