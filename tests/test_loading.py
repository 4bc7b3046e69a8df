"""What a learner saves is what runs: at once, each kata its own, and never another file."""

import os

import pytest
import torch
from torch import nn

from dojo.loading import LoadError, Recorder, load, spec_class
from tests.support import run


def test_two_edits_of_one_size_in_one_second_are_both_seen(tmp_path):
    """A .pyc file is checked by size and whole seconds: the import system would serve the first edit again."""
    path = tmp_path / "kata.py"
    path.write_text("value = 1\n")
    stamp = path.stat().st_mtime_ns
    assert load(path, "kata").value == 1
    path.write_text("value = 2\n")
    os.utime(path, ns=(stamp, stamp))
    assert load(path, "kata").value == 2


@pytest.mark.parametrize("text", ["def f(:\n", "import no_such_module\n", "1 / 0\n", "raise SystemExit(0)\n"])
def test_a_file_that_cannot_be_loaded_says_so(tmp_path, text):
    path = tmp_path / "kata.py"
    path.write_text(text)
    with pytest.raises(LoadError, match=r"kata\.py"):
        load(path, "kata")


def test_the_recorder_notes_calls_of_the_modules_own_functions_and_gives_the_rest_as_it_is(tmp_path):
    path = tmp_path / "kata.py"
    path.write_text("from math import sqrt\nclass A: pass\ndef f(x, *, y=1): return x + y\n")
    module = load(path, "kata")
    recorder = Recorder(module)
    assert recorder.f(1, y=2) == 3
    assert recorder.last.arguments == {"x": 1, "y": 2}
    assert recorder.A is module.A  # classes stay what they are: pickle, isinstance and subclassing ask for it
    assert recorder.sqrt is module.sqrt


def test_the_recorder_notes_calls_of_the_modules_own_layers_and_no_others(tmp_path):
    path = tmp_path / "kata.py"
    path.write_text("from torch import nn\nclass Half(nn.Module):\n    def forward(self, x): return x / 2\n")
    recorder = Recorder(load(path, "kata"))
    recorder.watch_layers()
    nn.Identity()(torch.ones(1))
    assert recorder.last is None
    x = torch.ones(2)
    recorder.Half()(x)
    assert recorder.last.function == "Half"
    assert recorder.last.arguments["x"] is x


def test_an_edit_within_a_second_is_seen_by_the_next_run(house):
    from dojo.loading import Kata
    from tests.support import reference

    kata = Kata(house / "katas" / "03_views")
    good = reference(kata)
    bad = good.replace("(w - width) // 2", "(w - width) // 3")
    verdicts = []
    for text in (good, bad, good):
        kata.stub.write_text(text)
        verdicts.append(run("katas/03::TestCenterCrop", folder=house).exit_code)
    assert verdicts == [0, 1, 0]


def test_a_function_and_a_class_that_differ_in_spelling_alone_have_specs_of_their_own():
    names = ["dropout", "Dropout", "NormalizedMLP", "add_scaled_"]
    wanted = ["TestDropout", "TestDropoutClass", "TestNormalizedMLP", "TestAddScaled"]
    assert [spec_class(name, names) for name in names] == wanted
    assert spec_class("Dropout", ["Dropout", "NormalizedMLP"]) == "TestDropout"
