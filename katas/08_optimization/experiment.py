"""Which learning rates suit SGD, momentum, Adam and AdamW on the digits?

And what does the batch size do to the noise of the gradient?
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from matplotlib.figure import Figure
from optimization import SGD, Adam, AdamW, batches, minibatch_gradients
from torch import nn

from dojo.lab import BLACK, BLUE, GREEN, ORANGE, PURPLE, RED, Digits, aligned, canvas, digits, progress

RATES = [10 ** (power / 2) for power in range(-8, 2)]
SIZES = [1, 4, 16, 64, 256]
SEEDS = (0, 1)
GOOD = 0.9
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "SGD": SGD,
    "SGD, momentum 0.9": lambda params, lr: SGD(params, lr, momentum=0.9),
    "Adam": Adam,
    "Adam, decay 0.1": lambda params, lr: Adam(params, lr, weight_decay=0.1),
    "AdamW, decay 0.1": lambda params, lr: AdamW(params, lr, weight_decay=0.1),
}


@dataclass(frozen=True)
class Noise:
    """The gradient of all rows, and how far those of batches scatter around it, by their size."""

    gradient: float
    spread: dict[int, float]
    slope: float  # of log spread over log size

    @property
    def critical(self) -> float:
        """The batch size at which the spread is as long as the gradient; it falls with the root of the size."""
        return (self.spread[1] / self.gradient) ** 2


@dataclass(frozen=True)
class Measured:
    """Accuracy on held-out digits by optimizer and rate, and the gradient's noise before and after training."""

    accuracy: dict[str, dict[float, float]]
    noise: dict[str, Noise]

    def good(self, name: str) -> list[float]:
        """The rates that reach 90 %."""
        return [lr for lr, accuracy in self.accuracy[name].items() if accuracy >= GOOD]


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, data: Digits) -> nn.Module:
    """60 steps: 5 epochs of 12 batches."""
    for _ in range(5):
        for x, y in batches(data.x, data.y, batch_size=100, shuffle=True):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
    return model


def accuracy(name: str, lr: float, data: Digits) -> float:
    """On held-out digits, on average over the seeds."""
    right = []
    for seed in SEEDS:
        model = network(seed)
        train(model, OPTIMIZERS[name](model.parameters(), lr=lr), data)
        with torch.no_grad():
            right.append(model(data.held_out_x).argmax(dim=-1) == data.held_out_y)
    return torch.cat(right).float().mean().item()


def noise(model: nn.Module, data: Digits) -> Noise:
    loss_fn = nn.CrossEntropyLoss()
    spread = {}
    for size in SIZES:
        variances = []
        for seed in SEEDS:
            # One order for x and y: the batches are cut from the rows as they come.
            order = torch.randperm(len(data.y), generator=torch.Generator().manual_seed(seed))
            gradients = minibatch_gradients(model, loss_fn, data.x[order], data.y[order], size)
            variances.append(gradients.var(dim=0).sum())
        spread[size] = torch.stack(variances).mean().sqrt().item()
    whole = minibatch_gradients(model, loss_fn, data.x, data.y, len(data.y))[0]
    x, y = torch.tensor(SIZES).log(), torch.tensor(list(spread.values())).log()
    slope = torch.dot(x - x.mean(), y - y.mean()) / (x - x.mean()).square().sum()
    return Noise(whole.norm().item(), spread, slope.item())


def measure() -> Measured:
    data = digits()
    found = {name: {} for name in OPTIMIZERS}
    for name, lr in progress([(name, lr) for name in OPTIMIZERS for lr in RATES], "training"):
        found[name][lr] = accuracy(name, lr, data)
    before, model = network(seed=0), network(seed=0)
    after = train(model, Adam(model.parameters(), lr=0.01), data)
    return Measured(found, {"before training": noise(before, data), "after training": noise(after, data)})


def table(measured: Measured) -> list[str]:
    rows = []
    for name, found in measured.accuracy.items():
        good = measured.good(name)
        best = max(found, key=found.get)
        between = f"{good[0]:.2g} to {good[-1]:.2g}" if good else "none"
        rows.append((name, f"{best:.2g}", f"{found[best]:.1%}", between))
    return [
        *aligned(("60 steps on digits", "best rate", "accuracy there", f"rates that reach {GOOD:.0%}"), *rows),
        *aligned(
            ("gradients", *measured.noise),
            *(
                (f"spread of batches of {size}", *(f"{found.spread[size]:.2f}" for found in measured.noise.values()))
                for size in SIZES
            ),
            ("norm of that of all rows", *(f"{found.gradient:.2f}" for found in measured.noise.values())),
            ("rows at which both are as long", *(f"{found.critical:.0f}" for found in measured.noise.values())),
            ("slope in logarithms", *(f"{found.slope:.2f}" for found in measured.noise.values())),
        ),
    ]


def draw(measured: Measured) -> Figure:
    figure, (left, right) = canvas(
        "SGD's good rates begin where Adam's end, and four times the rows halve the noise", height=6
    )
    styles = ((BLUE, "o-"), (GREEN, "s-"), (ORANGE, "^-"), (PURPLE, "v:"), (BLACK, "D--"))
    for (name, found), (color, style) in zip(measured.accuracy.items(), styles, strict=True):
        left.plot(list(found), [100 * value for value in found.values()], style, color=color, label=name)
    left.axhline(100 * GOOD, color=BLACK, linewidth=0.8, label=f"{GOOD:.0%}")
    left.set(title="Held-out digits after 60 steps", xlabel="learning rate", ylabel="accuracy, %", xscale="log")
    left.set_ylim(0, 100)
    for (name, found), color, style in zip(measured.noise.items(), (BLUE, RED), ("o-", "s--"), strict=True):
        label = f"spread {name}: slope {found.slope:.2f}"
        right.plot(SIZES, list(found.spread.values()), style, color=color, label=label)
        right.axhline(found.gradient, color=color, linestyle=":", label=f"all rows {name}")
    right.set(title="Gradients of batches, and 60 steps of Adam later", xscale="log", yscale="log")
    right.set(xlabel="rows in a batch", ylabel="norm of a gradient, or of the spread")
    right.set_xticks(SIZES, SIZES)
    right.set_yticks([0.25, 0.5, 1, 2, 4], ["0.25", "0.5", "1", "2", "4"])
    right.minorticks_off()
    for axis in (left, right):
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2, fontsize=10)
    return figure
