"""The screen's fixed words have a Spanish for each, and the environment says which language is read."""

import re

import pytest

from dojo import language
from dojo.loading import ROOT
from tests.support import run

SCREENS = [path.read_text() for path in (ROOT / "tests" / "screens").glob("*.txt") if "spanish" not in path.name]
SHOWN = {line for screen in SCREENS for line in re.sub(r"(?<!:)\bN\b", "12", screen).splitlines()}
# What no written screen shows.
ELSEWHERE = {
    "03 views   4 of 12 done",
    "03 views   2 benchmarks passed",
    "01 tensors to 13 transformer   all done",
    "  it calls gelu, which is not written yet",
    "  expected a tensor on sim, got one on cpu",
    "  there is no hint for it",
    "  the spec says   found = f(x)",
    "3 specs skipped: torch before 2.10 cannot simulate a device",
    "all 1 spec passed",
    "no specs were run",
    "yours, and how many times as long the others take:",
    "watching katas/03_views/views.py; ctrl-C ends it",
    "03 views is done. Next: edit katas/04_gradients/gradients.py, and this watch follows.",
    "  expected -0.01407681 at [0], got -0.02815362",
    "03 views   1 of 1 done (11 not run)",
    "03 views   4 of 12 done (edited since)",
    "03 views   not run yet",
    "02 graph to 13 transformer   not run yet",
}


@pytest.mark.parametrize("pattern", language.LINES)
def test_every_sentence_with_a_translation_is_one_that_a_screen_shows(pattern):
    assert any(re.fullmatch(pattern, line) for line in SHOWN | ELSEWHERE)


@pytest.mark.parametrize("label", language.LABELS)
def test_every_label_with_a_translation_is_one_that_a_screen_shows(label):
    lines = [line for line in SHOWN if line.startswith(f"  {label}  ")]
    assert lines
    assert language.translate(lines[0], "es").startswith(f"  {language.LABELS[label]:<14}")


def test_english_stays_as_it_is_and_so_does_what_has_no_translation():
    assert all(language.translate(line, "en") == line for line in SHOWN)
    assert language.translate("center_crop: takes the middle", "es") == "center_crop: takes the middle"


@pytest.mark.parametrize(
    "environment, wanted",
    [
        ({}, "en"),
        ({"LANG": "es_ES.UTF-8"}, "es"),
        ({"LANG": "es"}, "es"),
        ({"LANG": "et_EE.UTF-8"}, "en"),
        ({"LANG": "es_ES.UTF-8", "LC_ALL": "C"}, "en"),
        ({"LANG": "en_US.UTF-8", "LC_MESSAGES": "es_MX.UTF-8"}, "es"),
        ({"LANG": "en_US.UTF-8", "LANGUAGE": "es:en"}, "es"),
        ({"LANG": "es_ES.UTF-8", "LC_ALL": ""}, "es"),
    ],
)
def test_the_environment_says_which_language_is_read(environment, wanted):
    assert language.preferred(environment) == wanted


def test_an_unknown_language_is_a_usage_error():
    assert run("katas/03", "--lang=fr").exit_code == 4
