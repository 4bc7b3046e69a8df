"""The watch tells the verdict at every save, survives whatever is saved, and ends when asked to."""

import os
import signal
import subprocess
import sys

import pytest

from dojo import stubs
from dojo.loading import ROOT
from dojo.watch import changed, specs_of
from tests.support import KATAS, reference

VIEWS = next(kata for kata in KATAS if kata.name == "views")
STUB = f"katas/{VIEWS.folder.name}/{VIEWS.stub.name}"

BEFORE = "import torch\n\ndef f():\n    return 1\n\nclass G:\n    pass\n"


@pytest.mark.parametrize(
    "after, names",
    [
        (BEFORE, []),
        (BEFORE.replace("return 1", "return 2"), ["f"]),
        (BEFORE.replace("return 1", "return 1  # so"), []),
        (BEFORE.replace("pass", "x = 1").replace("return 1", "return 2"), ["f", "G"]),
        (BEFORE + "\ndef h():\n    return 3\n", ["h"]),
        (BEFORE.replace("import torch", "import math"), []),
        (BEFORE.replace("return 1", "return ("), []),
    ],
)
def test_what_was_changed_is_told_by_what_the_code_says(after, names):
    assert changed(BEFORE, after) == names


def test_a_helper_has_no_specs_of_its_own():
    assert specs_of(VIEWS, ["diagonal"]) == ["TestDiagonal"]
    assert specs_of(VIEWS, ["diagonal", "helper"]) == []


def test_each_save_is_told_and_an_interrupt_ends_it(house):
    stubs.write(house)
    stub, solved = house / STUB, reference(VIEWS)
    watching = subprocess.Popen(
        [sys.executable, "-m", "dojo", "watch", "03", "-p", "no:cacheprovider"], cwd=house, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env={**os.environ, "PYTHONPATH": str(house)},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored in a job in the background
    )  # fmt: skip

    def expect_screen(words):
        """Reads on until a screen has these words: a save can be seen while the file is half written."""
        for line in watching.stdout:
            if words in line:
                return
        raise AssertionError(f"the watch ended without {words!r}")

    try:
        expect_screen("same_storage is not written yet")
        stub.write_text(solved)
        expect_screen("03 views is done. Next: edit katas/04_gradients/gradients.py")
        stub.write_text(solved.replace("    return ", "    return (", 1))
        expect_screen("cannot be loaded")
        stub.write_text(solved)
        expect_screen("03 views is done")
        stub.write_text(solved + "\nwhile True: pass\n")
        expect_screen("cannot be loaded")
        other = house / "katas" / "04_gradients" / "gradients.py"
        other.write_text(other.read_text() + "\n# saved\n")
        expect_screen("04 gradients   0 of 8 done")
        watching.send_signal(signal.SIGINT)
        assert watching.wait(timeout=30) == 0
    finally:
        watching.kill()
        stubs.write(house)


def test_a_kata_that_does_not_exist_is_named_with_those_that_do():
    ended = subprocess.run([sys.executable, "-m", "dojo", "watch", "77"], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 1
    assert "no kata 77" in ended.stderr and "03" in ended.stderr
