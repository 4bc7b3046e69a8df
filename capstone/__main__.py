"""`python -m capstone`: trains the classifier of digits.py with the katas as you have written them."""

import argparse
import sys
import time
from pathlib import Path
from types import FrameType

import torch

from dojo import quick
from dojo.loading import ROOT, Kata, LoadError, katas, load, public_names, spec_class

NEEDS = ("tensors", "views", "modules", "feed_forward", "optimization", "label_smoothing", "normalization", "residual",
         "transformer")  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Trains, prints a line per epoch, and returns the exit code: 1 where a kata is missing."""
    parser = argparse.ArgumentParser(prog="python -m capstone", description=__doc__)
    parser.add_argument("--impl", metavar="FOLDER", help="take `reference`, or the solutions in a folder")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    folder = next((f for f in (Path(options.impl), ROOT / options.impl) if f.is_dir()), None) if options.impl else None
    if options.impl and folder is None:
        parser.error(f"--impl={options.impl}: there is no such folder")
    needed = {kata.implementation(folder): kata for kata in katas() if kata.name in NEEDS}
    quick.leave_dynamo_out()
    try:
        for path, kata in needed.items():
            load(path, kata.name)
        return _train(options.seed)
    except ModuleNotFoundError as error:
        if error.name != "sklearn":
            raise
        print("the digits come with scikit-learn: pip install -r requirements-experiments.txt", file=sys.stderr)
    except LoadError as error:
        print(f"{error}\n  see what its specs say: {needed[error.path].command}", file=sys.stderr)
    except NotImplementedError as error:
        code = _innermost(error).f_code
        kata = needed.get(Path(code.co_filename))
        if kata is None:
            raise
        print(_missing(code.co_qualname.split(".")[0], kata), file=sys.stderr)
    except ImportError as error:  # a name that is not in the learner's file
        kata = next((kata for kata in needed.values() if kata.name == error.name), None)
        if kata is None:
            raise
        print(f"{error.msg}\n  see what its specs say: {kata.command}", file=sys.stderr)
    return 1


def _train(seed: int) -> int:
    from capstone import digits  # its parts are the modules that have just been loaded

    torch.set_num_threads(1)  # the tensors are small: more threads only wait for each other
    started = time.perf_counter()
    for epoch in digits.train(seed):
        print(
            f"epoch {epoch.number:2}   loss {epoch.loss:.3f}   held-out digits read {epoch.accuracy:6.1%}"
            f"   {time.perf_counter() - started:3.0f} s",
            flush=True,
        )
    return 0


def _innermost(error: BaseException) -> FrameType:
    """The frame that raised the error."""
    step = error.__traceback__
    while step.tb_next:
        step = step.tb_next
    return step.tb_frame


def _missing(name: str, kata: Kata) -> str:
    """What is to be written next, and the command that starts it."""
    specs = spec_class(name, public_names(kata.stub))
    return f"{name} of kata {kata.title} is not written yet\n  start here    {kata.command}::{specs}"


if __name__ == "__main__":
    sys.exit(main())
