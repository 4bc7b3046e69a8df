"""`python -m dojo COMMAND`: what there is to run beside pytest."""

import argparse
import sys

from dojo import stubs
from dojo.loading import ROOT


def main(arguments: list[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m dojo", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    derive = commands.add_parser("stubs", help="write katas/*/NAME.py anew from the reference (bodies are lost)")
    derive.add_argument("--check", action="store_true", help="only say how they differ")
    options = parser.parse_args(arguments)
    if options.check:
        difference = stubs.differences()
        print(difference or "every stub is what its reference derives to")
        return 1 if difference else 0
    for path in stubs.write():
        print(path.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main())
