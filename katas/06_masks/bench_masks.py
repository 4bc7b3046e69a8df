"""The benchmarks of kata 06: yours against a plain loop and against torch's own, on the size of a small real batch."""

import masks
import pytest
import torch

from dojo.compare import assert_same
from dojo.strategies import sample

LENGTHS = sample(64, low=20, high=101, dtype=torch.int64)
SEQUENCES = [sample(length, 32) for length in LENGTHS.tolist()]
SCORES = sample(8, 4, 48, 48)
VALID = torch.arange(48) < sample(8, 1, 1, 1, low=8, high=49, dtype=torch.int64)


def loop_pad(sequences):
    """One step at a time."""
    padded = torch.zeros(len(sequences), max(map(len, sequences)), *sequences[0].shape[1:])
    for row, sequence in enumerate(sequences):
        for step, value in enumerate(sequence):
            padded[row, step] = value
    return padded


def torch_pad(sequences):
    return torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True)


def loop_softmax(scores, valid):
    """One row at a time."""
    rows = torch.zeros_like(scores).flatten(0, -2)
    masks_of_rows = valid.expand(scores.shape).flatten(0, -2)
    for row, given, keep in zip(rows, scores.flatten(0, -2), masks_of_rows, strict=True):
        weights = (given[keep] - given[keep].max()).exp()
        row[keep] = weights / weights.sum()
    return rows.view(scores.shape)


def torch_softmax(scores, valid):
    """Right only where no row is empty, and for finite scores."""
    return torch.softmax(scores.masked_fill(~valid, -torch.inf), -1)


def with_backward(run):
    """The same, and the gradient of its first argument."""

    def forward_and_backward(x, *rest):
        x = x.detach().requires_grad_()
        result = run(x, *rest)
        return torch.autograd.grad((result * result).sum(), x)[0]

    return forward_and_backward


@pytest.mark.benchmark(group="pad_sequences")
@pytest.mark.parametrize("who", ["yours", "loop", "torch"])
def test_pad_sequences(benchmark, who):
    run = {"yours": lambda sequences: masks.pad_sequences(sequences)[0], "loop": loop_pad, "torch": torch_pad}[who]
    assert_same(run(SEQUENCES), torch_pad(SEQUENCES))
    benchmark(run, SEQUENCES)


@pytest.mark.benchmark(group="masked_softmax")
@pytest.mark.parametrize("who", ["yours", "loop", "torch"])
def test_masked_softmax(benchmark, who):
    run = {"yours": masks.masked_softmax, "loop": loop_softmax, "torch": torch_softmax}[who]
    assert_same(run(SCORES, VALID), torch_softmax(SCORES, VALID))
    benchmark(run, SCORES, VALID)


@pytest.mark.benchmark(group="masked_softmax and its gradient")
@pytest.mark.parametrize("who", ["yours", "torch"])
def test_masked_softmax_and_its_gradient(benchmark, who):
    run = with_backward({"yours": masks.masked_softmax, "torch": torch_softmax}[who])
    assert_same(run(SCORES, VALID), with_backward(torch_softmax)(SCORES, VALID))
    benchmark(run, SCORES, VALID)
