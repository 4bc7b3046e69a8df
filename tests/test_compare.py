"""What is compared, in which order, and what a learner reads when it differs."""

import pytest
import torch

from dojo.compare import Mismatch, assert_same, assert_same_gradients, describe, expect_share, refuses

X = torch.linspace(-1, 1, 6).view(2, 3)


@pytest.mark.parametrize(
    "actual, first_words",
    [
        (None, "expected the result to be a tensor, got NoneType"),
        (X.view(3, 2).double(), "expected shape [2, 3], got [3, 2]"),
        (X.double() + 1, "expected shape [2, 3]   ok\nexpected float32, got float64"),
        (X + 1, "expected shape [2, 3]   ok\nexpected -1 at [0, 0], got 0      6 of 6 values differ"),
        (X * torch.tensor([1, 1, float("nan")]), "expected shape [2, 3]   ok\nexpected 0 at [0, 2], got nan"),
        (X + 1e-4, "expected shape [2, 3]   ok"),
    ],
)
def test_the_first_difference_is_told_in_the_order_shape_dtype_values(actual, first_words):
    with pytest.raises(Mismatch) as raised:
        assert_same(actual, X if actual is None or not actual.isnan().any() else X.abs() * 0)
    assert str(raised.value).startswith(first_words) or "nan" in first_words


def test_nan_equals_nan_and_rounding_is_forgiven():
    assert_same(torch.tensor([float("nan"), 1 + 1e-7]), torch.tensor([float("nan"), 1.0]))


@pytest.mark.parametrize("dtype, near, far", [(torch.float64, 1e-9, 1e-5), (torch.float16, 4e-3, 0.1)])
def test_tolerances_follow_the_dtype(dtype, near, far):
    one = torch.ones(3, dtype=dtype)
    assert_same(one + near, one)
    with pytest.raises(Mismatch):
        assert_same(one + far, one)


def test_integers_and_booleans_must_be_equal():
    assert_same(torch.tensor([True]), torch.tensor([True]))
    with pytest.raises(Mismatch):
        assert_same(torch.tensor([10**9 + 1]), torch.tensor([10**9]))


def test_a_gradient_that_is_wrong_by_a_constant_factor_is_seen():
    x = X.clone().requires_grad_()
    assert_same_gradients(x.softmax(-1), x.exp() / x.exp().sum(-1, keepdim=True), [x])
    with pytest.raises(Mismatch, match="gradient of input 0"):
        assert_same_gradients(x.softmax(-1), x.softmax(-1).detach() * 2 + x * 0, [x])


@pytest.mark.parametrize(
    "error, message, mentions, accepted",
    [
        (ValueError, "size 3 is not 5", [3, 5], True),
        (ValueError, "outside 0..7", [7], True),
        (ValueError, "shape (3,5)", [3, 5], True),
        (ValueError, "got -3.", [-3], True),
        (ValueError, "size 35", [3], False),
        (ValueError, "size 0.3", [3], False),
        (TypeError, "size 3", [3], False),
    ],
)
def test_an_error_must_be_of_the_type_and_name_the_numbers(error, message, mentions, accepted):
    def call():
        with refuses(ValueError, mentions=mentions):
            raise error(message)

    if accepted:
        call()
    else:
        with pytest.raises(Mismatch):
            call()


def test_a_stubs_error_is_no_refusal():
    with pytest.raises(NotImplementedError), refuses(RuntimeError):
        raise NotImplementedError


def test_no_error_is_a_mismatch():
    with pytest.raises(Mismatch, match="nothing was raised"), refuses(ValueError):
        pass


def test_descriptions_are_short():
    assert describe(X) == "float32 [2, 3]"
    assert describe(torch.tensor([1, 2])) == "int64 [2] = [1, 2]"
    assert describe((X, 1)) == "(float32 [2, 3], 1)"
    assert describe(torch.zeros(2, device="meta")) == "float32 [2] on meta"
    assert describe({"x": X}) == "{'x': float32 [2, 3]}"
    assert len(describe("x" * 500)) <= 40


@pytest.mark.parametrize("p, right", [(0.3, True), (0.25, False), (0.35, False)])
def test_a_share_is_told_from_one_that_chance_does_not_explain(p, right):
    mask = torch.rand(10_000, generator=torch.Generator().manual_seed(0)) < 0.3
    if right:
        expect_share(mask, p, "draws")
    else:
        with pytest.raises(Mismatch, match=r"of draws, got 0\.[23]"):
            expect_share(mask, p, "draws")
