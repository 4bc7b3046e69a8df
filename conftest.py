"""Loads dojo, which runs the katas: see dojo/plugin.py."""

import sys

if sys.version_info < (3, 11):
    sys.exit(f"torch-katas needs Python 3.11 or later, this is {sys.version.split()[0]}")

pytest_plugins = ["dojo.plugin", "dojo.report"]
