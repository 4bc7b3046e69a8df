"""The benchmarks of kata 09: yours against a plain loop and against torch's own, for a vocabulary of 4,000 classes."""

import label_smoothing
import pytest
import torch

from dojo.compare import assert_same
from dojo.strategies import sample

LOGITS = sample(128, 4000, low=-5, high=5)
TARGET = sample(128, low=0, high=4000, dtype=torch.int64)


def loop_log_softmax(x):
    """One row at a time."""
    return torch.stack([row - (row - row.max()).exp().sum().log() - row.max() for row in x])


def loop_loss(logits, target, smoothing):
    """One row at a time, each with a target of its own that is built."""
    total = 0.0
    for row, t in zip(logits, target.tolist(), strict=True):
        wanted = torch.full_like(row, smoothing / len(row))
        wanted[t] += 1 - smoothing
        total = total - (wanted * row.log_softmax(-1)).sum()
    return total / len(logits)


def torch_loss(logits, target, smoothing):
    return torch.nn.functional.cross_entropy(logits, target, label_smoothing=smoothing)


def forward_and_backward(run, logits, *rest):
    """The gradient of the logits."""
    leaf = logits.detach().requires_grad_()
    return torch.autograd.grad(run(leaf, *rest), leaf)[0]


@pytest.mark.benchmark(group="log_softmax")
@pytest.mark.parametrize("who", ["yours", "loop", "torch"])
def test_log_softmax(benchmark, who):
    run = {"yours": label_smoothing.log_softmax, "loop": loop_log_softmax, "torch": lambda x: x.log_softmax(-1)}[who]
    assert_same(run(LOGITS), LOGITS.log_softmax(-1), rtol=1e-4)
    benchmark(run, LOGITS)


LOSSES = {"yours": label_smoothing.label_smoothing_loss, "loop": loop_loss, "torch": torch_loss}


@pytest.mark.benchmark(group="label_smoothing_loss")
@pytest.mark.parametrize("who", LOSSES)
def test_label_smoothing_loss(benchmark, who):
    assert_same(LOSSES[who](LOGITS, TARGET, 0.1), torch_loss(LOGITS, TARGET, 0.1), rtol=1e-4)
    benchmark(LOSSES[who], LOGITS, TARGET, 0.1)


@pytest.mark.benchmark(group="label_smoothing_loss, forward and backward")
@pytest.mark.parametrize("who", LOSSES)
def test_label_smoothing_loss_and_backward(benchmark, who):
    wanted = forward_and_backward(torch_loss, LOGITS, TARGET, 0.1)
    assert_same(forward_and_backward(LOSSES[who], LOGITS, TARGET, 0.1), wanted, rtol=1e-4)
    benchmark(forward_and_backward, LOSSES[who], LOGITS, TARGET, 0.1)


@pytest.mark.benchmark(group="label_smoothing_gradient")
@pytest.mark.parametrize("who", ["yours", "torch"])
def test_label_smoothing_gradient(benchmark, who):
    run = {
        "yours": label_smoothing.label_smoothing_gradient,
        "torch": lambda *given: forward_and_backward(torch_loss, *given),
    }[who]
    assert_same(run(LOGITS, TARGET, 0.1), forward_and_backward(torch_loss, LOGITS, TARGET, 0.1), rtol=1e-4)
    benchmark(run, LOGITS, TARGET, 0.1)
