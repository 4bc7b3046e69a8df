"""What do batch norm, dropout and both of them do to a network that grows deeper?

And what does batch norm, which learned its statistics with dropout, do in eval?
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import product

import torch
from matplotlib.figure import Figure
from normalization import BatchNorm, Dropout, NormalizedMLP
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from dojo.lab import BLACK, BLUE, GREEN, ORANGE, RED, Digits, aligned, canvas, digits, progress

DEPTHS = (2, 5, 10, 20)  # hidden layers
DEEP = DEPTHS[-1]
STEPS = 60


def stack(depth: int, *parts: Callable[[], nn.Module]) -> nn.Module:
    """The parts, again for each hidden layer, and a last layer."""
    return nn.Sequential(*(part() for _ in range(depth) for part in parts), nn.Linear(64, 10))


def normalized(depth: int, p: float) -> nn.Module:
    """Linear, batch norm, ReLU and dropout in each hidden layer."""
    return NormalizedMLP([64] * (depth + 1) + [10], dropout=p)


linear = partial(nn.Linear, 64, 64)
KINDS = {
    "neither": (lambda depth: stack(depth, linear, nn.ReLU), BLACK, "o-"),
    "dropout 0.1": (lambda depth: stack(depth, linear, nn.ReLU, partial(Dropout, 0.1)), ORANGE, "^:"),
    "batch norm": (lambda depth: normalized(depth, 0.0), BLUE, "s--"),
    "both": (lambda depth: normalized(depth, 0.1), RED, "D-."),
}
SHIFTS = {
    "no dropout": (lambda: normalized(DEEP, 0.0), BLUE, "s--"),
    "0.1 after norm": (lambda: normalized(DEEP, 0.1), RED, "D-."),
    "0.1 before norm": (lambda: stack(DEEP, linear, partial(Dropout, 0.1), BatchNorm, nn.ReLU), GREEN, "v-"),
}
