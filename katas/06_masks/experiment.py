"""What does a classifier that takes the mean of a sequence still read when the
batch is padded further than in training, with the mask and without? And whom do
the queries of a padded sequence attend to?
"""

from dataclasses import dataclass
from itertools import product

import torch
from masks import attention_mask, causal_mask, lengths_to_mask, masked_mean, masked_softmax, pad_sequences, padding_mask
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional as F

from dojo.lab import BLACK, BLUE, GREEN, RED, aligned, canvas, digits, progress

PIXELS = 64
PLACES = (36, 48, 64, 96, 128, 192, 256)
SEEDS = range(3)
STYLES = {
    "masked_mean": {"color": BLUE, "linestyle": "-", "marker": "o"},
    "mean, padding 0": {"color": GREEN, "linestyle": "--", "marker": "s"},
    "mean, padding learned": {"color": RED, "linestyle": ":", "marker": "^"},
}


@dataclass(frozen=True)
class Measured:
    """Accuracy on held-out digits by pooling and places; mask and weights [query key] of a padded sequence."""

    longest: int
    accuracy: dict[str, Tensor]  # [places], the mean over the seeds
    mask: Tensor
    weights: Tensor
    shares: dict[str, tuple[float, float]]  # softmax: the share of attention that padding gets, and the future


class Pooled(nn.Module):
    """Reads a digit from the mean of its tokens' embeddings."""

    def __init__(self, pooling: str):
        super().__init__()
        self.masked = pooling == "masked_mean"
        zero = 0 if pooling == "mean, padding 0" else None
        self.embedding = nn.Embedding(PIXELS + 1, 64, padding_idx=zero)
        self.head = nn.Sequential(nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        return self.head(masked_mean(x, padding_mask(tokens)) if self.masked else x.mean(1))


def sequences(x: Tensor) -> list[Tensor]:
    """Each digit as the numbers, from 1, of its pixels with ink: 16 to 34 tokens, and 0 is free for padding."""
    return [row.nonzero()[:, 0] + 1 for row in x > 0]


def train(pooling: str, tokens: list[Tensor], y: Tensor, seed: int) -> Pooled:
    torch.manual_seed(seed)
    model = Pooled(pooling)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    # Each batch is as long as its longest member.
    batches = [(pad_sequences(tokens[i : i + 64])[0], y[i : i + 64]) for i in range(0, len(y), 64)]
    for _ in range(10):
        for batch, targets in batches:
            loss = F.cross_entropy(model(batch), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model


@torch.no_grad()
def accuracies(model: Pooled, tokens: list[Tensor], y: Tensor) -> list[float]:
    """With each number of places in the batch."""
    batch, _ = pad_sequences(tokens)
    padded = (F.pad(batch, (0, places - batch.shape[1])) for places in PLACES)
    return [(model(wider).argmax(1) == y).float().mean().item() for wider in padded]


def measure() -> Measured:
    data = digits()
    tokens, held_out = sequences(data.x), sequences(data.held_out_x)
    runs = {pooling: [] for pooling in STYLES}
    for seed, pooling in progress(list(product(SEEDS, STYLES)), "training"):
        runs[pooling].append(accuracies(train(pooling, tokens, data.y, seed), held_out, data.held_out_y))

    torch.manual_seed(0)
    scores = torch.randn(8, 8)
    valid = lengths_to_mask(torch.tensor([5]), max_len=8)
    padding, causal = attention_mask(valid)[0, 0], attention_mask(valid, causal=True)[0, 0]
    weights = {
        "no mask": scores.softmax(-1),
        "padding mask": masked_softmax(scores, padding),
        "padding and causal mask": masked_softmax(scores, causal),
    }
    future = padding & ~causal_mask(8)
    return Measured(
        longest=max(map(len, tokens)),
        accuracy={pooling: torch.tensor(found).mean(0) for pooling, found in runs.items()},
        mask=causal,
        weights=weights["padding and causal mask"],
        shares={name: (w[~padding].sum().item() / 8, w[future].sum().item() / 8) for name, w in weights.items()},
    )


def table(measured: Measured) -> list[str]:
    accuracy = [(pooling, *(f"{share:.0%}" for share in found)) for pooling, found in measured.accuracy.items()]
    shares = [(name, *(f"{share:.0%}" for share in found)) for name, found in measured.shares.items()]
    return [
        "  held-out digits read; padding is embedded as 0 or as learned",
        *aligned(("places in the batch", *PLACES), *accuracy),
        "",
        "  5 tokens and 3 places of padding: who gets the queries' attention",
        *aligned(("softmax with", "padding", "the future"), *shares),
    ]


def draw(measured: Measured) -> Figure:
    figure, (left, middle, right) = canvas(
        "Padding changes nothing under the mask; without it, accuracy falls as padding grows",
        columns=3,
        width_ratios=(1.5, 1, 1),
    )
    for pooling, found in measured.accuracy.items():
        left.plot(PLACES, 100 * found, **STYLES[pooling], label=pooling)
    left.axvline(measured.longest, color=BLACK, linewidth=1)
    left.text(measured.longest + 1, 103, f"longest in training: {measured.longest}")
    left.set(title="Mean-pooled sequences", xlabel="places in the batch", ylabel="held-out digits read, %")
    left.set(xscale="log", ylim=(0, 110))
    left.set_xticks(PLACES, PLACES)
    left.minorticks_off()
    left.legend(loc=(0.38, 0.41), fontsize=12)
    for axis, values, title in (
        (middle, measured.mask, "attention_mask, causal"),
        (right, measured.weights, "masked_softmax under it"),
    ):
        axis.imshow(values.numpy(), vmin=0, vmax=1)
        axis.set(title=title, xlabel="key; 5 to 7 are padding", ylabel="query", xticks=range(8), yticks=range(8))
        axis.spines[:].set_visible(False)
    middle.text(2, 5, "True", ha="center", va="center", color="black")
    middle.text(5, 2, "False", ha="center", va="center", color="white")
    for query, key in measured.weights.nonzero().tolist():
        weight = measured.weights[query, key].item()
        color = "white" if weight < 0.6 else "black"
        right.text(key, query, f"{weight:.2f}", ha="center", va="center", fontsize=9, color=color)
    return figure
