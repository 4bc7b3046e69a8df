"""Runs a kata's experiment.py on the learner's functions: a short table, and a figure as PNG.

An experiment reads like a page of a lab notebook. Its docstring is the question; `measure()` answers it with the kata's
functions, `table(measured)` in lines for the terminal, `draw(measured)` in a matplotlib figure.
"""

import importlib.util
from pathlib import Path
from types import ModuleType

import torch

from dojo import programs
from dojo.findings import short
from dojo.loading import Kata


def load(kata: Kata) -> ModuleType:
    """The kata's experiment.py; the katas that it imports must be importable (dojo.programs.importing)."""
    spec = importlib.util.spec_from_file_location(f"experiment_{kata.number}", kata.folder / "experiment.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def measure(experiment: ModuleType) -> object:
    """What the experiment finds, the same at each run but for times."""
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the tensors are small: more threads only wait for each other
    try:
        return experiment.measure()
    finally:
        torch.set_num_threads(threads)


def run(kata: Kata, folder: Path | None, picture: Path | None) -> int:
    """Prints the question and the table, saves the figure, and returns the exit code."""

    def program() -> None:
        experiment = load(kata)
        measured = measure(experiment)
        figure = experiment.draw(measured)
        target = picture or kata.folder / "experiment.png"
        figure.savefig(target)
        print(f"{kata.title}   experiment\n")
        print(*experiment.__doc__.strip().split("\n\n"), "", sep="\n")
        print(*experiment.table(measured), sep="\n")
        print(f"\n  the figure    {short(target.resolve())}")

    return programs.run(program, folder)
