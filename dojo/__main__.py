"""`python -m dojo COMMAND`: what there is to run beside pytest."""

import argparse
import contextlib
import sys

from dojo import reference_branch, stubs, watch
from dojo.loading import ROOT, katas


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


def _watch(options: argparse.Namespace) -> int:
    kata = next((kata for kata in katas() if kata.number == options.kata.removeprefix("katas/").zfill(2)), None)
    if kata is None:
        print(f"there is no kata {options.kata}: there are {', '.join(kata.number for kata in katas())}")
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
