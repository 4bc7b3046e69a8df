"""`python -m capstone`: trains the classifier of digits.py with the katas as you have written them."""

import argparse
import sys
import time

from dojo import programs


def main(arguments: list[str] | None = None) -> int:
    """Trains, prints a line per epoch, and returns the exit code: 1 where a kata is missing."""
    parser = argparse.ArgumentParser(prog="python -m capstone", description=__doc__)
    parser.add_argument("--impl", metavar="FOLDER", help="take `reference`, or the solutions in a folder")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    try:
        folder = programs.implementation(options.impl)
    except FileNotFoundError as error:
        parser.error(str(error))
    return programs.run(lambda: _train(options.seed), folder)


def _train(seed: int) -> None:
    import torch

    from capstone import digits  # its parts are katas, which can be imported now

    torch.set_num_threads(1)  # the tensors are small: more threads only wait for each other
    started = time.perf_counter()
    for epoch in digits.train(seed):
        print(
            f"epoch {epoch.number:2}   loss {epoch.loss:.3f}   held-out digits read {epoch.accuracy:6.1%}"
            f"   {time.perf_counter() - started:3.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    sys.exit(main())
