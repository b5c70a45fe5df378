"""How a command ends: its exit status, and one sentence where something went wrong.

0    the budget is met (or there was nothing to judge)
1    a fault of packlight itself
2    wrong usage, or an input or output that cannot be used
3    best effort: the budget was not reached, or not proven
4    not worth it: the original is the better file
130  interrupted (Ctrl-C)
143  terminated
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import traceback
from collections.abc import Iterator

import typer

from packlight.durable import is_full
from packlight.errors import PacklightError, UnusableOutput

FAULT = 1
UNUSABLE = 2
INTERRUPTED = 130
TERMINATED = 143
_BROKEN_PIPE = 141

_FORBIDDEN = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})


@contextlib.contextmanager
def one_sentence(*, debug: bool) -> Iterator[None]:
    """Turns what is raised inside into one line on stderr and an exit status.

    debug: show the traceback as well.
    """
    try:
        yield
    except (typer.Exit, typer.Abort):
        raise
    except KeyboardInterrupt:
        say_interrupted()
        raise typer.Exit(INTERRUPTED) from None
    except PacklightError as error:
        raise _end(str(error), UNUSABLE, debug=debug) from None
    except BrokenPipeError:
        # The reader of our output went away (`packlight inspect ... | head`): no fault of anyone.
        # What is still buffered must not raise again when the interpreter closes stdout.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(_BROKEN_PIPE) from None
    except OSError as error:
        known = explain_os_error(error)
        if known is not None:
            raise _end(str(known), UNUSABLE, debug=debug) from None
        raise _end(_unexpected(error, debug=debug), FAULT, debug=debug) from None
    except MemoryError:
        message = "This machine's memory is used up; close other programs, or give fewer samples."
        raise _end(message, FAULT, debug=debug) from None
    except Exception as error:
        raise _end(_unexpected(error, debug=debug), FAULT, debug=debug) from None


def explain_os_error(error: OSError) -> UnusableOutput | None:
    """A sentence for a full disk or a forbidden place; None for what is no such thing."""
    named = error.filename2 or error.filename
    place = os.fsdecode(named) if isinstance(named, (str, bytes)) else ""
    if is_full(error):
        where = f" while writing {place}" if place else ""
        return UnusableOutput(
            f"The disk is full{where}: free some space, or choose another disk with --out "
            "(and with TMPDIR for temporary files)."
        )
    if error.errno in _FORBIDDEN:
        what = place or "a file"
        why = "its file system is read-only" if error.errno == errno.EROFS else "it is forbidden"
        return UnusableOutput(
            f"{what} cannot be used, because {why}: choose another place, or allow it."
        )
    return None


def say_interrupted() -> None:
    """The one line after Ctrl-C."""
    typer.echo("interrupted: no half-written output was left behind", err=True)


def _unexpected(error: Exception, *, debug: bool) -> str:
    told = " ".join(str(error).split())[:300]
    what = f"{type(error).__name__}: {told}" if told else type(error).__name__
    ask = "" if debug else "; run again with --debug and report what it prints"
    return f"This is a fault in packlight ({what}){ask}."


def _end(message: str, status: int, *, debug: bool) -> typer.Exit:
    if debug:
        traceback.print_exc()
    # Imported here: the page and the tables are not needed to start a command.
    from packlight.report.visible import visible

    told = visible(" ".join(message.split()), limit=2000)
    typer.echo(f"error: {told}{'' if told.endswith(('.', '!', '?')) else '.'}", err=True)
    return typer.Exit(status)
