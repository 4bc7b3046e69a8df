"""`python -m dojo COMMAND`: what there is to run beside pytest; without a command, that and how far you are."""

import argparse
import contextlib
import sys
from pathlib import Path

from dojo import reference_branch, states, stubs, watch
from dojo.language import preferred, translate
from dojo.loading import ROOT, Kata, katas

COMMANDS = {
    "watch": "run a kata's specs at every save, warm",
    "experiment": "measure and draw with what you wrote in a kata",
    "reference-branch": "build the branch `reference`, in which every kata is solved",
    "stubs": "write katas/*/NAME.py anew from the reference (bodies are lost)",
    "gallery": "draw every experiment on the reference, for the README",
    "speed": "time the reference against torch's own, for reference/README.md",
}


def main(arguments: list[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m dojo", description=__doc__)
    parser.set_defaults(run=_overview)
    commands = parser.add_subparsers(dest="command")
    parsers = {name: commands.add_parser(name, help=words, description=words) for name, words in COMMANDS.items()}
    for name, run in (
        ("watch", _watch),
        ("experiment", _experiment),
        ("reference-branch", _reference_branch),
        ("stubs", _stubs),
        ("gallery", _gallery),
        ("speed", _speed),
    ):
        parsers[name].set_defaults(run=run)
    for name in ("watch", "experiment"):
        parsers[name].add_argument("kata", help=f"its number, as in `{name} 03`")
    parsers["watch"].add_argument("arguments", nargs=argparse.REMAINDER, help="options for pytest, such as --hint")
    parsers["experiment"].add_argument(
        "--impl", metavar="FOLDER", help="take `reference`, or the solutions in a folder"
    )
    parsers["experiment"].add_argument("--save", metavar="FILE", type=Path, help="where the figure goes, as PNG")
    parsers["reference-branch"].add_argument("--base", default="main", help="the branch or commit that it is built on")
    parsers["stubs"].add_argument("--check", action="store_true", help="only say how they differ")
    options = parser.parse_args(arguments)
    return options.run(options)


def _overview(options: argparse.Namespace) -> int:
    print("python -m dojo COMMAND, and --help behind it:")
    for name, words in COMMANDS.items():
        print(f"  {name:<18}{words}")
    print()
    for line in states.overview():
        print(translate(line, preferred()))
    return 0


def _kata(words: str) -> Kata | None:
    """The kata that `03`, `3`, `katas/03` or `katas/03_views` names; where there is none, says which there are."""
    number = words.rstrip("/").removeprefix("katas/").split("_")[0].zfill(2)
    kata = next((kata for kata in katas() if kata.number == number), None)
    if kata is None:
        print(f"there is no kata {words}: there are {', '.join(kata.number for kata in katas())}", file=sys.stderr)
    return kata


def _watch(options: argparse.Namespace) -> int:
    kata = _kata(options.kata)
    if kata is None:
        return 1
    with contextlib.suppress(KeyboardInterrupt):
        watch.watch(kata, options.arguments)
    print()
    return 0


def _experiment(options: argparse.Namespace) -> int:
    from dojo import experiment, programs  # these import torch

    kata = _kata(options.kata)
    if kata is None:
        return 1
    try:
        return experiment.run(kata, programs.implementation(options.impl), options.save)
    except FileNotFoundError as error:
        print(error, file=sys.stderr)
        return 2


def _reference_branch(options: argparse.Namespace) -> int:
    try:
        made = reference_branch.build(options.base)
    except reference_branch.CannotBuild as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{reference_branch.BRANCH} is {made[:12]}, one commit on top of {options.base}")
    return 0


def _stubs(options: argparse.Namespace) -> int:
    if options.check:
        difference = stubs.differences()
        print(difference or "every stub is what its reference derives to")
        return 1 if difference else 0
    for path in stubs.write():
        print(path.relative_to(ROOT))
    return 0


def _gallery(options: argparse.Namespace) -> int:
    from dojo import experiment

    return experiment.gallery()


def _speed(options: argparse.Namespace) -> int:
    from dojo import speed

    speed.write()
    return 0


if __name__ == "__main__":
    sys.exit(main())
