"""Which element of memory does each entry of a view read?

And what does a view cost beside the copy that it saves?
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from matplotlib.figure import Figure
from torch import Tensor
from views import center_crop, diagonal, element_offset, patchify, same_storage, sliding_windows, split_heads

from dojo.lab import aligned, canvas


@dataclass(frozen=True)
class Cost:
    """A view and its copy: seconds each, and the bytes that the copy fills."""

    view: float
    copy: float
    nbytes: int
    shared: bool


@dataclass(frozen=True)
class Measured:
    """Where the entries of some views stand in memory, and what views cost."""

    offsets: dict[str, Tensor]
    costs: dict[str, Cost]


def offsets(x: Tensor) -> Tensor:
    """The place in memory of each entry."""
    places = [element_offset(x, index.tolist()) for index in torch.cartesian_prod(*map(torch.arange, x.shape))]
    return torch.tensor(places).reshape(x.shape)


def cost(view: Callable[[Tensor], Tensor], x: Tensor) -> Cost:
    seconds = []
    for run in (lambda: view(x), lambda: view(x).clone(memory_format=torch.contiguous_format)):
        best = math.inf
        for _ in range(20):
            started = time.perf_counter()
            run()
            best = min(best, time.perf_counter() - started)
        seconds.append(best)
    seen = view(x)
    return Cost(*seconds, nbytes=seen.numel() * seen.itemsize, shared=same_storage(seen, x))


def measure() -> Measured:
    memory = torch.arange(36)
    square = memory.view(6, 6)
    one, two = torch.zeros(2**20), torch.zeros(1024, 1024)
    return Measured(
        offsets={
            "square": offsets(square),
            "its transpose": offsets(square.T),
            "sliding_windows(memory, 6, step=5)": offsets(sliding_windows(memory, 6, step=5)),
            "center_crop(square, 3, 4)": offsets(center_crop(square, 3, 4)),
            "diagonal(square)": offsets(diagonal(square)[None]),
            # Patches stand in an order that no strides describe: their values tell where they come from.
            "patchify(square, 3)": patchify(square[None, None], 3)[0],
        },
        costs={
            "center_crop": cost(lambda x: center_crop(x, 900, 900), two),
            "sliding_windows": cost(lambda x: sliding_windows(x, 16), one),
            "diagonal": cost(diagonal, two),
            "split_heads": cost(lambda x: split_heads(x[None], 16), two),
        },
    )


def table(measured: Measured) -> list[str]:
    rows = [
        (
            name,
            f"{found.view * 1e6:.1f} µs",
            f"{found.copy * 1e6:,.0f} µs",
            "0" if found.shared else f"{found.nbytes:,}",
            f"{found.nbytes:,}",
        )
        for name, found in measured.costs.items()
    ]
    return aligned(("of 4 MiB", "view", "copy", "bytes of a view", "of a copy"), *rows)


def draw(measured: Measured) -> Figure:
    figure, axes = canvas(
        "Views read one memory in another order; patches stand in none, and are copied", rows=2, columns=3, height=6.8
    )
    for axis, (name, places) in zip(axes, measured.offsets.items(), strict=True):
        axis.imshow(places.numpy(), vmin=0, vmax=35)
        for row, line in enumerate(places.tolist()):
            for column, place in enumerate(line):
                axis.text(column, row, place, ha="center", va="center", color="white" if place < 20 else "black")
        axis.set(title=name, xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    figure.supxlabel("number and colour: the place in memory, in elements, that an entry reads")
    return figure
