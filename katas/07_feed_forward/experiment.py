"""Which positions does an output depend on: of a feed-forward network, and of
attention? And what does it cost in time and memory to go chunk by chunk?
"""

import math
import time
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from feed_forward import (
    FeedForwardSublayer,
    GatedFeedForward,
    PositionwiseFeedForward,
    count_flops,
    feed_forward_chunked,
)
from matplotlib.figure import Figure
from torch import Tensor, nn

from dojo.guards import live_bytes
from dojo.lab import BLUE, ORANGE, aligned, canvas, digits, progress

STEPS, D_MODEL, D_FF = 1024, 128, 512
CHUNKS = [2**power for power in range(11)]
PASSES = 12


@dataclass(frozen=True)
class Cost:
    """Of a pass: its best time in seconds, and the most bytes alive at once, without and with a graph for backward."""

    seconds: float
    peak: int
    recorded_peak: int


@dataclass(frozen=True)
class Measured:
    """Norms of d output[t] / d input[s] as matrices [t, s], and what a pass costs by the size of the chunks."""

    influence: dict[str, Tensor]
    costs: dict[int, Cost]
    difference: float  # the largest between a pass in chunks and the whole


class Attention(nn.Module):
    """One head over the positions of x [time, d]."""

    def __init__(self, d: int, causal: bool = False):
        super().__init__()
        self.qkv = nn.Linear(d, 3 * d)
        self.causal = causal

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x[None]).chunk(3, dim=-1)
        return F.scaled_dot_product_attention(query, key, value, is_causal=self.causal)[0]


def influence(network: nn.Module, sequences: Tensor) -> Tensor:
    """The norm of d output[t] / d input[s] for all pairs of positions, on average over the sequences [n, time, d]."""
    jacobians = [torch.autograd.functional.jacobian(network, x) for x in sequences]  # each [t, d, s, d]
    return torch.stack([torch.linalg.vector_norm(jacobian, dim=(1, 3)) for jacobian in jacobians]).mean(dim=0)


def peak(ffn: nn.Module, x: Tensor, chunk: int, recorded: bool) -> int:
    with torch.set_grad_enabled(recorded), live_bytes(x, *ffn.parameters()) as memory:
        feed_forward_chunked(ffn, x, chunk)
    return memory.peak


def pass_costs(ffn: nn.Module, x: Tensor) -> dict[int, Cost]:
    best = dict.fromkeys(CHUNKS, math.inf)
    with torch.no_grad():
        # Round by round: what else the machine does for a while then slows all sizes, and not one.
        for _ in progress(range(PASSES), "passes"):
            for chunk in CHUNKS:
                started = time.perf_counter()
                feed_forward_chunked(ffn, x, chunk)
                best[chunk] = min(best[chunk], time.perf_counter() - started)
    return {
        chunk: Cost(best[chunk], peak(ffn, x, chunk, recorded=False), peak(ffn, x, chunk, recorded=True))
        for chunk in CHUNKS
    }


def measure() -> Measured:
    # A scan is a sequence here: its 8 rows of 8 grey values, from top to bottom.
    scans = digits().x[:5].view(5, 8, 8)
    networks = {
        "feed-forward": PositionwiseFeedForward(8, 32, activation="gelu"),
        "gated feed-forward": GatedFeedForward(8, 32),
        "sublayer: norm, feed-forward, skip": FeedForwardSublayer(8, 32),
        "attention": Attention(8),
        "causal attention, then sublayer": nn.Sequential(Attention(8, causal=True), FeedForwardSublayer(8, 32)),
    }
    ffn = PositionwiseFeedForward(D_MODEL, D_FF).eval()
    x = torch.randn(1, STEPS, D_MODEL)
    return Measured(
        influence={name: influence(network.eval(), scans) for name, network in networks.items()},
        costs=pass_costs(ffn, x),
        difference=max((feed_forward_chunked(ffn, x, chunk) - ffn(x)).abs().max().item() for chunk in CHUNKS),
    )


def table(measured: Measured) -> list[str]:
    steps = len(measured.influence["attention"])
    flops = count_flops(STEPS, D_MODEL, D_FF)
    return [
        *aligned(
            ("inputs that an output depends on", "the first", "the last"),
            *(
                (name, *(f"{pairs[t].count_nonzero()} of {steps}" for t in (0, -1)))
                for name, pairs in measured.influence.items()
            ),
        ),
        *aligned(
            (f"{STEPS} steps, {D_MODEL} and {D_FF} wide", "time", "GFLOP/s", "peak", "peak, recorded"),
            *(
                (
                    f"chunk {chunk}",
                    f"{found.seconds * 1e3:.1f} ms",
                    f"{flops / found.seconds / 1e9:.1f}",
                    f"{found.peak / 2**20:.2f} MiB",
                    f"{found.recorded_peak / 2**20:.2f} MiB",
                )
                for chunk, found in list(measured.costs.items())[::2]
            ),
        ),
        f"  largest difference from ffn(x): {measured.difference:.0e}",
    ]


def draw(measured: Measured) -> Figure:
    title = "A feed-forward network sees its own position alone, and needs less memory in chunks"
    figure, axes = canvas(title, rows=2, height=9.4)
    largest = max(measured.influence[name].max() for name in ("feed-forward", "attention"))
    for axis, name in zip(axes, ("feed-forward", "attention"), strict=False):
        pairs = measured.influence[name]
        image = axis.imshow(pairs.numpy(), vmin=0, vmax=largest)
        axis.set_title(f"{name}: {pairs.count_nonzero()} of {pairs.numel()} pairs are not 0")
        axis.set(xlabel="input s", ylabel="output t", xticks=range(len(pairs)), yticks=range(len(pairs)))
    figure.colorbar(image, ax=axes[:2], label="norm of d output[t] / d input[s]")
    memory, seconds = axes[2:]
    costs = measured.costs.values()
    recorded, peaks = [found.recorded_peak / 2**20 for found in costs], [found.peak / 2**20 for found in costs]
    memory.plot(CHUNKS, recorded, "s--", color=ORANGE, label="recorded for backward")
    memory.plot(CHUNKS, peaks, "o-", color=BLUE, label="nothing recorded")
    memory.set(title=f"Memory of {STEPS} steps, {D_MODEL} and {D_FF} wide", ylabel="peak of live bytes, MiB")
    memory.set(ylim=(0, None))
    memory.legend()
    seconds.plot(CHUNKS, [found.seconds * 1e3 for found in costs], "o-", color=BLUE)
    seconds.set(title="Time of the same, nothing recorded", ylabel=f"best of {PASSES} passes, ms", ylim=(0, None))
    for axis in (memory, seconds):
        axis.set(xscale="log", xlabel="steps in a chunk")
        axis.set_xticks(CHUNKS[::2], CHUNKS[::2])
        axis.minorticks_off()
    return figure
