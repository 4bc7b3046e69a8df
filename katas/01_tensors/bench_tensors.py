"""The benchmarks of kata 01: yours against a plain loop and against torch's own, on the size of a small real batch."""

import pytest
import tensors
import torch

from dojo.compare import assert_same
from dojo.strategies import sample

LABELS = sample(512, low=0, high=1000, dtype=torch.int64)
FEATURES = sample(256, 768)
POINTS, CENTRES = sample(512, 32), sample(64, 32)
SEQUENCES = sample(32, 128, 64)
CHOSEN = sample(32, 16, low=0, high=128, dtype=torch.int64)


def loop_one_hot(index, num_classes):
    """One row at a time."""
    rows = torch.zeros(len(index), num_classes)
    for row, k in enumerate(index.tolist()):
        rows[row, k] = 1
    return rows


def torch_one_hot(index, num_classes):
    return torch.nn.functional.one_hot(index, num_classes).float()


def loop_standardize(x, dim):
    """One row at a time."""
    assert dim == 1
    return torch.stack([(row - row.mean()) / (row.var(correction=0) + 1e-5).sqrt() for row in x])


def torch_standardize(x, dim):
    return torch.nn.functional.layer_norm(x, x.shape[dim:])


def loop_sq_dists(x, y):
    """One row of the table at a time."""
    return torch.stack([(row - y).square().sum(-1) for row in x])


def torch_sq_dists(x, y):
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").square()


def loop_gather(x, index):
    """One row at a time."""
    return torch.stack([torch.stack([rows[k] for k in ks]) for rows, ks in zip(x, index.tolist(), strict=True)])


def torch_gather(x, index):
    return x.take_along_dim(index[..., None], dim=1)


def with_backward(run):
    """The same, and the gradient of its first argument."""

    def forward_and_backward(x, *rest):
        x = x.detach().requires_grad_()
        result = run(x, *rest)
        return torch.autograd.grad((result * result).sum(), x)[0]

    return forward_and_backward


@pytest.mark.benchmark(group="one_hot")
@pytest.mark.parametrize("who", ["yours", "loop", "torch"])
def test_one_hot(benchmark, who):
    run = {"yours": tensors.one_hot, "loop": loop_one_hot, "torch": torch_one_hot}[who]
    assert_same(run(LABELS, 1000), torch_one_hot(LABELS, 1000))
    benchmark(run, LABELS, 1000)


@pytest.mark.benchmark(group="standardize")
@pytest.mark.parametrize("who", ["yours", "loop", "torch"])
def test_standardize(benchmark, who):
    run = {"yours": tensors.standardize, "loop": loop_standardize, "torch": torch_standardize}[who]
    assert_same(run(FEATURES, 1), loop_standardize(FEATURES, 1))
    benchmark(run, FEATURES, 1)


@pytest.mark.benchmark(group="pairwise_sq_dists")
@pytest.mark.parametrize("who", ["yours", "loop", "torch"])
def test_pairwise_sq_dists(benchmark, who):
    run = {"yours": tensors.pairwise_sq_dists, "loop": loop_sq_dists, "torch": torch_sq_dists}[who]
    assert_same(run(POINTS, CENTRES), loop_sq_dists(POINTS, CENTRES), rtol=1e-5, atol=1e-4)
    benchmark(run, POINTS, CENTRES)


@pytest.mark.benchmark(group="batched_gather")
@pytest.mark.parametrize("who", ["yours", "loop", "torch"])
def test_batched_gather(benchmark, who):
    run = {"yours": tensors.batched_gather, "loop": loop_gather, "torch": torch_gather}[who]
    assert_same(run(SEQUENCES, CHOSEN), torch_gather(SEQUENCES, CHOSEN))
    benchmark(run, SEQUENCES, CHOSEN)


@pytest.mark.benchmark(group="batched_gather and its gradient")
@pytest.mark.parametrize("who", ["yours", "loop", "torch"])
def test_batched_gather_and_its_gradient(benchmark, who):
    forward = {"yours": tensors.batched_gather, "loop": loop_gather, "torch": torch_gather}[who]
    run = with_backward(forward)
    assert_same(run(SEQUENCES, CHOSEN), with_backward(torch_gather)(SEQUENCES, CHOSEN))
    benchmark(run, SEQUENCES, CHOSEN)
