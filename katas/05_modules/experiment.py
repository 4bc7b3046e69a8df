"""How many eights does a model find that has learned from only 20 of them, and
does the loss matter? How large are the gradients of its layers meanwhile?
"""

from dataclasses import dataclass
from itertools import product

import torch
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from modules import MLP, FocalLoss, GradientRecorder, evaluate, fit
from torch import Tensor, nn

from dojo.lab import BLACK, BLUE, GREEN, ORANGE, Digits, aligned, canvas, digits, progress

RARE, KEPT = 8, 20
FREQUENT = [digit for digit in range(10) if digit != RARE]
SIZES = (64, 64, 64, 64, 10)
EPOCHS = 15
SEEDS = range(3)
STYLES = {
    "cross-entropy": {"color": BLUE, "linestyle": "-", "marker": "o"},
    "focal loss, gamma 2": {"color": ORANGE, "linestyle": "--", "marker": "s"},
    "weighted cross-entropy": {"color": GREEN, "linestyle": ":", "marker": "^"},
}


@dataclass(frozen=True)
class Measured:
    """Means over the seeds for each loss."""

    recall: dict[str, Tensor]  # [epochs 10]: the share of each held-out digit that is found
    norms: dict[str, Tensor]  # [layers epochs]: gradient of the weights in the mean step


def with_a_rare_digit(data: Digits) -> tuple[Tensor, Tensor]:
    """The training rows in random order; of the rare digit only some are kept."""
    order = torch.randperm(len(data.y))
    left_out = order[data.y[order] == RARE][KEPT:]
    kept = order[~torch.isin(order, left_out)]
    return data.x[kept], data.y[kept]


def train(loss_fn: nn.Module, data: Digits, seed: int) -> tuple[Tensor, Tensor]:
    """The recall of each digit after each epoch, and the gradient norms by layer and epoch."""
    torch.manual_seed(seed)
    x, y = with_a_rare_digit(data)
    batches = list(zip(x.split(128), y.split(128), strict=True))
    of_digit = [data.held_out_y == digit for digit in range(10)]
    model = MLP(SIZES)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    recall = []
    with GradientRecorder(model) as recorder:
        for _ in range(EPOCHS):
            fit(model, loss_fn, optimizer, batches, epochs=1)
            # The accuracy on the rows of one class is its recall.
            recall.append(
                [evaluate(model, loss_fn, [(data.held_out_x[rows], data.held_out_y[rows])])[1] for rows in of_digit]
            )
    norms = torch.tensor([steps for name, steps in recorder.history.items() if name.endswith("weight")])
    return torch.tensor(recall), norms.unflatten(1, (EPOCHS, len(batches))).mean(2)


def measure() -> Measured:
    data = digits()
    weight = torch.ones(10)
    weight[RARE] = (data.y == RARE).sum() / KEPT  # the few eights together weigh what all of them would
    losses = dict(zip(STYLES, (FocalLoss(gamma=0), FocalLoss(gamma=2), nn.CrossEntropyLoss(weight)), strict=True))
    recalls, norms = ({name: [] for name in losses} for _ in range(2))
    for seed, name in progress(list(product(SEEDS, losses)), "training"):
        recall, norm = train(losses[name], data, seed)
        recalls[name].append(recall)
        norms[name].append(norm)
    return Measured(
        recall={name: torch.stack(found).mean(0) for name, found in recalls.items()},
        norms={name: torch.stack(found).mean(0) for name, found in norms.items()},
    )


def table(measured: Measured) -> list[str]:
    found = [
        (name, *(f"{recall[epoch - 1, RARE]:.0%}" for epoch in (5, 10, EPOCHS)), f"{recall[-1, FREQUENT].mean():.1%}")
        for name, recall in measured.recall.items()
    ]
    norms = [(name, *(f"{norm:.2f}" for norm in norms[:, -1])) for name, norms in measured.norms.items()]
    layers = [f"layer {number}" for number in range(1, len(SIZES))]
    return [
        *aligned(("held-out eights found after epoch", 5, 10, EPOCHS, "other digits"), *found),
        "",
        *aligned((f"gradient norm in epoch {EPOCHS}", *layers), *norms),
    ]


def draw(measured: Measured) -> Figure:
    figure, (left, middle, right) = canvas(
        "Focal loss finds more of a rare digit than cross-entropy; weighting its rows finds more still", columns=3
    )
    epochs = range(1, EPOCHS + 1)
    for shift, (name, style) in zip((-0.25, 0, 0.25), STYLES.items(), strict=True):
        recall, norms = measured.recall[name], measured.norms[name]
        left.plot(epochs, 100 * recall[:, RARE], **style, markevery=3, label=name)
        middle.plot(torch.arange(10) + shift, 100 * recall[-1], **style | {"linestyle": ""})
        right.plot(epochs, norms[-1], **style, markevery=3)
        right.plot(epochs, norms[0], **style | {"marker": ""}, linewidth=1.2)
    left.set(title=f"Eights, {KEPT} in training", xlabel="epoch", ylabel="held-out eights found, %", ylim=(-3, 103))
    left.legend(loc="upper left")
    middle.set(title=f"Every digit, after {EPOCHS} epochs", xlabel="digit", ylabel="found, %", ylim=(-3, 103))
    middle.set_xticks(range(10))
    right.set(title="Gradient of a layer's weights", xlabel="epoch", ylabel="norm, mean of an epoch", yscale="log")
    right.set_yticks([0.05, 0.1, 0.2, 0.5, 1, 2], ["0.05", "0.1", "0.2", "0.5", "1", "2"])
    right.minorticks_off()
    right.legend(
        handles=[
            Line2D([], [], color=BLACK, marker="o", label="last layer"),
            Line2D([], [], color=BLACK, linewidth=1.2, label="first layer"),
        ]
    )
    return figure
