"""What each experiment finds on the reference, measured once for all tests of it."""

import functools
import re
from types import ModuleType
from typing import NamedTuple

import pytest

from dojo import experiment, programs, quick
from dojo.loading import ROOT, Kata
from tests.support import KATAS


class Done(NamedTuple):
    """An experiment that has been run."""

    module: ModuleType
    measured: object


def pytest_collection_modifyitems(items):
    """With `--dist=loadgroup` the tests of one experiment go to one process, which measures once."""
    for item in items:
        number = re.search(r"(?:test_|\[)(\d\d)_", item.nodeid)
        if number:
            item.add_marker(pytest.mark.xdist_group(number[1]))


@functools.cache
def on_the_reference(kata: Kata) -> Done:
    quick.leave_dynamo_out()
    with programs.importing(ROOT / "reference"):
        module = experiment.load(kata)
        return Done(module, experiment.measure(module))


@pytest.fixture
def measured(request):
    """What `measure()` of the kata in the test file's name returns: test_03_views.py asks about views."""
    number = re.match(r"test_(\d\d)_", request.path.name)[1]
    return on_the_reference(next(kata for kata in KATAS if kata.number == number)).measured
