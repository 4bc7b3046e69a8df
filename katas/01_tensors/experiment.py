"""What does a regression learn when predictions are [n, 1] and targets [n]?

And how many bytes stand behind a broadcast, its copy, and a sum that needs all
of it?
"""

from dataclasses import dataclass

import torch
from matplotlib.figure import Figure
from tensors import describe, nchw_to_nhwc, outer_sum, standardize, strict_mse
from torch import Tensor, nn

from dojo.lab import BLACK, BLUE, ORANGE, aligned, canvas


@dataclass(frozen=True)
class Measured:
    """Both fits of y = 2x + 1, what strict_mse said about the first, and bytes seen and stored."""

    x: Tensor
    y: Tensor
    broadcast_slope: float
    strict_slope: float
    refused: str
    stored: dict[str, tuple[int, int]]  # name: what the elements would fill, what stands behind them


def fit(x: Tensor, y: Tensor, loss_fn) -> float:
    """The slope that gradient descent finds."""
    layer = nn.Linear(1, 1)
    for _ in range(300):
        loss = loss_fn(layer(x[:, None]), y)
        layer.zero_grad()
        loss.backward()
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter -= 0.1 * parameter.grad
    return layer.weight.item()


def measure() -> Measured:
    x = standardize(torch.rand(200), dim=0)
    y = 2 * x + 1 + 0.5 * torch.randn(200)
    try:
        strict_mse(torch.zeros(200, 1), y)
        refused = "nothing"
    except ValueError as error:
        refused = f"ValueError: {error}"
    row = torch.rand(1, 1000)
    wide = row.expand(1000, 1000)
    tensors = {
        "row": row,
        "row, expanded": wide,
        "expanded, copied": wide.contiguous(),
        "row + column": outer_sum(row[0], row[0]),
        "images, channels last": nchw_to_nhwc(torch.rand(8, 3, 64, 64)),
    }
    infos = {name: describe(tensor) for name, tensor in tensors.items()}
    return Measured(
        x,
        y,
        broadcast_slope=fit(x, y, lambda prediction, target: (prediction - target).square().mean()),
        strict_slope=fit(x, y, lambda prediction, target: strict_mse(prediction[:, 0], target)),
        refused=refused,
        stored={name: (info.nbytes, info.storage_nbytes) for name, info in infos.items()},
    )


def table(measured: Measured) -> list[str]:
    stored = [(name, f"{seen:,}", f"{held:,}") for name, (seen, held) in measured.stored.items()]
    return [
        *aligned(
            ("y = 2x + 1", "slope"),
            ("predictions [n, 1], targets [n]", f"{measured.broadcast_slope:.2f}"),
            ("both [n]", f"{measured.strict_slope:.2f}"),
        ),
        "  strict_mse of the first:",
        f"    {measured.refused}",
        "",
        *aligned(("", "bytes seen", "bytes stored"), *stored),
    ]


def draw(measured: Measured) -> Figure:
    figure, (left, right) = canvas("A silent broadcast learns the mean, and a broadcast stores one row")
    left.set(title="[n, 1] against [n] compares everything with everything", xlabel="x", ylabel="y")
    left.plot(measured.x, measured.y, ".", color=BLACK, alpha=0.3, label="data")
    ends = torch.tensor([measured.x.min(), measured.x.max()])
    mean = measured.y.mean()
    for slope, color, label in (
        (measured.broadcast_slope, ORANGE, "fitted by the broadcast loss"),
        (measured.strict_slope, BLUE, "fitted by strict_mse"),
    ):
        left.plot(ends, mean + slope * ends, color=color, label=f"{label}: slope {slope:.2f}")
    left.legend()
    names = list(measured.stored)
    places = torch.arange(len(names))
    for shift, which, color, label in ((-0.2, 0, ORANGE, "if each element were stored"), (0.2, 1, BLUE, "stored")):
        right.barh(places + shift, [measured.stored[name][which] for name in names], 0.38, color=color, label=label)
    right.set(title="What is seen and what is stored", xscale="log", xlabel="bytes", xlim=(1e3, 2e8))
    right.set_yticks(places, names)
    right.invert_yaxis()
    right.legend(loc="upper right")
    return figure
