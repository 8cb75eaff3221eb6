"""How every command ends: its exit status, and one line for what the user can mend or go on with."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
from collections.abc import Callable, Iterator

from spectr_lite.commands import one_line
from spectr_lite.commands.arguments import EXIT_BAD_INPUT

EXIT_STOPPED = 130  # as a shell counts it: 128 + SIGINT
EXPECTED = (ValueError, TypeError, OSError, ImportError, MemoryError)


def ended(name: str, work: Callable[[], int | None]) -> int:
    """The exit status of `work`, which a bad input or Ctrl-C ends with one line on stderr.

    An error that nobody foresaw goes through, with its traceback.
    """
    try:
        status = work() or 0
        sys.stdout.flush()  # here, where a full disk can still be said
        return status
    except KeyboardInterrupt as stop:
        if os.environ.get("RANK", "0") == "0":  # of several processes one speaks
            print("; ".join(["stopped", *map(str, stop.args)]), file=sys.stderr)
        return EXIT_STOPPED
    except BrokenPipeError:  # whoever read our output has seen enough
        pass
    except (*EXPECTED, RuntimeError) as error:
        if not is_expected(error):
            raise
        print(f"{name}: error: {one_line(error) or 'out of memory'}.", file=sys.stderr)
    try:
        sys.stdout.flush()
    except OSError:  # Python would flush it again at its end, and complain again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return EXIT_BAD_INPUT


def is_expected(error: BaseException) -> bool:
    """A RuntimeError may be anybody's bug, unless it says that memory is out or explains another."""
    if isinstance(error, RuntimeError):
        return error.__cause__ is not None or "memory" in str(error)
    return isinstance(error, EXPECTED)


@contextlib.contextmanager
def resumable(*command: str) -> Iterator[None]:
    """Ctrl-C inside says by which command the work goes on."""
    try:
        yield
    except KeyboardInterrupt:
        line = shlex.join(["python", "-m", *command])
        raise KeyboardInterrupt(f"what is recorded is kept. Resume with: {line}") from None
