"""The capstone learns to read digits with the reference's katas, and says what a learner still has to write."""

import re
import subprocess
import sys

from dojo.loading import ROOT
from tests.support import KATAS, reference, save


def capstone(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "capstone", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_the_reference_reads_95_of_100_held_out_digits():
    ended = capstone("--impl=reference")
    assert ended.returncode == 0, ended.stderr
    read = [float(share) for share in re.findall(r"held-out digits read +([\d.]+)%", ended.stdout)]
    assert len(read) > 5
    assert read[-1] >= 95


def test_what_is_not_written_yet_is_named_with_the_command_that_starts_it(untouched, tmp_path):
    ended = capstone(f"--impl={untouched}")
    assert ended.returncode == 1
    assert re.search(r"^standardize of kata 01 tensors is not written yet$", ended.stderr, re.M)
    assert "pytest katas/01::TestStandardize\n" in ended.stderr
    for kata in KATAS:
        source = (
            reference(kata)
            if kata.name != "transformer"
            else (untouched / kata.folder.name / kata.stub.name).read_text()
        )
        save(tmp_path, kata, source)
    ended = capstone(f"--impl={tmp_path}")
    assert ended.returncode == 1
    assert ended.stderr.startswith("Embedding of kata 13 transformer is not written yet\n")
    assert "pytest katas/13::TestEmbedding\n" in ended.stderr


def test_a_file_that_cannot_be_loaded_and_a_name_that_is_missing_are_named_too(tmp_path):
    for kata in KATAS:
        save(tmp_path, kata, reference(kata))
    views = next(kata for kata in KATAS if kata.name == "views")
    for source, words in (("def f(:\n", "views.py cannot be loaded"), ("x = 1\n", "patchify")):
        save(tmp_path, views, source)
        ended = capstone(f"--impl={tmp_path}")
        assert ended.returncode == 1
        assert words in ended.stderr and "pytest katas/03" in ended.stderr


def test_an_unknown_folder_is_a_usage_error():
    assert capstone("--impl=nowhere").returncode == 2
