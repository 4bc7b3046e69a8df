"""The branch `reference` is main and one commit that solves every kata, however often and wherever it is built."""

import subprocess

import pytest

from dojo import reference_branch
from dojo.loading import ROOT, katas


def git(folder, *arguments):
    ran = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return ran.stdout.strip()


@pytest.fixture
def clone(tmp_path):
    """A clone whose branch main is what is committed here."""
    git(tmp_path, "clone", "-q", str(ROOT), "clone")
    git(tmp_path / "clone", "checkout", "-q", "-B", "main")
    return tmp_path / "clone"


def test_touches_the_stubs_and_nothing_else(clone):
    made = reference_branch.build(root=clone)
    assert git(clone, "rev-parse", "reference") == made
    assert git(clone, "rev-parse", "reference~1") == git(clone, "rev-parse", "main")
    changed = git(clone, "diff", "--name-only", "main", "reference", "--").splitlines()
    assert changed == [f"katas/{kata.folder.name}/{kata.stub.name}" for kata in katas(clone)]
    for kata in katas(clone):
        solved = git(clone, "rev-parse", f"reference:katas/{kata.folder.name}/{kata.stub.name}")
        assert solved == git(clone, "rev-parse", f"main:reference/{kata.folder.name}/{kata.stub.name}")


def test_building_it_twice_gives_the_same_commit(clone):
    first = reference_branch.build(root=clone)
    git(clone, "update-ref", "-d", "refs/heads/reference")
    assert reference_branch.build(root=clone) == first


def test_a_dirty_tree_stays_as_it_is(clone):
    stub = katas(clone)[0].stub
    stub.write_text("mine = 1\n")
    (clone / "new.txt").write_text("new\n")
    git(clone, "add", "new.txt")
    before = git(clone, "status", "--porcelain")
    reference_branch.build(root=clone)
    assert git(clone, "status", "--porcelain") == before
    assert stub.read_text() == "mine = 1\n"


def test_a_branch_that_is_checked_out_is_left_alone(clone, tmp_path):
    made = reference_branch.build(root=clone)
    git(clone, "worktree", "add", "-q", str(tmp_path / "other"), "reference")
    git(clone, "commit", "-q", "--allow-empty", "-m", "on main", "--author", "A <a@b>")
    with pytest.raises(reference_branch.CannotBuild, match="checked out"):
        reference_branch.build(root=clone)
    assert git(clone, "rev-parse", "reference") == made
    assert git(tmp_path / "other", "status", "--porcelain") == ""


def test_an_unknown_base_is_named(clone):
    with pytest.raises(reference_branch.CannotBuild, match="nowhere"):
        reference_branch.build("nowhere", clone)
