"""The benchmarks' lines: yours in time, the others in times of it."""

from types import SimpleNamespace

import pytest

from dojo.ratios import duration, ratios
from tests.support import KATAS, run


def result(group, name, median):
    return SimpleNamespace(group=group, name=name, stats=SimpleNamespace(data=[median], median=median))


def test_the_others_are_told_as_multiples_of_yours():
    measured = [
        result("one_hot", "test_one_hot[loop]", 2.8e-4),
        result("one_hot", "test_one_hot[yours]", 1e-5),
        result("one_hot", "test_one_hot[torch]", 9.2e-6),
        result("chunks", "the whole, 32.0 MiB", 0.5),
        result("chunks", "chunk 8, 1.0 MiB", 1.0),
    ]
    assert ratios(measured) == [
        "one_hot   yours 10 µs   loop 28×   torch 0.92×",
        "chunks   the whole, 32.0 MiB 500 ms   chunk 8, 1.0 MiB 2.0×",
    ]


@pytest.mark.parametrize("seconds, text", [(2.0, "2.0 s"), (0.0123, "12 ms"), (1.5e-6, "1.5 µs"), (3e-9, "3.0 ns")])
def test_times_have_two_digits_and_a_unit(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize("kata", KATAS, ids=lambda kata: kata.folder.name)
def test_every_group_of_a_kata_has_its_line(kata):
    quick = ("--benchmark-max-time=0.001", "--benchmark-min-rounds=1", "--benchmark-calibration-precision=1")
    ended = run(kata.command.split()[1], "--impl=reference", "--benchmark-only", *quick)
    assert ended.exit_code == 0, ended.output
    table = ended.output.split("how many times as long the others take:\n")[1].split("\n\n")[0]
    assert "×" in table
    assert all(len(line) <= 80 for line in table.splitlines())
