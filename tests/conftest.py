"""Copies of the repository, and of its stubs, that no learner has touched."""

import shutil
from pathlib import Path

import pytest

from dojo import stubs
from dojo.loading import ROOT
from tests.support import KATAS, reference, save


@pytest.fixture(scope="session")
def house(tmp_path_factory) -> Path:
    """A copy of the repository whose stubs are as derived, whatever has been written into those in katas/."""
    copy = tmp_path_factory.mktemp("house")
    ignored = shutil.ignore_patterns(".*", "__pycache__", "tests")
    shutil.copytree(ROOT, copy, ignore=ignored, dirs_exist_ok=True)
    stubs.write(copy)
    return copy


@pytest.fixture(scope="session")
def untouched(tmp_path_factory) -> Path:
    """A folder for --impl with the derived stub of every kata."""
    folder = tmp_path_factory.mktemp("untouched")
    for kata in KATAS:
        save(folder, kata, stubs.derive(reference(kata)))
    return folder


def pytest_addoption(parser):
    parser.addoption("--rewrite-screens", action="store_true", help="write tests/screens anew: look at every change")
