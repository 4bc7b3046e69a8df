"""Runs pytest in a process forked from one that has torch, pytest and hypothesis loaded: a cold run's verdict, sooner.

The standard library's forkserver is that process: single-threaded, clean, and started at the first run. Without fork
(Windows) each run starts anew.
"""

import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dojo.loading import ROOT

FORKS = "forkserver" in multiprocessing.get_all_start_methods()


@dataclass(frozen=True)
class Run:
    """How a run ended: pytest's exit code (the negative signal where one ended it) and all that it printed."""

    exit_code: int
    output: str


def run(arguments: Sequence[str], folder: Path = ROOT, timeout: float = 120, env: dict[str, str] | None = None) -> Run:
    """Runs `pytest ARGUMENTS` in `folder`, warm; what outlasts `timeout` seconds is killed."""
    env = dict(os.environ if env is None else env)
    if not FORKS:
        return cold(arguments, folder, timeout, env)
    with tempfile.TemporaryFile() as output:
        process = _context().Process(target=_child, args=(list(arguments), str(folder), env, _Handle(output.fileno())))
        process.start()
        try:
            process.join(timeout)
        finally:  # also where ctrl-C ends the waiting
            if process.is_alive():
                process.kill()
                process.join()
        output.seek(0)
        return Run(process.exitcode, output.read().decode(errors="replace"))


def cold(arguments: Sequence[str], folder: Path = ROOT, timeout: float = 120, env: dict[str, str] | None = None) -> Run:
    """The same in a fresh process."""
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "pytest", *arguments],
            cwd=folder, env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
        )  # fmt: skip
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        output.seek(0)
        return Run(code, output.read().decode(errors="replace"))


def _context():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["dojo.preload"])
    return context


class _Handle:
    """A file descriptor that travels to the forked process."""

    def __init__(self, descriptor: int):
        self.descriptor = descriptor

    def __reduce__(self):
        from multiprocessing.reduction import DupFd

        return _received, (DupFd(self.descriptor),)


def _received(duplicate) -> _Handle:
    return _Handle(duplicate.detach())


def _child(arguments: list[str], folder: str, env: dict[str, str], output: _Handle) -> None:
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (output.descriptor, 1), (output.descriptor, 2)):
        os.dup2(source, target)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(folder)
    sys.argv = ["pytest", *arguments]
    for name in [name for name in sys.modules if name.split(".")[0] == "dojo"]:
        del sys.modules[name]  # the run imports the dojo of its own folder
    leave = os._exit

    import pytest

    code = 1
    try:
        code = pytest.main(arguments)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        leave(int(code))  # the interpreter's own end takes longer than the run
