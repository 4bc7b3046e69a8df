"""The benchmark of kata 12: a deep stack with stochastic depth against the same stack without."""

import pytest
import residual
import torch
from torch import nn

from dojo.compare import assert_same
from dojo.strategies import sample

DEPTH, P = 24, 0.5
X = sample(256, 128)
BRANCHES = [nn.Sequential(nn.Linear(128, 512), nn.GELU(), nn.Linear(512, 128)) for _ in range(DEPTH)]
for branch in BRANCHES:
    branch.requires_grad_(False)


def yours(x, p=P):
    """The branches see the rows that are kept and no others."""
    for branch in BRANCHES:
        x = residual.stochastic_depth(x, branch, p)
    return x


def masked(x, p=P):
    """Every branch on every row, and half of it thrown away."""
    for branch in BRANCHES:
        keep = torch.rand(len(x), 1) >= p
        x = x + branch(x) * keep / (1 - p)
    return x


def without(x, p=0.0):
    """No stochastic depth at all."""
    for branch in BRANCHES:
        x = x + branch(x)
    return x


STACKS = {"yours": yours, "masked": masked, "without": without}


@pytest.mark.benchmark(group="a stack with stochastic depth")
@pytest.mark.parametrize("who", STACKS)
def test_stochastic_depth(benchmark, who):
    assert_same(STACKS[who](X, p=0.0), without(X), rtol=1e-3, atol=1e-4)
    benchmark(STACKS[who], X)


@pytest.mark.benchmark(group="a stack with stochastic depth, forward and backward")
@pytest.mark.parametrize("who", STACKS)
def test_stochastic_depth_and_backward(benchmark, who):
    def forward_and_backward(p):
        x = X.clone().requires_grad_()
        return torch.autograd.grad(STACKS[who](x, p).sum(), x)[0]

    x = X.clone().requires_grad_()
    assert_same(forward_and_backward(0.0), torch.autograd.grad(without(x).sum(), x)[0], rtol=1e-3, atol=1e-4)
    benchmark(forward_and_backward, 0.0 if who == "without" else P)
