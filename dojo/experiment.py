"""Runs a kata's experiment.py on the learner's functions: a short table, and a figure as PNG.

An experiment reads like a page of a lab notebook. Its docstring is the question; `measure()` answers it with the kata's
functions, `table(measured)` in lines for the terminal, `draw(measured)` in a matplotlib figure.
"""

import re
from pathlib import Path
from types import ModuleType

import torch

from dojo import programs
from dojo.findings import short
from dojo.loading import ROOT, Kata, katas

GALLERY = ROOT / "gallery"
COLUMNS = 3


def load(kata: Kata) -> ModuleType:
    """The kata's experiment.py; the katas that it imports must be importable (dojo.programs.importing)."""
    return programs.module(kata.folder / "experiment.py")


def measure(experiment: ModuleType) -> object:
    """What the experiment finds, the same at each run but for times."""
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the tensors are small: more threads only wait for each other
    try:
        return experiment.measure()
    finally:
        torch.set_num_threads(threads)


def run(kata: Kata, folder: Path | None, picture: Path | None) -> int:
    """Prints the question and the table, saves the figure, and returns the exit code."""

    def program() -> None:
        experiment = load(kata)
        measured = measure(experiment)
        figure = experiment.draw(measured)
        target = picture or kata.folder / "experiment.png"
        save(figure, target)
        print(f"{kata.title}   experiment\n")
        print(*experiment.__doc__.strip().split("\n\n"), "", sep="\n")
        print(*experiment.table(measured), sep="\n")
        print(f"\n  the figure    {short(target.resolve())}")

    return programs.run(program, folder)


def save(figure, target: Path) -> None:
    """Writes the figure as a PNG of few colours, which is a third of the size."""
    from PIL import Image

    figure.savefig(target)
    Image.open(target).convert("RGB").quantize(128).save(target, optimize=True)


def gallery() -> int:
    """Draws every experiment on the reference into gallery/, puts them into the READMEs, and returns the exit code."""
    GALLERY.mkdir(exist_ok=True)
    for kata in katas():
        code = run(kata, ROOT / "reference", GALLERY / f"{kata.folder.name}.png")
        if code:
            return code
    for page in (ROOT / "README.md", ROOT / "README.es.md"):
        page.write_text(with_pictures(page.read_text(), page.name))
    return 0


def with_pictures(text: str, readme: str) -> str:
    """The text of a README with its table of pictures made anew: the rows whose cells are pictures, and their head."""
    cells = [
        f"[![{kata.title}](gallery/{kata.folder.name}.png)](katas/{kata.folder.name}/{readme})" for kata in katas()
    ]
    cells += [""] * (-len(cells) % COLUMNS)
    rows = [cells[start : start + COLUMNS] for start in range(0, len(cells), COLUMNS)]
    lines = [f"| {' | '.join(row)} |".replace("|  |", "| |") for row in rows]
    head = [lines[0], "|---" * COLUMNS + "|"]
    return re.sub(r"(?:^\| \[!\[.*\n(?:\|---.*\n)?)+", "\n".join([*head, *lines[1:]]) + "\n", text, count=1, flags=re.M)
