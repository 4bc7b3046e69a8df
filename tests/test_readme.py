"""The README says what is there, and its commands do what it says."""

import os
import re
import shlex
import subprocess
import sys

import pytest

from dojo.loading import ROOT, katas
from tests.support import run

WHO = ["-c", "user.name=A", "-c", "user.email=a@b"]
README = (ROOT / "README.md").read_text()


def test_the_table_names_every_kata_and_no_other():
    rows = re.findall(r"^\| \[(\d\d [\w ]+)\]\((.*?)\) \|", README, re.M)
    assert rows == [(kata.title, f"katas/{kata.folder.name}/README.md") for kata in katas()]


def numbers(word: str) -> list[int]:
    """What the table's last column names: every number after the word, `sections 1 and 2` two of them."""
    column = re.findall(r"^\| \[\d\d [\w ]+\].*\| ([^|]*) \|$", README, re.M)
    named = re.findall(rf"{word}s? (\d+)(?: and (\d+))?", " ".join(column))
    return sorted({int(number) for pair in named for number in pair if number})


def test_every_section_and_exercise_of_the_notebook_has_a_home():
    assert numbers("section") == list(range(1, 15))
    assert numbers("exercise") == list(range(1, 14))


def test_every_link_leads_somewhere():
    for page in (ROOT / "README.md", *(kata.folder / "README.md" for kata in katas())):
        for link in re.findall(r"\]\((?!https?:)(.*?)\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name} links to {link}"


def commands():
    """Every pytest command in the table of commands, as written; its folder of solutions stands for any."""
    section = README.split("## What to type")[1].split("## ")[0]
    found = re.findall(r"^\| `(.*?)`", section, re.M)
    assert len(found) > 5
    return found


@pytest.mark.parametrize("command", commands())
def test_a_command_of_the_table_runs_as_written(command, house):
    arguments = shlex.split(command)
    assert arguments[0] == "pytest"
    ended = run(*arguments[1:], folder=house, timeout=120)
    assert ended.exit_code in (0, 1), ended.output
    assert "no specs were run" not in ended.output


@pytest.mark.parametrize("command", sorted(set(re.findall(r"python -m dojo (?:stubs|reference-branch)", README))))
def test_a_command_of_dojo_runs_as_written(command, house):
    if not (house / ".git").exists():  # what builds a branch needs a repository
        for arguments in (["init", "-q", "-b", "main"], ["add", "."], [*WHO, "commit", "-q", "-m", "a copy"]):
            subprocess.run(["git", *arguments], cwd=house, check=True)

    program, *arguments = shlex.split(command)
    environment = {**os.environ, "PYTHONPATH": str(house)}
    assert program == "python"
    subprocess.run([sys.executable, *arguments], cwd=house, env=environment, check=True, timeout=60)


@pytest.mark.parametrize("page, language", [("README.md", "en"), ("README.es.md", "es")])
def test_the_first_screen_is_the_one_that_is_shown(page, language, house):
    shown = re.search(r"```\n(01 .*?)```", (ROOT / page).read_text(), re.S)[1]
    from dojo import stubs

    stubs.write(house)
    seen = run("katas/01", f"--lang={language}", folder=house).output

    def plain(text):
        return re.sub(r"\.py:\d+", ".py:N", text)

    assert plain(seen).startswith(plain(shown))


@pytest.mark.parametrize("page", ["README.md", "README.es.md"])
def test_the_gallery_shows_every_experiment_and_is_small(page):
    from dojo.experiment import GALLERY, with_pictures

    text = (ROOT / page).read_text()
    assert text == with_pictures(text, page)
    shown = re.findall(r"\]\((gallery/.*?\.png)\)", text)
    assert shown == [f"gallery/{kata.folder.name}.png" for kata in katas()]
    assert sum((ROOT / picture).stat().st_size for picture in shown) < 2e6
    assert sorted(path.name for path in GALLERY.iterdir()) == [f"{kata.folder.name}.png" for kata in katas()]


def test_the_ci_script_calls_the_readmes_test_command():
    assert re.search(r"^pip install tox && tox$", README, re.M)
    script = (ROOT / ".ci" / "run").read_text()
    assert "pip install --quiet tox && tox" in script
    assert "unset PYTHONDONTWRITEBYTECODE" in script


def test_no_file_names_a_machines_path_or_a_registrys_host():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    forbidden = re.compile(r"/(?:home|root|Users)/\w|https?://(?:\w+\.)*(?:pypi|pythonhosted|anaconda)\.")
    for name in listed.split():
        text = (ROOT / name).read_text(errors="replace")  # pictures too
        if name != "tests/test_readme.py":
            assert not forbidden.search(text), name
