"""The specs of kata 09. One class a function; the house rules that all of them share are in the table at the end."""

import math

import label_smoothing
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dojo import devices
from dojo.compare import assert_same, assert_same_gradients, expect, gradients_of, refuses
from dojo.guards import count_ops, unchanged
from dojo.rules import FLOATS, rule
from dojo.strategies import sample, shapes, sizes

FLOAT64 = {"rtol": 1e-12, "atol": 1e-12}
LOUD = (ValueError, RuntimeError, IndexError, TypeError)
INTEGERS = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]
NO_INTEGERS = [torch.float32, torch.float64, torch.bool]
SPREADS = ["all", "others"]
REDUCTIONS = ["none", "mean", "sum"]
INF = math.inf

smoothings = st.sampled_from([0.0, 0.1, 0.3, 0.75, 1.0])


def distribution(target, k, smoothing, spread):
    """The smoothed targets, number by number, in float64."""
    rest = smoothing / k if spread == "all" else smoothing / (k - 1)
    top = 1 - smoothing + rest if spread == "all" else 1 - smoothing
    rows = [[top if j == t else rest for j in range(k)] for t in target.tolist()]
    return torch.tensor(rows, dtype=torch.float64).view(-1, k)


def loss_by_row(logits, target, smoothing, spread):
    """Each row's loss from the definition: the sum over the classes of -q · log p, all logits finite."""
    q = distribution(target, logits.shape[1], smoothing, spread)
    return -(q.to(logits.dtype) * logits.log_softmax(-1)).sum(-1)


def reduced(rows, reduction):
    return {"none": rows, "mean": rows.sum() / max(len(rows), 1), "sum": rows.sum()}[reduction]


def draw_targets(data, n, k):
    return torch.tensor(data.draw(st.lists(st.integers(0, k - 1), min_size=n, max_size=n)), dtype=torch.int64)


def rows_of(n=6, k=5, dtype=torch.float64):
    """Logits and targets that name several classes, the first and the last among them."""
    return sample(n, k, low=-4, high=4, dtype=dtype), torch.arange(n) * (k - 1) % k


class TestLogSoftmax:
    def test_is_the_logarithm_of_each_share(self):
        found = label_smoothing.log_softmax(torch.tensor([[0.0, math.log(3.0)], [5.0, 5.0]]))
        assert_same(found, torch.tensor([[1 / 4, 3 / 4], [1 / 2, 1 / 2]]).log())

    @given(shape=shapes(min_dims=1, max_dims=4), data=st.data())
    def test_runs_along_any_dimension_counted_from_either_end(self, shape, data):
        dim = data.draw(st.integers(-len(shape), len(shape) - 1))
        x = sample(*shape, low=-5, high=5, dtype=torch.float64).requires_grad_()
        found, wanted = label_smoothing.log_softmax(x, dim), torch.log_softmax(x, dim)
        assert_same(found, wanted, **FLOAT64)
        assert_same_gradients(found, wanted, [x], **FLOAT64)

    @pytest.mark.parametrize("dim", [0, 1, 2, -1, -2, -3])
    def test_every_dimension_is_normalised_by_itself(self, dim):
        x = sample(3, 4, 5, dtype=torch.float64)
        assert_same(label_smoothing.log_softmax(x, dim), torch.log_softmax(x, dim), **FLOAT64)

    def test_the_last_dimension_is_the_default(self):
        x = sample(3, 4, 5)
        assert_same(label_smoothing.log_softmax(x), torch.log_softmax(x, -1))

    @pytest.mark.parametrize("dtype", FLOATS, ids=str)
    @pytest.mark.parametrize("level", [0.0, 1e4, -1e4])
    def test_big_logits_neither_overflow_nor_lose_the_differences(self, level, dtype):
        """exp(10000) is inf and exp(-10000) is 0: both must be kept from happening before the logarithm."""
        x = (torch.tensor([[0.0, 1e4, -1e4, 9968.0], [8.0, 8.0, 8.0, 8.0]]) + level).to(dtype).requires_grad_()
        found, wanted = label_smoothing.log_softmax(x), torch.log_softmax(x.float(), -1).to(dtype)
        assert_same(found, wanted)
        assert_same_gradients(found, wanted, [x])

    def test_each_row_has_a_maximum_of_its_own(self):
        """One maximum for the whole tensor makes every exponential of a row that lies far below it 0."""
        x = torch.tensor([[-5000.0, -5001.0], [5000.0, 5003.0], [0.0, 1.0]], dtype=torch.float64)
        assert_same(label_smoothing.log_softmax(x), torch.log_softmax(x, -1), **FLOAT64)

    @pytest.mark.parametrize("dtype", FLOATS, ids=str)
    def test_classes_that_are_ruled_out_stay_so_and_spoil_nothing(self, dtype):
        """-inf is how a class is forbidden; -inf minus -inf and 0 times inf are nan."""
        x = torch.tensor([[0.5, -INF, 1.5, -INF], [-INF, -INF, -INF, 2.0], [1.0, 2.0, 3.0, 4.0]], dtype=dtype)
        x.requires_grad_()
        found = label_smoothing.log_softmax(x)
        assert_same(found, torch.log_softmax(x.float(), -1).to(dtype))
        (gradient,) = torch.autograd.grad(found[found.isfinite()].sum(), x)
        expect(not bool(gradient.isnan().any()), "expected a gradient without nan beside logits of -inf, got nan")
        wanted = torch.autograd.grad((w := torch.log_softmax(x.float(), -1))[w.isfinite()].sum(), x)[0]
        assert_same(gradient, wanted, what="the gradient")

    @pytest.mark.parametrize("shape, dim", [((0, 5), -1), ((0, 5), 0), ((3, 0), -1), ((3, 0), 0), ((2, 0, 4), 2)])
    def test_any_size_may_be_zero(self, shape, dim):
        x = torch.zeros(shape, requires_grad=True)
        found = label_smoothing.log_softmax(x, dim)
        assert_same(found, torch.zeros(shape))


class TestSmoothLabels:
    def test_all_gives_a_share_to_every_class_the_target_too(self):
        """PyTorch's and the paper's convention: 0.2 over 4 classes is 0.05 each, and the target keeps 0.8 + 0.05."""
        found = label_smoothing.smooth_labels(torch.tensor([2, 0]), 4, 0.2)
        assert_same(found, torch.tensor([[0.05, 0.05, 0.85, 0.05], [0.85, 0.05, 0.05, 0.05]]))

    def test_others_shares_among_the_classes_that_are_not_the_target(self):
        """The notebook's convention: 0.2 over the 4 others is 0.05 each, and the target keeps 0.8."""
        found = label_smoothing.smooth_labels(torch.tensor([2, 0]), 5, 0.2, "others")
        assert_same(found, torch.tensor([[0.05, 0.05, 0.8, 0.05, 0.05], [0.8, 0.05, 0.05, 0.05, 0.05]]))

    @pytest.mark.parametrize("spread", SPREADS)
    @given(n=sizes, k=st.integers(2, 7), smoothing=smoothings, data=st.data())
    def test_each_row_is_a_distribution_around_its_target(self, spread, n, k, smoothing, data):
        target = draw_targets(data, n, k)
        found = label_smoothing.smooth_labels(target, k, smoothing, spread, torch.float64)
        assert_same(found, distribution(target, k, smoothing, spread), **FLOAT64)
        assert_same(found.sum(-1), torch.ones(n, dtype=torch.float64), **FLOAT64, what="the sum of each row")

    def test_the_number_of_classes_is_the_callers(self):
        """A batch in which the last classes do not occur has columns for them all the same."""
        found = label_smoothing.smooth_labels(torch.tensor([0, 1, 1]), 6, 0.3)
        assert_same(found, distribution(torch.tensor([0, 1, 1]), 6, 0.3, "all").float())

    @pytest.mark.parametrize("spread", SPREADS)
    @pytest.mark.parametrize("smoothing", [0, 1, 0.0, 1.0])
    def test_both_ends_of_smoothing_are_allowed(self, smoothing, spread):
        """0 is the hard target; with 1 nothing is left of it, or, for others, all but the target share."""
        target = torch.tensor([3, 1])
        found = label_smoothing.smooth_labels(target, 4, smoothing, spread)
        assert_same(found, distribution(target, 4, smoothing, spread).float())

    @pytest.mark.parametrize("dtype", FLOATS, ids=str)
    def test_gives_the_dtype_that_is_asked_for_in_its_full_precision(self, dtype):
        target = torch.tensor([0, 2])
        found = label_smoothing.smooth_labels(target, 3, 0.1, dtype=dtype)
        assert_same(found, distribution(target, 3, 0.1, "all").to(dtype))
        if dtype == torch.float64:
            assert_same(found, distribution(target, 3, 0.1, "all"), **FLOAT64)

    def test_gives_float32_unless_told_otherwise(self):
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        try:
            found = label_smoothing.smooth_labels(torch.tensor([1]), 3, 0.25)
        finally:
            torch.set_default_dtype(before)
        expect(found.dtype == torch.float32, f"expected float32 whatever the default dtype is, got {found.dtype}")

    @pytest.mark.parametrize("dtype", INTEGERS, ids=str)
    def test_takes_targets_of_any_integer_dtype(self, dtype):
        target = torch.tensor([2, 0, 1])
        found = label_smoothing.smooth_labels(target.to(dtype), 3, 0.3)
        assert_same(found, distribution(target, 3, 0.3, "all").float())

    @pytest.mark.parametrize("dtype", NO_INTEGERS, ids=str)
    def test_refuses_targets_that_are_no_integers(self, dtype):
        with refuses(TypeError):
            label_smoothing.smooth_labels(torch.tensor([1, 0]).to(dtype), 3, 0.1)

    @pytest.mark.parametrize("wrong", [3, -1, 7, -100])
    @pytest.mark.parametrize("spread", SPREADS)
    def test_refuses_a_target_that_is_no_class(self, wrong, spread):
        """-1 is no last class and -100 is not ignored here: there is no row of a distribution for them."""
        with refuses(IndexError, mentions=[wrong]):
            label_smoothing.smooth_labels(torch.tensor([0, wrong, 2]), 3, 0.1, spread)

    @pytest.mark.parametrize("smoothing", [-0.25, 1.5, -3, 2])
    @pytest.mark.parametrize("spread", SPREADS)
    def test_refuses_smoothing_outside_zero_to_one(self, smoothing, spread):
        with refuses(ValueError, mentions=[smoothing]):
            label_smoothing.smooth_labels(torch.tensor([0, 1]), 3, smoothing, spread)

    @pytest.mark.parametrize("spread", ["other", "ALL", "", "none", "uniform"])
    def test_refuses_a_spread_that_it_does_not_know(self, spread):
        with refuses(ValueError):
            label_smoothing.smooth_labels(torch.tensor([0, 1]), 3, 0.1, spread)

    @pytest.mark.parametrize("num_classes", [0, -2])
    def test_refuses_fewer_than_one_class(self, num_classes):
        with refuses(ValueError, mentions=[num_classes]):
            label_smoothing.smooth_labels(torch.zeros(0, dtype=torch.int64), num_classes, 0.1)

    @pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
    def test_a_single_class_gets_all_and_has_no_others(self, smoothing):
        target = torch.zeros(3, dtype=torch.int64)
        assert_same(label_smoothing.smooth_labels(target, 1, smoothing), torch.ones(3, 1))
        with refuses(ValueError):
            label_smoothing.smooth_labels(target, 1, smoothing, "others")


class TestSoftCrossEntropy:
    def test_weighs_each_class_by_its_share_of_the_target(self):
        logits = torch.tensor([[0.0, math.log(3.0)], [0.0, 0.0]])
        found = label_smoothing.soft_cross_entropy(logits, torch.tensor([[0.25, 0.75], [1.0, 0.0]]), "none")
        assert_same(found, torch.tensor([0.25 * math.log(4) + 0.75 * math.log(4 / 3), math.log(2)]))

    @pytest.mark.parametrize("reduction", REDUCTIONS)
    @given(n=sizes, k=sizes, data=st.data())
    def test_agrees_with_torch_for_distributions(self, reduction, n, k, data):
        logits = sample(n, k, low=-5, high=5, dtype=torch.float64).requires_grad_()
        target = sample(n, k, dtype=torch.float64).softmax(-1).detach().requires_grad_()
        found = label_smoothing.soft_cross_entropy(logits, target, reduction)
        wanted = torch.nn.functional.cross_entropy(logits, target, reduction=reduction)
        assert_same(found, wanted, **FLOAT64)
        assert_same_gradients(found, wanted, [logits, target], **FLOAT64)

    def test_the_mean_is_the_default_and_divides_by_rows(self):
        """Not by the elements [n k], which would make the loss of many classes small."""
        logits, target = sample(3, 5, dtype=torch.float64), sample(3, 5, dtype=torch.float64).softmax(-1)
        wanted = -(target * logits.log_softmax(-1)).sum() / 3
        assert_same(label_smoothing.soft_cross_entropy(logits, target), wanted, **FLOAT64)
        assert_same(label_smoothing.soft_cross_entropy(logits, target, "mean"), wanted, **FLOAT64)

    def test_targets_that_do_not_sum_to_one_are_taken_as_they_are(self):
        logits = sample(2, 3, dtype=torch.float64)
        target = torch.tensor([[2.0, 0.5, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
        found = label_smoothing.soft_cross_entropy(logits, target, "none")
        assert_same(found, -(target * logits.log_softmax(-1)).sum(-1), **FLOAT64)

    def test_a_target_of_zero_passes_its_gradient_on(self):
        """The slope with respect to a share is -log p, whether the share is 0 or not."""
        logits = sample(3, 4, dtype=torch.float64).requires_grad_()
        target = torch.eye(3, 4, dtype=torch.float64).requires_grad_()
        found = label_smoothing.soft_cross_entropy(logits, target, "sum")
        gradient, slope = torch.autograd.grad(found, [target, logits])
        log_p = logits.detach().log_softmax(-1)
        assert_same(gradient, -log_p, **FLOAT64, what="the gradient of the target")
        assert_same(slope, log_p.exp() - target.detach(), **FLOAT64, what="the gradient of the logits")

    @pytest.mark.parametrize("dtype", FLOATS, ids=str)
    @pytest.mark.parametrize("reduction", REDUCTIONS)
    def test_nothing_times_minus_infinity_counts_as_nothing(self, reduction, dtype):
        """A class that is ruled out and not asked for costs nothing; 0 times inf would be nan."""
        logits = torch.tensor([[0.5, -INF, 1.5], [-INF, 2.0, -INF], [2.0, 3.0, -1.0]], dtype=dtype, requires_grad=True)
        target = torch.tensor([[0.25, 0.0, 0.75], [0.0, 1.0, 0.0], [0.0, 0.5, 0.5]], dtype=dtype, requires_grad=True)
        found = label_smoothing.soft_cross_entropy(logits, target, reduction)
        log_p = logits.detach().float().log_softmax(-1)
        finite = log_p.masked_fill(log_p == -INF, 0)
        rows = -(target.detach().float() * finite).sum(-1)
        assert_same(found, reduced(rows, reduction).to(dtype))
        of_target, of_logits = torch.autograd.grad(found.sum(), [target, logits])
        share = 3 if reduction == "mean" else 1
        assert_same(of_target, (-finite / share).to(dtype), what="the gradient of the target")
        wanted = (log_p.exp() - target.detach().float()) / share
        assert_same(of_logits, wanted.to(dtype), what="the gradient of the logits")

    def test_a_share_of_a_class_that_is_ruled_out_costs_infinitely_much(self):
        logits = torch.tensor([[0.5, -INF, 1.5], [0.0, 0.0, -INF]])
        target = torch.tensor([[0.5, 0.25, 0.25], [1.0, 0.0, 0.0]])
        found = label_smoothing.soft_cross_entropy(logits, target, "none")
        assert_same(found, torch.tensor([INF, math.log(2)]))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
    def test_big_logits_keep_value_and_gradient_finite(self, dtype):
        logits = torch.tensor([[1e4, -1e4, 0.0], [-1e4, -1e4, 1e4]], dtype=dtype, requires_grad=True)
        target = torch.tensor([[0.5, 0.25, 0.25], [0.0, 0.0, 1.0]], dtype=dtype)
        found = label_smoothing.soft_cross_entropy(logits, target, "none")
        wanted = torch.nn.functional.cross_entropy(logits, target, reduction="none")
        assert_same(found, wanted)
        assert_same_gradients(found, wanted, [logits])

    @pytest.mark.parametrize("reduction", ["average", "MEAN", "batchmean", ""])
    def test_refuses_a_reduction_that_it_does_not_know(self, reduction):
        with refuses(ValueError):
            label_smoothing.soft_cross_entropy(sample(2, 3), sample(2, 3), reduction)

    @pytest.mark.parametrize("shape", [(1, 4), (3, 1), (2, 4), (3, 5)], ids=str)
    def test_refuses_a_target_of_another_shape(self, shape):
        """A single row or column would broadcast in silence."""
        numbers = [a for a, b in zip(shape, (3, 4), strict=True) if a != b]
        with refuses(ValueError, mentions=numbers):
            label_smoothing.soft_cross_entropy(sample(3, 4), sample(*shape))

    @pytest.mark.parametrize("which", ["logits", "target"])
    def test_refuses_integers_in_either_place(self, which):
        given = {"logits": sample(3, 4), "target": sample(3, 4)}
        given[which] = given[which].long()
        with refuses(TypeError):
            label_smoothing.soft_cross_entropy(**given)

    def test_the_sum_of_no_rows_is_zero(self):
        logits = torch.zeros(0, 4, requires_grad=True)
        assert_same(label_smoothing.soft_cross_entropy(logits, torch.zeros(0, 4), "sum"), torch.zeros(()))
        assert_same(label_smoothing.soft_cross_entropy(logits, torch.zeros(0, 4), "none"), torch.zeros(0))


class Built(TorchDispatchMode):
    """Notes what a block makes of the targets' size: what operations fill, and whatever has the targets' values."""

    FILL = ("scatter", "one_hot", "full", "zeros", "new_full", "new_zeros", "full_like", "zeros_like")

    def __init__(self, wanted):
        super().__init__()
        self.wanted = wanted
        self.found: list[str] = []

    @classmethod
    def _should_skip_dynamo(cls):
        return False  # True, the default, imports torch._dynamo

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        for x in tree_leaves(out):
            if isinstance(x, torch.Tensor) and x.dtype != torch.bool and x.numel() >= self.wanted.numel():
                filled = name in self.FILL or name.startswith("scatter")
                if filled or (x.shape == self.wanted.shape and torch.allclose(x.double(), self.wanted, atol=1e-6)):
                    self.found.append(name)
        return out


class TestLabelSmoothingLoss:
    def test_is_the_cross_entropy_with_smoothed_targets(self):
        logits = torch.tensor([[0.0, 0.0, math.log(2.0)]])
        share = torch.tensor([1 / 4, 1 / 4, 1 / 2]).log()
        found = label_smoothing.label_smoothing_loss(logits, torch.tensor([2]), smoothing=0.3)
        assert_same(found, -(0.1 * share[0] + 0.1 * share[1] + 0.8 * share[2]))
        found = label_smoothing.label_smoothing_loss(logits, torch.tensor([2]), smoothing=0.3, spread="others")
        assert_same(found, -(0.15 * share[0] + 0.15 * share[1] + 0.7 * share[2]))

    @pytest.mark.parametrize("reduction", REDUCTIONS)
    @given(n=sizes, k=sizes, smoothing=smoothings, data=st.data())
    def test_all_is_what_torch_does(self, reduction, n, k, smoothing, data):
        logits, target = sample(n, k, low=-5, high=5, dtype=torch.float64).requires_grad_(), draw_targets(data, n, k)
        found = label_smoothing.label_smoothing_loss(logits, target, smoothing, "all", reduction=reduction)
        wanted = torch.nn.functional.cross_entropy(logits, target, reduction=reduction, label_smoothing=smoothing)
        assert_same(found, wanted, **FLOAT64)
        assert_same_gradients(found, wanted, [logits], **FLOAT64)

    @pytest.mark.parametrize("reduction", REDUCTIONS)
    @pytest.mark.parametrize("spread", SPREADS)
    @given(n=sizes, k=st.integers(2, 6), smoothing=smoothings, data=st.data())
    @settings(max_examples=12)
    def test_is_the_definition_summed_out(self, spread, reduction, n, k, smoothing, data):
        logits, target = sample(n, k, low=-5, high=5, dtype=torch.float64).requires_grad_(), draw_targets(data, n, k)
        found = label_smoothing.label_smoothing_loss(logits, target, smoothing, spread, reduction=reduction)
        wanted = reduced(loss_by_row(logits, target, smoothing, spread), reduction)
        assert_same(found, wanted, **FLOAT64)
        assert_same_gradients(found, wanted, [logits], **FLOAT64)

    def test_the_defaults_are_a_tenth_over_all_classes_and_the_mean(self):
        logits, target = rows_of()
        wanted = loss_by_row(logits, target, 0.1, "all").mean()
        assert_same(label_smoothing.label_smoothing_loss(logits, target), wanted, **FLOAT64)

    @pytest.mark.parametrize("reduction", REDUCTIONS)
    @pytest.mark.parametrize("spread", SPREADS)
    @pytest.mark.parametrize("ignore", [-100, -1, 2, 0, 4, 255])
    def test_ignored_rows_count_neither_above_nor_below_the_line(self, ignore, spread, reduction):
        """Dividing by all rows makes the loss depend on how many were to be left out."""
        logits, target = rows_of(7)
        target[[1, 4, 6]] = ignore
        logits.requires_grad_()
        kept = target != ignore
        found = label_smoothing.label_smoothing_loss(logits, target, 0.3, spread, ignore, reduction)
        rows = loss_by_row(logits, torch.where(kept, target, 0), 0.3, spread)
        wanted = {"none": rows * kept, "mean": rows[kept].mean(), "sum": rows[kept].sum()}[reduction]
        assert_same(found, wanted, **FLOAT64)
        assert_same_gradients(found, wanted, [logits], **FLOAT64)

    @pytest.mark.parametrize("poison", [math.nan, INF, -INF])
    @pytest.mark.parametrize("spread", SPREADS)
    @pytest.mark.parametrize("reduction", REDUCTIONS)
    @pytest.mark.parametrize("smoothing", [0.0, 0.3])
    def test_what_stands_in_an_ignored_row_reaches_neither_value_nor_gradient(
        self, smoothing, reduction, spread, poison
    ):
        """nan times 0 is nan: a row that is masked only after its loss was computed spoils the gradient."""
        clean, target = rows_of(4)
        target[[0, 2]] = -100
        logits = clean.clone()
        logits[0], logits[2, 1] = poison, poison
        logits.requires_grad_()
        found = label_smoothing.label_smoothing_loss(logits, target, smoothing, spread, reduction=reduction)
        rows = loss_by_row(clean, target.clamp(min=0), smoothing, spread) * (target != -100)
        wanted = {"none": rows, "mean": rows.sum() / 2, "sum": rows.sum()}[reduction]
        assert_same(found, wanted, **FLOAT64)
        (gradient,) = torch.autograd.grad(found.sum(), logits)
        expect(bool((gradient[[0, 2]] == 0).all()), f"expected the gradient 0 in ignored rows, got {gradient[0, 0]}")
        expect(bool(gradient.isfinite().all()), "expected finite gradients in the rows that count, got nan or inf")

    @pytest.mark.parametrize("dtype", FLOATS, ids=str)
    @pytest.mark.parametrize("n", [0, 3])
    @pytest.mark.parametrize("reduction", ["mean", "sum"])
    def test_the_loss_of_no_rows_is_zero_and_so_is_its_gradient(self, reduction, n, dtype):
        """The mean of nothing is nan, and one nan in a training run ends it."""
        logits = sample(n, 4, dtype=dtype).requires_grad_()
        target = torch.full((n,), -100)
        found = label_smoothing.label_smoothing_loss(logits, target, reduction=reduction)
        assert_same(found, torch.zeros((), dtype=dtype))
        expect(found.requires_grad, "expected a loss that backward can start from, it does not require grad")
        (gradient,) = torch.autograd.grad(found, logits)
        assert_same(gradient, torch.zeros(n, 4, dtype=dtype), what="the gradient")

    @pytest.mark.parametrize("dtype", FLOATS, ids=str)
    @pytest.mark.parametrize("spread", SPREADS)
    def test_without_smoothing_other_classes_may_be_ruled_out(self, spread, dtype):
        """The others have no share of a hard target, and 0 times the -inf of their logarithm must not become nan."""
        logits = torch.tensor([[0.5, -INF, 1.5], [2.0, 3.0, -INF]], dtype=dtype, requires_grad=True)
        target = torch.tensor([0, 1])
        found = label_smoothing.label_smoothing_loss(logits, target, 0.0, spread, reduction="none")
        wanted = torch.nn.functional.cross_entropy(logits.float(), target, reduction="none")
        assert_same(found, wanted.detach().to(dtype))
        (gradient,) = torch.autograd.grad(found.sum(), logits)
        assert_same(gradient, torch.autograd.grad(wanted.sum(), logits)[0], what="the gradient")

    @pytest.mark.parametrize("smoothing", [0.0, 0.1])
    def test_a_share_of_a_class_that_is_ruled_out_costs_infinitely_much(self, smoothing):
        """As with torch: a finite number in its place would hide that the target cannot be reached."""
        logits = torch.tensor([[0.5, -INF, 1.5], [2.0, 3.0, -1.0]])
        for target in (torch.tensor([1, 0]), torch.tensor([0, 1])):
            wanted = torch.nn.functional.cross_entropy(logits, target, label_smoothing=smoothing, reduction="none")
            if not bool(wanted.isnan().any()):
                found = label_smoothing.label_smoothing_loss(logits, target, smoothing, reduction="none")
                assert_same(found, wanted)

    @pytest.mark.parametrize("spread", SPREADS)
    @pytest.mark.parametrize("smoothing", [0.0, 0.3])
    def test_ignored_rows_stay_as_they_are(self, smoothing, spread):
        logits, target = rows_of(4)
        target[[0, 2]] = -100
        with unchanged(logits, target, names=("logits", "target")):
            label_smoothing.label_smoothing_loss(logits, target, smoothing, spread)

    @pytest.mark.parametrize("spread", SPREADS)
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
    def test_big_logits_keep_value_and_gradient_finite(self, dtype, spread):
        logits = torch.tensor([[1e4, -1e4, 0.0], [-1e4, -1e4, 1e4], [1e4, 1e4, 0.0]], dtype=dtype, requires_grad=True)
        target = torch.tensor([0, 1, 2])
        found = label_smoothing.label_smoothing_loss(logits, target, 0.3, spread, reduction="none")
        wanted = loss_by_row(logits, target, 0.3, spread)
        assert_same(found, wanted)
        assert_same_gradients(found, wanted, [logits])

    @pytest.mark.parametrize("spread", SPREADS)
    @pytest.mark.parametrize("smoothing", [0.0, 0.3, 1.0])
    @pytest.mark.parametrize("ignored", [0, 1])
    def test_the_smoothed_targets_are_never_built(self, ignored, smoothing, spread):
        """For 50,000 classes a tensor of the targets is as large as the logits, and nearly all of it is one number."""
        logits, target = rows_of(6, 11, torch.float32)
        wanted = distribution(target[ignored:], 11, smoothing, spread)
        target[:ignored] = -100
        with Built(wanted) as built:
            label_smoothing.label_smoothing_loss(logits.requires_grad_(), target, smoothing, spread)
        made = ", ".join(sorted(set(built.found)))
        expect(not built.found, f"expected no tensor [n k] of the targets, {made} made one of 6 rows and 11 classes")

    @pytest.mark.parametrize("dtype", INTEGERS, ids=str)
    def test_takes_targets_of_any_integer_dtype(self, dtype):
        logits, target = rows_of()
        ignore = 77
        target[3] = ignore
        found = label_smoothing.label_smoothing_loss(logits, target.to(dtype), 0.2, ignore_index=ignore)
        kept = target != ignore
        assert_same(found, loss_by_row(logits[kept], target[kept], 0.2, "all").mean(), **FLOAT64)

    @pytest.mark.parametrize("dtype", NO_INTEGERS, ids=str)
    def test_refuses_targets_that_are_no_integers(self, dtype):
        with refuses(TypeError):
            label_smoothing.label_smoothing_loss(sample(3, 4), torch.tensor([1, 0, 1]).to(dtype))

    @pytest.mark.parametrize("wrong, ignore", [(5, -100), (-1, -100), (-100, -1), (9, 2), (-100, 3), (-101, -100)])
    @pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
    def test_refuses_a_target_that_is_neither_a_class_nor_ignored(self, smoothing, wrong, ignore):
        """A wrong label that trains in silence is worse than a stop: -1 is no last class here."""
        logits, target = rows_of(4)
        target[1], target[2] = ignore, wrong
        with refuses(IndexError, mentions=[wrong]):
            label_smoothing.label_smoothing_loss(logits, target, smoothing, ignore_index=ignore)

    @pytest.mark.parametrize("smoothing", [-0.25, 1.5, 2])
    @pytest.mark.parametrize("spread", SPREADS)
    def test_refuses_smoothing_outside_zero_to_one(self, smoothing, spread):
        with refuses(ValueError, mentions=[smoothing]):
            label_smoothing.label_smoothing_loss(*rows_of(), smoothing, spread)

    @pytest.mark.parametrize("spread", ["other", "ALL", ""])
    @pytest.mark.parametrize("smoothing", [0.0, 0.1])
    def test_refuses_a_spread_that_it_does_not_know(self, smoothing, spread):
        with refuses(ValueError):
            label_smoothing.label_smoothing_loss(*rows_of(), smoothing, spread)

    @pytest.mark.parametrize("reduction", ["average", "MEAN", ""])
    def test_refuses_a_reduction_that_it_does_not_know(self, reduction):
        with refuses(ValueError):
            label_smoothing.label_smoothing_loss(*rows_of(), reduction=reduction)

    @pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
    def test_a_single_class_costs_nothing_and_has_no_others(self, smoothing):
        logits, target = sample(3, 1, dtype=torch.float64), torch.zeros(3, dtype=torch.int64)
        found = label_smoothing.label_smoothing_loss(logits, target, smoothing, reduction="none")
        assert_same(found, torch.zeros(3, dtype=torch.float64), **FLOAT64)
        with refuses(ValueError):
            label_smoothing.label_smoothing_loss(logits, target, smoothing, "others")

    @pytest.mark.parametrize("n", [1, 2, 5])
    def test_refuses_another_number_of_targets_than_of_rows(self, n):
        """A single target would broadcast to all rows."""
        with refuses(ValueError, mentions=[n, 4]):
            label_smoothing.label_smoothing_loss(sample(4, 6), torch.zeros(n, dtype=torch.int64))


class TestLabelSmoothingGradient:
    def test_is_what_is_given_minus_what_is_wanted(self):
        found = label_smoothing.label_smoothing_gradient(torch.zeros(1, 2), torch.tensor([1]), smoothing=0.2)
        assert_same(found, torch.tensor([[0.4, -0.4]]))

    @pytest.mark.parametrize("spread", SPREADS)
    @given(n=sizes, k=st.integers(2, 6), smoothing=smoothings, data=st.data())
    def test_is_the_slope_of_the_mean_loss(self, spread, n, k, smoothing, data):
        logits, target = sample(n, k, low=-5, high=5, dtype=torch.float64).requires_grad_(), draw_targets(data, n, k)
        (wanted,) = torch.autograd.grad(loss_by_row(logits, target, smoothing, spread).mean(), logits)
        found = label_smoothing.label_smoothing_gradient(logits.detach(), target, smoothing, spread)
        assert_same(found, wanted, **FLOAT64)
        assert_same(found.sum(-1), torch.zeros(n, dtype=torch.float64), **FLOAT64, what="the sum of each row")

    def test_the_defaults_are_a_tenth_over_all_classes(self):
        logits, target = rows_of()
        wanted = (logits.softmax(-1) - distribution(target, 5, 0.1, "all")) / 6
        assert_same(label_smoothing.label_smoothing_gradient(logits, target), wanted, **FLOAT64)

    @pytest.mark.parametrize("spread", SPREADS)
    def test_big_logits_give_finite_gradients(self, spread):
        logits = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4]], dtype=torch.float64)
        target = torch.tensor([1, 2])
        wanted = (logits.softmax(-1) - distribution(target, 3, 0.3, spread)) / 2
        assert_same(label_smoothing.label_smoothing_gradient(logits, target, 0.3, spread), wanted, **FLOAT64)

    @pytest.mark.parametrize("dtype", INTEGERS, ids=str)
    def test_takes_targets_of_any_integer_dtype(self, dtype):
        logits, target = rows_of()
        wanted = (logits.softmax(-1) - distribution(target, 5, 0.2, "all")) / 6
        assert_same(label_smoothing.label_smoothing_gradient(logits, target.to(dtype), 0.2), wanted, **FLOAT64)

    @pytest.mark.parametrize("dtype", NO_INTEGERS, ids=str)
    def test_refuses_targets_that_are_no_integers(self, dtype):
        with refuses(TypeError):
            label_smoothing.label_smoothing_gradient(sample(3, 4), torch.tensor([1, 0, 1]).to(dtype))

    @pytest.mark.parametrize("wrong", [5, -1, -100])
    def test_refuses_a_target_that_is_no_class(self, wrong):
        logits, target = rows_of()
        target[2] = wrong
        with refuses(IndexError, mentions=[wrong]):
            label_smoothing.label_smoothing_gradient(logits, target)

    @pytest.mark.parametrize("smoothing", [-0.25, 1.5])
    @pytest.mark.parametrize("spread", SPREADS)
    def test_refuses_smoothing_outside_zero_to_one(self, smoothing, spread):
        with refuses(ValueError, mentions=[smoothing]):
            label_smoothing.label_smoothing_gradient(*rows_of(), smoothing, spread)

    def test_refuses_a_spread_that_it_does_not_know(self):
        with refuses(ValueError):
            label_smoothing.label_smoothing_gradient(*rows_of(), 0.1, "other")

    def test_a_single_class_has_no_gradient_and_no_others(self):
        target = torch.zeros(3, dtype=torch.int64)
        assert_same(label_smoothing.label_smoothing_gradient(sample(3, 1), target), torch.zeros(3, 1))
        with refuses(ValueError):
            label_smoothing.label_smoothing_gradient(sample(3, 1), target, 0.1, "others")

    @pytest.mark.parametrize("n", [1, 3])
    def test_refuses_another_number_of_targets_than_of_rows(self, n):
        with refuses(ValueError, mentions=[n, 4]):
            label_smoothing.label_smoothing_gradient(sample(4, 6), torch.zeros(n, dtype=torch.int64))


def predictions(confidences, right, k=4):
    """Rows of probabilities with these largest ones, each at class i % k, and targets that it meets or misses."""
    rows, target = [], []
    for i, (confidence, meets) in enumerate(zip(confidences, right, strict=True)):
        row = [(1 - confidence) / (k - 1)] * k
        row[i % k] = confidence
        rows.append(row)
        target.append(i % k if meets else (i + 1) % k)
    return torch.tensor(rows, dtype=torch.float64).view(-1, k), torch.tensor(target, dtype=torch.int64)


def error_by_bin(confidences, right, bins):
    """The definition, bin by bin."""
    total = 0.0
    for b in range(bins):
        inside = [i for i, c in enumerate(confidences) if b / bins < c <= (b + 1) / bins]
        if inside:
            accuracy = sum(right[i] for i in inside) / len(inside)
            confidence = sum(confidences[i] for i in inside) / len(inside)
            total += len(inside) / len(confidences) * abs(accuracy - confidence)
    return total


def expect_error(found, wanted, why):
    expect(type(found) is float, f"expected a Python float, got {type(found).__name__}")
    expect(math.isclose(found, wanted, abs_tol=1e-6), f"expected {wanted:.6g}, got {found:.6g}", why)


class TestExpectedCalibrationError:
    def test_is_the_distance_of_confidence_from_accuracy(self):
        probabilities, target = predictions([0.75, 0.75, 0.75, 0.75], [True, True, False, False])
        found = label_smoothing.expected_calibration_error(probabilities, target, bins=4)
        expect_error(found, 0.25, "for four rows of confidence 0.75, two of them right")

    @given(n=st.integers(1, 30), bins=st.sampled_from([1, 2, 5, 8, 15]), data=st.data())
    def test_each_bin_counts_by_its_share(self, n, bins, data):
        grid = st.integers(2600, 9999).filter(lambda c: all((c * b) % 10000 for b in (1, 2, 5, 8, 15)))
        confidences = [c / 10000 for c in data.draw(st.lists(grid, min_size=n, max_size=n))]
        right = data.draw(st.lists(st.booleans(), min_size=n, max_size=n))
        found = label_smoothing.expected_calibration_error(*predictions(confidences, right), bins=bins)
        expect_error(found, error_by_bin(confidences, right, bins), f"for confidences {confidences}, {bins} bins")

    def test_fifteen_bins_are_the_default(self):
        confidences = [0.31, 0.33, 0.34, 0.52, 0.55, 0.58, 0.93, 0.94, 0.99]
        right = [True, False, False, True, False, True, True, True, False]
        found = label_smoothing.expected_calibration_error(*predictions(confidences, right))
        expect_error(found, error_by_bin(confidences, right, 15), f"for confidences {confidences}")

    @pytest.mark.parametrize("confidence", [0.5, 0.75, 1.0])
    @pytest.mark.parametrize("bins", [4, 8])
    def test_a_bin_has_its_upper_edge_and_not_its_lower_one(self, bins, confidence):
        """Two rows of one bin make up for each other, one too sure and one not sure enough; in two bins they do not."""
        below = confidence - 0.03
        found = label_smoothing.expected_calibration_error(*predictions([confidence, below], [True, False]), bins=bins)
        expect_error(found, abs(1 - confidence - below) / 2, f"for confidences {confidence} and {below}: one bin")
        if confidence < 1:
            above = confidence + 0.03
            two = predictions([confidence, above], [False, True])
            found = label_smoothing.expected_calibration_error(*two, bins=bins)
            expect_error(found, (confidence + 1 - above) / 2, f"for confidences {confidence} and {above}: two bins")

    def test_certainty_belongs_to_the_last_bin(self):
        probabilities = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.125, 0.875]])
        found = label_smoothing.expected_calibration_error(probabilities, torch.tensor([0, 0, 1]), bins=4)
        expect_error(found, abs(2 - 2.875) / 3, "for confidences 1, 1 and 0.875, the second wrong")

    def test_rows_that_are_right_as_often_as_they_say_have_no_error(self):
        probabilities, target = predictions([0.5] * 4 + [0.75] * 4, [True, False, True, False, True, True, True, False])
        found = label_smoothing.expected_calibration_error(probabilities, target, bins=8)
        expect_error(found, 0.0, "for confidence 0.5 half right, and 0.75 three quarters right")

    def test_too_little_confidence_is_an_error_as_well(self):
        probabilities, target = predictions([0.55, 0.55, 0.9, 0.9], [True, True, False, False])
        found = label_smoothing.expected_calibration_error(probabilities, target, bins=2)
        expect_error(found, abs(2 - 2.9) / 4, "for two bins of which one is empty")
        found = label_smoothing.expected_calibration_error(probabilities, target, bins=10)
        expect_error(found, (0.45 + 0.9) / 2, "for one bin not sure enough and one too sure: they do not make up")

    @pytest.mark.parametrize("dtype", INTEGERS, ids=str)
    def test_takes_targets_of_any_integer_dtype(self, dtype):
        probabilities, target = predictions([0.8, 0.7, 0.6], [True, False, True])
        found = label_smoothing.expected_calibration_error(probabilities, target.to(dtype), bins=1)
        expect_error(found, abs(2 - 2.1) / 3, "for one bin")

    @pytest.mark.parametrize("dtype", NO_INTEGERS, ids=str)
    def test_refuses_targets_that_are_no_integers(self, dtype):
        probabilities, _ = predictions([0.8, 0.7], [True, True])
        with refuses(TypeError):
            label_smoothing.expected_calibration_error(probabilities, torch.tensor([0, 1]).to(dtype))

    def test_refuses_no_rows(self):
        """The average of nothing is no number, and 0 would say perfectly calibrated."""
        with refuses(ValueError):
            label_smoothing.expected_calibration_error(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))

    @pytest.mark.parametrize("bins", [0, -3])
    def test_refuses_fewer_than_one_bin(self, bins):
        with refuses(ValueError, mentions=[bins]):
            label_smoothing.expected_calibration_error(*predictions([0.8], [True]), bins=bins)

    @pytest.mark.parametrize("n", [1, 3])
    def test_refuses_another_number_of_targets_than_of_rows(self, n):
        probabilities, _ = predictions([0.8, 0.7, 0.6, 0.5], [True] * 4)
        with refuses(ValueError, mentions=[n, 4]):
            label_smoothing.expected_calibration_error(probabilities, torch.zeros(n, dtype=torch.int64))

    @pytest.mark.parametrize("wrong", [4, -1, -100])
    def test_refuses_a_target_that_is_no_class(self, wrong):
        """It would count as a wrong prediction and make the model look too sure."""
        probabilities, target = predictions([0.8, 0.7, 0.6], [True, True, True])
        target[1] = wrong
        with refuses(IndexError, mentions=[wrong]):
            label_smoothing.expected_calibration_error(probabilities, target)

    def test_more_rows_take_no_more_operations(self):
        """Bins may be a loop, rows may not."""
        probabilities, target = predictions([0.8, 0.7, 0.6], [True, False, True])
        counts = []
        for times in (1, 5):
            with count_ops() as ops:
                label_smoothing.expected_calibration_error(probabilities.repeat(times, 1), target.repeat(times))
            counts.append(ops.total())
        expect(counts[1] <= counts[0], f"expected as many operations for 15 rows as for 3, got {counts[1]}")

    @pytest.mark.parametrize("device", devices.DEVICES)
    def test_gives_the_same_number_on_another_device_and_for_any_strides(self, device):
        probabilities, target = predictions([0.8, 0.7, 0.6], [True, False, True])
        with devices.on(device):
            found = label_smoothing.expected_calibration_error(probabilities.to(device), target.to(device), bins=1)
        expect_error(found, abs(2 - 2.1) / 3, f"on {device}")
        with unchanged(probabilities, target):
            turned = probabilities.T.contiguous().T
            found = label_smoothing.expected_calibration_error(turned, target, bins=1)
        expect_error(found, abs(2 - 2.1) / 3, "for transposed probabilities")


# fmt: off
RULES = [
    rule("log_softmax", lambda s: (s(s.n, 5),), also={"dim 1 of 3": {"make": lambda s: (s(s.n, 4, 2), 1)}},
         refused=("log_softmax", "softmax", "logsumexp", "cross_entropy")),
    rule("smooth_labels", lambda s: (s.ints(s.n, high=5), 5, 0.2),
         also={"others": {"make": lambda s: (s.ints(s.n, high=5), 5, 0.2, "others")},
               "int32": {"make": lambda s: (s.ints(s.n, high=5, dtype=torch.int32), 5, 0.2)}},
         fails=lambda s: (s.ints(3, low=5, high=9), 5, 0.2)),
    # The mean of no rows is not asked.
    rule("soft_cross_entropy", lambda s: (s(s.n, 5), s(s.n, 5).softmax(-1), "none"),
         also={"sum": {"make": lambda s: (s(s.n, 5), s(s.n, 5).softmax(-1), "sum")},
               "mean": {"make": lambda s: (s(s.n, 5), s(s.n, 5).softmax(-1)), "empty": False}},
         fails=lambda s: (s(3, 5), s(1, 5))),
    rule("label_smoothing_loss", lambda s: (s(s.n, 5), s.ints(s.n, high=5), 0.2, "others"),
         also={"all": {"make": lambda s: (s(s.n, 5), s.ints(s.n, high=5))},
               "none, ignored": {"make": lambda s: (s(s.n, 5), s.ints(s.n, high=5), 0.3, "all", 2, "none")},
               "sum, ignored": {"make": lambda s: (s(s.n, 5), s.ints(s.n, high=5), 0.3, "others", 2, "sum")},
               "smoothing 0": {"make": lambda s: (s(s.n, 5), s.ints(s.n, high=5), 0.0)},
               "smoothing 1": {"make": lambda s: (s(s.n, 5), s.ints(s.n, high=5), 1.0, "others")}},
         refused=("cross_entropy", "nll_loss", "log_softmax"), fails=lambda s: (s(3, 5), s.ints(3, low=5, high=9))),
    # By hand: R5 asks nothing of it.
    rule("label_smoothing_gradient", lambda s: (s(s.n, 5), s.ints(s.n, high=5), 0.2), differentiable=False,
         also={"others": {"make": lambda s: (s(s.n, 5), s.ints(s.n, high=5), 0.2, "others")}},
         refused=("backward", "log_softmax_backward_data", "softmax_backward_data", "nll_loss_backward"),
         fails=lambda s: (s(3, 5), s.ints(3, low=5, high=9))),
    # The result is a float. A loop over bins may skip empty ones: the number of operations has a spec of its own.
    rule("expected_calibration_error", lambda s: (s(s.n, 5).softmax(-1), s.ints(s.n, high=5)), differentiable=False,
         vectorised=False, empty=False, fails=lambda s: (s(3, 5).softmax(-1), s.ints(3, low=5, high=9))),
]
# fmt: on
