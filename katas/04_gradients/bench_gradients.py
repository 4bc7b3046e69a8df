"""The benchmarks of kata 04: your Functions against a plain loop and against torch's own, forward and both ways."""

import gradients
import pytest
import torch

from dojo.compare import assert_same
from dojo.strategies import sample

X, WEIGHT, BIAS = sample(256, 384).requires_grad_(), sample(512, 384).requires_grad_(), sample(512).requires_grad_()
COTANGENT = sample(256, 512)
LOGITS = sample(256, 2000, low=-20, high=20).requires_grad_()
WEIGHTS = sample(256)
CLOSE = {"rtol": 1e-4, "atol": 1e-3}


def loop_linear(x, weight, bias):
    """One row at a time."""
    return torch.stack([weight @ row + bias for row in x])


def loop_logsumexp(x, dim):
    """One row at a time, as the formula says."""
    return torch.stack([row.exp().sum().log() for row in x.movedim(dim, -1)])


def both_ways(function, cotangent, *inputs):
    """Forward and backward: the result and the gradients of the inputs that are tensors."""
    y = function(*inputs)
    leaves = [x for x in inputs if isinstance(x, torch.Tensor)]
    return [y, *torch.autograd.grad((y * cotangent).sum(), leaves)]


LINEAR = {
    "yours": lambda *inputs: gradients.LinearFunction.apply(*inputs),
    "loop": loop_linear,
    "torch": torch.nn.functional.linear,
}
LOGSUMEXP = {
    "yours": lambda *inputs: gradients.LogSumExp.apply(*inputs),
    "loop": loop_logsumexp,
    "torch": torch.logsumexp,
}


@pytest.mark.benchmark(group="LinearFunction, forward")
@pytest.mark.parametrize("who", LINEAR)
def test_linear_forward(benchmark, who):
    with torch.no_grad():
        assert_same(benchmark(LINEAR[who], X, WEIGHT, BIAS), X @ WEIGHT.T + BIAS, **CLOSE)


@pytest.mark.benchmark(group="LinearFunction, forward and backward")
@pytest.mark.parametrize("who", LINEAR)
def test_linear_both_ways(benchmark, who):
    found = benchmark(both_ways, LINEAR[who], COTANGENT, X, WEIGHT, BIAS)
    wanted = both_ways(LINEAR["torch"], COTANGENT, X, WEIGHT, BIAS)
    for x, right in zip(found, wanted, strict=True):
        assert_same(x, right, **CLOSE)


@pytest.mark.benchmark(group="LogSumExp, forward")
@pytest.mark.parametrize("who", LOGSUMEXP)
def test_logsumexp_forward(benchmark, who):
    with torch.no_grad():
        assert_same(benchmark(LOGSUMEXP[who], LOGITS, 1), LOGITS.exp().sum(1).log(), **CLOSE)


@pytest.mark.benchmark(group="LogSumExp, forward and backward")
@pytest.mark.parametrize("who", LOGSUMEXP)
def test_logsumexp_both_ways(benchmark, who):
    found = benchmark(both_ways, LOGSUMEXP[who], WEIGHTS, LOGITS, 1)
    wanted = both_ways(LOGSUMEXP["torch"], WEIGHTS, LOGITS, 1)
    for x, right in zip(found, wanted, strict=True):
        assert_same(x, right, **CLOSE)
