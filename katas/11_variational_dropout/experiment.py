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

P, STEPS = 0.5, 50  # the masks on the state
CLASSES, LENGTHS, SEEDS = 4, (4, 10, 16, 24), (0, 1)
MASKS = {
    "none": {"color": BLACK, "linestyle": ":", "marker": "o"},
    "locked": {"color": BLUE, "linestyle": "-", "marker": "s"},
    "per step": {"color": ORANGE, "linestyle": "--", "marker": "^"},
}


@dataclass(frozen=True)
class Measured:
    """What the state keeps and recalls with each mask, and what mc_dropout says within and beyond the data."""

    survivors: dict[str, Tensor]  # share of units [step]
    recalled: dict[str, Tensor]  # share of sequences [length]
    data: tuple[Tensor, Tensor]
    points: Tensor
    mean: Tensor  # [seed point]
    std: Tensor

    @property
    def errors(self) -> Tensor:
        return (self.mean - curve(self.points)).abs()

    @property
    def covered(self) -> Tensor:
        return (self.errors < 2 * self.std).float()

    @property
    def within(self) -> Tensor:
        return self.points.abs() <= 1


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


@torch.no_grad()
def survivors(mask: str) -> Tensor:
    """The share of units that still hold something of their start value 1, after each step."""
    rnn = memory(mask, 1, 1000)
    for parameter in (rnn.weight_ih_l0, rnn.bias_ih_l0, rnn.bias_hh_l0):
        nn.init.zeros_(parameter)
    after = states(rnn, mask, torch.zeros(1, STEPS, 1), torch.ones(1, 1, 1000))
    return (after[0] != 0).float().mean(1)


def fit(parameters: list[Tensor], lr: float, turns: int, loss_fn) -> None:
    optimizer = torch.optim.Adam(parameters, lr, fused=True)
    for _ in range(turns):
        optimizer.zero_grad()
        loss_fn().backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()


def recalled(mask: str, steps: int, seed: int) -> Tensor:
    """Learns which of four signals began a noisy sequence; the share of new ones right, without dropout."""
    torch.manual_seed(seed)
    rnn, head = memory(mask, CLASSES, 32), nn.Linear(32, CLASSES)

    def scores_and_answers(count: int) -> tuple[Tensor, Tensor]:
        y = torch.randint(CLASSES, (count,))
        x = 0.1 * torch.randn(count, steps, CLASSES)
        x[:, 0] += F.one_hot(y, CLASSES)
        return head(states(rnn, mask, x, torch.zeros(1, count, 32))[:, -1]), y

    fit([*rnn.parameters(), *head.parameters()], 5e-3, 120, lambda: F.cross_entropy(*scores_and_answers(32)))
    rnn.eval()
    with torch.no_grad():
        scores, y = scores_and_answers(1000)
    return (scores.argmax(1) == y).float().mean()


def curve(x: Tensor) -> Tensor:
    return torch.sin(3 * x)


def predictions(x: Tensor, y: Tensor, points: Tensor, seed: int) -> Tensor:
    """Mean and std at the points, of a network that has learned y from x."""
    torch.manual_seed(seed)
    hidden = [nn.Linear(1, 64), nn.ReLU(), nn.Dropout(0.1), nn.Linear(64, 64), nn.ReLU(), nn.Dropout(0.1)]
    model = nn.Sequential(*hidden, nn.Linear(64, 1), nn.Flatten(0))
    fit(list(model.parameters()), 1e-2, 300, lambda: F.mse_loss(model(x[:, None]), y))
    return torch.stack(mc_dropout(model, points[:, None], samples=200))


def measure() -> Measured:
    found = {mask: torch.zeros(len(LENGTHS)) for mask in MASKS}
    for (place, steps), seed in progress(list(itertools.product(enumerate(LENGTHS), SEEDS)), "recalling"):
        for mask in MASKS:
            found[mask][place] += recalled(mask, steps, seed) / len(SEEDS)
    torch.manual_seed(0)
    x, points = 2 * torch.rand(100) - 1, torch.linspace(-3, 3, 241)
    y = curve(x) + 0.1 * torch.randn(100)
    mean, std = torch.stack([predictions(x, y, points, seed) for seed in SEEDS], dim=1)
    return Measured({mask: survivors(mask) for mask in MASKS}, found, (x, y), points, mean, std)


def table(measured: Measured) -> list[str]:
    memories = [
        (mask, f"{measured.survivors[mask][-1]:.0%}", *(f"{share:.0%}" for share in measured.recalled[mask].tolist()))
        for mask in MASKS
    ]
    spreads = [
        (
            f"{place} the data",
            *(f"{values[:, where].mean():.2f}" for values in (measured.std, measured.errors)),
            f"{measured.covered[:, where].mean():.0%}",
        )
        for place, where in (("within", measured.within), ("beyond", ~measured.within))
    ]
    recall = (f"recalled after {LENGTHS[0]}", *LENGTHS[1:-1], f"{LENGTHS[-1]} steps")
    return [
        *aligned(("mask", f"units left after {STEPS}", *recall), *memories),
        "",
        *aligned(("mc_dropout", "std", "error", "truth within 2 std"), *spreads),
    ]


def draw(measured: Measured) -> Figure:
    title = "A locked mask keeps what a mask per step erases; an mc_dropout band misses what is new"
    figure, (kept, recall, band, growth) = canvas(title, rows=2, height=8.6)
    for mask, style in MASKS.items():
        kept.plot(range(1, STEPS + 1), measured.survivors[mask], **style, markevery=7, label=mask)
        recall.plot(LENGTHS, measured.recalled[mask], **style, label=mask)
    kept.set(title=f"Units not yet erased, p = {P}", xlabel="steps", ylabel="share of units", ylim=(-0.05, 1.4))
    recall.axhline(1 / CLASSES, color=BLACK, linewidth=0.8)
    recall.text(LENGTHS[0], 1 / CLASSES + 0.02, "by chance")
    recall.set(title="Trained to recall the first input", xlabel="steps", ylabel="share recalled", ylim=(-0.05, 1.4))
    recall.set_xticks(LENGTHS)
    for axis in (kept, recall):
        axis.set_yticks([0, 0.25, 0.5, 0.75, 1])
        axis.legend(title="mask on the state", loc="upper center", ncols=3)
    x, mean, std = measured.points, measured.mean[0], measured.std[0]
    band.plot(*measured.data, ".", color=ORANGE, markersize=5, label="training data")
    band.plot(x, curve(x), "--", color=BLACK, label="truth")
    band.plot(x, mean, color=BLUE)
    band.fill_between(x, mean - 2 * std, mean + 2 * std, color=SKY, alpha=0.6, linewidth=0, label="mean ± 2 std")
    band.set(title="mc_dropout of one network, p = 0.1", ylabel="y", ylim=(-1.4, 1.9))
    growth.plot(x, measured.errors.mean(0), "--", color=ORANGE, label="error")
    growth.plot(x, measured.std.mean(0), color=BLUE, label="std")
    growth.set(title="Its error and its std, means over seeds", ylabel="in units of y", ylim=(0, 1.9))
    for axis in (band, growth):
        axis.axvspan(-1, 1, color=BLACK, alpha=0.07, linewidth=0)
        axis.set_xlabel("x (shaded: where data is)")
        axis.legend(loc="upper center", ncols=3, columnspacing=1)
    return figure
