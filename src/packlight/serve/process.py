"""A child process of the server: a request in, messages out, an answer; nothing is left of it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from packlight.serve.errors import Refused
from packlight.serve.state import remove

_CHILD = Path(__file__).with_name("child.py")
_MOST_LINE_BYTES = 64 << 20
_LAST_WORDS_BYTES = 1 << 14
_PATIENCE_SECONDS = 5.0


async def ask_child(
    request: Mapping[str, Any],
    work: Path,
    *,
    tell: Callable[[dict[str, Any]], None] = lambda message: None,
) -> dict[str, Any]:
    """Run a request in a child of its own, in a session of its own; give the answer.

    work: a folder for its temporary files, made here and removed afterwards. tell: gets what the
    child tells meanwhile. Where this is cancelled, the child is ended with all that it started.
    Raises Refused with the child's sentence, 422, or 500 where it died.
    """
    work.mkdir(parents=True, exist_ok=True, mode=0o700)
    paths = json.dumps([entry for entry in sys.path if Path(entry).is_absolute()])
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-I", str(_CHILD), paths),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=work,
        env={**os.environ, "TMPDIR": str(work), "ORT_DISABLE_TELEMETRY": "1"},
        start_new_session=True,
        limit=_MOST_LINE_BYTES,
    )
    assert process.stdin is not None and process.stdout is not None
    words = asyncio.create_task(_last_words(process))
    try:
        process.stdin.write(json.dumps(request).encode("ascii") + b"\n")
        with contextlib.suppress(ConnectionError):
            await process.stdin.drain()
        try:
            while line := await process.stdout.readline():
                message = json.loads(line)
                if "answer" in message:
                    answer: dict[str, Any] = message["answer"]
                    return answer
                if "error" in message:
                    raise Refused(422, message["error"], field=message["field"])
                tell(message)
        except ValueError as error:
            raise Refused(500, _say_fault(str(error))) from None
        raise Refused(500, _say_fault(await words))
    finally:
        await asyncio.shield(_end(process, words, work))


async def _last_words(process: asyncio.subprocess.Process) -> str:
    """What the child prints as errors; the end of it."""
    assert process.stderr is not None
    words = bytearray()
    while part := await process.stderr.read(1 << 16):
        words += part
        del words[:-_LAST_WORDS_BYTES]
    return words.decode("utf-8", "replace")


def _say_fault(words: str) -> str:
    last = next((line for line in reversed(words.splitlines()) if line.strip()), "it said nothing")
    return f"This is a fault in packlight, or this machine's memory is used up ({last[:300]})."


async def _end(process: asyncio.subprocess.Process, words: asyncio.Task[str], work: Path) -> None:
    """End the child politely, then by force with all of its session, and remove its files."""
    assert process.stdin is not None
    process.stdin.close()  # the child ends itself where it is not at its end
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_PATIENCE_SECONDS):
            await process.wait()
    # Runtimes have process groups of their own, but the session is the child's.
    _end_session(process.pid)
    await process.wait()
    words.cancel()
    await asyncio.to_thread(remove, work)


def _end_session(session: int) -> None:
    for place in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            # The name, in parentheses, may hold anything; the session is the fourth after it.
            fields = place.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
            if int(fields[3]) == session:
                os.kill(int(place.parent.name), signal.SIGKILL)
