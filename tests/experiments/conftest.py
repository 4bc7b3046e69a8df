"""Gives the tests of an experiment what it finds."""

import re

import pytest

from tests.experiments.support import on_the_reference
from tests.support import KATAS


@pytest.fixture
def measured(request):
    """What `measure()` of the kata in the test file's name returns: test_03_views.py asks about views."""
    number = re.match(r"test_(\d\d)_", request.path.name)[1]
    return on_the_reference(next(kata for kata in KATAS if kata.number == number)).measured
