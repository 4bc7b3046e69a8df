"""Does a model that learned smoothed labels know better how sure it may be?

And does it read more digits, when some of the labels it learned were wrong?
"""

from dataclasses import dataclass
from itertools import product

import torch
from label_smoothing import expected_calibration_error, label_smoothing_loss, log_softmax
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from dojo.lab import BLACK, BLUE, GREEN, ORANGE, Digits, aligned, canvas, digits, progress

NOISES = (0.0, 0.2, 0.4)
STYLES = {0.0: (BLACK, "o-"), 0.1: (BLUE, "s--"), 0.3: (ORANGE, "^:")}  # the amounts of smoothing
SEEDS = 3
BINS = 10


@dataclass(frozen=True)
class Found:
    """Models that learned with the same noise and smoothing, one for each seed, on held-out digits."""

    learned: Tensor  # the share of the training labels, right and wrong ones, that a model gives back
    accuracy: Tensor
    confidence: Tensor
    error: Tensor
    reliability: list[tuple[float, float]]  # mean confidence and accuracy of each bin, over all seeds


@dataclass(frozen=True)
class Measured:
    """What was found, by noise and smoothing."""

    found: dict[tuple[float, float], Found]


def with_wrong(target: Tensor, noise: float) -> Tensor:
    """The labels, a share of them replaced by another digit."""
    wrong = torch.rand(len(target)) < noise
    return torch.where(wrong, (target + torch.randint(1, 10, target.shape)) % 10, target)


def train(x: Tensor, y: Tensor, smoothing: float) -> nn.Module:
    """A model trained for so long that it knows the labels by heart."""
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, fused=True)
    for _ in range(60):
        for batch in torch.randperm(len(x)).split(200):
            optimizer.zero_grad()
            label_smoothing_loss(model(x[batch]), y[batch], smoothing).backward()
            optimizer.step()
    return model.requires_grad_(False)


def reliability(confidence: Tensor, right: Tensor) -> list[tuple[float, float]]:
    index = (confidence * BINS).ceil().long() - 1
    bins = [index == number for number in range(BINS)]
    # The accuracy of a few rows says nothing.
    return [(confidence[rows].mean().item(), right[rows].mean().item()) for rows in bins if rows.sum() >= 30]


def find(data: Digits, noise: float, smoothing: float) -> Found:
    numbers, confidences, rights = [], [], []
    for seed in range(SEEDS):
        torch.manual_seed(seed)  # the same wrong labels and first weights for each smoothing
        y = with_wrong(data.y, noise)
        model = train(data.x, y, smoothing)
        learned = (model(data.x).argmax(dim=1) == y).float().mean()
        probabilities = log_softmax(model(data.held_out_x)).exp()
        confidence, predicted = probabilities.max(dim=1)
        right = (predicted == data.held_out_y).float()
        error = expected_calibration_error(probabilities, data.held_out_y, BINS)
        numbers.append((learned, right.mean(), confidence.mean(), error))
        confidences.append(confidence)
        rights.append(right)
    return Found(*torch.tensor(numbers).T, reliability(torch.cat(confidences), torch.cat(rights)))


def measure() -> Measured:
    data = digits(held_out=1397)  # 400 rows are learned by heart in little time
    settings = list(product(NOISES, STYLES))
    return Measured({setting: find(data, *setting) for setting in progress(settings, "training")})


def table(measured: Measured) -> list[str]:
    rows = [
        (
            f"{noise:.0%}",
            smoothing,
            *(f"{column.mean():.1%}" for column in (found.learned, found.accuracy, found.confidence, found.error)),
        )
        for (noise, smoothing), found in measured.found.items()
    ]
    return [
        *aligned(("wrong labels", "smoothing", "learned", "accuracy", "confidence", "calibration error"), *rows),
        f"  means of {SEEDS} seeds; the last three columns on 1397 held-out digits",
    ]


def draw(measured: Measured) -> Figure:
    figure, (right, wrong, error, gain) = canvas(
        "Smoothing lowers confidence: 0.1 mends a model that is far too sure, spoils others", rows=2, height=9.4
    )
    draw_reliability(right, measured, NOISES[0])
    draw_reliability(wrong, measured, NOISES[-1])
    right.set(title="Learned right labels")
    wrong.set(title=f"Learned labels of which {NOISES[-1]:.0%} are wrong")

    ticks = [100 * noise for noise in NOISES]
    for smoothing, (color, style) in STYLES.items():
        errors = [100 * measured.found[noise, smoothing].error.mean() for noise in NOISES]
        error.plot(ticks, errors, style, color=color, label=f"smoothing {smoothing}")
    gain.axhline(0, color=BLACK, linewidth=1)
    for smoothing, shift in ((0.1, -1), (0.3, 1)):
        color, (marker, *line) = STYLES[smoothing]
        gains = [
            100 * (measured.found[noise, smoothing].accuracy - measured.found[noise, 0.0].accuracy) for noise in NOISES
        ]
        places = [tick + shift for tick in ticks]  # beside the other's, so that no seed hides another
        gain.plot(places, gains, marker, color=color, alpha=0.6)
        means = [each.mean() for each in gains]
        gain.plot(places, means, "".join(line), color=color, label=f"smoothing {smoothing}, mean of the seeds")
    error.set(title="Calibration error: 0 is best", ylabel="error (%)", ylim=(0, 45))
    gain.set(title="Accuracy gained over smoothing 0.0", ylabel="percentage points", ylim=-3)
    for axis, corner in ((error, "upper right"), (gain, "lower left")):
        axis.set(xlabel="wrong labels in training (%)", xticks=ticks)
        axis.legend(loc=corner)
    return figure


def draw_reliability(axis: Axes, measured: Measured, noise: float) -> None:
    axis.plot([0, 1], [0, 1], color=GREEN, linewidth=1, label="as sure as right")
    for smoothing, (color, style) in STYLES.items():
        points = measured.found[noise, smoothing].reliability
        axis.plot(*zip(*points, strict=True), style, color=color, label=f"smoothing {smoothing}")
    axis.set(xlabel="mean confidence of a bin of held-out digits", ylabel="accuracy in the bin")
    axis.set(xlim=(0, 1), ylim=(0, 1.03))
    axis.text(0.03, 0.9, "not sure enough")
    axis.text(0.97, 0.4, "too sure", ha="right")
    axis.legend(loc="lower right")
