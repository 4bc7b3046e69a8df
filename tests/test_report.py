"""What counts as done on the learner's screen."""

import pytest

from dojo.findings import Finding
from dojo.report import Progress, headline


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
