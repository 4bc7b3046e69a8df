"""What is left of the first input after 50 steps: mask per step, locked, none?

And does the spread of mc_dropout tell where there was no training data?
"""

import itertools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn
from variational_dropout import VariationalRNN, locked_dropout, mc_dropout, rnn_step

from dojo.lab import BLACK, BLUE, ORANGE, SKY, aligned, canvas, progress

P = 0.5  # of the masks on the state
CLASSES, HIDDEN = 4, 32
LENGTHS = (4, 8, 12, 16, 24)
SEEDS = (0, 1)
MASKS = {
    "none": {"color": BLACK, "linestyle": ":", "marker": "o"},
    "locked": {"color": BLUE, "linestyle": "-", "marker": "s"},
    "per step": {"color": ORANGE, "linestyle": "--", "marker": "^"},
}


@dataclass(frozen=True)
class Measured:
    """What the state keeps and recalls for each mask, and what mc_dropout says in and beyond the data, for each p."""

    survivors: dict[str, Tensor]  # share of units [step]
    recalled: dict[str, Tensor]  # share of sequences [dropout on and off, length]
    data: tuple[Tensor, Tensor]
    points: Tensor
    mean: dict[float, Tensor]  # [seed, point]
    std: dict[float, Tensor]

    def seen(self) -> Tensor:
        return self.points.abs() <= 1

    def errors(self, p: float) -> Tensor:
        return (self.mean[p] - curve(self.points)).abs()

    def covered(self, p: float) -> Tensor:
        return (self.errors(p) < 2 * self.std[p]).float()


def memory(mask: str, inputs: int, hidden: int) -> VariationalRNN:
    """A network in which each unit at first keeps what it holds, so that dropout is what erases it."""
    rnn = VariationalRNN(inputs, hidden, hidden_dropout=P if mask == "locked" else 0.0)
    nn.init.eye_(rnn.weight_hh_l0)
    return rnn


def states(rnn: VariationalRNN, mask: str, x: Tensor, h0: Tensor) -> Tensor:
    """The state after each step, [b t h]."""
    if mask != "per step" or not rnn.training:
        return rnn(x, h0)[0]
    batch, time, _ = x.shape
    # Each step as a sequence of its own gets a mask of its own.
    masks = locked_dropout(torch.ones(batch * time, 1, rnn.hidden_size), P).view(batch, time, -1)
    h, after = h0[0], []
    for now, factor in zip(x.unbind(1), masks.unbind(1), strict=True):
        h = rnn_step(now, h * factor, *rnn.parameters())
        after.append(h)
    return torch.stack(after, dim=1)


def survivors(mask: str) -> Tensor:
    """The share of units that still hold something of their start value 1, after each of 50 steps."""
    rnn = memory(mask, 1, 1000)
    for parameter in (rnn.weight_ih_l0, rnn.bias_ih_l0, rnn.bias_hh_l0):
        nn.init.zeros_(parameter)
    with torch.no_grad():
        after = states(rnn, mask, torch.zeros(1, 50, 1), torch.ones(1, 1, 1000))
    return (after[0] != 0).float().mean(1)


def sequences(count: int, steps: int) -> tuple[Tensor, Tensor]:
    """Noise with one of four signals in the first step, and which one it is."""
    y = torch.randint(CLASSES, (count,))
    x = 0.1 * torch.randn(count, steps, CLASSES)
    x[:, 0] += F.one_hot(y, CLASSES)
    return x, y


def fit(parameters: list[Tensor], lr: float, steps: int, loss_fn) -> None:
    optimizer = torch.optim.Adam(parameters, lr, fused=True)
    for _ in range(steps):
        optimizer.zero_grad()
        loss_fn().backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()


def recalled(mask: str, steps: int) -> Tensor:
    """Learns to name the signal after the last step; the share named right with dropout on, and off."""
    rnn, head = memory(mask, CLASSES, HIDDEN), nn.Linear(HIDDEN, CLASSES)

    def scores(x: Tensor) -> Tensor:
        return head(states(rnn, mask, x, torch.zeros(1, len(x), HIDDEN))[:, -1])

    def loss() -> Tensor:
        x, y = sequences(32, steps)
        return F.cross_entropy(scores(x), y)

    fit([*rnn.parameters(), *head.parameters()], 5e-3, 150, loss)
    x, y = sequences(1000, steps)
    right = []
    for dropout_on in (True, False):
        rnn.train(dropout_on)
        with torch.no_grad():
            right.append((scores(x).argmax(1) == y).float().mean())
    return torch.stack(right)


def curve(x: Tensor) -> Tensor:
    return torch.sin(3 * x)


def uncertainty(p: float, x: Tensor, y: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and std of the predictions at `points` of a network that learned y from x."""
    model = nn.Sequential(
        nn.Linear(1, 64), nn.ReLU(), nn.Dropout(p), nn.Linear(64, 64), nn.ReLU(), nn.Dropout(p), nn.Linear(64, 1)
    )
    fit(list(model.parameters()), 1e-2, 400, lambda: F.mse_loss(model(x[:, None])[:, 0], y))
    mean, std = mc_dropout(model, points[:, None], samples=200)
    return mean[:, 0], std[:, 0]


def measure() -> Measured:
    found = {mask: torch.zeros(2, len(LENGTHS)) for mask in MASKS}
    for (place, steps), seed in progress(list(itertools.product(enumerate(LENGTHS), SEEDS)), "recalling"):
        for mask in MASKS:
            torch.manual_seed(seed)
            found[mask][:, place] += recalled(mask, steps) / len(SEEDS)
    torch.manual_seed(0)
    x = 2 * torch.rand(100) - 1
    y = curve(x) + 0.1 * torch.randn(100)
    points = torch.linspace(-3, 3, 241)
    mean, std = {}, {}
    for p in (0.1, 0.5):
        results = []
        for seed in SEEDS:
            torch.manual_seed(seed)
            results.append(uncertainty(p, x, y, points))
        mean[p], std[p] = map(torch.stack, zip(*results, strict=True))
    return Measured({mask: survivors(mask) for mask in MASKS}, found, (x, y), points, mean, std)


def table(measured: Measured) -> list[str]:
    memories = [
        (
            f"{mask} mask, dropout {mode}",
            f"{measured.survivors[mask][-1]:.0%}" if mode == "on" else "",
            *(f"{measured.recalled[mask][row, LENGTHS.index(steps)]:.0%}" for steps in (8, 16, 24)),
        )
        for mask, mode, row in (("none", "on", 0), ("per step", "on", 0), ("locked", "on", 0), ("locked", "off", 1))
    ]
    spreads = [
        (
            f"p {p}, {place} the data",
            f"{measured.std[p][:, where].mean():.2f}",
            f"{measured.errors(p)[:, where].mean():.2f}",
            f"{measured.covered(p)[:, where].mean():.0%}",
        )
        for p in measured.std
        for place, where in (("within", measured.seen()), ("beyond", ~measured.seen()))
    ]
    return [
        *aligned(("", "units left after 50", "recalled after 8", "16", "24 steps"), *memories),
        "",
        *aligned(("mc_dropout", "std", "error", "truth within 2 std"), *spreads),
    ]


def draw(measured: Measured) -> Figure:
    title = "A locked mask keeps what a mask per step erases; an mc_dropout band misses what is new"
    figure, (kept, recall, band, growth) = canvas(title, rows=2, height=8.6)
    for mask, style in MASKS.items():
        kept.plot(range(1, 51), measured.survivors[mask], **style, markevery=7, label=mask)
        recall.plot(
            LENGTHS, measured.recalled[mask][0], **style, label=f"{mask}, dropout on" if mask != "none" else mask
        )
    recall.plot(
        LENGTHS, measured.recalled["locked"][1], color=SKY, linestyle="-.", marker="x", label="locked, dropout off"
    )
    recall.axhline(1 / CLASSES, color=BLACK, linewidth=0.8)
    kept.set(title=f"Units not yet erased, p = {P}", xlabel="steps", ylabel="share of units", ylim=(-0.05, 1.08))
    recall.set(title="Trained to recall the first input", xlabel="steps", ylabel="share recalled", ylim=(0, 1.08))
    kept.legend(title="mask", loc="center right")
    recall.legend(loc="lower left")
    p, points = 0.1, measured.points
    mean, std = measured.mean[p][0], measured.std[p][0]
    band.axvspan(-1, 1, color=BLACK, alpha=0.07, linewidth=0)
    band.fill_between(points, mean - 2 * std, mean + 2 * std, color=SKY, alpha=0.6, linewidth=0, label="mean ± 2 std")
    band.plot(points, mean, color=BLUE)
    band.plot(points, curve(points), "--", color=BLACK, label="truth")
    band.plot(*measured.data, ".", color=ORANGE, markersize=5, label="training data")
    band.set(title=f"mc_dropout, p = {p}", xlabel="x", ylabel="y")
    band.legend(loc="upper left")
    growth.axvspan(-1, 1, color=BLACK, alpha=0.07, linewidth=0)
    for p, color in zip(measured.std, (BLUE, ORANGE), strict=True):
        growth.plot(points, measured.errors(p).mean(0), "--", color=color, label=f"error, p = {p}")
        growth.plot(points, measured.std[p].mean(0), color=color, label=f"std, p = {p}")
    growth.set(title="Error and std, means over networks", xlabel="x (shaded: training data)", ylabel="in units of y")
    growth.legend()
    return figure
