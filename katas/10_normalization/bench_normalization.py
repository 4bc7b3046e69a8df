"""The benchmarks of kata 10: yours against a plain loop and against torch's own, on the images of a small batch."""

import normalization
import pytest
import torch
import torch.nn.functional as F

from dojo.compare import assert_same
from dojo.strategies import sample

IMAGES = sample(32, 64, 16, 16)
WEIGHT, BIAS = sample(64, low=0.5, high=2), sample(64)
ROWS, GRAD, ROW_WEIGHT = sample(512, 256), sample(512, 256), sample(256, low=0.5, high=2)


def loop_batch_norm(x, running_mean, running_var, weight, bias, training):
    """One channel at a time."""
    channels = []
    for c in range(x.shape[1]):
        channel = x[:, c]
        channels.append((channel - channel.mean()) / (channel.var(correction=0) + 1e-5).sqrt() * weight[c] + bias[c])
    return torch.stack(channels, 1)


NORMS = {"yours": normalization.batch_norm, "loop": loop_batch_norm, "torch": F.batch_norm}


def forward_and_backward(run, x):
    """The gradient of x, for a slope that is another one for each element."""
    leaf = x.detach().requires_grad_()
    return torch.autograd.grad((run(leaf, None, None, WEIGHT, BIAS, True) * IMAGES.flip(0)).sum(), leaf)[0]


@pytest.mark.benchmark(group="batch_norm")
@pytest.mark.parametrize("who", NORMS)
def test_batch_norm(benchmark, who):
    given = (IMAGES, None, None, WEIGHT, BIAS, True)
    assert_same(NORMS[who](*given), F.batch_norm(*given), rtol=1e-4, atol=1e-4)
    benchmark(NORMS[who], *given)


@pytest.mark.benchmark(group="batch_norm, forward and backward")
@pytest.mark.parametrize("who", NORMS)
def test_batch_norm_and_backward(benchmark, who):
    found, wanted = forward_and_backward(NORMS[who], IMAGES), forward_and_backward(F.batch_norm, IMAGES)
    assert_same(found, wanted, rtol=1e-3, atol=1e-4)
    benchmark(forward_and_backward, NORMS[who], IMAGES)


def torch_backward(grad, x, weight):
    """Forward and backward: torch has no backward that starts from x alone."""
    leaf, w = x.detach().requires_grad_(), weight.detach().requires_grad_()
    b = torch.zeros_like(w).requires_grad_()
    return torch.autograd.grad((F.batch_norm(leaf, None, None, w, b, True) * grad).sum(), (leaf, w, b))


@pytest.mark.benchmark(group="batch_norm_backward")
@pytest.mark.parametrize("who", ["yours", "torch"])
def test_batch_norm_backward(benchmark, who):
    run = {"yours": normalization.batch_norm_backward, "torch": torch_backward}[who]
    for found, wanted in zip(run(GRAD, ROWS, ROW_WEIGHT), torch_backward(GRAD, ROWS, ROW_WEIGHT), strict=True):
        assert_same(found, wanted, rtol=1e-3, atol=1e-4)
    benchmark(run, GRAD, ROWS, ROW_WEIGHT)


@pytest.mark.benchmark(group="dropout")
@pytest.mark.parametrize("who", ["yours", "torch"])
def test_dropout(benchmark, who):
    run = {"yours": normalization.dropout, "torch": F.dropout}[who]
    found = run(IMAGES, 0.5)
    assert_same(found, IMAGES * 2 * (found != 0))
    benchmark(run, IMAGES, 0.5)
