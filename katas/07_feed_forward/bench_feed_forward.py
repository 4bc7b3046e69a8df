"""The benchmarks of kata 07: time and memory of a pass in chunks, and yours against a plain loop and torch's own."""

import math

import feed_forward
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dojo.compare import assert_same
from dojo.guards import live_bytes
from dojo.strategies import sample

SEQUENCES = sample(4, 512, 64)
HIDDEN = sample(64, 64, 256, low=-4, high=4)
FEW = sample(20, 100, low=-4, high=4)
PARAMETERS = [sample(*shape, low=-0.1, high=0.1) for shape in ((512, 64), (512,), (64, 512), (64,))]


def wide_network():
    """64 features, 2048 hidden ones."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(64, 2048), nn.ReLU(), nn.Linear(2048, 64)).requires_grad_(False)


@pytest.mark.benchmark(group="feed_forward_chunked: 512 steps, nothing recorded")
@pytest.mark.parametrize("chunk", ["whole", 512, 128, 32, 8, 2])
def test_feed_forward_chunked(benchmark, chunk):
    """The table names the peak of live bytes beside the time."""
    ffn = wide_network()
    run = ffn if chunk == "whole" else lambda x: feed_forward.feed_forward_chunked(ffn, x, chunk)
    with live_bytes(SEQUENCES, *ffn.parameters()) as memory:
        found = run(SEQUENCES)
    assert_same(found, ffn(SEQUENCES), rtol=1e-4, atol=1e-5)
    benchmark.name = f"{'the whole' if chunk == 'whole' else f'chunk {chunk}'}, {memory.peak / 2**20:.1f} MiB"
    benchmark.extra_info["peak bytes"] = memory.peak
    benchmark(run, SEQUENCES)


def loop_gelu(x):
    """One number at a time."""
    return torch.tensor([0.5 * v * math.erfc(-v / math.sqrt(2)) for v in x.flatten().tolist()]).reshape(x.shape)


@pytest.mark.benchmark(group="gelu of 2,000 numbers")
@pytest.mark.parametrize("who", ["yours", "loop", "torch"])
def test_gelu(benchmark, who):
    run = {"yours": lambda x: feed_forward.gelu(x), "loop": loop_gelu, "torch": F.gelu}[who]
    assert_same(benchmark(run, FEW), loop_gelu(FEW), rtol=1e-4, atol=1e-6)


def both_ways(run, x, *parameters):
    """The gradients of x and of the parameters."""
    leaves = [t.clone().requires_grad_() for t in (x, *parameters)]
    return torch.autograd.grad(run(*leaves).square().sum(), leaves)


@pytest.mark.benchmark(group="gelu of a million numbers, forward and backward")
@pytest.mark.parametrize("who", ["yours", "torch"])
def test_gelu_and_its_gradient(benchmark, who):
    run = {"yours": lambda x: feed_forward.gelu(x), "torch": F.gelu}[who]
    assert_same(benchmark(both_ways, run, HIDDEN)[0], both_ways(F.gelu, HIDDEN)[0], rtol=1e-4, atol=1e-5)


def loop_feed_forward(x, w1, b1, w2, b2):
    """One position at a time."""
    rows = [w2 @ torch.relu(w1 @ row + b1) + b2 for row in x.flatten(0, -2)]
    return torch.stack(rows).reshape(x.shape)


def torch_feed_forward(x, w1, b1, w2, b2):
    return F.linear(F.relu(F.linear(x, w1, b1)), w2, b2)


@pytest.mark.benchmark(group="feed_forward")
@pytest.mark.parametrize("who", ["yours", "loop", "torch"])
def test_feed_forward(benchmark, who):
    own = {"yours": lambda *given: feed_forward.feed_forward(*given), "loop": loop_feed_forward}
    run = {**own, "torch": torch_feed_forward}[who]
    x = SEQUENCES[:1]
    assert_same(benchmark(run, x, *PARAMETERS), torch_feed_forward(x, *PARAMETERS), rtol=1e-4, atol=1e-5)


@pytest.mark.benchmark(group="feed_forward, forward and backward")
@pytest.mark.parametrize("who", ["yours", "torch"])
def test_feed_forward_and_its_gradients(benchmark, who):
    run = {"yours": lambda *given: feed_forward.feed_forward(*given), "torch": torch_feed_forward}[who]
    found = benchmark(both_ways, run, SEQUENCES, *PARAMETERS)
    for gradient, wanted in zip(found, both_ways(torch_feed_forward, SEQUENCES, *PARAMETERS), strict=True):
        assert_same(gradient, wanted, rtol=1e-3, atol=1e-3)
