"""Fifty layers: which ways around a layer bring the gradient back to the first?

And is a gradient that arrives enough for a network to learn?
"""

import itertools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from residual import HighwayBlock, deep_stack, gradient_norms, stochastic_depth
from torch import Tensor, nn

from dojo.lab import BLACK, BLUE, GREEN, ORANGE, PURPLE, RED, Digits, aligned, canvas, digits, progress

DEPTH, FEATURES, STEPS, SEEDS = 50, 32, 60, (0, 1)


@dataclass(frozen=True)
class Run:
    """How the gradient comes back through a stack before and after training, and what it learns."""

    before: Tensor  # log10 of the gradient norm [layer], less that of the last layer
    alike: Tensor  # mean cosine between two digits behind the last layer, before training
    loss: Tensor  # [step]
    after: Tensor  # as before
    accuracy: Tensor  # on held-out digits


@dataclass(frozen=True)
class Measured:
    """The run of each stack, as means over the seeds."""

    runs: dict[str, Run]


class StochasticDepth(nn.Module):
    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        return stochastic_depth(x, self.branch, 0.2, self.training)


def plain() -> nn.Sequential:
    return deep_stack(DEPTH, FEATURES, residual=False)


def plain_he() -> nn.Sequential:
    """The plain stack with He's initial values, which keep the size of what passes, on the way there and back."""
    stack = plain()
    for layer in stack:
        first, second = (module for module in layer.modules() if isinstance(module, nn.Linear))
        for linear, kind in ((first, "linear"), (second, "relu")):  # named for what comes before it
            nn.init.kaiming_normal_(linear.weight, nonlinearity=kind)
            nn.init.zeros_(linear.bias)
    return stack


def highway(gate_bias: float) -> nn.Sequential:
    return nn.Sequential(*(HighwayBlock(FEATURES, gate_bias) for _ in range(DEPTH)))


STACKS = {
    "plain": plain,
    "plain, He's weights": plain_he,
    "skips": lambda: deep_stack(DEPTH, FEATURES, residual=True),
    "stochastic depth": lambda: nn.Sequential(*map(StochasticDepth, plain())),
    "highway, gate bias -1": lambda: highway(-1.0),
    "highway, gate bias -3": lambda: highway(-3.0),
}
LINES = {
    "plain": {"color": BLACK, "linestyle": ":", "zorder": 3},  # its loss lies on that of gate bias -1
    "plain, He's weights": {"color": RED, "linestyle": "--"},
    "skips": {"color": BLUE, "linestyle": "-"},
    "stochastic depth": {"color": GREEN, "linestyle": "-."},
    "highway, gate bias -1": {"color": ORANGE, "linestyle": "--"},
    "highway, gate bias -3": {"color": PURPLE, "linestyle": "-"},
}


def returning(model: nn.Sequential, x: Tensor) -> Tensor:
    """log10 of the gradient norm at each layer of the stack, less that of the last layer."""
    first, stack, _ = model
    with torch.no_grad():
        norms = torch.tensor(gradient_norms(stack, first(x)), dtype=torch.float64).log10()
    return norms - norms[-1]


@torch.no_grad()
def alike(model: nn.Sequential, x: Tensor) -> Tensor:
    first, second = model.eval()[:2](x).chunk(2)
    return F.cosine_similarity(first, second).mean()


def train(model: nn.Sequential, data: Digits) -> Tensor:
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    model.train()
    losses = []
    for _ in range(STEPS):
        rows = torch.randint(len(data.y), (64,))
        loss = F.cross_entropy(model(data.x[rows]), data.y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses)


@torch.no_grad()
def accuracy(model: nn.Sequential, data: Digits) -> Tensor:
    scores = model.eval()(data.held_out_x)
    return (scores.argmax(1) == data.held_out_y).float().mean()


def measure() -> Measured:
    data = digits()
    found = {name: [] for name in STACKS}
    for seed, name in progress(list(itertools.product(SEEDS, STACKS)), "training"):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(64, FEATURES), STACKS[name](), nn.Linear(FEATURES, 10))
        x = data.x[:64]
        before, cosine = returning(model, x), alike(model, x)
        loss = train(model, data)
        found[name].append((before, cosine, loss, returning(model, x), accuracy(model, data)))
    means = {name: [torch.stack(part).mean(0) for part in zip(*runs, strict=True)] for name, runs in found.items()}
    return Measured({name: Run(*parts) for name, parts in means.items()})


def table(measured: Measured) -> list[str]:
    rows = [
        (
            name,
            *(f"{10 ** norms[0].item():.0e}" for norms in (run.before, run.after)),
            f"{run.alike:.2f}",
            f"{run.loss[-10:].mean():.2f}",
            f"{run.accuracy:.0%}",
        )
        for name, run in measured.runs.items()
    ]
    return [
        f"  gradient norm at the first of {DEPTH} layers / at the last; cosine of two digits",
        f"  behind the last, untrained; loss of steps {STEPS - 9} to {STEPS}; held-out digits read",
        "",
        *aligned(("", "untrained", "trained", "cosine", "loss", "read"), *rows),
    ]


def draw(measured: Measured) -> Figure:
    title = "Skips bring the gradient back and learn; He's weights bring it back too, and learn slowly"
    figure, (gradient, loss) = canvas(title, height=5.8)
    for name, run in measured.runs.items():
        gradient.plot(range(1, DEPTH + 1), 10**run.before, **LINES[name], label=name)
        # Means of 5 steps: single batches jump.
        loss.plot(range(5, STEPS + 1), run.loss.unfold(0, 5, 1).mean(1), **LINES[name])
    lowest = measured.runs["plain"].before[0]
    gradient.text(20, 3e-10, f"plain: $10^{{{lowest:.0f}}}$ at layer 1", ha="right")
    gradient.set(
        title=f"The way back through {DEPTH} layers, untrained",
        xlabel="layer",
        ylabel="gradient norm / that at the last layer",
        yscale="log",
        ylim=(1e-10, 1e3),
    )
    loss.set(
        title="Training on digits (Adam, rate 0.001)",
        xlabel="step",
        ylabel="cross-entropy, means of 5 steps",
        ylim=(0, None),
    )
    figure.legend(loc="outside lower center", ncols=3)
    return figure
