"""Every experiment: its question, its table and its figure; what is missing is named with the command that helps."""

import subprocess
import sys

import pytest

from dojo.findings import WIDTH
from dojo.loading import ROOT, Kata
from tests.experiments.support import on_the_reference
from tests.support import KATAS, reference, save

VIEWS = next(kata for kata in KATAS if kata.name == "views")


def dojo(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "dojo", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize("kata", KATAS, ids=lambda kata: kata.folder.name)
def test_the_table_fits_the_screen_and_the_figure_can_be_read(kata: Kata, tmp_path):
    module, measured = on_the_reference(kata)
    lines = module.table(measured)
    assert 1 < len(lines) <= 15
    assert max(map(len, lines)) <= WIDTH
    assert max(map(len, module.__doc__.splitlines())) <= WIDTH
    figure = module.draw(measured)
    figure.savefig(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert figure.get_figwidth() * figure.dpi == 1200
    assert figure.get_suptitle()
    for axes in figure.axes:
        if axes.lines or axes.containers:
            assert (axes.get_xlabel() and axes.get_ylabel()) or axes.get_yticklabels()
        texts = [axes.title, axes.xaxis.label, axes.yaxis.label, *axes.texts]
        assert all(text.get_fontsize() >= 9 for text in texts if text.get_text())


def test_the_command_prints_the_question_the_table_and_where_the_figure_is(tmp_path):
    ended = dojo("experiment", "03", "--impl=reference", f"--save={tmp_path / 'views.png'}")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith("03 views   experiment\n\nWhich element of memory")
    assert ended.stdout.endswith("views.png\n")
    assert (tmp_path / "views.png").exists()


def test_the_learners_own_functions_are_measured(tmp_path):
    save(tmp_path, VIEWS, reference(VIEWS).replace("def diagonal(", "def diagonal(*args): 1 / 0\ndef unused("))
    ended = dojo("experiment", "03", f"--impl={tmp_path}", f"--save={tmp_path / 'views.png'}")
    assert ended.returncode == 1
    assert "ZeroDivisionError" in ended.stderr


def test_a_function_that_is_missing_is_named_with_the_command_that_starts_it(untouched):
    ended = dojo("experiment", "3", f"--impl={untouched}")
    assert ended.returncode == 1
    assert "of kata 03 views is not written yet\n  start here    pytest katas/03::Test" in ended.stderr


def test_what_is_not_installed_is_named_with_its_requirements(untouched):
    hidden = "import sys; sys.modules['matplotlib'] = None; from dojo.__main__ import main; sys.exit(main())"
    ended = subprocess.run([sys.executable, "-c", hidden, "experiment", "03"], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 1
    assert "pip install -r requirements-experiments.txt" in ended.stderr


def test_a_kata_or_folder_that_is_not_there_is_said(tmp_path):
    assert dojo("experiment", "77").returncode == 1
    assert dojo("experiment", "03", "--impl=nowhere").returncode == 2
