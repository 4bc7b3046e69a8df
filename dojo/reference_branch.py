"""Builds the branch `reference`: another branch and one commit that puts the reference solutions in the stubs' places.

Made of git's objects alone: no file of the working tree is read or written, so that unsaved work is safe.
"""

import os
import subprocess
import tempfile
from pathlib import Path

from dojo.loading import ROOT

BRANCH = "reference"
MESSAGE = "Every kata solved: katas/ with the files of reference/"


class CannotBuild(Exception):
    """Why the branch was left as it was."""


def build(base: str = "main", root: Path = ROOT) -> str:
    """Points the branch to its commit on top of `base` and returns it: the same one for the same base."""

    def git(*arguments: str, **environment: str) -> str:
        ran = subprocess.run(
            ["git", *arguments], cwd=root, env={**os.environ, **environment}, capture_output=True, text=True
        )
        if ran.returncode:
            raise CannotBuild(f"git {' '.join(arguments)}: {ran.stderr.strip()}")
        return ran.stdout.strip()

    if f"branch refs/heads/{BRANCH}" in git("worktree", "list", "--porcelain").splitlines():
        raise CannotBuild(f"{BRANCH} is checked out: switch to another branch first")
    commit = git("rev-parse", "--verify", f"{base}^{{commit}}")
    solutions = git("ls-tree", "-r", "--format=%(objectname) %(path)", commit, "reference/").splitlines()
    with tempfile.TemporaryDirectory() as folder:
        index = {"GIT_INDEX_FILE": str(Path(folder) / "index")}
        git("read-tree", commit, **index)
        stubs = set(git("ls-tree", "-r", "--name-only", commit, "katas/").splitlines())
        for line in solutions:
            blob, path = line.split(" ", 1)
            stub = path.replace("reference/", "katas/", 1)
            if stub in stubs:
                git("update-index", "--cacheinfo", f"100644,{blob},{stub}", **index)
        tree = git("write-tree", **index)
    name, email, date = git("log", "-1", "--format=%cn%n%ce%n%cI", commit).splitlines()
    who = {f"GIT_{role}_{what}": value for role in ("AUTHOR", "COMMITTER")
           for what, value in (("NAME", name), ("EMAIL", email), ("DATE", date))}  # fmt: skip
    made = git("commit-tree", tree, "-p", commit, "-m", MESSAGE, **who)
    git("update-ref", f"refs/heads/{BRANCH}", made)
    return made
