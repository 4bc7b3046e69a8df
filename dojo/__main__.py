"""`python -m dojo COMMAND`: what there is to run beside pytest."""

import argparse
import sys

from dojo import reference_branch, stubs
from dojo.loading import ROOT


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
