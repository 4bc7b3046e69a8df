"""What the experiments share: data, a table, a canvas with legible letters and safe colours, progress."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import matplotlib
import torch
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.rcsetup import cycler
from sklearn.datasets import load_digits
from torch import Tensor
from tqdm import tqdm

# Eight colours that the colour-blind tell apart: Okabe and Ito 2008, https://jfly.uni-koeln.de/color/
BLUE, ORANGE, GREEN, RED, PURPLE, SKY, YELLOW, BLACK = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442", "#000000",
)  # fmt: skip
COLORS = (BLUE, ORANGE, GREEN, RED, PURPLE, SKY, BLACK)
matplotlib.rcParams |= {
    "axes.prop_cycle": cycler(color=COLORS),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 14,
    "font.size": 13,
    "image.cmap": "cividis",
    "legend.frameon": False,
    "lines.linewidth": 2.2,
}


@dataclass(frozen=True)
class Digits:
    """Scans of digits as rows of 64 grey values, about 0 on average and 1 wide; a part of them is held out."""

    x: Float[Tensor, "n 64"]
    y: Int[Tensor, " n"]
    held_out_x: Float[Tensor, "m 64"]
    held_out_y: Int[Tensor, " m"]


def digits(held_out: int = 597, seed: int = 0) -> Digits:
    """scikit-learn's 1797 digits, split at random."""
    data = load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(seed))
    x = torch.tensor(data.data, dtype=torch.float32)[order]
    x = (x - x.mean()) / x.std()
    y = torch.tensor(data.target)[order]
    return Digits(x[held_out:], y[held_out:], x[:held_out], y[:held_out])


def canvas(
    title: str, rows: int = 1, columns: int = 2, height: float = 4.8, **options: object
) -> tuple[Figure, Sequence[Axes]]:
    """A figure 1200 pixels wide, with the finding as its title, and its axes row by row."""
    figure = Figure(figsize=(12, height), dpi=100, layout="constrained")
    figure.suptitle(title, fontsize=16, fontweight="bold", x=0.01, ha="left")
    return figure, figure.subplots(rows, columns, squeeze=False, **options).ravel()


def aligned(*rows: Sequence[object]) -> list[str]:
    """Rows of cells as lines: the first column left, the others right."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    return [
        "  " + "   ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in cells
    ]


def progress(turns: Iterable, words: str) -> Iterable:
    """The turns of a loop; after two seconds a bar says on the screen how far it has come."""
    return tqdm(turns, desc=words, delay=2, leave=False, disable=None)
