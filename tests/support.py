"""What the repository's own tests share: reference sources, solutions in folders, and runs of pytest on them."""

import os
from pathlib import Path

from dojo import warm
from dojo.loading import ROOT, Kata, katas

KATAS = katas()


def reference(kata: Kata) -> str:
    """The source of a kata's reference solution."""
    return (ROOT / "reference" / kata.folder.name / kata.stub.name).read_text()


def save(folder: Path, kata: Kata, source: str) -> Path:
    """Writes a solution where `--impl=folder` finds it."""
    path = folder / kata.folder.name / kata.stub.name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source)
    return path


def run(*arguments: object, folder: Path = ROOT, timeout: float = 60) -> warm.Run:
    """A warm run that writes nothing into the folder, in English, and does not know who started it."""
    of_the_user = ("PYTEST_", "LANG", "LC_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(of_the_user)}
    return warm.run([*map(str, arguments), "-p", "no:cacheprovider"], folder, timeout, environment)
