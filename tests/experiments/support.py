"""What each experiment finds on the reference, measured once for all tests of it."""

import functools
from types import ModuleType
from typing import NamedTuple

from dojo import experiment, programs, quick
from dojo.loading import ROOT, Kata


class Done(NamedTuple):
    """An experiment that has been run."""

    module: ModuleType
    measured: object


@functools.cache
def on_the_reference(kata: Kata) -> Done:
    quick.leave_dynamo_out()
    with programs.importing(ROOT / "reference"):
        module = experiment.load(kata)
        return Done(module, experiment.measure(module))
