"""The benchmarks of kata 05: the focal loss against the naive formula, `fit` against the same loop by hand."""

import modules
import pytest
import torch
from torch import nn

from dojo.compare import assert_same
from dojo.strategies import sample

LOGITS = sample(512, 100, low=-5, high=5)
TARGETS = sample(512, low=0, high=100, dtype=torch.int64)
BATCHES = [(sample(32, 20), sample(32, low=0, high=5, dtype=torch.int64)) for _ in range(20)]


class Descent:
    """Plain gradient descent: torch.optim would take longer to import than fit takes to run."""

    def __init__(self, parameters):
        self.param_groups = [{"params": list(parameters), "lr": 0.1}]

    def zero_grad(self, set_to_none=True):
        for parameter in self.param_groups[0]["params"]:
            parameter.grad = None

    @torch.no_grad()
    def step(self, closure=None):
        for parameter in self.param_groups[0]["params"]:
            parameter -= 0.1 * parameter.grad


def naive_focal_loss(logits, targets):
    """The formula as it is written in the paper; it breaks at logits of ±1e4."""
    p = logits.softmax(-1)[torch.arange(len(logits)), targets]
    return (-((1 - p) ** 2) * p.log()).mean()


def both_ways(loss):
    """The gradient of the logits."""
    leaf = LOGITS.clone().requires_grad_()
    return torch.autograd.grad(loss(leaf, TARGETS), leaf)[0]


@pytest.mark.benchmark(group="FocalLoss")
@pytest.mark.parametrize("who", ["yours", "naive"])
@pytest.mark.parametrize("way", ["forward", "forward and backward"])
def test_focal_loss(benchmark, who, way):
    loss = {"yours": lambda *given: modules.FocalLoss()(*given), "naive": naive_focal_loss}[who]
    if way == "forward":
        assert_same(benchmark(loss, LOGITS, TARGETS), naive_focal_loss(LOGITS, TARGETS), rtol=1e-4)
    else:
        assert_same(benchmark(both_ways, loss), both_ways(naive_focal_loss), rtol=1e-3, atol=1e-6)


def small_model():
    """The same small network at every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 5))


def loop_fit(model, loss_fn, optimizer, batches, epochs):
    """The training loop written out."""
    means = []
    for _ in range(epochs):
        total = count = 0
        for inputs, targets in batches:
            optimizer.zero_grad()
            loss = loss_fn(model(inputs), targets)
            loss.backward()
            optimizer.step()
            total, count = total + loss.item() * len(inputs), count + len(inputs)
        means.append(total / count)
    return means


def train(fit):
    """Two epochs from the same start."""
    model = small_model()
    return torch.tensor(fit(model, nn.functional.cross_entropy, Descent(model.parameters()), BATCHES, 2))


@pytest.mark.benchmark(group="fit")
@pytest.mark.parametrize("who", ["yours", "loop"])
def test_fit(benchmark, who):
    fit = {"yours": lambda *given: modules.fit(*given), "loop": loop_fit}[who]
    assert_same(benchmark(train, fit), train(loop_fit), rtol=1e-4)
