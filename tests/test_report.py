"""What counts as done on the learner's screen."""

import pytest

from dojo.findings import Finding
from dojo.report import Progress, headline, overview


@pytest.mark.parametrize(
    "states, first_words",
    [
        (["passed", "skipped"], "03 views   1 of 1 done (1 not run)   f"),
        (["skipped", "skipped"], "03 views   0 of 0 done (2 not run)"),
        (["failed", "passed"], "03 views   1 of 2 done   g"),
        (["not started", "passed"], "03 views   1 of 2 done   g"),
    ],
)
def test_a_function_is_done_only_if_specs_of_it_have_passed(states, first_words):
    progress = Progress()
    for name, state in zip("fg", states, strict=True):
        progress.findings.append(Finding("03_views", name, ["f", "g"], state=state))
    assert headline(progress, "03_views") == first_words


def test_one_failing_spec_outweighs_those_that_pass_or_are_skipped():
    progress = Progress()
    for state in ("passed", "failed", "skipped", "passed"):
        progress.findings.append(Finding("03_views", "f", ["f"], state=state))
    assert progress.states("03_views") == {"f": "failed"}


def test_of_many_katas_those_in_a_row_that_are_alike_share_a_line():
    progress = Progress()
    states = ["passed"] * 4 + ["failed"] + ["passed"] * 2 + ["not started"] * 3
    names = [f"{number:02}_kata_{number}" for number in range(1, 11)]
    for kata, state in zip(names, states, strict=True):
        progress.findings.append(Finding(kata, "f", ["f"], state=state))
    assert overview(progress, names) == [
        "01 kata 1 to 04 kata 4   all done",
        "05 kata 5   0 of 1 done",
        "06 kata 6   1 of 1 done   f",
        "07 kata 7   1 of 1 done   f",
        "08 kata 8 to 10 kata 10   not started",
    ]
    assert overview(progress, names[:3]) == [headline(progress, kata) for kata in names[:3]]
