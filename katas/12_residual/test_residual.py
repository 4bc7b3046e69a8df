"""The specs of kata 12. One class a name; the house rules that all of them share are in the table at the end."""

import copy
import math

import pytest
import residual
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from dojo import devices
from dojo.compare import assert_same, assert_same_gradients, expect, expect_share, gradients_of, refuses
from dojo.guards import count_ops, state_kept, unchanged
from dojo.rules import rule
from dojo.strategies import sample

FLOAT64 = {"rtol": 1e-11, "atol": 1e-11}
LOUD = (ValueError, RuntimeError, IndexError, TypeError)
LEADING = [(), (1,), (6,), (2, 3), (0,), (2, 0, 3)]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def filled(module):
    """The module in float64, with parameters and buffers that are not the ones it starts with."""
    module = module.double()
    with torch.no_grad():
        for name, p in module.named_parameters():
            p.copy_(sample(*p.shape, dtype=torch.float64, low=-1, high=1) + (1.5 if "bn" in name else 0))
        for buffer in module.buffers():
            if buffer.is_floating_point():
                buffer.copy_(sample(*buffer.shape, dtype=torch.float64, low=0.5, high=2))
    return module


def expect_formula(block, wanted, *shape):
    """block(x) and its gradients, for x and all parameters, are those of wanted(x); x stays as it is."""
    x = sample(*shape, dtype=torch.float64).requires_grad_()
    with unchanged(x, names=("x",)):
        found = block(x)
    assert_same(found, wanted(x), **FLOAT64)
    assert_same_gradients(found, wanted(x), [x, *block.parameters()], **FLOAT64)


def expect_registered(block, names):
    """These submodules are there, by these names."""
    for name in names:
        expect(isinstance(getattr(block, name, None), nn.Module), f"expected a submodule {name}, there is none")


class FeatureBlockSpecs:
    """What is asked of every block of features; `make` gives one for x [*batch 5]."""

    @staticmethod
    def make():
        raise NotImplementedError

    @pytest.mark.parametrize("width", [1, 4, 6])
    @pytest.mark.parametrize("leading", [(3,), (), (2, 3)], ids=str)
    def test_refuses_another_number_of_features(self, leading, width):
        """A single feature would broadcast to all in the sum."""
        with refuses(ValueError, mentions=[width, 5]):
            self.make()(sample(*leading, width))

    def test_is_made_with_random_numbers_of_the_global_generator(self):
        with torch.random.fork_rng(devices=[]):
            weights = []
            for seed in (3, 3, 4):
                torch.manual_seed(seed)
                weights.append(torch.cat([p.detach().flatten() for p in self.make().parameters()]))
        expect(torch.equal(weights[0], weights[1]), "expected equal parameters for equal seeds")
        expect(not torch.equal(weights[0], weights[2]), "expected other parameters for another seed")


class TestResidualBlock(FeatureBlockSpecs):
    @staticmethod
    def make():
        return residual.ResidualBlock(5)

    @pytest.mark.parametrize("leading", LEADING, ids=str)
    def test_adds_what_two_layers_make_of_x_and_then_cuts_at_zero(self, leading):
        block = filled(residual.ResidualBlock(5))
        expect_registered(block, ["fc1", "fc2"])
        expect(len(list(block.parameters())) == 4, "expected two layers with parameters of their own")

        def wanted(x):
            hidden = F.linear(x, block.fc1.weight, block.fc1.bias).relu()
            return (x + F.linear(hidden, block.fc2.weight, block.fc2.bias)).relu()

        expect_formula(block, wanted, *leading, 5)

    def test_is_relu_of_x_where_the_layers_give_nothing(self):
        block = residual.ResidualBlock(3)
        for layer in (block.fc1, block.fc2):
            layer.load_state_dict({"weight": torch.zeros(3, 3), "bias": torch.zeros(3)})
        assert_same(block(torch.tensor([3.0, -1.0, 0.5])), torch.tensor([3.0, 0.0, 0.5]))

    @pytest.mark.parametrize("features", [0, -2])
    def test_refuses_fewer_than_one_feature(self, features):
        with refuses(ValueError, mentions=[features]):
            residual.ResidualBlock(features)


class Same(nn.Module):
    """Returns what it was given, the very tensor."""

    def forward(self, x):
        return x


class Function(nn.Module):
    """A function as a module, which counts its calls."""

    def __init__(self, function):
        super().__init__()
        self.function, self.seen = function, []

    def forward(self, x):
        self.seen.append(x)
        return self.function(x)


class TestResidual:
    def test_adds_x_to_what_the_branch_gives(self):
        branch = filled(nn.Linear(5, 5))
        expect_formula(residual.Residual(branch), lambda x: x + F.linear(x, branch.weight, branch.bias), 3, 5)

    def test_a_shortcut_takes_the_place_of_x(self):
        branch, shortcut = filled(nn.Linear(5, 3)), filled(nn.Linear(5, 3))
        layer = residual.Residual(branch, shortcut)
        expect_formula(
            layer,
            lambda x: F.linear(x, shortcut.weight, shortcut.bias) + F.linear(x, branch.weight, branch.bias),
            4,
            5,
        )

    def test_both_are_given_x_once(self):
        x, branch, shortcut = sample(3, 4), Function(torch.tanh), Function(torch.neg)
        assert_same(residual.Residual(branch, shortcut)(x), x.tanh() - x)
        for name, module in (("branch", branch), ("shortcut", shortcut)):
            expect(
                len(module.seen) == 1, f"expected the {name} to be called once, it was called {len(module.seen)} times"
            )
            assert_same(module.seen[0], x, what=f"what the {name} was given")

    @pytest.mark.parametrize("branch", [Same, nn.Identity])
    @pytest.mark.parametrize("with_shortcut", [True, False])
    def test_a_branch_may_return_x_itself(self, with_shortcut, branch):
        """The sum by += would be written into the caller's own tensor."""
        x = sample(3, 4)
        layer = residual.Residual(branch(), Same() if with_shortcut else None)
        with unchanged(x, names=("x",)):
            found = layer(x)
        assert_same(found, 2 * x)

    def test_what_branch_and_shortcut_return_is_not_written_to(self):
        """tanh and sigmoid keep their results for the backward, which must find them as they were."""
        x = sample(3, 4, dtype=torch.float64).requires_grad_()
        found = residual.Residual(nn.Tanh(), nn.Sigmoid())(x)
        assert_same_gradients(found, x.tanh() + x.sigmoid(), [x], **FLOAT64)
        kept = sample(3, 4)
        before = kept.clone()
        for layer in (residual.Residual(Function(lambda x: kept)), residual.Residual(Same(), Function(lambda x: kept))):
            with torch.no_grad():
                layer(sample(3, 4))
            assert_same(kept, before, rtol=0, atol=0, what="what a module returned")

    @pytest.mark.parametrize("other", [(3,), (1, 3), (2, 1), (2, 1, 3), (), (3, 2)], ids=str)
    def test_refuses_shapes_that_differ_even_where_they_would_broadcast(self, other):
        """[3] and [3, 1] would give [3, 3], and nobody would notice."""
        shape = (2, 3)
        give, back = Function(lambda x: torch.ones(other)), Function(lambda x: torch.ones(shape))
        layers = residual.Residual(give), residual.Residual(Same(), give), residual.Residual(give, Same()).eval()
        for layer in (*layers, residual.Residual(give).eval()):
            with refuses(ValueError, mentions={*shape, *other} if len(other) == 2 else ()):
                layer(torch.ones(shape))
        with refuses(ValueError):
            residual.Residual(back)(torch.ones(other))

    def test_both_are_trained_saved_and_moved(self):
        layer = residual.Residual(nn.Linear(4, 4), nn.Linear(4, 4, bias=False))
        found = sorted(tuple(p.shape) for p in layer.parameters())
        expect(found == [(4,), (4, 4), (4, 4)], f"expected the parameters of branch and shortcut, got shapes {found}")
        expect(len(layer.state_dict()) == 3, f"expected them in state_dict, it holds {list(layer.state_dict())}")
        found = {module.training for module in layer.eval().modules()}
        expect(found == {False}, "expected eval() to reach branch and shortcut")
        for name in ("bias=True", "bias=False"):
            expect(name in repr(layer), f"expected repr to show branch and shortcut, got {layer!r}")
        expect(not list(residual.Residual(nn.ReLU()).parameters()), "expected no parameters without a shortcut")


def layers_of(block, features, hidden):
    """The norm and the two linear layers of a block, whatever they are called."""
    linears = {(m.in_features, m.out_features): m for m in block.modules() if isinstance(m, nn.Linear)}
    norms = [m for m in block.modules() if isinstance(m, nn.LayerNorm)]
    wanted = {(features, hidden), (hidden, features)}
    expect(set(linears) == wanted, f"expected linear layers {sorted(wanted)}, got {sorted(linears)}")
    expect(len(norms) == 1, f"expected one torch.nn.LayerNorm, got {len(norms)}")
    return norms[0], linears[features, hidden], linears[hidden, features]


class TestPreActivationBlock(FeatureBlockSpecs):
    @staticmethod
    def make():
        return residual.PreActivationBlock(5, 7)

    @pytest.mark.parametrize("zero_init", [True, False])
    @pytest.mark.parametrize("leading", LEADING, ids=str)
    def test_norm_and_activation_come_before_each_layer_and_nothing_after_the_sum(self, leading, zero_init):
        block = filled(residual.PreActivationBlock(5, 7, zero_init=zero_init))
        norm, first, last = layers_of(block, 5, 7)

        def wanted(x):
            hidden = F.linear(F.layer_norm(x, (5,), norm.weight, norm.bias).relu(), first.weight, first.bias)
            return x + F.linear(hidden.relu(), last.weight, last.bias)

        expect_formula(block, wanted, *leading, 5)

    def test_is_the_identity_at_the_start(self):
        """A deep stack of such blocks begins as if it were not there, and every gradient gets through it."""
        x = sample(6, 5, low=-9, high=9)
        assert_same(residual.PreActivationBlock(5, 7)(x), x, rtol=0, atol=0)
        assert_same(residual.PreActivationBlock(5, 7, zero_init=True)(x), x, rtol=0, atol=0)
        other = residual.PreActivationBlock(5, 7, zero_init=False)(x)
        expect(not torch.equal(other, x), "expected another result than x without zero_init")

    def test_every_parameter_learns_within_two_steps(self):
        """Zeros in one layer alone: with zeros in two layers behind each other none of them ever gets a gradient."""
        block, x, target = residual.PreActivationBlock(5, 7), sample(20, 5), sample(20, 5)
        reached = set()
        for _ in range(2):
            loss = (block(x) - target).square().mean()
            for name, gradient in zip(
                dict(block.named_parameters()),
                torch.autograd.grad(loss, list(block.parameters()), allow_unused=True),
                strict=True,
            ):
                if gradient is not None and bool(gradient.count_nonzero()):
                    reached.add(name)
                    with torch.no_grad():
                        block.get_parameter(name).sub_(gradient)
        never = sorted(set(dict(block.named_parameters())) - reached)
        expect(not never, f"expected a gradient other than 0 within two steps, {', '.join(never)} got none")

    @pytest.mark.parametrize("sizes", [(0, 7), (5, 0), (-2, 7), (5, -3)], ids=str)
    def test_refuses_sizes_below_one(self, sizes):
        with refuses(ValueError, mentions=[min(sizes)]):
            residual.PreActivationBlock(*sizes)


def conv_formula(block, x, stride, training):
    """The block from its own weights and statistics."""

    def norm(x, bn):
        mean, var = (None, None) if training else (bn.running_mean, bn.running_var)
        return F.batch_norm(x, mean, var, bn.weight, bn.bias, training=training)

    hidden = norm(F.conv2d(x, block.conv1.weight, stride=stride, padding=1), block.bn1).relu()
    branch = norm(F.conv2d(hidden, block.conv2.weight, padding=1), block.bn2)
    shortcut = x
    inside = list(block.shortcut.modules()) if isinstance(block.shortcut, nn.Module) else []
    for conv in (m for m in inside if isinstance(m, nn.Conv2d)):
        (bn,) = (m for m in inside if isinstance(m, nn.BatchNorm2d))
        shortcut = norm(F.conv2d(x, conv.weight, stride=stride), bn)
    return (branch + shortcut).relu()


CONVS = [(3, 3, 1), (3, 5, 1), (5, 3, 1), (3, 3, 2), (3, 5, 2), (4, 4, 3)]


class TestConvResidualBlock:
    @pytest.mark.parametrize("training", [True, False])
    @pytest.mark.parametrize("sizes", CONVS, ids=str)
    def test_two_convolutions_and_a_short_way_around_them(self, sizes, training):
        c, _, stride = sizes
        block = filled(residual.ConvResidualBlock(*sizes)).train(training)
        expect_registered(block, ["conv1", "bn1", "conv2", "bn2"])
        x = sample(4, c, 5, 7, dtype=torch.float64).requires_grad_()
        wanted = conv_formula(block, x, stride, training)
        with unchanged(x, names=("x",)):
            found = block(x)
        assert_same(found, wanted, rtol=1e-9, atol=1e-9)
        assert_same_gradients(found, wanted, [x, *block.parameters()], rtol=1e-7, atol=1e-7)

    @pytest.mark.parametrize("sizes", CONVS, ids=str)
    def test_the_shortcut_projects_exactly_where_the_shape_changes(self, sizes):
        """Anywhere else x itself is the shortest way; where the stride or the channels change it does not fit."""
        c, out, stride = sizes
        block = residual.ConvResidualBlock(*sizes)
        shortcut = getattr(block, "shortcut", None)
        found = sorted(tuple(p.shape) for p in shortcut.parameters()) if isinstance(shortcut, nn.Module) else []
        projects = stride != 1 or c != out
        wanted = sorted([(out, c, 1, 1), (out,), (out,)]) if projects else []
        what = "a 1×1 convolution without bias and a norm" if projects else "no parameters"
        expect(found == wanted, f"expected {what} in the shortcut, got parameters {found}", f"for {sizes}")

    def test_convolutions_have_no_bias(self):
        """The norm behind them takes it away again: it would never learn."""
        block = residual.ConvResidualBlock(3, 5, 2)
        found = [name for name, m in block.named_modules() if isinstance(m, nn.Conv2d) and m.bias is not None]
        expect(not found, f"expected convolutions without bias, {', '.join(found)} have one")

    @pytest.mark.parametrize("stride, size", [(1, (7, 9)), (2, (4, 5)), (3, (3, 3)), (4, (2, 3))])
    def test_the_first_convolution_carries_the_stride(self, stride, size):
        found = residual.ConvResidualBlock(3, 4, stride)(sample(2, 3, 7, 9))
        expect(found.shape == (2, 4, *size), f"expected shape {[2, 4, *size]}, got {list(found.shape)}")

    def test_training_updates_every_norm_once(self):
        block = residual.ConvResidualBlock(3, 5, 2)
        block(sample(4, 3, 6, 6))
        found = [int(m.num_batches_tracked) for m in block.modules() if isinstance(m, nn.BatchNorm2d)]
        expect(found == [1, 1, 1], f"expected three norms that have seen one batch, they have seen {found}")

    @pytest.mark.parametrize("sizes", [(3, 3, 1), (3, 5, 2)], ids=str)
    @pytest.mark.parametrize("c", [1, 2, 4])
    def test_refuses_another_number_of_channels(self, c, sizes):
        block = residual.ConvResidualBlock(*sizes)
        statistics = dict(block.named_buffers())
        with unchanged(statistics, names=("the running statistics",)), refuses(ValueError, mentions=[c, 3]):
            block(sample(2, c, 6, 6))

    @pytest.mark.parametrize("shape", [(2, 3), (3,), (2, 2, 3, 6, 6)], ids=str)
    def test_refuses_what_are_no_images(self, shape):
        with refuses(LOUD):
            residual.ConvResidualBlock(3, 3)(sample(*shape))

    @pytest.mark.parametrize("sizes", [(0, 3, 1), (3, 0, 1), (3, 3, 0), (-2, 3, 1), (3, 3, -1)], ids=str)
    def test_refuses_sizes_below_one(self, sizes):
        with refuses(ValueError, mentions=[min(sizes)]):
            residual.ConvResidualBlock(*sizes)


class TestHighwayBlock(FeatureBlockSpecs):
    @staticmethod
    def make():
        return residual.HighwayBlock(5)

    @pytest.mark.parametrize("leading", LEADING, ids=str)
    def test_a_gate_mixes_x_with_what_a_layer_makes_of_it(self, leading):
        block = filled(residual.HighwayBlock(5))
        expect_registered(block, ["fc", "gate"])

        def wanted(x):
            t = F.linear(x, block.gate.weight, block.gate.bias).sigmoid()
            return t * F.linear(x, block.fc.weight, block.fc.bias).relu() + (1 - t) * x

        expect_formula(block, wanted, *leading, 5)

    @pytest.mark.parametrize("gate_bias", [-1.0, -3.5, 0.0, 2.5])
    def test_the_gate_starts_with_the_bias_that_is_asked_for(self, gate_bias):
        """A negative one lets x through at first, so that the gradient of a deep stack does."""
        block = residual.HighwayBlock(5, gate_bias=gate_bias)
        assert_same(block.gate.bias.detach(), torch.full((5,), gate_bias), what="the bias of the gate")
        expect(bool(block.fc.bias.std() > 0), "expected torch's own initial values in fc")

    def test_minus_one_is_the_default(self):
        assert_same(residual.HighwayBlock(5).gate.bias.detach(), torch.full((5,), -1.0), what="the bias of the gate")

    def test_a_closed_gate_lets_x_through_and_an_open_one_the_layer(self):
        x = sample(4, 5)
        assert_same(residual.HighwayBlock(5, gate_bias=-100.0)(x), x)
        block = residual.HighwayBlock(5, gate_bias=100.0)
        assert_same(block(x).detach(), F.linear(x, block.fc.weight, block.fc.bias).relu().detach())

    @pytest.mark.parametrize("features", [0, -2])
    def test_refuses_fewer_than_one_feature(self, features):
        with refuses(ValueError, mentions=[features]):
            residual.HighwayBlock(features)


def numbered(n, *rest):
    """Rows of positive numbers that can be told apart."""
    return (torch.arange(1, n + 1, dtype=torch.float64).view(n, *[1] * len(rest)) + torch.zeros(rest)).clone()


def ten_times(rows):
    return 10 * rows


class TestStochasticDepth:
    @pytest.mark.parametrize("rest", [(), (3,), (2, 3, 2)], ids=str)
    @pytest.mark.parametrize("p", [0.25, 0.5])
    def test_each_sample_is_kept_or_dropped_as_a_whole(self, p, rest):
        """Kept it is x + branch(x) / (1 - p), so that evaluation, without any drop, meets the same mean."""
        x = numbered(2000, *rest)
        found = residual.stochastic_depth(x, ten_times, p, generator=seeded())
        ratio = found / x
        kept, dropped = (ratio - (1 + 10 / (1 - p))).abs() < 1e-6, (ratio - 1).abs() < 1e-6
        expect(bool((kept | dropped).all()), f"expected x or x + branch(x) / {1 - p} in each place")
        first = dropped.flatten(1)[:, :1] if rest else dropped[:, None]
        expect(bool((dropped.view(2000, -1) == first).all()), "expected each sample to be decided as a whole")
        expect_share(first, p, "dropped samples")
        expect_share(first[1:] & first[:-1], p * p, "neighbours that are dropped together")

    @pytest.mark.parametrize("p", [0.3, 0.75])
    def test_the_branch_is_given_the_kept_rows_alone(self, p):
        """What is dropped costs nothing, and enters no batch norm's statistics."""
        x, branch = numbered(200, 3), Function(ten_times)
        found = residual.stochastic_depth(x, branch, p, generator=seeded())
        given_rows = torch.cat(branch.seen)
        kept = found[:, 0] != x[:, 0]
        assert_same(given_rows.sort(0).values, x[kept], what="the rows that the branch was given")

    def test_each_row_gets_what_the_branch_made_of_it(self):
        """Results that come back in another order give each sample another one's branch."""
        x = sample(100, 3, dtype=torch.float64)
        found = residual.stochastic_depth(x, torch.exp, 0.5, generator=seeded())
        kept = (found != x).all(1)
        expect(bool(kept.any()), "expected some samples to be kept")
        assert_same(found[kept], (x + x.exp() / 0.5)[kept], what="the rows that were kept")
        assert_same(found[~kept], x[~kept], what="the rows that were dropped")

    def test_with_probability_zero_all_are_kept_and_with_one_none(self):
        x, branch = sample(7, 3, dtype=torch.float64), Function(torch.exp)
        assert_same(residual.stochastic_depth(x, branch, 0.0), x + x.exp(), **FLOAT64)
        assert_same(torch.cat(branch.seen).sort(0).values, x.sort(0).values, what="what the branch was given")
        branch = Function(torch.exp)
        for p in (1, 1.0):
            assert_same(residual.stochastic_depth(x, branch, p), x, rtol=0, atol=0)
        expect(not branch.seen, "expected the branch not to be called where no sample is kept")

    def test_where_no_sample_is_kept_the_branch_is_not_called(self):
        """A batch norm cannot do anything with no rows."""
        generator, sizes = seeded(), []

        def branch(rows):
            sizes.append(len(rows))
            return rows

        for _ in range(60):
            residual.stochastic_depth(torch.ones(1, 3), branch, 0.75, generator=generator)
            residual.stochastic_depth(torch.ones(0, 3), branch, 0.25, generator=generator)
        expect(0 not in sizes, "expected the branch to be called with rows alone, it was given none")
        expect_share(torch.arange(60) < len(sizes), 0.25, "calls for one sample that is kept")

    def test_more_samples_take_no_more_operations(self):
        counts = []
        for n in (60, 600):
            with count_ops() as ops:
                residual.stochastic_depth(torch.ones(n, 3), torch.tanh, 0.5, generator=seeded())
            counts.append(ops.total())
        expect(counts[1] <= counts[0], f"expected no more operations for 600 samples than for 60, got {counts}")

    @pytest.mark.parametrize("p", [0.0, 0.5, 1.0])
    def test_without_training_every_sample_goes_through_the_branch(self, p):
        x, generator = sample(50, 3, dtype=torch.float64), seeded()
        before = generator.get_state()
        with state_kept():
            found = residual.stochastic_depth(x, torch.exp, p, training=False, generator=generator)
        assert_same(found, x + x.exp(), **FLOAT64)
        expect(torch.equal(generator.get_state(), before), "expected nothing to be drawn without training")

    def test_training_is_the_default(self):
        found = residual.stochastic_depth(torch.ones(2000, 1), ten_times, 0.5)
        expect_share(found == 1, 0.5, "dropped samples")

    def test_gradients_take_the_way_of_the_values(self):
        x, layer = sample(60, 4, dtype=torch.float64).requires_grad_(), filled(nn.Linear(4, 4))
        found = residual.stochastic_depth(x, layer, 0.5, generator=seeded())
        kept = (found != x).any(1, keepdim=True)
        wanted = x + torch.where(
            kept, F.linear(x, layer.weight, layer.bias) / 0.5, torch.zeros((), dtype=torch.float64)
        )
        assert_same(found, wanted, **FLOAT64)
        assert_same_gradients(found, wanted, [x, *layer.parameters()], **FLOAT64)

    def test_what_the_branch_returns_is_not_written_to(self):
        x = sample(30, 4, dtype=torch.float64).requires_grad_()
        for training in (True, False):
            found = residual.stochastic_depth(x, torch.sigmoid, 0.25, training, seeded())
            (gradient,) = gradients_of(found, [x])
            expect(bool(gradient.isfinite().all()), "expected finite gradients")
        with unchanged(x, names=("x",)):
            residual.stochastic_depth(x, lambda rows: rows, 0.0)
            residual.stochastic_depth(x, lambda rows: rows, 0.5, training=False)

    @pytest.mark.parametrize("training", [True, False])
    @pytest.mark.parametrize(
        "branch", [lambda r: r[:, :1], lambda r: r[:1], lambda r: r.sum(), lambda r: r[..., None], lambda r: r[:, 1:]],
        ids=["one column", "one row", "a number", "one more dimension", "fewer columns"],
    )  # fmt: skip
    def test_refuses_a_branch_that_changes_the_shape(self, branch, training):
        """One column or one row would broadcast in the sum."""
        with refuses(ValueError):
            residual.stochastic_depth(sample(6, 4), branch, 0.0, training)

    @pytest.mark.parametrize("training", [True, False])
    @pytest.mark.parametrize("p", [-0.1, 1.5])
    def test_refuses_what_is_no_probability(self, p, training):
        branch = Function(ten_times)
        with refuses(ValueError, mentions=[p]):
            residual.stochastic_depth(sample(6, 4), branch, p, training)
        expect(not branch.seen, "expected the branch not to be called before p was looked at")


def norms_of(model, x):
    """The norms layer by layer, from copies that nothing else looks at."""
    inputs, h = [], x.detach().clone().requires_grad_()
    for layer in copy.deepcopy(model):
        inputs.append(h)
        h = layer(h.clone())
    gradients = torch.autograd.grad(h.square().sum() / 2, inputs, allow_unused=True)
    return [0.0 if g is None else g.double().norm().item() for g in gradients]


def expect_norms(found, wanted):
    expect(isinstance(found, list), f"expected a list, got {type(found).__name__}")
    expect(len(found) == len(wanted), f"expected one norm for each of {len(wanted)} layers, got {len(found)}")
    for number, (norm, value) in enumerate(zip(found, wanted, strict=True)):
        expect(type(norm) is float, f"expected Python floats, got {type(norm).__name__}")
        close = math.isclose(norm, value, rel_tol=1e-4, abs_tol=1e-12)
        expect(close, f"expected the norm {value:.6g} at layer {number}, got {norm:.6g}")


def network(*extra):
    """Layers of different widths, whose gradients differ from layer to layer."""
    return nn.Sequential(
        filled(nn.Linear(4, 6)), nn.Tanh(), filled(nn.Linear(6, 3)), nn.Sigmoid(), *extra, filled(nn.Linear(3, 2))
    )


class TestGradientNorms:
    def test_is_the_slope_of_half_the_squares_at_each_layers_input(self):
        model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False))
        for layer, weight in zip(model, (2.0, 3.0), strict=True):
            layer.load_state_dict({"weight": torch.tensor([[weight]])})
        expect_norms(residual.gradient_norms(model, torch.tensor([[1.0]])), [36.0, 18.0])

    @given(n=st.integers(1, 5))
    def test_tells_each_layer_in_order(self, n):
        model, x = network(), sample(n, 4, dtype=torch.float64)
        expect_norms(residual.gradient_norms(model, x), norms_of(model, x))

    @pytest.mark.parametrize("device", devices.DEVICES)
    def test_works_on_another_device(self, device):
        model, x = network(), sample(3, 4, dtype=torch.float64)
        wanted = norms_of(model, x)
        with devices.on(device):
            model, x = model.to(device), x.to(device)
            with devices.no_strays():
                found = residual.gradient_norms(model, x)
        expect_norms(found, wanted)

    def test_a_single_layer_and_more_dimensions_will_do(self):
        for model, shape in ((nn.Sequential(filled(nn.Linear(4, 2))), (3, 4)), (network(), (2, 3, 4))):
            x = sample(*shape, dtype=torch.float64)
            expect_norms(residual.gradient_norms(model, x), norms_of(model, x))
        model = nn.Sequential(filled(nn.Conv2d(2, 3, 3)), nn.ReLU(), nn.Flatten(), filled(nn.Linear(27, 2)))
        x = sample(2, 2, 5, 5, dtype=torch.float64)
        expect_norms(residual.gradient_norms(model, x), norms_of(model, x))

    def test_layers_that_work_in_place_change_nothing(self):
        """ReLU(inplace=True) writes over what the layer before it gave: its input must be looked at before that."""
        for model in (
            network(nn.ReLU(inplace=True)),
            nn.Sequential(filled(nn.Linear(4, 5)), nn.ReLU(inplace=True), filled(nn.Linear(5, 2))),
            nn.Sequential(nn.ReLU(inplace=True), filled(nn.Linear(4, 5)), nn.SiLU(inplace=True)),
        ):
            x = sample(6, 4, dtype=torch.float64)
            with unchanged(x, names=("x",)):
                found = residual.gradient_norms(model, x)
            expect_norms(found, norms_of(model, x))
            left = [m.inplace for m in model.modules() if hasattr(m, "inplace")]
            expect(all(left), "expected layers that work in place to go on doing so")

    @pytest.mark.parametrize("filled_grad", [True, False])
    @pytest.mark.parametrize("requires_grad", [True, False])
    def test_leaves_grad_x_and_hooks_as_they_are(self, requires_grad, filled_grad):
        """To measure must not change what is measured, nor the next step of training."""
        model, x = network(), sample(5, 4, dtype=torch.float64).requires_grad_(requires_grad)
        leaves = [*model.parameters(), *([x] if requires_grad else [])]
        for p in leaves:
            p.grad = sample(*p.shape, dtype=torch.float64) if filled_grad else None
        kept = [(p.grad, None if p.grad is None else p.grad.clone()) for p in leaves]
        with unchanged(x, *model.parameters()), state_kept():
            residual.gradient_norms(model, x)
        for p, (grad, value) in zip(leaves, kept, strict=True):
            expect(p.grad is grad, "expected .grad to stay as it was, it was replaced or filled")
            if grad is not None:
                assert_same(grad, value, rtol=0, atol=0, what=".grad")
        for name, module in model.named_modules():
            found = [k for k, v in vars(module).items() if k.endswith("hooks") and v]
            expect(not found, f"expected no hooks to be left behind, layer {name} has {found}")
        expect(not x._backward_hooks, "expected no hooks to be left on x")

    def test_hooks_of_others_stay(self):
        model, calls = network(), []
        model[0].register_forward_hook(lambda *_: calls.append(1))
        residual.gradient_norms(model, sample(5, 4, dtype=torch.float64))
        expect(len(model[0]._forward_hooks) == 1, "expected a hook that was there before to stay")

    def test_frozen_parameters_do_not_matter(self):
        model, x = network().requires_grad_(False), sample(5, 4, dtype=torch.float64)
        expect_norms(residual.gradient_norms(model, x), norms_of(model, x))
        expect(not any(p.requires_grad for p in model.parameters()), "expected frozen parameters to stay frozen")

    @pytest.mark.parametrize("training", [True, False])
    def test_the_mode_of_the_model_stays(self, training):
        model = network().train(training)
        residual.gradient_norms(model, sample(5, 4, dtype=torch.float64))
        expect(all(m.training == training for m in model.modules()), "expected the model's mode to be left as it was")

    def test_a_layer_that_passes_nothing_has_norm_zero_before_it(self):
        model = nn.Sequential(filled(nn.Linear(4, 3)), nn.Threshold(1e9, 0.0), filled(nn.Linear(3, 2)))
        x = sample(5, 4, dtype=torch.float64)
        expect_norms(residual.gradient_norms(model, x), norms_of(model, x))


def stack(depth, features, skips, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return residual.deep_stack(depth, features, skips)


def without_drawing(learner):
    """deep_stack, with the global generator as it was afterwards."""

    def run(depth, features, skips):
        with torch.random.fork_rng(devices=[]):
            return learner.deep_stack(depth, features, skips)

    return run


class TestDeepStack:
    @pytest.mark.parametrize("skips", [True, False])
    def test_has_as_many_layers_as_it_is_deep(self, skips):
        model = stack(7, 5, skips)
        expect(isinstance(model, nn.Sequential), f"expected a torch.nn.Sequential, got {type(model).__name__}")
        expect(len(model) == 7, f"expected 7 children, got {len(model)}")
        for child in model:
            found = sorted(tuple(p.shape) for p in child.parameters())
            wanted = [(5,), (5,), (5, 5), (5, 5)]
            expect(found == wanted, f"expected two linear layers of 5 features in each child, got parameters {found}")

    @pytest.mark.parametrize("skips", [True, False])
    @pytest.mark.parametrize("leading", [(), (3,), (2, 3), (0,)], ids=str)
    def test_keeps_the_shape(self, leading, skips):
        found = stack(3, 5, skips)(sample(*leading, 5))
        expect(found.shape == (*leading, 5), f"expected shape {[*leading, 5]}, got {list(found.shape)}")

    def test_equal_seeds_give_equal_parameters_with_and_without_skips(self):
        """Only so can one compare them: whatever differs comes from the skips."""
        plain, skips = (list(stack(4, 5, kind, seed=3).parameters()) for kind in (False, True))
        for number, (p, q) in enumerate(zip(plain, skips, strict=True)):
            assert_same(q.detach(), p.detach(), rtol=0, atol=0, what=f"parameter {number} with skips")
        other = next(stack(4, 5, True, seed=4).parameters())
        expect(not torch.equal(other, skips[0]), "expected other parameters for another seed")

    def test_a_skip_adds_what_comes_in_to_what_comes_out(self):
        x = sample(6, 5)
        for layer, skip in zip(stack(4, 5, False), stack(4, 5, True), strict=True):
            with unchanged(x, names=("x",)):
                assert_same(skip(x).detach(), (x + layer(x)).detach(), rtol=1e-5)

    def test_each_layer_is_linear_activation_linear(self):
        """Without an activation fifty layers are one."""
        model = stack(2, 6, False)
        x = sample(50, 6, low=-4, high=4)
        for child in model:
            bends = (child(x) + child(-x) - 2 * child(0 * x)).abs().max().item()
            expect(bends > 1e-3, "expected a layer that is not linear: between the two linear ones is an activation")

    @pytest.mark.parametrize("skips", [True, False])
    def test_layers_start_as_torchs_own(self, skips):
        """Uniform between ±1/√features, weights and biases: another scale would make the comparison another one."""
        model, bound = stack(60, 16, skips), 1 / math.sqrt(16)
        for ndim in (1, 2):
            values = torch.cat([p.detach().flatten() for p in model.parameters() if p.ndim == ndim])
            largest = values.abs().max().item()
            expect(
                0.98 * bound < largest <= bound * 1.0001,
                f"expected values up to ±{bound}, the largest is {largest:.4f}",
            )
            spread, wanted = values.std().item(), bound / math.sqrt(3)
            expect(
                abs(spread - wanted) < 0.05 * wanted, f"expected a standard deviation of {wanted:.4f}, got {spread:.4f}"
            )

    @pytest.mark.parametrize("seed", [0, 1, 2])
    @pytest.mark.parametrize("features", [8, 16, 32])
    def test_skips_carry_the_gradient_through_fifty_layers(self, features, seed):
        """Without them it shrinks from layer to layer until nothing is left for the first."""
        generator = seeded(seed)
        x = torch.randn(16, features, generator=generator)
        first, *_, last = norms_of(stack(50, features, True, seed), x)
        expect(last > 0 and 0.01 < first / last < 100, f"expected norms within 100× with skips, got {first} and {last}")
        first, *_, last = norms_of(stack(50, features, False, seed), x)
        expect(first <= last / 100, f"expected a hundredth at most in the first layer without, got {first} and {last}")

    @pytest.mark.parametrize("sizes", [(0, 5), (3, 0), (-1, 5), (3, -2)], ids=str)
    @pytest.mark.parametrize("skips", [True, False])
    def test_refuses_sizes_below_one(self, skips, sizes):
        with state_kept(), refuses(ValueError, mentions=[min(sizes)]):
            residual.deep_stack(*sizes, skips)


RULES = [
    rule("ResidualBlock", lambda s: (s(s.n, 5),), build=lambda m: m.ResidualBlock(5), integers_refused=False,
         module={"shows": (5,), "state": ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias")},
         fails=lambda s: (s(3, 4),)),
    rule("Residual", lambda s: (s(s.n, 4),), build=lambda m: m.Residual(nn.Linear(4, 3), nn.Linear(4, 3, bias=False)),
         also={"no shortcut": {"build": lambda m: m.Residual(nn.Linear(4, 4))}},
         integers_refused=False, module={"shows": ("in_features=4", "bias=False")}),
    rule("PreActivationBlock", lambda s: (s(s.n, 5),), build=lambda m: m.PreActivationBlock(5, 7, zero_init=False),
         also={"zero_init": {"build": lambda m: m.PreActivationBlock(5, 7)}},
         integers_refused=False, module={"shows": (5, 7)}, fails=lambda s: (s(3, 4),)),
    # In eval mode: in training a batch norm learns from each call, and cannot from an empty batch.
    rule("ConvResidualBlock", lambda s: (s(s.n, 3, 5, 7),), build=lambda m: m.ConvResidualBlock(3, 4, 2).eval(),
         also={"same shape": {"build": lambda m: m.ConvResidualBlock(3, 3).eval()}},
         integers_refused=False, module={"shows": (3, 4, 2)}, fails=lambda s: (s(2, 4, 5, 7),)),
    rule("HighwayBlock", lambda s: (s(s.n, 5),), build=lambda m: m.HighwayBlock(5), integers_refused=False,
         module={"shows": (5,), "state": ("fc.weight", "fc.bias", "gate.weight", "gate.bias")},
         fails=lambda s: (s(3, 4),)),
    # Of a few rows all or none may be kept, which can save operations: their number has a spec of its own.
    rule("stochastic_depth", lambda s: (s(s.n, 4), torch.tanh, 0.125), random=True, vectorised=False,
         also={"p 0": {"make": lambda s: (s(s.n, 4), torch.tanh, 0.0)},
               "p 1": {"make": lambda s: (s(s.n, 4), torch.tanh, 1.0)},
               "eval": {"make": lambda s: (s(s.n, 4), torch.tanh, 0.125, False)}},
         fails=lambda s: (s(3, 4), torch.tanh, 1.5)),
    # The result is a list of floats, for a model that is the caller's: it stays on the CPU and in float32.
    rule("gradient_norms", lambda s: (nn.Sequential(nn.Linear(4, 3), nn.Tanh()), s(s.n, 4)), keeps_dtype=False,
         any_device=False, differentiable=False),
    # No tensor goes in, and it draws from the global generator, as it should.
    rule("deep_stack", lambda s: (3, 5, True), build=without_drawing, fails=lambda s: (0, 5, True)),
]  # fmt: skip
