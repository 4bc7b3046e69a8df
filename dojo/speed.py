"""How the reference solutions compare in time with torch's own operations: the table in reference/README.md."""

import math
import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from dojo import programs, quick
from dojo.compare import assert_same
from dojo.loading import ROOT

README = ROOT / "reference" / "README.md"
PAIRS = ROOT / "reference" / "speed.py"
SLOW = 2.0
ROUNDS = 15
SECONDS = 0.02  # for one measurement of a pair's faster side, at least


@dataclass(frozen=True)
class Pair:
    """A function of a kata and what torch has for the same; both are called with `inputs`."""

    kata: str
    name: str
    ours: Callable
    torchs: Callable
    inputs: tuple
    backward: bool = True
    why: str = ""  # it is slower, where it is
    same: bool = True  # both return the same; nothing random, nothing that torch has only in part


@dataclass(frozen=True)
class Ratio:
    """How many times as long a reference takes as torch's own."""

    pair: Pair
    forward: float
    both: float | None  # forward and backward; None where nothing is differentiated


def measure(pair: Pair) -> Ratio:
    """Both sides in turns, so that what else the machine does meets both; the median of the rounds' ratios."""

    if pair.same:
        assert_same(pair.ours(*pair.inputs), pair.torchs(*pair.inputs).detach(), rtol=1e-3, atol=1e-4)

    def ratio(ours: Callable, torchs: Callable) -> float:
        number = max(1, math.ceil(SECONDS / max(_seconds(torchs, 3), 1e-7)))
        rounds = sorted(_seconds(ours, number) / _seconds(torchs, number) for _ in range(ROUNDS))
        return rounds[ROUNDS // 2]

    def forward(function: Callable) -> Callable:
        def run():
            with torch.set_grad_enabled(not pair.backward):
                function(*pair.inputs)

        return run

    def both(function: Callable) -> Callable:
        def run():
            out = function(*pair.inputs)
            out.backward(torch.ones_like(out))

        return run

    one = ratio(forward(pair.ours), forward(pair.torchs))
    return Ratio(pair, one, ratio(both(pair.ours), both(pair.torchs)) if pair.backward else None)


def _seconds(function: Callable, number: int) -> float:
    started = time.perf_counter()
    for _ in range(number):
        function()
    return (time.perf_counter() - started) / number


def document(ratios: list[Ratio]) -> str:
    """reference/README.md: the table, and why what is slow is slow."""

    def cell(ratio: float | None) -> str:
        return "" if ratio is None else f"**{ratio:.1f}**" if ratio > SLOW else f"{ratio:.1f}"

    lines = [
        "# Reference solutions",
        "",
        *textwrap.wrap(
            "One solution of each kata, and answers to its questions. The code is what a learner may grow into: "
            "operations that are put together, no kernels of its own. The table says how many times as long a solution "
            "takes as torch's own operation, on one thread of a CPU in float32; above "
            f"{SLOW:.0f} it says why. `python -m dojo speed` measures and writes it; figures of two runs differ by a "
            "fifth.",
            120,
        ),
        "",
        "| kata | solution | forward | with backward | why |",
        "|---|---|---|---|---|",
    ]
    for found in ratios:
        slow = max(found.forward, found.both or 0) > SLOW
        cells = (
            found.pair.kata,
            found.pair.name,
            cell(found.forward),
            cell(found.both),
            found.pair.why if slow else "",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def pairs() -> list[Pair]:
    """What reference/speed.py lists; the katas must be importable (dojo.programs.importing)."""
    return list(programs.module(PAIRS).pairs())


def write() -> list[Ratio]:
    """Measures every pair and writes the table."""
    quick.leave_dynamo_out()
    torch.set_num_threads(1)
    with programs.importing(ROOT / "reference"):
        ratios = []
        for pair in pairs():
            ratios.append(measure(pair))
            found = ratios[-1]
            both = "" if found.both is None else f"   with backward {found.both:.1f}"
            print(f"{pair.kata}   {pair.name:<40} {found.forward:5.1f}{both}", flush=True)
    README.write_text(document(ratios))
    return ratios
