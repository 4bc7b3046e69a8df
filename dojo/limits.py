"""What keeps a run within bounds: an alarm for code that does not end, and a guard for code that ends the process."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

HAS_ALARM = hasattr(signal, "SIGALRM")


class Hung(BaseException):
    """Code ran out of time. Not an Exception: neither hypothesis nor the learner's `except Exception` catches it."""


class Left(BaseException):
    """The learner's code tried to end the process."""


def start_alarm(seconds: float, what: Callable[[], str]) -> None:
    """Raises Hung in the code that runs after so many seconds, and again until it gets through; 0 is never."""
    rings = 0

    def ring(number, frame):
        nonlocal rings
        rings += 1
        if rings > 5:  # the code catches everything, again and again
            sys.__stderr__.write(f"\n{what()} within {seconds:g} s, and could not be interrupted\n")
            sys.__stderr__.flush()
            _exit(1)
        raise Hung(f"did not end and was stopped after {seconds:g} s: a right solution takes milliseconds")

    signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds, 0.5)


def stop_alarm() -> None:
    """Takes the alarm back."""
    signal.setitimer(signal.ITIMER_REAL, 0)


_exit = os._exit
_guarded: str | None = None


def _guarded_exit(status: int = 0):
    """os._exit from the learner's file would end the run with any exit code it likes and nothing said."""
    if _guarded and sys._getframe(1).f_code.co_filename == _guarded:
        raise Left(f"os._exit({status}) was called")
    _exit(status)


@contextmanager
def stays(file: str) -> Iterator[None]:
    """Within the block, code of this file cannot end the process by os._exit."""
    global _guarded
    _guarded, os._exit = file, _guarded_exit
    try:
        yield
    finally:
        _guarded = None  # os._exit stays guarded: the file may hold on to it
