"""The benchmarks of kata 08: yours against a plain loop and against torch's own, for a network of 40 small layers."""

import inspect

import optimization
import pytest
import torch
from torch import nn

from dojo.compare import assert_same
from dojo.strategies import sample

SHAPES = [(64, 64), (64,)] * 20
ROWS, LABELS = sample(10_000, 32), torch.arange(10_000)


def parameters():
    """Leaves with gradients, the same ones at each call."""
    generator = torch.Generator().manual_seed(0)
    leaves = []
    for shape in SHAPES:
        leaves.append(torch.randn(shape, generator=generator).requires_grad_())
        leaves[-1].grad = torch.randn(shape, generator=generator)
    return leaves


def torch_step(**settings):
    """torch's own step, without the wrapper that imports torch._dynamo."""

    def make(leaves):
        optimizer = torch.optim.Adam(leaves, lr=1e-3, **settings)
        return lambda: torch.no_grad()(inspect.unwrap(type(optimizer).step))(optimizer)

    return make


def loop_step(leaves):
    """One tensor at a time, each line of the paper as a new tensor."""
    state = [(torch.zeros_like(p), torch.zeros_like(p)) for p in leaves]
    steps = 0

    @torch.no_grad()
    def step():
        nonlocal steps
        steps += 1
        for i, p in enumerate(leaves):
            m = 0.9 * state[i][0] + 0.1 * p.grad
            v = 0.999 * state[i][1] + 0.001 * p.grad**2
            state[i] = m, v
            p -= 1e-3 * (m / (1 - 0.9**steps)) / ((v / (1 - 0.999**steps)).sqrt() + 1e-8)

    return step


STEPS = {
    "yours": lambda leaves: optimization.Adam(leaves, lr=1e-3).step,
    "loop": loop_step,
    "torch": torch_step(foreach=False),
    "torch, foreach": torch_step(foreach=True),
}


@pytest.mark.benchmark(group="Adam")
@pytest.mark.parametrize("who", STEPS)
def test_adam(benchmark, who):
    found, wanted = parameters(), parameters()
    for leaves, make in ((found, STEPS[who]), (wanted, torch_step(foreach=False))):
        step = make(leaves)
        for _ in range(3):
            step()
    for leaf, other in zip(found, wanted, strict=True):
        assert_same(leaf.detach(), other.detach(), rtol=1e-4)
    benchmark(STEPS[who](parameters()))


def torch_batches(*tensors, batch_size, generator):
    data = torch.utils.data.TensorDataset(*tensors)
    return torch.utils.data.DataLoader(data, batch_size, shuffle=True, generator=generator)


@pytest.mark.benchmark(group="batches")
@pytest.mark.parametrize("who", ["yours", "torch"])
def test_batches(benchmark, who):
    def yours(*tensors, **settings):
        return optimization.batches(*tensors, shuffle=True, **settings)

    def epoch():
        make = yours if who == "yours" else torch_batches
        return [labels for _, labels in make(ROWS, LABELS, batch_size=100, generator=torch.Generator().manual_seed(0))]

    assert_same(torch.cat(epoch()).sort().values, LABELS)
    benchmark(epoch)


def torch_clip(leaves, max_norm):
    return nn.utils.clip_grad_norm_(leaves, max_norm)


def loop_clip(leaves, max_norm):
    total = torch.stack([(p.grad**2).sum() for p in leaves]).sum().sqrt()
    if total > max_norm:
        for p in leaves:
            p.grad = p.grad * (max_norm / total)
    return total


@pytest.mark.benchmark(group="clip_grad_norm_")
@pytest.mark.parametrize("who", ["yours", "loop", "torch"])
def test_clip_grad_norm(benchmark, who):
    run = {"yours": optimization.clip_grad_norm_, "loop": loop_clip, "torch": torch_clip}[who]
    found, wanted = parameters(), parameters()
    assert_same(run(found, 1.0), torch_clip(wanted, 1.0), rtol=1e-4)
    assert_same(found[0].grad, wanted[0].grad, rtol=1e-4)
    leaves = parameters()
    benchmark(run, leaves, 1e-3)
