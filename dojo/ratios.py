"""What the benchmarks say, in a line for each group: the time of yours, and of the others how many times as long."""

import re
import textwrap
from collections.abc import Iterable
from itertools import groupby

from dojo.findings import WIDTH


def ratios(benchmarks: Iterable) -> list[str]:
    """The lines for pytest-benchmark's results, `one_hot   yours 12 µs   loop 28×   torch 0.9×`, 80 columns at most."""
    lines = []
    measured = [benchmark for benchmark in benchmarks if benchmark.stats.data]
    for group, members in groupby(measured, lambda benchmark: benchmark.group or benchmark.name):
        variants = [(_label(benchmark), benchmark.stats.median) for benchmark in members]
        # What all others are measured by: yours, where there is one.
        base = next((variant for variant in variants if variant[0].startswith("yours")), variants[0])
        others = [variant for variant in variants if variant is not base]
        parts = [f"{base[0]} {duration(base[1])}", *(f"{label} {_times(time / base[1])}" for label, time in others)]
        line = f"{group}   " + "   ".join(part.replace(" ", "\xa0") for part in parts)
        lines += [part.replace("\xa0", " ") for part in textwrap.wrap(line, WIDTH, subsequent_indent="    ")]
    return lines


def duration(seconds: float) -> str:
    """Two digits that matter, in the unit that suits: `1.2 ms`."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= size:
            return f"{_digits(seconds / size)} {unit}"
    return f"{_digits(seconds / 1e-9)} ns"


def _times(ratio: float) -> str:
    return f"{_digits(ratio)}×"


def _digits(value: float) -> str:
    return f"{value:.0f}" if value >= 9.95 else f"{value:.1f}" if value >= 0.95 else f"{value:.2f}"


def _label(benchmark) -> str:
    """`yours`, from the parameters of `test_one_hot[yours]`, or the name that the benchmark gave itself."""
    own = re.fullmatch(r"test_\w+\[(.*)\]", benchmark.name)
    return own[1] if own else benchmark.name.removeprefix("test_")
