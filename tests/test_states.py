"""`python -m dojo` alone: what there is to run, and how far each kata was when it was last run."""

import subprocess
import sys

import pytest

from dojo import language, stubs, warm
from dojo.loading import Kata
from tests.support import reference


def dojo(house) -> list[str]:
    ended = subprocess.run([sys.executable, "-m", "dojo"], cwd=house, capture_output=True, text=True, env={"LANG": "C"})
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.splitlines()


@pytest.fixture
def fresh(house):
    """The house with no run behind it, and views written in part."""
    views = Kata(house / "katas" / "03_views")
    solution, stub = reference(views), views.stub.read_text()
    views.stub.write_text(solution[: solution.index("def try_view")] + stub[stub.index("def try_view") :])
    (house / ".pytest_cache" / "v" / "dojo" / "states").unlink(missing_ok=True)
    yield house
    stubs.write(house)


def run(house, *arguments: str) -> None:
    warm.run([*arguments, "-o", f"cache_dir={house / '.pytest_cache'}"], house)


def test_it_lists_the_commands_and_says_what_was_never_run(fresh):
    lines = dojo(fresh)
    assert lines[-1] == "01 tensors to 13 transformer   not run yet"
    assert "" in lines and lines.index("") <= 12
    assert [line.split()[0] for line in lines[1 : lines.index("")]][:2] == ["watch", "experiment"]


def test_it_knows_the_last_run_of_each_kata_and_adds_up_partial_ones(fresh):
    run(fresh, "katas/03")
    assert "03 views   3 of 12 done" in dojo(fresh)
    run(fresh, "katas/03::TestDiagonal")
    run(fresh, "katas/02", "-v")
    lines = dojo(fresh)
    assert "03 views   3 of 12 done" in lines
    assert "02 graph   0 of 7 done" in lines
    assert "04 gradients to 13 transformer   not run yet" in lines


def test_it_says_that_a_kata_was_edited_since_and_leaves_out_what_impl_gave(fresh):
    run(fresh, "katas/03")
    run(fresh, "katas/03", "--impl=reference")
    assert "03 views   3 of 12 done" in dojo(fresh)
    stub = fresh / "katas" / "03_views" / "views.py"
    stub.write_text(stub.read_text() + "\n")
    assert "03 views   3 of 12 done (edited since)" in dojo(fresh)


def test_every_line_has_a_spanish(fresh):
    run(fresh, "katas/03")
    states = dojo(fresh)[dojo(fresh).index("") + 1 :]
    assert all(language.translate(line, "es") != line for line in states)
