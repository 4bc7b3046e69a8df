"""What do batch norm, dropout and both do to a network that grows deeper?

And how far off in eval is batch norm that learned its statistics with dropout?
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import product

import torch
from matplotlib.figure import Figure
from normalization import BatchNorm, Dropout, NormalizedMLP
from torch import nn
from torch.nn.functional import cross_entropy

from dojo.lab import BLACK, BLUE, GREEN, ORANGE, RED, SKY, Digits, aligned, canvas, digits, progress

WIDTH = 64  # of the digits, too
DEPTHS = (2, 5, 10, 20)  # hidden layers
P = 0.1
STEPS = 60
SHIFT_DEPTH = 10


def stack(depth: int, *parts: Callable[[], nn.Module]) -> nn.Module:
    """The parts once for each hidden layer, and a last layer."""
    return nn.Sequential(*(part() for _ in range(depth) for part in parts), nn.Linear(WIDTH, 10))


def norm_first(depth: int, p: float = P) -> nn.Module:
    return NormalizedMLP([WIDTH] * (depth + 1) + [10], dropout=p)


def dropout_first(depth: int) -> nn.Module:
    return stack(depth, LINEAR, DROPOUT, partial(BatchNorm, WIDTH), nn.ReLU)


LINEAR, DROPOUT = partial(nn.Linear, WIDTH, WIDTH), partial(Dropout, P)
KINDS = {
    "neither": (lambda depth: stack(depth, LINEAR, nn.ReLU), BLACK, "-"),
    f"dropout {P}": (lambda depth: stack(depth, LINEAR, nn.ReLU, DROPOUT), ORANGE, ":"),
    "batch norm": (partial(norm_first, p=0.0), BLUE, "--"),
    "both": (norm_first, RED, "-."),
}
SHIFTS = {
    "no dropout, untrained": (partial(norm_first, p=0.0), 0, BLUE, "s--"),
    "norm, dropout, trained": (norm_first, STEPS, RED, "D-."),
    "dropout, norm, trained": (dropout_first, STEPS, GREEN, "v-"),
    "norm, dropout, untrained": (norm_first, 0, ORANGE, "D-."),
    "dropout, norm, untrained": (dropout_first, 0, SKY, "v-"),
}


@dataclass(frozen=True)
class Trained:
    """How a network learned."""

    gradients: list[float]  # the norm in each hidden layer, at the first step
    losses: list[float]
    accuracy: float  # on held-out digits


@dataclass(frozen=True)
class Measured:
    """Networks by depth and kind, and the variance behind each batch norm in eval, as a share of that in training."""

    trained: dict[tuple[int, str], Trained]
    shifts: dict[str, list[float]]


def train(model: nn.Module, data: Digits, steps: int = STEPS) -> Trained:
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)][:-1]
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003, fused=True)
    gradients, losses = [], []
    for _ in range(steps):
        batch = torch.randint(len(data.x), (100,))
        loss = cross_entropy(model(data.x[batch]), data.y[batch])
        optimizer.zero_grad()
        loss.backward()
        if not gradients:
            gradients = [layer.weight.grad.norm().item() for layer in layers]
        optimizer.step()
        losses.append(loss.item())
    with torch.no_grad():
        right = model.eval()(data.held_out_x).argmax(dim=1) == data.held_out_y
    return Trained(gradients, losses, right.float().mean().item())


@torch.no_grad()
def shift(model: nn.Module, data: Digits) -> list[float]:
    model.train()
    for _ in range(100):  # until the running statistics have forgotten what came before
        model(data.x[torch.randint(len(data.x), (200,))])
    variances = []
    for module in model.modules():
        if isinstance(module, BatchNorm):
            module.register_forward_hook(lambda module, x, y: variances.append(y.var(dim=0).mean()))
    model(data.x)
    model.eval()(data.x)
    training, evaluation = torch.stack(variances).chunk(2)
    return (evaluation / training).tolist()


def measure() -> Measured:
    data = digits()
    trained, shifts = {}, {}
    for depth, kind in progress(list(product(DEPTHS, KINDS)), "training"):
        torch.manual_seed(0)
        trained[depth, kind] = train(KINDS[kind][0](depth), data)
    for name, (build, steps, *_) in progress(SHIFTS.items(), "variances"):
        torch.manual_seed(0)
        model = build(SHIFT_DEPTH)
        train(model, data, steps)
        shifts[name] = shift(model, data)
    return Measured(trained, shifts)


def table(measured: Measured) -> list[str]:
    rows = []
    for kind in KINDS:
        gradients = measured.trained[DEPTHS[-1], kind].gradients
        accuracies = [f"{measured.trained[depth, kind].accuracy:.0%}" for depth in DEPTHS]
        rows.append((kind, f"{gradients[0]:.0e}", f"{gradients[-1]:.0e}", *accuracies))
    places = (1, 2, 5, SHIFT_DEPTH)
    shifts = [(name, *(f"{shares[place - 1]:.2f}" for place in places)) for name, shares in measured.shifts.items()]
    return [
        f"  gradient in the first and last of {DEPTHS[-1]} layers; accuracy after {STEPS} steps, by depth",
        *aligned(("", "first", "last", *DEPTHS), *rows),
        "",
        f"  variance behind a batch norm: in eval / in training, dropout {P}",
        *aligned(("", *(f"layer {place}" for place in places)), *shifts),
    ]


def draw(measured: Measured) -> Figure:
    figure, (gradient, loss, accuracy, variance) = canvas(
        "Batch norm lets 20 layers learn; dropout slows it, and shifts variance layer by layer", rows=2, height=9.4
    )
    for kind, (_, color, style) in KINDS.items():
        deepest = measured.trained[DEPTHS[-1], kind]
        gradient.plot(range(1, DEPTHS[-1] + 1), deepest.gradients, style, color=color, label=kind)
        loss.plot(range(1, STEPS + 1), deepest.losses, style, color=color, label=kind)
        accuracies = [100 * measured.trained[depth, kind].accuracy for depth in DEPTHS]
        accuracy.plot(DEPTHS, accuracies, style, marker="o", color=color, label=kind)
    for name, (*_, color, style) in SHIFTS.items():
        variance.plot(range(1, SHIFT_DEPTH + 1), measured.shifts[name], style, color=color, label=name)
    gradient.set(title=f"Gradients at the start, {DEPTHS[-1]} layers", xlabel="layer", ylabel="norm", yscale="log")
    gradient.set(xticks=(1, 5, 10, 15, 20))
    loss.set(title=f"Loss in training, {DEPTHS[-1]} layers", xlabel="step", ylabel="cross-entropy (nat)")
    accuracy.set(title=f"After {STEPS} steps", xlabel="hidden layers", ylabel="held-out accuracy (%)", xticks=DEPTHS)
    variance.set(title=f"Variance shift by dropout {P}: training mends most", yscale="log")
    variance.set(ylabel="variance behind norm, eval / training", ylim=(0.03, 1.3), xlabel=f"layer, of {SHIFT_DEPTH}")
    variance.set_yticks([0.05, 0.1, 0.2, 0.5, 1], ["0.05", "0.1", "0.2", "0.5", "1"])
    for axis in (gradient, loss, accuracy, variance):
        axis.legend(loc="lower right" if axis is gradient else "lower left")
    return figure
