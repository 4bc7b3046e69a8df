"""The table of speeds has a line for every pair, which compute the same, and a reason for what is slow."""

import re

import pytest

from dojo import programs, speed
from dojo.loading import ROOT


@pytest.fixture
def pairs():
    with programs.importing(ROOT / "reference"):
        yield speed.pairs()


def test_the_table_has_a_line_for_every_pair_in_order(pairs):
    rows = re.findall(r"^\| (\d\d) \| (.*?) \|", speed.README.read_text(), re.M)
    assert rows == [(pair.kata, pair.name) for pair in pairs]


def test_both_sides_of_a_pair_compute_the_same(pairs, monkeypatch):
    monkeypatch.setattr(speed, "ROUNDS", 1)
    monkeypatch.setattr(speed, "SECONDS", 0)
    assert all(speed.measure(pair).forward > 0 for pair in pairs)


def test_what_is_slow_is_marked_and_says_why():
    pair = speed.Pair("01", "f", abs, abs, (), why="it is in Python")
    fast, slow = (speed.document([speed.Ratio(pair, 1.0, both)]).splitlines()[-1] for both in (1.9, 2.1))
    assert fast == "| 01 | f | 1.0 | 1.9 |  |"
    assert slow == "| 01 | f | 1.0 | **2.1** | it is in Python |"


def test_every_slow_line_of_the_table_says_why():
    for line in speed.README.read_text().splitlines():
        if line.startswith("| ") and "**" in line:
            assert not line.endswith("|  |"), line
