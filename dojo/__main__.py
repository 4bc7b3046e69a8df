"""`python -m dojo COMMAND`: what there is to run beside pytest."""

import argparse
import contextlib
import sys
from pathlib import Path

from dojo import reference_branch, stubs, watch
from dojo.loading import ROOT, Kata, katas


def main(arguments: list[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m dojo", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    derive = commands.add_parser("stubs", help="write katas/*/NAME.py anew from the reference (bodies are lost)")
    derive.add_argument("--check", action="store_true", help="only say how they differ")
    derive.set_defaults(run=_stubs)
    branch = commands.add_parser("reference-branch", help="build the branch `reference`, in which every kata is solved")
    branch.add_argument("--base", default="main", help="the branch or commit that it is built on")
    branch.set_defaults(run=_reference_branch)
    watching = commands.add_parser("watch", help="run a kata's specs at every save, warm")
    watching.add_argument("kata", help="its number, as in `watch 03`")
    watching.add_argument("arguments", nargs=argparse.REMAINDER, help="options for pytest, such as --hint")
    watching.set_defaults(run=_watch)
    trial = commands.add_parser("experiment", help="measure and draw with what you wrote in a kata")
    trial.add_argument("kata", help="its number, as in `experiment 03`")
    trial.add_argument("--impl", metavar="FOLDER", help="take `reference`, or the solutions in a folder")
    trial.add_argument("--save", metavar="FILE", type=Path, help="where the figure goes, as PNG")
    trial.set_defaults(run=_experiment)
    speed = commands.add_parser(
        "speed", help="measure the reference against torch's own, and write reference/README.md"
    )
    speed.set_defaults(run=_speed)
    options = parser.parse_args(arguments)
    return options.run(options)


def _stubs(options: argparse.Namespace) -> int:
    if options.check:
        difference = stubs.differences()
        print(difference or "every stub is what its reference derives to")
        return 1 if difference else 0
    for path in stubs.write():
        print(path.relative_to(ROOT))
    return 0


def _kata(words: str) -> Kata | None:
    """The kata that `03`, `3`, `katas/03` or `katas/03_views` names; where there is none, says which there are."""
    number = words.rstrip("/").removeprefix("katas/").split("_")[0].zfill(2)
    kata = next((kata for kata in katas() if kata.number == number), None)
    if kata is None:
        print(f"there is no kata {words}: there are {', '.join(kata.number for kata in katas())}", file=sys.stderr)
    return kata


def _experiment(options: argparse.Namespace) -> int:
    from dojo import experiment, programs  # these import torch, which no other command needs

    kata = _kata(options.kata)
    if kata is None:
        return 1
    try:
        return experiment.run(kata, programs.implementation(options.impl), options.save)
    except FileNotFoundError as error:
        print(error, file=sys.stderr)
        return 2


def _speed(options: argparse.Namespace) -> int:
    from dojo import speed

    speed.write()
    return 0


def _watch(options: argparse.Namespace) -> int:
    kata = _kata(options.kata)
    if kata is None:
        return 1
    with contextlib.suppress(KeyboardInterrupt):
        watch.watch(kata, options.arguments)
    print()
    return 0


def _reference_branch(options: argparse.Namespace) -> int:
    try:
        made = reference_branch.build(options.base)
    except reference_branch.CannotBuild as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{reference_branch.BRANCH} is {made[:12]}, one commit on top of {options.base}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
