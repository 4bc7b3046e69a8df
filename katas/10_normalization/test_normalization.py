"""The specs of kata 10. One class a name; the house rules that all of them share are in the table at the end."""

import copy
import math
from contextlib import contextmanager
from itertools import pairwise

import normalization
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dojo import devices
from dojo.compare import assert_same, assert_same_gradients, expect, expect_share, gradients_of, refuses
from dojo.guards import shares_memory, state_kept, unchanged
from dojo.rules import FLOATS, rule
from dojo.strategies import GENERATOR, sample

FLOAT64 = {"rtol": 1e-11, "atol": 1e-11}
LOUD = (ValueError, RuntimeError, IndexError, TypeError)
MANY = 10_000  # elements whose share of zeros is known to half a percent
SHAPES = [(5, 3), (4, 3, 2), (2, 3, 4, 5), (2, 3, 2, 1, 3)]
BUFFERS = ["running_mean", "running_var", "num_batches_tracked"]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def drop_with(p, seed=0):
    """The function with a generator."""
    return lambda x: normalization.dropout(x, p, generator=seeded(seed))


class DropoutSpecs:
    """What is asked of the function and of the module alike; `drop(p)` gives either, in training."""

    @staticmethod
    def drop(p, seed=0):
        raise NotImplementedError

    @pytest.mark.parametrize("p", [0.1, 0.5, 0.75])
    def test_what_is_kept_grows_so_that_the_mean_stays(self, p):
        """Inverted dropout: scaling happens in training, so that nothing is left to do in evaluation."""
        x = sample(MANY, low=0.5, high=2, dtype=torch.float64)
        found = self.drop(p)(x)
        kept = found != 0
        assert_same(found[kept], x[kept] / (1 - p), **FLOAT64, what="what is kept")
        expect_share(~kept, p, "dropped elements")

    def test_each_element_is_decided_by_itself(self):
        """Not a row, a column or a channel at a time: neighbours are dropped together as often as chance says."""
        dropped = self.drop(0.5)(torch.ones(100, 10, 10)) == 0
        for dim in range(3):
            both = dropped.narrow(dim, 1, dropped.shape[dim] - 1) & dropped.narrow(dim, 0, dropped.shape[dim] - 1)
            expect_share(both, 0.25, f"neighbours along dimension {dim} that are dropped together")

    def test_how_many_are_dropped_is_chance_as_well(self):
        """A fixed number of them would tie the elements to each other."""
        x = torch.ones(100)
        with torch.random.fork_rng(devices=[]):
            counts = {int((self.drop(0.5, seed)(x) == 0).sum()) for seed in range(12)}
        expect(len(counts) > 3, f"expected other numbers of dropped elements from call to call, got {sorted(counts)}")

    @pytest.mark.parametrize("p", [0, 0.0])
    def test_nothing_is_dropped_with_probability_zero(self, p):
        x = torch.tensor([0.1, -3.0, math.inf, 0.7])
        assert_same(self.drop(p)(x), x, rtol=0, atol=0)

    @pytest.mark.parametrize("p", [1, 1.0])
    def test_all_is_dropped_with_probability_one(self, p):
        """1 / (1 - p) is a division by zero there, and inf times 0 is nan."""
        x = torch.tensor([[0.1, -3.0], [math.inf, math.nan]], requires_grad=True)
        found = self.drop(p)(x)
        assert_same(found, torch.zeros(2, 2), rtol=0, atol=0)
        if found.requires_grad:
            (gradient,) = torch.autograd.grad(found.sum(), x, allow_unused=True)
            expect(gradient is None or bool((gradient == 0).all()), f"expected the gradient 0, got {gradient}")

    @pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
    def test_what_is_dropped_is_zero_whatever_it_was(self, poison):
        """A product with a mask of zeros and ones keeps nan, in the value and in the gradient."""
        x = torch.full((MANY,), poison, requires_grad=True)
        found = self.drop(0.25)(x)
        dropped = found == 0
        expect_share(dropped, 0.25, f"zeros among elements that were all {poison}")
        (gradient,) = torch.autograd.grad(found[dropped].sum(), x)
        expect(bool((gradient[dropped] == 0).all()), f"expected the gradient 0 where {poison} was dropped, got nan")

    def test_gradients_take_the_way_of_the_values(self):
        x = sample(1000, low=0.5, high=2, dtype=torch.float64).requires_grad_()
        found = self.drop(0.3)(x)
        (gradient,) = torch.autograd.grad(found.sum(), x)
        assert_same(gradient, (found != 0) / 0.7, dtype=False, rtol=1e-6, what="the gradient")

    @pytest.mark.parametrize("dtype", FLOATS, ids=str)
    def test_half_precision_drops_as_often(self, dtype):
        found = self.drop(0.1)(torch.ones(MANY, dtype=dtype))
        expect(found.dtype == dtype, f"expected {dtype}, got {found.dtype}")
        expect_share(found == 0, 0.1, f"dropped elements in {dtype}")

    @pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1, 1, 1, 1, 2)], ids=str)
    def test_takes_any_shape(self, shape):
        x = torch.ones(shape)
        assert_same(self.drop(0.0)(x), x)
        expect(self.drop(0.5)(x).shape == x.shape, f"expected shape {list(shape)}")

    @pytest.mark.parametrize("layout", ["transposed", "expanded"])
    def test_any_strides_are_dropped_element_by_element(self, layout):
        x = torch.ones(100, 100).T if layout == "transposed" else torch.ones(1, 100).expand(100, 100)
        dropped = self.drop(0.5)(x) == 0
        expect_share(dropped, 0.5, f"dropped elements of a tensor that is {layout}")
        expect(bool((dropped[0] != dropped[1]).any()), f"expected each row of a tensor that is {layout} to be decided")


class TestDropout(DropoutSpecs):
    drop = staticmethod(drop_with)

    @pytest.mark.parametrize("p", [0.0, 0.5, 1.0])
    def test_without_training_the_values_stay_and_nothing_is_drawn(self, p):
        x = torch.tensor([0.1, -3.0, 0.7, math.nan])
        generator = seeded()
        before = generator.get_state()
        with state_kept():
            assert_same(normalization.dropout(x, p, training=False, generator=generator), x, rtol=0, atol=0)
        expect(torch.equal(generator.get_state(), before), "expected the generator to be left alone in evaluation")

    def test_training_is_the_default(self):
        expect_share(normalization.dropout(torch.ones(MANY), 0.5) == 0, 0.5, "dropped elements")

    @pytest.mark.parametrize("training", [True, False])
    @pytest.mark.parametrize("p", [-0.1, 1.5, 7])
    def test_refuses_what_is_no_probability(self, p, training):
        with refuses(ValueError, mentions=[p]):
            normalization.dropout(torch.ones(3), p, training)

    def test_a_number_is_dropped_as_any_element(self):
        found = torch.stack([normalization.dropout(torch.tensor(1.0), 0.5, generator=GENERATOR) for _ in range(400)])
        expect_share(found == 0, 0.5, "numbers that are dropped")
        expect(bool(((found == 0) | (found == 2)).all()), "expected 0 or 2 for a 1 at p 0.5")


class TestDropoutClass(DropoutSpecs):
    @staticmethod
    def drop(p, seed=0):
        torch.manual_seed(seed)
        return normalization.Dropout(p).train()

    def test_half_is_dropped_unless_told_otherwise(self):
        found = normalization.Dropout()(torch.ones(MANY))
        expect_share(found == 0, 0.5, "dropped elements")
        assert_same(found.max(), torch.tensor(2.0))

    @pytest.mark.parametrize("p", [0.0, 0.5, 1.0])
    def test_eval_gives_the_values_of_x_and_draws_nothing(self, p):
        x = torch.tensor([0.1, -3.0, 0.7, math.nan])
        layer = normalization.Dropout(p).eval()
        with state_kept():
            assert_same(layer(x), x, rtol=0, atol=0)
        expect_share(layer.train()(torch.ones(MANY)) == 0, p, "dropped elements once it is training again")

    def test_draws_from_the_global_generator_anew_at_each_call(self):
        """A seed repeats a run; within it no two batches are dropped alike."""
        layer, x = normalization.Dropout(0.5), torch.ones(100)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            first, second = layer(x), layer(x)
            torch.manual_seed(3)
            again = layer(x)
        expect(bool((first == again).all()), "expected the global generator's seed to decide")
        expect(bool((first != second).any()), "expected a new mask at each call, the second was the first")

    @pytest.mark.parametrize("p", [-0.1, 1.5])
    def test_refuses_what_is_no_probability_when_it_is_made(self, p):
        with refuses(ValueError, mentions=[p]):
            normalization.Dropout(p)


def channels(c=3, dtype=torch.float64):
    """Running mean and variance, weight and bias of c channels, none of them trivial."""
    return {
        "running_mean": sample(c, dtype=dtype),
        "running_var": sample(c, low=0.5, high=3, dtype=dtype),
        "weight": sample(c, low=0.5, high=2, dtype=dtype),
        "bias": sample(c, dtype=dtype),
    }


def clones(given):
    return {name: value.clone() for name, value in given.items()}


class TestBatchNorm:
    def test_each_channel_gets_mean_zero_and_variance_one(self):
        found = normalization.batch_norm(
            torch.tensor([[1.0, 10.0], [3.0, 70.0]]), None, None, None, None, training=True, eps=0.0
        )
        assert_same(found, torch.tensor([[-1.0, -1.0], [1.0, 1.0]]))

    def test_the_biased_variance_normalises_and_the_unbiased_one_is_kept(self):
        """Two values 1 and 3: the batch's variance is 1, the estimate for all data is 2."""
        mean, var = torch.tensor([10.0]), torch.tensor([4.0])
        found = normalization.batch_norm(
            torch.tensor([[1.0], [3.0]]), mean, var, None, None, training=True, momentum=0.25, eps=0.0
        )
        assert_same(found, torch.tensor([[-1.0], [1.0]]))
        assert_same(mean, torch.tensor([0.75 * 10 + 0.25 * 2]), what="the running mean")
        assert_same(var, torch.tensor([0.75 * 4 + 0.25 * 2]), what="the running variance")

    @pytest.mark.parametrize("training", [True, False])
    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    def test_agrees_with_torch_for_any_number_of_dimensions(self, shape, training):
        x, given = sample(*shape, dtype=torch.float64).requires_grad_(), channels()
        theirs = clones(given)
        leaves = [x, *(t[name].requires_grad_() for t in (given,) for name in ("weight", "bias"))]
        theirs |= {name: given[name] for name in ("weight", "bias")}
        found = normalization.batch_norm(x, **given, training=training, momentum=0.3, eps=0.25)
        wanted = F.batch_norm(x, **theirs, training=training, momentum=0.3, eps=0.25)
        assert_same(found, wanted, **FLOAT64)
        assert_same_gradients(found, wanted, leaves, **FLOAT64)
        for name in ("running_mean", "running_var"):
            assert_same(given[name], theirs[name], **FLOAT64, what=name)

    @given(n=st.integers(2, 6), c=st.integers(1, 4), eps=st.sampled_from([1e-5, 0.1]), data=st.data())
    @settings(max_examples=15)
    def test_the_gradient_goes_through_mean_and_variance_too(self, n, c, eps, data):
        """Each value moves the statistics that all others are normalised with."""
        x = sample(n, c, dtype=torch.float64).requires_grad_()
        found = normalization.batch_norm(x, None, None, None, None, training=True, eps=eps)
        wanted = F.batch_norm(x, None, None, training=True, eps=eps)
        assert_same(found, wanted, **FLOAT64)
        assert_same_gradients(found, wanted, [x], rtol=1e-8, atol=1e-8)

    def test_the_defaults_are_a_tenth_and_a_hundred_thousandth(self):
        x, given = sample(4, 3, dtype=torch.float64) * 1e-3, channels()
        theirs = clones(given)
        found = normalization.batch_norm(x, **given, training=True)
        assert_same(found, F.batch_norm(x, **theirs, training=True, momentum=0.1, eps=1e-5), **FLOAT64)
        assert_same(given["running_mean"], theirs["running_mean"], **FLOAT64, what="the running mean")

    @pytest.mark.parametrize("momentum", [0.0, 0.1, 0.75, 1.0])
    def test_the_running_statistics_follow_over_several_batches(self, momentum):
        """running ← (1 - momentum) · running + momentum · new, which is not how an optimizer's momentum is meant."""
        given = channels()
        theirs = clones(given)
        for n in (5, 2, 7):
            x = sample(n, 3, 2, dtype=torch.float64)
            normalization.batch_norm(x, **given, training=True, momentum=momentum)
            F.batch_norm(x, **theirs, training=True, momentum=momentum)
            for name in ("running_mean", "running_var"):
                assert_same(given[name], theirs[name], **FLOAT64, what=name)

    def test_the_buffers_are_updated_in_their_own_memory_and_without_a_graph(self):
        """A module holds these very tensors; a graph on them would keep every batch of the run alive."""
        given = channels()
        base = given["running_mean"]
        before = base.clone()
        given["running_mean"] = base.view(3)
        weight = given["weight"].requires_grad_()
        x = sample(4, 3, dtype=torch.float64).requires_grad_()
        found = normalization.batch_norm(x * weight, **given, training=True)
        for name in ("running_mean", "running_var"):
            buffer = given[name]
            expect(buffer.grad_fn is None and not buffer.requires_grad, f"expected no graph on the {name}")
        expect(not torch.equal(base, before), "expected the running mean to be written into its own memory")
        gradients_of(found, [x])

    def test_the_buffers_are_updated_without_a_graph_to_record_as_well(self):
        given = channels()
        theirs = clones(given)
        x = sample(4, 3, dtype=torch.float64)
        with torch.no_grad():
            normalization.batch_norm(x, **given, training=True)
        F.batch_norm(x, **theirs, training=True)
        assert_same(given["running_var"], theirs["running_var"], **FLOAT64, what="the running variance")

    def test_evaluation_reads_the_running_statistics_and_leaves_them(self):
        """One row alone must give what it gives in any batch."""
        x, given = sample(6, 3, dtype=torch.float64), channels()
        with unchanged(given, names=("the running statistics",)):
            found = normalization.batch_norm(x, **given, training=False, momentum=0.5)
            alone = normalization.batch_norm(x[:1], **given, training=False, momentum=0.5)
        assert_same(found, F.batch_norm(x, **given, training=False), **FLOAT64)
        assert_same(alone, found[:1], **FLOAT64)

    @pytest.mark.parametrize("training", [True, False])
    @pytest.mark.parametrize("weight", [True, False])
    @pytest.mark.parametrize("bias", [True, False])
    def test_weight_and_bias_may_each_be_missing(self, weight, bias, training):
        x, given = sample(4, 3, 2, dtype=torch.float64), channels()
        given["weight"] = given["weight"] if weight else None
        given["bias"] = given["bias"] if bias else None
        theirs = {name: value if value is None else value.clone() for name, value in given.items()}
        found = normalization.batch_norm(x, **given, training=training)
        assert_same(found, F.batch_norm(x, **theirs, training=training), **FLOAT64)

    def test_training_needs_no_buffers(self):
        x, given = sample(4, 3, dtype=torch.float64), channels()
        found = normalization.batch_norm(x, None, None, given["weight"], given["bias"], training=True)
        assert_same(found, F.batch_norm(x, None, None, given["weight"], given["bias"], training=True), **FLOAT64)

    @pytest.mark.parametrize("missing", [["running_mean"], ["running_var"], ["running_mean", "running_var"]], ids=str)
    @pytest.mark.parametrize("training", [True, False])
    def test_refuses_a_buffer_without_the_other_and_evaluation_without_both(self, training, missing):
        given = channels() | dict.fromkeys(missing)
        if training and len(missing) == 2:
            given["running_mean"] = torch.zeros(3, dtype=torch.float64)
        with unchanged(given), refuses(ValueError):
            normalization.batch_norm(sample(4, 3, dtype=torch.float64), **given, training=training)

    @pytest.mark.parametrize("shape", [(1, 3), (1, 3, 1), (1, 3, 1, 1)], ids=str)
    def test_refuses_to_train_on_one_value_for_each_channel(self, shape):
        """Its variance is 0 and the unbiased one is 0 / 0: the running variance would be nan from then on."""
        x, given = sample(*shape, dtype=torch.float64), channels()
        with unchanged(given), refuses(ValueError):
            normalization.batch_norm(x, **given, training=True)
        with refuses(ValueError):
            normalization.batch_norm(x, None, None, None, None, training=True)
        found = normalization.batch_norm(x, **given, training=False)
        assert_same(found, F.batch_norm(x, **given, training=False), **FLOAT64)

    @pytest.mark.parametrize("shape", [(2, 3), (1, 3, 2), (1, 3, 1, 2)], ids=str)
    def test_two_values_for_each_channel_are_enough(self, shape):
        x, given = sample(*shape, dtype=torch.float64), channels()
        theirs = clones(given)
        found = normalization.batch_norm(x, **given, training=True)
        assert_same(found, F.batch_norm(x, **theirs, training=True), **FLOAT64)
        assert_same(given["running_var"], theirs["running_var"], **FLOAT64, what="the running variance")

    @pytest.mark.parametrize("training", [True, False])
    @pytest.mark.parametrize("shape", [(0, 3), (2, 3, 0), (0, 3, 4, 5)], ids=str)
    def test_no_values_give_an_empty_result_and_no_update(self, shape, training):
        """The mean of nothing is nan, and would be in the running statistics for good."""
        given = channels()
        x = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
        with unchanged(given["running_mean"], given["running_var"], names=("running_mean", "running_var")):
            found = normalization.batch_norm(x, **given, training=training)
        assert_same(found, torch.zeros(shape, dtype=torch.float64))

    @pytest.mark.parametrize("level", [1e4, -3e4])
    def test_values_far_from_zero_keep_their_digits(self, level):
        """E[x²] - E[x]² subtracts two huge numbers: the digits of the variance are gone."""
        exact = level + sample(50, 3, low=-1, high=1).double().round(decimals=2)
        x = exact.float()
        mean, var = torch.full((3,), level), torch.ones(3)
        found = normalization.batch_norm(x, mean, var, None, None, training=True)
        wanted = F.batch_norm(x.double(), None, None, training=True)
        assert_same(found, wanted.float(), rtol=0, atol=2e-2)
        assert_same(var, 0.9 + 0.1 * x.double().var(0).float(), rtol=1e-2, what="the running variance")

    @pytest.mark.parametrize("name", ["running_mean", "running_var", "weight", "bias"])
    @pytest.mark.parametrize("size", [1, 2, 4])
    def test_refuses_another_number_of_channels(self, size, name):
        """A single value would broadcast to all channels in silence."""
        given = channels() | {name: torch.ones(size, dtype=torch.float64)}
        x = sample(4, 3, 4, dtype=torch.float64)
        with unchanged(given), refuses(ValueError, mentions=[size]):
            normalization.batch_norm(x, **given, training=True)
        with unchanged(given), refuses(ValueError, mentions=[size]):
            normalization.batch_norm(x, **given, training=False)

    def test_refuses_integers_as_x(self):
        with refuses(TypeError):
            normalization.batch_norm(torch.arange(12).view(4, 3), None, None, None, None, training=True)

    def test_refuses_x_without_a_dimension_of_channels(self):
        with refuses(LOUD):
            normalization.batch_norm(torch.ones(3), None, None, None, None, training=True)

    @pytest.mark.parametrize("dtype", FLOATS, ids=str)
    def test_keeps_the_dtype_of_x_and_of_its_buffers(self, dtype):
        x, given = sample(8, 3, 2, dtype=dtype), channels(dtype=dtype)
        theirs = {name: value.double() for name, value in given.items()}
        found = normalization.batch_norm(x, **given, training=True)
        wanted = F.batch_norm(x.double(), **theirs, training=True)
        assert_same(found, wanted.to(dtype))
        for name in ("running_mean", "running_var"):
            assert_same(given[name], theirs[name].to(dtype), what=name)

    @pytest.mark.parametrize("device", devices.DEVICES)
    @pytest.mark.parametrize("training", [True, False])
    def test_works_with_buffers_on_another_device(self, training, device):
        x, given = sample(4, 3, 2), channels(dtype=torch.float32)
        theirs = clones(given)
        wanted = F.batch_norm(x, **theirs, training=training)
        with devices.on(device):
            there = {name: value.to(device) for name, value in given.items()}
            x_there = x.to(device).requires_grad_()
            with devices.no_strays():
                found = normalization.batch_norm(x_there, **there, training=training)
            torch.autograd.grad(found.sum(), x_there)
            assert_same(found, wanted, device=False, rtol=1e-4, atol=1e-5)
            assert_same(there["running_var"], theirs["running_var"], device=False, what="the running variance")

    def test_the_memory_format_of_images_does_not_matter(self):
        x, given = sample(2, 3, 4, 5, dtype=torch.float64), channels()
        theirs = clones(given)
        found = normalization.batch_norm(x.to(memory_format=torch.channels_last), **given, training=True)
        assert_same(found, F.batch_norm(x, **theirs, training=True), **FLOAT64)
        assert_same(given["running_mean"], theirs["running_mean"], **FLOAT64, what="the running mean")


@contextmanager
def statistics_kept(module):
    """The running statistics have the values afterwards that they had before."""
    before = {name: value.clone() for name, value in module.named_buffers()}
    yield
    for name, value in module.named_buffers():
        assert_same(value, before[name], rtol=0, atol=0, what=name)


def pair(num_features=3, **settings):
    """The learner's module and torch's with the same weight, bias and running statistics, in float64."""
    mine = normalization.BatchNorm(num_features, **settings).double()
    theirs = nn.BatchNorm1d(num_features, **settings).double()
    if theirs.affine:
        with torch.no_grad():
            theirs.weight.copy_(sample(num_features, low=0.5, high=2, dtype=torch.float64))
            theirs.bias.copy_(sample(num_features, dtype=torch.float64))
    mine.load_state_dict(theirs.state_dict())
    return mine, theirs


def torch_norm(theirs, x):
    """torch's module on any number of dimensions: BatchNorm1d's, 2d's and 3d's are one function."""
    if x.ndim <= 3:
        return theirs(x)
    return theirs(x.flatten(2)).view(x.shape)


def expect_same_state(mine, theirs):
    found, wanted = mine.state_dict(), theirs.state_dict()
    expect(sorted(found) == sorted(wanted), f"expected state_dict to hold {sorted(wanted)}, got {sorted(found)}")
    for name, value in wanted.items():
        assert_same(found[name], value, **({} if name == "num_batches_tracked" else FLOAT64), what=name)


class TestBatchNormClass:
    @pytest.mark.parametrize("settings", [{}, {"affine": False}, {"momentum": None}], ids=str)
    def test_starts_with_the_state_of_torchs_own(self, settings):
        """The same keys, so that a trained model can be loaded from one into the other."""
        mine, theirs = normalization.BatchNorm(3, **settings), nn.BatchNorm1d(3, **settings)
        expect_same_state(mine, theirs)
        found = sorted(name for name, _ in mine.named_parameters())
        wanted = sorted(name for name, _ in theirs.named_parameters())
        expect(found == wanted, f"expected the parameters {wanted}, got {found}")
        theirs.load_state_dict(mine.state_dict())

    @pytest.mark.parametrize("affine", [True, False])
    @pytest.mark.parametrize("momentum", [0.1, 0.75, None])
    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    def test_follows_torch_over_several_batches_and_then_in_eval(self, shape, momentum, affine):
        mine, theirs = pair(momentum=momentum, affine=affine, eps=0.125)
        for n in (shape[0], 2, 7):
            x = sample(n, *shape[1:], dtype=torch.float64).requires_grad_()
            found, wanted = mine(x), torch_norm(theirs, x)
            assert_same(found, wanted, **FLOAT64)
            assert_same_gradients(found, wanted, [x], rtol=1e-8, atol=1e-8)
            expect_same_state(mine, theirs)
        x = sample(*shape, dtype=torch.float64)
        with statistics_kept(mine):
            assert_same(mine.eval()(x), torch_norm(theirs.eval(), x), **FLOAT64)
        expect_same_state(mine, theirs)

    def test_momentum_none_counts_every_batch_alike(self):
        """The plain average of the batches' statistics: nothing is left of the zeros and ones at the start."""
        norm = normalization.BatchNorm(1, momentum=None)
        batches = [torch.tensor([[1.0], [3.0]]), torch.tensor([[5.0], [9.0]]), torch.tensor([[0.0], [6.0]])]
        for batch in batches:
            norm(batch)
        assert_same(norm.running_mean, torch.tensor([(2 + 7 + 3) / 3]), what="the running mean")
        assert_same(norm.running_var, torch.tensor([(2 + 8 + 18) / 3]), what="the running variance")

    def test_learns_weight_and_bias(self):
        mine, theirs = pair()
        x = sample(5, 3, dtype=torch.float64)
        gradients = []
        for norm in (mine, theirs):
            wanted = dict(norm.named_parameters())
            gradients.append(gradients_of(norm(x), [wanted["weight"], wanted["bias"]]))
        for name, found, wanted in zip(("weight", "bias"), *gradients, strict=True):
            assert_same(found, wanted, **FLOAT64, what=f"the gradient of {name}")

    @pytest.mark.parametrize("momentum", [0.1, None])
    def test_a_batch_that_raises_is_not_counted(self, momentum):
        """Else the next average gives a batch that never was the weight of one."""
        norm = normalization.BatchNorm(3, momentum=momentum)
        norm(sample(4, 3))
        before = {name: value.clone() for name, value in norm.state_dict().items()}
        for x in (sample(1, 3), sample(4, 5), sample(1, 3, 1, 1)):
            with refuses(ValueError):
                norm(x)
            for name, value in norm.state_dict().items():
                assert_same(value, before[name], what=f"{name} after a batch that raised")

    @pytest.mark.parametrize("training", [True, False])
    @pytest.mark.parametrize("c", [1, 4])
    def test_refuses_another_number_of_channels(self, c, training):
        norm = normalization.BatchNorm(3).train(training)
        with refuses(ValueError, mentions=[c, 3]):
            norm(sample(5, c, 3))

    @pytest.mark.parametrize("affine", [True, False])
    def test_refuses_x_without_a_dimension_of_channels(self, affine):
        with refuses(LOUD):
            normalization.BatchNorm(3, affine=affine)(torch.ones(3))

    @pytest.mark.parametrize("num_features", [0, -2])
    def test_refuses_fewer_than_one_feature(self, num_features):
        with refuses(ValueError, mentions=[num_features]):
            normalization.BatchNorm(num_features)

    def test_repr_tells_affine_and_not_from_each_other(self):
        with_both, without = (repr(normalization.BatchNorm(3, affine=affine)) for affine in (True, False))
        expect(with_both != without, f"expected repr to show affine, both give {without}")
        text = repr(normalization.BatchNorm(3, momentum=None))
        expect("None" in text, f"expected repr to show momentum=None, got {text}")

    def test_draws_nothing(self):
        with state_kept():
            normalization.BatchNorm(3)(sample(4, 3))

    def test_a_momentum_of_0_keeps_the_running_statistics(self):
        """0 is a number too, and not the None that asks for an average over all batches."""
        mine, theirs = normalization.BatchNorm(3, momentum=0.0), nn.BatchNorm1d(3, momentum=0.0)
        for n in (4, 5):
            x = sample(n, 3)
            assert_same(mine(x), theirs(x).detach(), rtol=1e-4, atol=1e-5)
        for name in BUFFERS:
            assert_same(getattr(mine, name), getattr(theirs, name), what=name)

    def test_the_average_over_all_batches_goes_on_after_a_load(self):
        first, second = normalization.BatchNorm(3, momentum=None), normalization.BatchNorm(3, momentum=None)
        theirs = nn.BatchNorm1d(3, momentum=None)
        for n in (4, 5, 6):
            x = sample(n, 3)
            first(x), theirs(x)
        second.load_state_dict(first.state_dict())
        x = sample(7, 3)
        second(x), theirs(x)
        for name in BUFFERS:
            assert_same(getattr(second, name), getattr(theirs, name), rtol=1e-4, atol=1e-5, what=name)


def parts(model):
    """The Linear and the BatchNorm layers of a model, each in order."""
    found = list(model.modules())
    linears = [m for m in found if isinstance(m, nn.Linear)]
    norms = [m for m in found if isinstance(m, normalization.BatchNorm)]
    return linears, norms


def shaken(model):
    """The model with weights, biases and running statistics that are not the trivial ones of the start."""
    with torch.no_grad():
        for norm in parts(model)[1]:
            for value, low, high in ((norm.weight, 0.5, 2), (norm.bias, 0.25, 1), (norm.running_mean, -1, 1),
                                     (norm.running_var, 0.5, 2)):  # fmt: skip
                value.copy_(sample(*value.shape, low=low, high=high))
    return model


def composed(model, x, training):
    """The formula, from the model's own parameters and without dropout."""
    linears, norms = parts(model)
    for linear, norm in zip(linears, norms, strict=False):
        x = F.linear(x, linear.weight)
        mean, var = (x.mean(0), x.var(0, correction=0)) if training else (norm.running_mean, norm.running_var)
        x = ((x - mean) / (var + 1e-5).sqrt() * norm.weight + norm.bias).relu()
    return F.linear(x, linears[-1].weight, linears[-1].bias)


class TestNormalizedMLP:
    @pytest.mark.parametrize("sizes", [[4, 3], (4, 6, 3), [4, 6, 5, 3], [4, 6, 6, 3]], ids=str)
    def test_has_a_norm_behind_every_linear_layer_but_the_last(self, sizes):
        """The norm subtracts the mean, and with it any bias of the layer before: such a bias never learns."""
        linears, norms = parts(normalization.NormalizedMLP(sizes))
        found = [(m.in_features, m.out_features, m.bias is not None) for m in linears]
        wanted = [(i, o, number == len(sizes) - 2) for number, (i, o) in enumerate(pairwise(sizes))]
        expect(found == wanted, f"expected Linear layers (in, out, bias) {wanted}, got {found}")
        widths = [m.running_mean.numel() for m in norms]
        expect(widths == list(sizes[1:-1]), f"expected this kata's BatchNorm of widths {sizes[1:-1]}, got {widths}")

    def test_the_dropout_is_this_katas(self):
        model = normalization.NormalizedMLP([4, 6, 5, 3], dropout=0.25)
        found = [m for m in model.modules() if isinstance(m, normalization.Dropout)]
        expect(len(found) > 0, "expected a Dropout of this kata among the modules, found none")
        others = [m for m in model.modules() if isinstance(m, (nn.Dropout, nn.modules.batchnorm._BatchNorm))]
        expect(not others, f"expected this kata's Dropout and BatchNorm, got torch's: {others}")

    @pytest.mark.parametrize("sizes", [[4, 3], [4, 6, 3], [4, 6, 5, 3]], ids=str)
    def test_eval_is_the_formula_with_the_running_statistics(self, sizes):
        model, x = shaken(normalization.NormalizedMLP(sizes, dropout=0.5)).eval(), sample(7, 4)
        with statistics_kept(model):
            found = model(x)
        assert_same(found, composed(model, x, training=False), rtol=1e-4)
        assert_same(model(x[:1]), found[:1], rtol=1e-4, what="the result of the first row alone")

    @pytest.mark.parametrize("sizes", [[4, 6, 3], [4, 6, 5, 3]], ids=str)
    def test_training_is_the_formula_with_the_batchs_statistics(self, sizes):
        model, x = shaken(normalization.NormalizedMLP(sizes, dropout=0.0)), sample(7, 4)
        before = [norm.running_mean.clone() for norm in parts(model)[1]]
        assert_same(model(x), composed(model, x, training=True), rtol=1e-4, atol=1e-4)
        for mean, norm in zip(before, parts(model)[1], strict=True):
            expect(not torch.equal(mean, norm.running_mean), "expected training to update the running statistics")

    def test_dropout_is_the_last_step_of_a_hidden_layer(self):
        """Before the norm it would change the variance that evaluation counts on; with p 1 all is dropped, so that the
        last layer's bias is what is left."""
        model = shaken(normalization.NormalizedMLP([4, 6, 5, 3], dropout=1.0))
        linears, _ = parts(model)
        found = model(sample(7, 4))
        assert_same(found, linears[-1].bias.detach().expand(7, 3), rtol=0, atol=0)
        alone = normalization.NormalizedMLP([4, 3], dropout=1.0)
        x = sample(7, 4)
        assert_same(alone(x), parts(alone)[0][0](x).detach(), what="the result of two sizes, which drop nothing")

    def test_every_hidden_layer_is_dropped_in_training(self):
        """Which hidden values survive shows in the last layer when its weight is the identity."""
        for sizes in ([4, 50, 50], [4, 20, 50, 50]):
            model = shaken(normalization.NormalizedMLP(sizes, dropout=0.75))
            last = parts(model)[0][-1]
            with torch.no_grad():
                last.weight.copy_(torch.eye(50))
                last.bias.zero_()
                for norm in parts(model)[1]:
                    norm.weight.zero_()
                    norm.bias.fill_(1.0)
            found = model(sample(60, 4))
            expect_share(found == 0, 0.75, f"hidden values that are dropped, for sizes {sizes}")
            assert_same(found[found != 0], torch.full_like(found[found != 0], 4.0).detach(), what="what is kept")

    def test_half_is_dropped_unless_told_otherwise(self):
        text = repr(normalization.NormalizedMLP([4, 6, 3]))
        expect("0.5" in text, f"expected repr to show dropout 0.5, got {text}")

    @pytest.mark.parametrize("training", [True, False])
    @pytest.mark.parametrize("width", [1, 3, 5])
    def test_refuses_another_number_of_features(self, width, training):
        model = normalization.NormalizedMLP([4, 6, 3]).train(training)
        with statistics_kept(model), refuses(ValueError, mentions=[width, 4]):
            model(sample(7, width))

    @pytest.mark.parametrize("sizes", [[4, 6, 3], [4, 3]], ids=str)
    @pytest.mark.parametrize("shape", [(4,), (2, 7, 4), (2, 4, 4)], ids=str)
    def test_refuses_x_that_is_not_rows_of_features(self, shape, sizes):
        with refuses(ValueError):
            normalization.NormalizedMLP(sizes).eval()(sample(*shape))

    @pytest.mark.parametrize("sizes", [[], [4]], ids=str)
    def test_refuses_fewer_than_two_sizes(self, sizes):
        with refuses(ValueError):
            normalization.NormalizedMLP(sizes)

    @pytest.mark.parametrize("sizes, wrong", [([4, 0, 3], 0), ([0, 3], 0), ([4, -2], -2), ([4, 6, -1, 3], -1)])
    def test_refuses_a_size_below_one(self, sizes, wrong):
        with refuses(ValueError, mentions=[wrong]):
            normalization.NormalizedMLP(sizes)

    @pytest.mark.parametrize("sizes", [[4, 6, 3], [4, 3]], ids=str)
    @pytest.mark.parametrize("dropout", [-0.1, 1.5])
    def test_refuses_what_is_no_probability(self, dropout, sizes):
        with refuses(ValueError, mentions=[dropout]):
            normalization.NormalizedMLP(sizes, dropout=dropout)


def trained(norm):
    """The norm with state that is not the trivial one of the start; one channel hardly varies."""
    with torch.no_grad():
        c = norm.running_mean.numel()
        norm.running_mean.copy_(sample(c, dtype=torch.float64))
        norm.running_var.copy_(sample(c, low=0.5, high=3, dtype=torch.float64))
        norm.running_var[0] = 1e-4
        if norm.weight is not None:
            norm.weight.copy_(sample(c, low=0.5, high=2, dtype=torch.float64))
            norm.bias.copy_(sample(c, dtype=torch.float64))
    return norm


class TestFoldBatchNorm:
    @pytest.mark.parametrize("affine", [True, False])
    @pytest.mark.parametrize("bias", [True, False])
    @pytest.mark.parametrize("eps", [1e-5, 0.25])
    @pytest.mark.parametrize("training", [True, False])
    def test_one_layer_gives_what_both_give_in_eval(self, training, eps, bias, affine):
        """In evaluation a batch norm is a scale and a shift: a trained network runs as fast without it."""
        linear = nn.Linear(4, 3, bias=bias).double()
        norm = trained(nn.BatchNorm1d(3, eps=eps, affine=affine).double())
        folded = normalization.fold_batch_norm(linear.train(training), norm.train(training))
        expect(isinstance(folded, nn.Linear), f"expected a torch.nn.Linear, got {type(folded).__name__}")
        expect(folded.bias is not None, "expected a layer with bias: the norm moves the mean")
        found = (folded.in_features, folded.out_features)
        expect(found == (4, 3), f"expected a layer from 4 to 3 features, its settings say {found}")
        x = sample(6, 4, dtype=torch.float64)
        assert_same(folded(x), copy.deepcopy(norm).eval()(linear(x)).detach(), rtol=1e-9, atol=1e-9)

    @pytest.mark.parametrize("affine", [True, False])
    def test_a_square_layer_is_scaled_row_by_row(self, affine):
        """Each row of the weight makes one feature; scaled by columns the shapes fit as well."""
        linear, norm = nn.Linear(3, 3).double(), trained(nn.BatchNorm1d(3, affine=affine).double())
        folded = normalization.fold_batch_norm(linear, norm)
        x = sample(6, 3, dtype=torch.float64)
        assert_same(folded(x), norm.eval()(linear(x)).detach(), rtol=1e-9, atol=1e-9)

    @pytest.mark.parametrize("affine", [True, False])
    def test_takes_this_katas_norm_as_well(self, affine):
        linear = nn.Linear(4, 3).double()
        norm = trained(normalization.BatchNorm(3, eps=0.125, affine=affine).double())
        folded = normalization.fold_batch_norm(linear, norm)
        theirs = nn.BatchNorm1d(3, eps=0.125, affine=affine).double()
        theirs.load_state_dict(norm.state_dict())
        x = sample(6, 4, dtype=torch.float64)
        assert_same(folded(x), theirs.eval()(linear(x)).detach(), rtol=1e-9, atol=1e-9)

    @pytest.mark.parametrize("affine", [True, False])
    @pytest.mark.parametrize("bias", [True, False])
    def test_leaves_both_modules_as_they_are_and_shares_no_memory(self, bias, affine):
        """The trained model may go on training after a copy was folded for use."""
        linear, norm = nn.Linear(4, 3, bias=bias), nn.BatchNorm1d(3, affine=affine)
        state = [linear.state_dict(keep_vars=True), norm.state_dict(keep_vars=True)]
        with unchanged(*state, names=("linear", "norm")):
            folded = normalization.fold_batch_norm(linear, norm)
        expect(folded is not linear, "expected a new layer, got the one that was given")
        expect(linear.training and norm.training, "expected both modules to stay in training mode")
        for own in folded.parameters():
            expect(own.requires_grad and own.is_leaf, "expected parameters that can be trained on")
            shared = any(shares_memory(own, x) for given in state for x in given.values())
            expect(not shared, "expected memory of its own, the folded layer shares some with a module")

    def test_the_global_generator_is_left_alone(self):
        """Making a torch.nn.Linear draws its initial values, which are thrown away at once."""
        linear, norm = nn.Linear(4, 3), nn.BatchNorm1d(3)
        with state_kept():
            normalization.fold_batch_norm(linear, norm)

    @pytest.mark.parametrize("dtype", FLOATS, ids=str)
    def test_keeps_the_dtype_of_the_layer(self, dtype):
        linear, norm = nn.Linear(4, 3).to(dtype), nn.BatchNorm1d(3).to(dtype)
        folded = normalization.fold_batch_norm(linear, norm)
        for name, own in folded.named_parameters():
            expect(own.dtype == dtype, f"expected {name} in {dtype}, got {own.dtype}")

    @pytest.mark.parametrize("device", devices.DEVICES)
    def test_stays_on_the_device_of_the_layer(self, device):
        linear, norm, x = nn.Linear(4, 3), trained(nn.BatchNorm1d(3, eps=0.25)).eval(), sample(5, 4)
        wanted = norm(linear(x)).detach()
        with devices.on(device):
            linear, norm = linear.to(device), norm.to(device)
            with devices.no_strays(made=False):
                folded = normalization.fold_batch_norm(linear, norm)
            for name, own in folded.named_parameters():
                expect(own.device.type == device, f"expected {name} on {device}, got {own.device.type}")
            assert_same(folded(x.to(device)), wanted, device=False, rtol=1e-3, atol=1e-4)

    @pytest.mark.parametrize("features", [1, 2, 4])
    def test_refuses_a_norm_of_another_width(self, features):
        with refuses(ValueError, mentions=[features, 3]):
            normalization.fold_batch_norm(nn.Linear(4, 3), nn.BatchNorm1d(features))

    def test_refuses_a_norm_without_running_statistics(self):
        """It normalises by the batch in evaluation too: no fixed layer does that."""
        with refuses(ValueError):
            normalization.fold_batch_norm(nn.Linear(4, 3), nn.BatchNorm1d(3, track_running_stats=False))

    @pytest.mark.parametrize("device", devices.DEVICES)
    def test_what_is_left_out_is_made_on_the_device_too(self, device):
        with devices.on(device):
            linear, norm = nn.Linear(4, 3, bias=False).to(device), nn.BatchNorm1d(3, affine=False).to(device)
            with devices.no_strays(made=False):
                folded = normalization.fold_batch_norm(linear, norm)
            for name, own in folded.named_parameters():
                expect(own.device.type == device, f"expected {name} on {device}, got {own.device.type}")


class TestBatchNormBackward:
    @given(n=st.integers(2, 6), c=st.integers(1, 4), eps=st.sampled_from([1e-5, 0.3]), weighted=st.booleans())
    def test_is_the_gradient_of_batch_norm_in_training(self, n, c, eps, weighted):
        x = sample(n, c, dtype=torch.float64).requires_grad_()
        weight = sample(c, low=0.5, high=2, dtype=torch.float64).requires_grad_() if weighted else None
        bias = torch.zeros(c, dtype=torch.float64, requires_grad=True)
        grad = sample(n, c, dtype=torch.float64)
        y = F.batch_norm(x, None, None, weight, bias, training=True, eps=eps)
        wanted = torch.autograd.grad((y * grad).sum(), [x, bias, *([weight] if weighted else [])])
        given = [t if t is None else t.detach() for t in (grad, x, weight)]
        dx, dweight, dbias = normalization.batch_norm_backward(*given, eps)
        assert_same(dx, wanted[0], rtol=1e-8, atol=1e-8, what="dx")
        assert_same(dbias, wanted[1], **FLOAT64, what="dbias")
        if weighted:
            assert_same(dweight, wanted[2], **FLOAT64, what="dweight")
        else:
            expect(dweight is None, f"expected no dweight without a weight, got {dweight}")

    def test_both_corrections_count(self):
        """What moves all rows alike or stretches them does not change the result, so its gradient is 0: the mean's
        correction takes the first away, the variance's the second."""
        x = torch.tensor([[1.0], [2.0], [6.0]], dtype=torch.float64)
        for what, grad in (("moves all rows", torch.ones_like(x)), ("stretches them", x - x.mean())):
            dx, _, _ = normalization.batch_norm_backward(grad, x, None, eps=0.0)
            assert_same(dx, torch.zeros_like(x), **FLOAT64, what=f"dx for a gradient that {what}")

    def test_a_hundred_thousandth_is_the_default(self):
        x, grad, weight = (sample(*shape, dtype=torch.float64) for shape in ((4, 3), (4, 3), (3,)))
        x = x * 1e-3
        found = normalization.batch_norm_backward(grad, x, weight)
        wanted = normalization.batch_norm_backward(grad, x, weight, 1e-5)
        for name, one, other in zip(("dx", "dweight", "dbias"), found, wanted, strict=True):
            assert_same(one, other, **FLOAT64, what=name)

    def test_gives_three_tensors_in_a_tuple(self):
        found = normalization.batch_norm_backward(sample(4, 3), sample(4, 3), torch.ones(3))
        expect(isinstance(found, tuple) and len(found) == 3, f"expected a tuple of three, got {type(found).__name__}")
        shapes = [list(t.shape) for t in found]
        expect(shapes == [[4, 3], [3], [3]], f"expected shapes [4, 3], [3] and [3], got {shapes}")

    @pytest.mark.parametrize("which", ["grad", "x"])
    def test_refuses_integers_in_either_place(self, which):
        given = {"grad": sample(4, 3), "x": sample(4, 3), "weight": None}
        given[which] = given[which].long()
        with refuses(TypeError):
            normalization.batch_norm_backward(**given)

    @pytest.mark.parametrize("n", [0, 1])
    @pytest.mark.parametrize("weighted", [True, False])
    def test_refuses_fewer_than_two_rows(self, weighted, n):
        with refuses(ValueError, mentions=[n]):
            weight = torch.ones(3) if weighted else None
            normalization.batch_norm_backward(torch.ones(n, 3), torch.ones(n, 3), weight)

    @pytest.mark.parametrize("shape", [(1, 3), (4, 1), (5, 3), (4, 2)], ids=str)
    def test_refuses_a_gradient_of_another_shape(self, shape):
        numbers = [a for a, b in zip(shape, (4, 3), strict=True) if a != b]
        with refuses(ValueError, mentions=numbers):
            normalization.batch_norm_backward(sample(*shape), sample(4, 3), None)

    @pytest.mark.parametrize("size", [1, 2, 4])
    def test_refuses_a_weight_of_another_size(self, size):
        with refuses(ValueError, mentions=[size]):
            normalization.batch_norm_backward(sample(5, 3), sample(5, 3), torch.ones(size))

    def test_a_constant_column_has_a_finite_gradient(self):
        x = torch.stack([torch.full((5,), 2.0), torch.arange(5.0)], 1).double().requires_grad_()
        weight, grad = torch.tensor([1.5, 0.5]).double(), sample(5, 2, dtype=torch.float64)
        y = F.batch_norm(x, None, None, weight, None, training=True)
        (wanted,) = torch.autograd.grad((y * grad).sum(), [x])
        dx, _, _ = normalization.batch_norm_backward(grad, x.detach(), weight)
        assert_same(dx, wanted, rtol=1e-6, atol=1e-6, what="dx")


NOT_READY_MADE = ("batch_norm", "instance_norm", "layer_norm", "group_norm")

RULES = [
    # Whether zeros have a graph behind them is not asked.
    rule("dropout", lambda s: (s(s.n, 4), 0.5), random=True, refused=("dropout",), fails=lambda s: (s(3, 4), 1.5),
         also={"p 0": {"make": lambda s: (s(s.n, 4), 0.0)}, "eval": {"make": lambda s: (s(s.n, 4), 0.5, False)},
               "p 1": {"make": lambda s: (s(s.n, 4), 1.0), "differentiable": False},
               "a number": {"make": lambda s: (s(), 0.5)}}),
    # In eval mode: in training it draws from the global generator, as it should.
    rule("Dropout", lambda s: (s(s.n, 4),), build=lambda m: m.Dropout(0.25).eval(), refused=("dropout",),
         integers_refused=False, module={"shows": (0.25,), "state": ()}),
    # Without buffers; specs of their own see what becomes of these.
    rule("batch_norm", lambda s: (s(s.n, 3, 2), None, None, s(3), s(3), True), refused=NOT_READY_MADE,
         also={"rows": {"make": lambda s: (s(s.n, 3), None, None, s(3), s(3), True)},
               "no weight": {"make": lambda s: (s(s.n, 3, 2, 2), None, None, None, None, True)},
               # Through running statistics no gradient is asked for.
               "eval": {"make": lambda s: (s(s.n, 3), s(3), s(3, low=0.5), s(3), s(3), False),
                        "differentiable": False}},
         fails=lambda s: (s(1, 3), s(3), s(3), s(3), s(3), True)),
    rule("BatchNorm", lambda s: (s(s.n, 3, 2),), build=lambda m: m.BatchNorm(3, eps=0.25, momentum=0.125),
         also={"eval": {"build": lambda m: m.BatchNorm(3, momentum=None).eval()},
               "not affine": {"build": lambda m: m.BatchNorm(3, affine=False)},
               "images": {"make": lambda s: (s(s.n, 3, 2, 2),)}},
         refused=NOT_READY_MADE, integers_refused=False,
         module={"shows": (3, 0.25, 0.125), "state": ("weight", "bias", *BUFFERS)}),
    # Frozen statistics: with those of the batch a handful of rows may sit at a kink of the ReLU.
    rule("NormalizedMLP", lambda s: (s(s.n, 4),), build=lambda m: m.NormalizedMLP([4, 7, 5, 3], 0.25).eval(),
         refused=("dropout", *NOT_READY_MADE), integers_refused=False, module={"shows": (4, 7, 5, 3, 0.25)}),
    # Two modules go in and one comes out: dtype, device and memory have specs of their own.
    rule("fold_batch_norm", lambda s: (nn.Linear(4, 3), nn.BatchNorm1d(3)),
         fails=lambda s: (nn.Linear(4, 3), nn.BatchNorm1d(5))),
    # By hand: R5 asks nothing of it. Fewer than two rows are refused.
    rule("batch_norm_backward", lambda s: (s(s.n, 3), s(s.n, 3), s(3)), differentiable=False, empty=False,
         also={"no weight": {"make": lambda s: (s(s.n, 3), s(s.n, 3), None)}},
         refused=("backward", *NOT_READY_MADE), fails=lambda s: (s(1, 3), s(1, 3), s(3))),
]  # fmt: skip
