"""The benchmarks of kata 11: the recurrent network against torch's, one mask against a mask for each sequence."""

import copy

import pytest
import torch
import variational_dropout
from torch import nn

from dojo.compare import assert_same
from dojo.strategies import sample

SEQUENCES = sample(32, 50, 24)
STATE = sample(2, 32, 48)
FEATURES = sample(128, 64, 96)


def torch_rnn():
    """The same network at every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.RNN(24, 48, num_layers=2, batch_first=True)


class LoopRNN(nn.RNN):
    """torch's parameters, every product inside the loop over steps."""

    def forward(self, x, h0):
        last = []
        for layer, h in enumerate(h0):
            w_ih, w_hh, b_ih, b_hh = self.all_weights[layer]
            states = []
            for step in range(x.shape[1]):
                h = torch.tanh(x[:, step] @ w_ih.T + b_ih + h @ w_hh.T + b_hh)
                states.append(h)
            x = torch.stack(states, dim=1)
            last.append(h)
        return x, torch.stack(last)


def make_rnn(who):
    """The network of yours, of torch, or as a plain loop: all with the same parameters, without dropout."""
    theirs = torch_rnn()
    if who == "torch":
        return theirs
    other = {"yours": variational_dropout.VariationalRNN, "loop": LoopRNN}[who](24, 48, 2)
    other.load_state_dict(theirs.state_dict())
    return other


def gradients(rnn):
    """The gradient of the first weight, through all steps."""
    output, _ = rnn(SEQUENCES, STATE)
    return torch.autograd.grad(output.square().sum(), rnn.weight_hh_l0)[0]


@pytest.mark.benchmark(group="VariationalRNN")
@pytest.mark.parametrize("who", ["yours", "loop", "torch"])
@pytest.mark.parametrize("way", ["forward", "forward and backward"])
def test_variational_rnn(benchmark, who, way):
    rnn = make_rnn(who)
    if way == "forward":
        with torch.no_grad():
            found, wanted = benchmark(rnn, SEQUENCES, STATE), torch_rnn()(SEQUENCES, STATE)
        assert_same(found[0], wanted[0], rtol=1e-4, atol=1e-5)
    else:
        assert_same(benchmark(gradients, rnn), gradients(torch_rnn()), rtol=1e-3, atol=1e-3)


@pytest.mark.benchmark(group="VariationalRNN, with its masks and without")
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_variational_rnn_with_dropout(benchmark, dropout):
    rnn = variational_dropout.VariationalRNN(24, 48, 2, dropout, dropout)
    rnn.load_state_dict(torch_rnn().state_dict())
    assert_same(copy.deepcopy(rnn).eval()(SEQUENCES)[0], torch_rnn()(SEQUENCES)[0].detach(), rtol=1e-4, atol=1e-5)
    benchmark(rnn, SEQUENCES)


def loop_locked_dropout(x, p):
    """A mask for one sequence at a time."""
    masks = [(torch.rand(x.shape[2]) >= p) / (1 - p) for _ in x]
    return torch.stack([sequence * mask for sequence, mask in zip(x, masks, strict=True)])


def torch_locked_dropout(x, p):
    """Channel dropout, with the features where torch expects channels."""
    return nn.functional.dropout1d(x.mT, p).mT


@pytest.mark.benchmark(group="locked_dropout")
@pytest.mark.parametrize("who", ["yours", "loop", "torch"])
def test_locked_dropout(benchmark, who):
    run = {
        "yours": lambda *given: variational_dropout.locked_dropout(*given),
        "loop": loop_locked_dropout,
        "torch": torch_locked_dropout,
    }[who]
    found = benchmark(run, FEATURES, 0.3)
    kept = (found != 0).any(1, keepdim=True)
    assert_same(found, torch.where(kept, FEATURES / 0.7, 0.0))


def loop_mc_dropout(model, x, samples):
    """Collects the predictions in a list."""
    with torch.no_grad():
        results = torch.stack([model(x) for _ in range(samples)])
    return results.mean(0), results.std(0)


@pytest.mark.benchmark(group="mc_dropout")
@pytest.mark.parametrize("who", ["yours", "loop"])
def test_mc_dropout(benchmark, who):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(96, 64), nn.ReLU(), nn.Dropout(0.3), nn.Linear(64, 10))
    x = FEATURES[:, 0]
    run = {"yours": lambda *given: variational_dropout.mc_dropout(*given), "loop": loop_mc_dropout}[who]
    mean, std = benchmark(run, model, x, 100)
    wanted = copy.deepcopy(model).eval()(x).detach()
    off = (mean - wanted).abs() / (std / 10 + 1e-6)  # in standard errors of a mean of 100 samples
    assert off.max() < 8
