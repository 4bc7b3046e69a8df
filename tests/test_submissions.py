"""Right and wrong solutions of every kata: the specs must accept the ones and reject the others."""

import tomllib

import pytest

from dojo.loading import ROOT
from tests.support import KATAS, reference, run, save

SUBMISSIONS = ROOT / "tests" / "submissions"


def wrong():
    """Every planted mistake: an edit of the reference, and the class of specs that must see it."""
    for kata in KATAS:
        listed = tomllib.loads((SUBMISSIONS / kata.folder.name / "wrong.toml").read_text())["wrong"]
        for mistake in listed:
            yield pytest.param(kata, mistake, id=f"{kata.number}-{mistake['caught_by']}-{mistake['what'][:60]}")


def right():
    """Every solution in another style."""
    for kata in KATAS:
        for folder in sorted((SUBMISSIONS / kata.folder.name / "right").iterdir()):
            yield pytest.param(kata, folder, id=f"{kata.number}-{folder.name}")


@pytest.mark.parametrize("kata, mistake", list(wrong()))
def test_a_wrong_solution_is_rejected_by_the_specs_of_its_function(kata, mistake, tmp_path):
    source = reference(kata)
    assert source.count(mistake["find"]) == 1, "the text to replace must stand once in the reference"
    save(tmp_path, kata, source.replace(mistake["find"], mistake["replace"]))
    ended = run(f"{kata.command.split()[1]}::{mistake['caught_by']}", f"--impl={tmp_path}", "-x")
    assert ended.exit_code == 1, ended.output
    assert "cannot be loaded" not in ended.output, "a mistake that every kata's specs would see proves nothing"


@pytest.mark.parametrize("kata, folder", list(right()))
def test_a_right_solution_is_accepted_whatever_its_style(kata, folder):
    ended = run(kata.command.split()[1], f"--impl={folder}")
    assert ended.exit_code == 0, ended.output


@pytest.mark.parametrize("kata", KATAS, ids=lambda kata: kata.folder.name)
def test_every_kata_has_enough_submissions(kata):
    listed = tomllib.loads((SUBMISSIONS / kata.folder.name / "wrong.toml").read_text())["wrong"]
    assert len(listed) >= 25
    assert len({(mistake["caught_by"], mistake["what"]) for mistake in listed}) == len(listed)
    assert len(list((SUBMISSIONS / kata.folder.name / "right").iterdir())) >= 2
