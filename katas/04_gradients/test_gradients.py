"""The specs of kata 04. One class a function; the house rules that all of them share are in the table at the end."""

import itertools
import math
from contextlib import contextmanager

import gradients
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dojo import devices
from dojo.compare import Mismatch, assert_same, assert_same_gradients, expect, gradients_of, refuses
from dojo.guards import count_ops, state_kept, unchanged
from dojo.rules import rule
from dojo.strategies import sample, shapes, sizes, strided

INF = math.inf
EXACT = {"rtol": 1e-12, "atol": 1e-12}
LAYOUTS = ["transposed", "sliced", "expanded"]


def doubles(*shape, low=-2, high=2):
    """A sample in float64."""
    return sample(*shape, dtype=torch.float64, low=low, high=high)


def leaf(*shape, low=-2, high=2):
    """A leaf in float64 that requires grad."""
    return doubles(*shape, low=low, high=high).requires_grad_()


def float64(*values):
    return torch.tensor(values, dtype=torch.float64)


def second_gradients(outputs, inputs):
    """The gradients of the inputs' gradients, for the inputs and for the incoming gradient (the last one)."""
    generator = torch.Generator().manual_seed(1)
    draw = lambda x: torch.rand(x.shape, generator=generator, dtype=torch.float64) - 0.3  # noqa: E731
    incoming = draw(outputs).requires_grad_()
    first = torch.autograd.grad((outputs * incoming).sum(), inputs, create_graph=True)
    for number, gradient in enumerate(first):
        expect(
            gradient.requires_grad,
            f"expected the gradient of input {number} to have a history, to be differentiated again; it has none",
        )
    total = sum((gradient * draw(gradient)).sum() for gradient in first)
    asked = [*inputs, incoming]
    found = torch.autograd.grad(total, asked, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for x, g in zip(asked, found, strict=True)]


def assert_same_second_gradients(actual, expected, inputs, **tolerances):
    """Both results, made from the same inputs, have gradients whose gradients are the same."""
    pairs = zip(second_gradients(actual, inputs), second_gradients(expected, inputs), strict=True)
    for number, (found, wanted) in enumerate(pairs):
        name = f"input {number}" if number < len(inputs) else "the incoming gradient"
        try:
            assert_same(found, wanted, **tolerances)
        except Mismatch as mismatch:
            raise Mismatch(f"in the second derivative, for {name}:", *mismatch.lines) from None


@contextmanager
def incoming_gradient_kept(y):
    """The block runs a backward through y that does not write into the gradient that comes in there."""
    seen = []
    y.register_hook(lambda gradient: seen.append((gradient, gradient.detach().clone(), gradient._version)))
    yield
    for gradient, before, version in seen:
        kept = torch.equal(gradient, before) and gradient._version == version
        expect(kept, "expected the incoming gradient to stay as it was, backward wrote into it")


def writes_nowhere(function, *inputs):
    """Neither forward nor backward writes into the inputs or the incoming gradient."""
    leaves = [x for x in inputs if isinstance(x, torch.Tensor) and x.requires_grad]
    with unchanged(*inputs):
        y = function(*inputs)
        with incoming_gradient_kept(y):
            gradients_of(y, leaves)


def backward_operations(function, *inputs):
    """How many tensor operations the backward of function(*inputs) takes."""
    y = function(*inputs)
    total = (y * sample(*y.shape, dtype=y.dtype)).sum()
    with count_ops() as ops:
        torch.autograd.grad(total, [x for x in inputs if isinstance(x, torch.Tensor) and x.requires_grad])
    return ops.total()


def backward_stays_on_the_device(function, *inputs):
    """Backward on a simulated device gives what it gives on the CPU, and makes no tensor on the CPU."""
    wanted = gradients_of(function(*inputs), inputs)
    with devices.on("sim"):
        there = [x.detach().to("sim").requires_grad_() for x in inputs]
        y = function(*there)
        with devices.no_strays():
            total = (y * torch.ones_like(y)).sum()
            torch.autograd.grad(total, there)
        for found, right in zip(gradients_of(function(*there), there), wanted, strict=True):
            expect(found.device.type == "sim", f"expected a gradient on sim, got one on {found.device.type}")
            assert_same(found, right, device=False)


def raises_or_is_right(y, inputs, wanted):
    """After a write to what forward saw: an error, or still the gradient where forward was; never another one."""
    try:
        found = gradients_of(y, inputs)
    except NotImplementedError:
        raise
    except RuntimeError:
        return
    for x, right in zip(found, wanted, strict=True):
        assert_same(x, right, what="a gradient after a write in place")


def never(x):
    """An f that must not be called."""
    raise Mismatch("expected TypeError before f is called, f was called")


NOT_FLOAT64 = [torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool, torch.complex128]


class TestSquare:
    def test_squares_and_sends_back_twice_x_times_what_comes_in(self):
        x = torch.tensor([1.0, -3.0, 0.5], requires_grad=True)
        y = gradients.Square.apply(x)
        assert_same(y, torch.tensor([1.0, 9.0, 0.25]))
        (y * torch.tensor([1.0, 10.0, -4.0])).sum().backward()
        assert_same(x.grad, torch.tensor([2.0, -60.0, -4.0]), what="x.grad")

    @given(shape=shapes(max_dims=3, min_size=0))
    def test_agrees_with_a_product_for_any_shape(self, shape):
        x = leaf(*shape)
        y = gradients.Square.apply(x)
        assert_same(y, x * x, **EXACT)
        assert_same_gradients(y, x * x, [x], **EXACT)

    @pytest.mark.parametrize("value", [0.0, 1e-150, -1e-150, 1e150, -1e150])
    def test_big_and_tiny_values_keep_their_digits(self, value):
        x = float64(value).requires_grad_()
        y = gradients.Square.apply(x)
        assert_same(y, float64(value * value), rtol=1e-14, atol=0)
        (gradient,) = torch.autograd.grad((y * 0.3).sum(), x)
        assert_same(gradient, float64(0.6 * value), rtol=1e-14, atol=0)

    def test_the_result_comes_from_a_function_of_its_own(self):
        """One node with a backward of your own, not the multiplication that torch would record."""
        node = gradients.Square.apply(leaf(3)).grad_fn
        own = isinstance(node, torch.autograd.function.BackwardCFunction)
        expect(own, f"expected a node with your backward, got {type(node).__name__}")

    def test_each_call_remembers_its_own_x(self):
        x, other = leaf(3), leaf(3)
        y = gradients.Square.apply(x)
        gradients.Square.apply(other)
        assert_same_gradients(y, x * x, [x], **EXACT)

    def test_a_chain_of_squares_is_a_power(self):
        x = leaf(4)
        y = gradients.Square.apply(gradients.Square.apply(x))
        assert_same_gradients(y, x**4, [x], **EXACT)

    def test_the_gradient_can_be_differentiated_again(self):
        zeros = torch.zeros(2, dtype=torch.float64, requires_grad=True)
        for x in (leaf(3, 2), leaf(), leaf(1), zeros):
            assert_same_second_gradients(gradients.Square.apply(x), x * x, [x], **EXACT)

    def test_the_second_derivative_of_a_power_goes_through_both_squares(self):
        x = leaf(4)
        y = gradients.Square.apply(gradients.Square.apply(x))
        assert_same_second_gradients(y, x**4, [x], **EXACT)

    def test_backward_can_run_twice(self):
        x = leaf(3)
        total = (gradients.Square.apply(x) * float64(0.3, 2.0, -1.0)).sum()
        first = torch.autograd.grad(total, x, retain_graph=True)[0].clone()
        assert_same(torch.autograd.grad(total, x)[0], first, **EXACT)

    @pytest.mark.parametrize("write", ["whole", "one element", "there and back"])
    def test_a_write_to_x_before_backward_is_an_error(self, write):
        """The gradient belongs to the x that forward saw; save_for_backward notices that it is there no more."""
        x = leaf(3)
        y = x * 1
        z = gradients.Square.apply(y)
        if write == "one element":
            y[1] = 7.0
        else:
            y.add_(1)
        if write == "there and back":
            y.sub_(1)
        with refuses(RuntimeError):
            torch.autograd.grad(z.sum(), x)

    def test_an_optimizer_step_before_backward_is_an_error(self):
        x = leaf(3)
        z = gradients.Square.apply(x)
        with torch.no_grad():
            x.mul_(0.9)
        with refuses(RuntimeError):
            torch.autograd.grad(z.sum(), x)

    def test_backward_writes_into_neither_x_nor_the_incoming_gradient(self):
        writes_nowhere(gradients.Square.apply, leaf(3, 2))

    def test_backward_stays_on_the_device(self):
        backward_stays_on_the_device(gradients.Square.apply, leaf(3, 2))

    def test_backward_takes_no_more_operations_for_more_rows(self):
        few, many = (backward_operations(gradients.Square.apply, leaf(n, 2)) for n in (3, 8))
        expect(many <= few, f"expected as many operations in backward for 8 rows as for 3, got {many} against {few}")


class TestRoundSTE:
    def test_rounds_and_sends_back_what_comes_in(self):
        x = torch.tensor([-1.2, 0.5, 2.7], requires_grad=True)
        y = gradients.RoundSTE.apply(x)
        assert_same(y, torch.tensor([-1.0, 0.0, 3.0]))
        (y * torch.tensor([1.0, 2.5, -0.3])).sum().backward()
        assert_same(x.grad, torch.tensor([1.0, 2.5, -0.3]), what="x.grad")

    def test_halves_go_to_the_even_number(self):
        x = torch.tensor([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 3.5])
        assert_same(gradients.RoundSTE.apply(x), torch.tensor([-2.0, -2.0, 0.0, 0.0, 2.0, 2.0, 4.0]))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
    def test_values_are_those_of_torch_round_in_every_dtype(self, dtype):
        """A detour through integers loses what is too big for them."""
        big = 3e4 if dtype == torch.float16 else 3e30
        x = torch.tensor([big, -big, 1e-5, -0.7, 0.49, INF, -INF, math.nan, 0.0], dtype=dtype)
        assert_same(gradients.RoundSTE.apply(x), x.round(), rtol=0, atol=0)

    @given(values=st.lists(st.floats(-1e6, 1e6), max_size=6))
    def test_each_value_goes_to_the_nearest_whole_number(self, values):
        x = torch.tensor(values, dtype=torch.float64)
        assert_same(gradients.RoundSTE.apply(x), torch.tensor([float(round(v)) for v in values], dtype=torch.float64))

    @given(shape=shapes(max_dims=3, min_size=0))
    def test_the_gradient_is_the_incoming_one_for_any_shape(self, shape):
        x = leaf(*shape, low=-9, high=9)
        assert_same_gradients(gradients.RoundSTE.apply(x), x * 1, [x], rtol=0, atol=0)

    def test_the_gradient_does_not_ask_where_x_is(self):
        """Straight through: also far from 0, on whole numbers and on halves."""
        x = float64(-1e9, -7.3, -1.0, -0.5, 0.0, 0.2, 1.0, 1.5, 80.0, 1e300).requires_grad_()
        incoming = float64(1.3, -2.0, 0.4, 0.0, 1e-30, 5.0, 1e30, -0.6, 0.25, 3.7)
        (gradient,) = torch.autograd.grad((gradients.RoundSTE.apply(x) * incoming).sum(), x)
        assert_same(gradient, incoming, rtol=0, atol=0)

    def test_the_graph_goes_on_through_it(self):
        x = leaf(3, 2)
        assert_same_second_gradients(gradients.RoundSTE.apply(x), x * 1, [x], **EXACT)

    def test_what_lies_before_it_is_differentiated_twice(self):
        x = leaf(4)
        before, wanted = x**3, x**3
        assert_same_second_gradients(gradients.RoundSTE.apply(before), wanted, [x], **EXACT)

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_the_gradient_reaches_an_x_of_any_strides(self, layout):
        x = leaf(3, 4)
        y = gradients.RoundSTE.apply(strided(x, layout))
        assert_same_gradients(y, strided(x, layout), [x], **EXACT)

    def test_backward_writes_into_neither_x_nor_the_incoming_gradient(self):
        writes_nowhere(gradients.RoundSTE.apply, leaf(3, 2))

    def test_backward_stays_on_the_device(self):
        backward_stays_on_the_device(gradients.RoundSTE.apply, leaf(3, 2))

    def test_what_comes_in_goes_back_whatever_it_is(self):
        x = float64(INF, -INF, math.nan, 0.3, 0.3, 0.3).requires_grad_()
        incoming = float64(1.5, -2.0, 3.0, INF, -INF, math.nan)
        (gradient,) = torch.autograd.grad(Weighted.apply(gradients.RoundSTE.apply(x), incoming), x)
        assert_same(gradient, incoming, rtol=0, atol=0)

    def test_rounds_where_adding_a_half_would_round_by_itself(self):
        for dtype, bits in ((torch.float32, 24), (torch.float64, 53)):
            x = torch.tensor([2.0 ** (bits - 1) + 1, -(2.0 ** (bits - 1)) - 1, 0.5 - 2.0 ** -(bits + 1)], dtype=dtype)
            assert_same(gradients.RoundSTE.apply(x), x.round(), rtol=0, atol=0)

    def test_has_a_backward_of_its_own(self):
        own = isinstance(gradients.RoundSTE.apply(leaf(3)).grad_fn, torch.autograd.function.BackwardCFunction)
        expect(own, "expected a torch.autograd.Function with a backward of its own")


class TestNumericalGradient:
    def test_is_the_slope_in_each_element(self):
        x = float64(1.0, 3.0, -2.0)
        assert_same(gradients.numerical_gradient(lambda x: (x**3).sum(), x), float64(3.0, 27.0, 12.0))

    @given(shape=shapes(max_dims=3))
    def test_the_slopes_of_a_weighted_sum_are_its_weights(self, shape):
        weight = doubles(*shape)
        found = gradients.numerical_gradient(lambda x: (x * weight).sum(), doubles(*shape), eps=0.5)
        assert_same(found, weight, **EXACT)

    @pytest.mark.parametrize("eps", [0.5, 0.125, 2.0])
    def test_looks_eps_ahead_and_eps_back(self, eps):
        """Central differences of a cube are 3x² + eps², exactly; one-sided ones err by 3·x·eps more."""
        x = float64(1.0, 3.0, -2.0, 0.0)
        found = gradients.numerical_gradient(lambda x: (x**3).sum(), x, eps)
        assert_same(found, 3 * x**2 + eps**2, **EXACT)

    def test_without_an_eps_moves_one_element_at_a_time_by_a_millionth(self):
        x = doubles(2, 3)
        points = []

        def f(point):
            points.append(point.detach().clone())
            return point.sum()

        gradients.numerical_gradient(f, x)
        moves = set()
        for point in points:
            expect(point.shape == x.shape, f"expected f to be given the shape {list(x.shape)}, got {list(point.shape)}")
            expect(point.dtype == torch.float64, f"expected f to be given float64, got {point.dtype}")
            step = (point - x).flatten()
            where = step.nonzero().flatten().tolist()
            expect(len(where) <= 1, f"expected f at x moved in one element, {len(where)} were moved")
            for i in where:
                size = step[i].item()
                expect(abs(abs(size) - 1e-6) < 1e-9, f"expected a step of 1e-06, got one of {abs(size):.6g}")
                moves.add((i, size > 0))
        expect(len(moves) == 12, f"expected each of 6 elements moved up and down, got {len(moves)} moves")

    def test_f_may_return_a_python_float(self):
        x = float64(0.3, -1.2)
        f = lambda x: math.sin(x[0].item()) * 3 + math.cos(x[1].item())  # noqa: E731
        assert_same(gradients.numerical_gradient(f, x), float64(3 * math.cos(0.3), -math.sin(-1.2)))

    def test_f_needs_nothing_that_autograd_knows(self):
        """The differences are there to check autograd: they must not ask it."""
        x = float64(1.0, -2.0, 0.3)
        found = gradients.numerical_gradient(lambda x: (x * x.detach()).sum() + x.data[0] * 5, x)
        assert_same(found, float64(7.0, -4.0, 0.6))
        assert_same(gradients.numerical_gradient(lambda x: x.round().sum() + 0 * x.sum(), x), torch.zeros_like(x))

        class Liar(torch.autograd.Function):
            forward = staticmethod(lambda ctx, x: x * 2)
            backward = staticmethod(lambda ctx, grad: grad * 9)

        for point in (x, x.clone().requires_grad_()):
            found = gradients.numerical_gradient(lambda x: Liar.apply(x).sum(), point)
            assert_same(found, float64(2.0, 2.0, 2.0))

    def test_elements_may_depend_on_each_other(self):
        x = doubles(3, 2)
        found = gradients.numerical_gradient(lambda x: (x[0] * x[1]).sum() * x[2, 1], x)
        leaf = x.clone().requires_grad_()
        (wanted,) = torch.autograd.grad((leaf[0] * leaf[1]).sum() * leaf[2, 1], leaf)
        assert_same(found, wanted)

    def test_x_may_have_no_dimensions(self):
        assert_same(
            gradients.numerical_gradient(lambda x: x**2, torch.tensor(3.0).double()), torch.tensor(6.0).double()
        )

    @pytest.mark.parametrize("shape", [(0,), (2, 0), (0, 3)], ids=str)
    def test_an_empty_x_has_an_empty_gradient(self, shape):
        found = gradients.numerical_gradient(lambda x: x.sum(), doubles(*shape))
        assert_same(found, torch.zeros(shape, dtype=torch.float64))

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_elements_count_one_by_one_whatever_the_strides(self, layout):
        """The elements of an expanded x share memory: one moves, the others stay."""
        x, weight = strided(doubles(3, 4), layout), doubles(3, 4)
        with unchanged(x, names=("x",)):
            found = gradients.numerical_gradient(lambda x: (x * weight).sum(), x, eps=0.25)
        assert_same(found, weight, **EXACT)

    @pytest.mark.parametrize("layout", ["contiguous", *LAYOUTS])
    def test_x_is_never_changed_not_even_for_a_moment(self, layout):
        x = doubles(2, 3) if layout == "contiguous" else strided(doubles(2, 3), layout)
        before = x.clone()

        def f(point):
            expect(torch.equal(x, before), "expected x to stay as it was while f runs, it was moved")
            return point.sum()

        for point in (x, x.requires_grad_()):
            gradients.numerical_gradient(f, point)

    def test_the_result_does_not_require_grad(self):
        weight = leaf(3)
        for x in (doubles(3), leaf(3), leaf(3) * 2):
            with unchanged(x, weight):
                found = gradients.numerical_gradient(lambda x: (x * weight).sum(), x, eps=0.5)
            expect(not found.requires_grad, "expected a result without a graph, got one that requires grad")
            assert_same(found, weight.detach(), **EXACT)

    def test_x_is_as_it_was_also_when_f_raises(self):
        x = doubles(3)
        calls = itertools.count()
        with state_kept(), unchanged(x, names=("x",)), refuses(ZeroDivisionError):
            gradients.numerical_gradient(lambda x: x.sum() if next(calls) < 3 else 1 / 0, x)

    def test_refuses_any_dtype_but_float64_before_f_is_called(self):
        for dtype, shape in itertools.product(NOT_FLOAT64, ((3,), (0,), ())):
            with refuses(TypeError):
                gradients.numerical_gradient(never, torch.ones(shape, dtype=dtype))

    def test_f_may_return_a_view_of_its_argument(self):
        """What f returned must be read before its argument changes."""
        found = gradients.numerical_gradient(lambda x: x[1], float64(0.3, -1.2, 2.0))
        assert_same(found, float64(0.0, 1.0, 0.0))


def seen_with_slopes(x, slopes, seen):
    """A value with these slopes, of which autograd sees others."""
    return (x.detach() * slopes).sum() + ((x - x.detach()) * seen).sum()


class TestGradientError:
    def test_is_near_zero_where_backward_is_right(self):
        x = doubles(3, 2)
        for f in (lambda x: (x * x).sum(), lambda x: x.sin().prod(), lambda x: x.softmax(1)[0, 1]):
            error = gradients.gradient_error(f, x)
            expect(type(error) is float, f"expected a Python float, got {type(error).__name__}")
            expect(0 <= error < 1e-6, f"expected an error near 0, got {error:.6g}")

    def test_compares_in_float64(self):
        """In float32 a gradient of a thousand is right to a ten-thousandth at best."""
        error = gradients.gradient_error(lambda x: (1000 * x * x).sum(), float64(1 / 3, 2 / 7, -5 / 9))
        expect(error < 1e-5, f"expected an error near 0, got {error:.6g}")

    @pytest.mark.parametrize(
        "slopes, seen, wanted",
        [
            ((0.5, 3.0, 2.0), (0.0, 0.0, 0.0), 3.0),  # autograd sees too little
            ((-0.5, -3.0, 2.0), (0.0, 0.0, 0.0), 3.0),
            ((0.0, 0.0, 0.0), (0.5, 3.0, 2.0), 3.0),  # too much
            ((1.0, 2.0, 4.0), (4.0, 1.0, 2.0), 3.0),  # the right length in another direction
            ((1.0, 2.0, 4.0), (1.0, 2.0, 4.5), 0.5),  # one element of three
            ((1000.0, 2000.0, 4000.0), (1001.0, 2000.0, 4007.0), 7.0),
            ((1e-3, 2e-3, 1e-4), (2e-3, 2e-3, 1e-4), 1e-3),
            ((1.0, -2.0, 4.0), (1.0, 2.0, 4.0), 4.0),  # the wrong sign
        ],
        ids=[
            "too low",
            "too low and signed",
            "too high",
            "another direction",
            "one element",
            "big",
            "tiny",
            "wrong sign",
        ],
    )
    def test_is_the_largest_absolute_difference(self, slopes, seen, wanted):
        slopes, seen = float64(*slopes), float64(*seen)
        error = gradients.gradient_error(lambda x: seen_with_slopes(x, slopes, seen), float64(0.3, -0.2, 0.7))
        expect(abs(error - wanted) < 1e-5, f"expected {wanted:.6g}, got {error:.6g}")

    def test_finds_a_backward_that_is_right_for_an_incoming_gradient_of_ones_alone(self):
        class Forgetful(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                ctx.save_for_backward(x)
                return x * x

            @staticmethod
            def backward(ctx, grad):
                return 2 * ctx.saved_tensors[0]

        x, weight = float64(1.0, -2.0, 0.5), float64(3.0, 0.5, -1.0)
        error = gradients.gradient_error(lambda x: Forgetful.apply(x).sum(), x)
        expect(error < 1e-6, f"expected an error near 0 for a sum, got {error:.6g}")
        error = gradients.gradient_error(lambda x: (Forgetful.apply(x) * weight).sum(), x)
        expect(abs(error - 4) < 1e-5, f"expected 4 for a weighted sum, got {error:.6g}")

    def test_a_gradient_in_one_place_too_low_in_another_too_high_is_the_larger_of_both(self):
        x = doubles(2, 3)
        slopes, seen = doubles(2, 3), doubles(2, 3)
        error = gradients.gradient_error(lambda x: seen_with_slopes(x, slopes, seen), x)
        wanted = (slopes - seen).abs().max().item()
        expect(abs(error - wanted) < 1e-6, f"expected {wanted:.6g}, got {error:.6g}")

    def test_an_f_that_is_constant_has_no_error(self):
        other = leaf(3)
        constants = {
            "a Python float": lambda x: 2.5,
            "a constant tensor": lambda x: torch.tensor(2.5),
            "a tensor that depends on others that require grad": lambda x: (other * other).sum(),
            "x in a product with 0": lambda x: (x * 0).sum(),
            "a whole number that x does not move": lambda x: x.detach().round().sum(),
        }
        for name, f in constants.items():
            error = gradients.gradient_error(f, float64(0.3, -1.2))
            expect(type(error) is float and error == 0.0, f"expected 0.0 for {name}, got {error!r}")

    def test_where_autograd_finds_no_way_its_gradient_is_zero(self):
        """A detach in the wrong place: the value depends on x, and nothing comes back."""
        other = leaf(2)
        lost = {
            "a detached value": lambda x: 3 * x.detach().sum(),
            "a Python float": lambda x: 3 * x.sum().item(),
            "a value that others have a way from": lambda x: (other * other).sum() + 3 * x.detach().sum(),
        }
        for name, f in lost.items():
            error = gradients.gradient_error(f, float64(0.3, -1.2))
            expect(abs(error - 3) < 1e-6, f"expected 3 for {name}, got {error!r}")

    @pytest.mark.parametrize("shape", [(0,), (2, 0), (0, 3)], ids=str)
    def test_an_empty_x_has_no_error(self, shape):
        for x in (doubles(*shape), leaf(*shape)):
            error = gradients.gradient_error(lambda x: (x * x).sum(), x)
            expect(type(error) is float and error == 0.0, f"expected 0.0, got {error!r}")

    def test_x_may_have_no_dimensions(self):
        error = gradients.gradient_error(lambda x: x * x.detach(), torch.tensor(3.0, dtype=torch.float64))
        expect(abs(error - 3) < 1e-6, f"expected 3, got {error!r}")

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_elements_count_one_by_one_whatever_the_strides(self, layout):
        slopes, seen = doubles(3, 4), doubles(3, 4)
        x = strided(doubles(3, 4), layout)
        error = gradients.gradient_error(lambda x: seen_with_slopes(x, slopes, seen), x)
        wanted = (slopes - seen).abs().max().item()
        expect(abs(error - wanted) < 1e-6, f"expected {wanted:.6g}, got {error:.6g}")

    def test_is_nan_where_a_gradient_is_nan(self):
        """sqrt has no slope at 0; a where around it hides that in the value and not in the gradient."""
        for f, x in (
            (lambda x: x.log().sum(), float64(1.0, -2.0)),
            (lambda x: torch.where(x > 0, x.sqrt(), 0.0).sum(), float64(1.0, 0.0, 4.0)),
            (lambda x: torch.where(x > 0, x.sqrt(), 0.0).sum(), float64(0.0, 1.0, 4.0)),
        ):
            error = gradients.gradient_error(f, x)
            expect(math.isnan(error), f"expected nan, got {error!r}")

    @pytest.mark.parametrize("kind", ["plain", "leaf", "leaf with a gradient", "computed"])
    def test_touches_neither_x_nor_the_grad_of_anything(self, kind):
        x, weight, bias = leaf(3), leaf(3), leaf(3)
        x = {"plain": x.detach(), "computed": x * 2}.get(kind, x)
        if kind == "leaf with a gradient":
            x.grad = torch.full((3,), 7.0, dtype=torch.float64)
        weight.grad = torch.full((3,), 5.0, dtype=torch.float64)
        with unchanged(x, weight, bias, weight.grad, names=("x", "what f uses", "what f uses", "the .grad there")):
            error = gradients.gradient_error(lambda x: (x * weight).sin().sum() + (x * bias).sum(), x)
        expect(error < 1e-6, f"expected an error near 0, got {error:.6g}")
        expect(bias.grad is None, "expected the .grad of what f uses to stay None, it was filled")
        if kind == "leaf with a gradient":
            expect(bool((x.grad == 7).all()), "expected the .grad of x to stay as it was, it was changed")

    def test_works_inside_no_grad_and_leaves_it_on(self):
        for x in (doubles(3), leaf(3)):
            with torch.no_grad(), state_kept():
                error = gradients.gradient_error(lambda x: (x * x * x).sum(), x)
            expect(error < 1e-6, f"expected an error near 0, got {error:.6g}")

    @pytest.mark.parametrize("after", [0, 1, 4])
    def test_leaves_all_as_it_was_also_when_f_raises(self, after):
        for mode in (torch.no_grad, torch.enable_grad):
            calls = itertools.count()
            x = doubles(3)
            f = lambda x: (x * x).sum() if next(calls) < after else 1 / 0  # noqa: B023, E731
            with mode(), state_kept(), unchanged(x), refuses(ZeroDivisionError):
                gradients.gradient_error(f, x)

    def test_refuses_any_dtype_but_float64_before_f_is_called(self):
        for dtype, shape in itertools.product(NOT_FLOAT64, ((3,), (0,), ())):
            with refuses(TypeError):
                gradients.gradient_error(never, torch.ones(shape, dtype=dtype))


@st.composite
def broadcasts(draw):
    """A shape and what it was broadcast to."""
    big = draw(st.lists(st.integers(0, 4), max_size=4).map(tuple))
    small = big[draw(st.integers(0, len(big))) :]
    return tuple(draw(st.sampled_from([size, 1])) for size in small), big


class TestUnbroadcast:
    def test_every_use_of_an_element_adds_to_its_gradient(self):
        grad = torch.tensor([[1.0, 2.0, 3.0], [10.0, 20.0, 30.0]])
        assert_same(gradients.unbroadcast(grad, (3,)), torch.tensor([11.0, 22.0, 33.0]))
        assert_same(gradients.unbroadcast(grad, (2, 1)), torch.tensor([[6.0], [60.0]]))
        assert_same(gradients.unbroadcast(grad, (1, 3)), torch.tensor([[11.0, 22.0, 33.0]]))
        assert_same(gradients.unbroadcast(grad, (1,)), torch.tensor([66.0]))

    @given(pair=broadcasts())
    def test_is_the_gradient_of_expand(self, pair):
        small, big = pair
        grad, x = doubles(*big), leaf(*small)
        (wanted,) = torch.autograd.grad((x.expand(big) * grad).sum(), x)
        assert_same(gradients.unbroadcast(grad, small), wanted, **EXACT)

    def test_dimensions_in_front_go_and_sizes_of_one_stay(self):
        for big, smaller in {
            (2, 3, 4): [(3, 1), (1, 3, 1), (1, 1, 1), (4,), (2, 1, 4), (1, 4)],
            (3, 3): [(3,), (3, 1), (1, 3), (1, 1), (1,), ()],
            (1, 3): [(3,), (1,), ()],
            (1, 1): [(1,), ()],
            (1,): [()],
        }.items():
            for small in smaller:
                grad, x = doubles(*big), leaf(*small)
                (wanted,) = torch.autograd.grad((x.expand(big) * grad).sum(), x)
                assert_same(gradients.unbroadcast(grad, small), wanted, **EXACT)

    def test_where_nothing_was_broadcast_the_values_stay(self):
        for shape in ((2, 3), (3,), (), (1, 3), (0, 3), (1,)):
            grad = sample(*shape)
            assert_same(gradients.unbroadcast(grad, shape), grad)

    def test_one_element_gets_the_sum_of_all(self):
        grad = doubles(2, 3)
        assert_same(gradients.unbroadcast(grad, ()), grad.sum(), **EXACT)

    def test_what_was_broadcast_to_nothing_has_a_gradient_of_zero(self):
        for big, small in (((0, 3), (1, 3)), ((0, 3), (3,)), ((2, 0), (1,)), ((2, 0), (2, 1)), ((0,), ())):
            assert_same(gradients.unbroadcast(torch.ones(big), small), torch.zeros(small))

    def test_the_shape_may_be_any_sequence(self):
        grad = sample(4, 2, 3)
        for shape in ((2, 1), [2, 1], torch.Size([2, 1])):
            assert_same(gradients.unbroadcast(grad, shape), grad.sum(0).sum(1, keepdim=True))
        assert_same(gradients.unbroadcast(grad, []), grad.sum())

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
    def test_a_sum_of_many_is_not_rounded_on_the_way(self, dtype):
        """Added one by one in half precision, 4096 ones are no more than 2048 or 256."""
        found = gradients.unbroadcast(torch.ones(4096, 2, dtype=dtype), (2,))
        assert_same(found, torch.full((2,), 4096.0, dtype=dtype))

    @pytest.mark.parametrize(
        "big, shapes",
        [
            ((2, 3), [(2,), (4,), (3, 2), (6,), (4, 3), (2, 4)]),
            ((5, 2, 3), [(5, 1), (5, 3)]),
            ((1, 3), [(2, 3), (0, 3)]),
            ((2, 1), [(2, 3)]),
            ((1,), [(5,)]),
            ((3,), [(0,)]),
            ((0, 3), [(2, 3)]),
            ((4, 0), [(4, 3)]),
        ],
        ids=str,
    )
    def test_refuses_a_shape_that_could_not_have_been(self, big, shapes):
        for small in shapes:
            with refuses(ValueError, mentions=[*big, *small]):
                gradients.unbroadcast(sample(*big), small)

    def test_refuses_a_shape_of_more_dimensions(self):
        """Broadcasting adds dimensions, it takes none away."""
        for big, small in (
            ((2, 3), (1, 2, 3)), ((3,), (1, 3)), ((), (1,)), ((3,), (1, 1)), ((2, 3), (5, 2, 3)),
        ):  # fmt: skip
            with refuses(ValueError):
                gradients.unbroadcast(sample(*big), small)

    def test_refuses_a_negative_size(self):
        with refuses(ValueError):
            gradients.unbroadcast(sample(2, 3), (-1, 3))
        with refuses(ValueError):
            gradients.unbroadcast(sample(2, 3), (2, -3))

    @pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.bool], ids=str)
    def test_refuses_integers_also_where_there_is_nothing_to_sum(self, dtype):
        for shape in ((2, 3), (3,)):
            with refuses(TypeError):
                gradients.unbroadcast(torch.ones(2, 3, dtype=dtype), shape)


def linear(x, weight, bias):
    """The linear map, element by element of x and weight."""
    out = (x.unsqueeze(-2) * weight).sum(-1)
    return out if bias is None else out + bias


BATCHES = [(4,), (), (2, 3), (1,), (0,), (3, 0, 2)]


class TestLinearFunction:
    def test_multiplies_by_the_weight_and_adds_the_bias(self):
        x, weight = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0], [5.0, 6.0], [0.0, -1.0]])
        y = gradients.LinearFunction.apply(x, weight, torch.tensor([10.0, 20.0, 30.0]))
        assert_same(y, torch.tensor([[21.0, 37.0, 28.0]]))

    @pytest.mark.parametrize("batch", BATCHES, ids=str)
    def test_gradients_are_sums_over_all_batch_dimensions(self, batch):
        x, weight, bias = leaf(*batch, 3), leaf(5, 3), leaf(5)
        y, wanted = gradients.LinearFunction.apply(x, weight, bias), linear(x, weight, bias)
        assert_same(y, wanted, **EXACT)
        assert_same_gradients(y, wanted, [x, weight, bias], **EXACT)

    @given(batch=shapes(max_dims=2, min_size=0, max_size=3), i=st.integers(0, 4), o=st.integers(0, 4))
    def test_agrees_with_sums_of_products_for_any_sizes(self, batch, i, o):
        x, weight, bias = leaf(*batch, i), leaf(o, i), leaf(o)
        y, wanted = gradients.LinearFunction.apply(x, weight, bias), linear(x, weight, bias)
        assert_same(y, wanted, **EXACT)
        assert_same_gradients(y, wanted, [x, weight, bias], **EXACT)

    @pytest.mark.parametrize("batch", BATCHES, ids=str)
    def test_the_bias_may_be_none(self, batch):
        x, weight = leaf(*batch, 3), leaf(5, 3)
        y, wanted = gradients.LinearFunction.apply(x, weight, None), linear(x, weight, None)
        assert_same(y, wanted, **EXACT)
        assert_same_gradients(y, wanted, [x, weight], **EXACT)

    @pytest.mark.parametrize("asked", range(1, 8))
    def test_each_of_the_three_may_be_frozen(self, asked):
        given = [leaf(2, 4, 3), leaf(5, 3), leaf(5)]
        for k, x in enumerate(given):
            x.requires_grad_(bool(asked >> k & 1))
        leaves = [x for x in given if x.requires_grad]
        for same in (assert_same_gradients, assert_same_second_gradients):
            y = gradients.LinearFunction.apply(*given)
            same(y, linear(*given), leaves, **EXACT)

    @pytest.mark.parametrize("frozen", ["x", "weight", "bias"])
    def test_the_gradient_of_what_is_frozen_is_not_computed(self, frozen):
        """A frozen layer should cost less: ctx.needs_input_grad says what is asked for."""
        names = ["x", "weight", "bias"]

        def count(*asked):
            given = {"x": doubles(2, 4, 3), "weight": doubles(5, 3), "bias": doubles(5)}
            return backward_operations(
                gradients.LinearFunction.apply, *(given[name].requires_grad_(name in asked) for name in names)
            )

        others = [name for name in names if name != frozen]
        for asked in ((others[0],), (others[1],), others):
            without, with_it = count(*asked), count(*asked, frozen)
            expect(
                without < with_it,
                f"expected less work in backward where {frozen} is frozen and {' and '.join(asked)} not,",
                f"got {without} operations, as if it was asked for too: {with_it}",
            )

    def test_gradients_can_be_differentiated_again(self):
        x, weight, bias = leaf(2, 4, 3), leaf(5, 3), leaf(5)
        y, wanted = gradients.LinearFunction.apply(x, weight, bias), linear(x, weight, bias)
        assert_same_second_gradients(y, wanted, [x, weight, bias], **EXACT)
        for one in (x, weight, bias):
            y, wanted = gradients.LinearFunction.apply(x, weight, bias), linear(x, weight, bias)
            assert_same_second_gradients(y**2, wanted**2, [one], **EXACT)

    def test_a_single_vector_can_be_differentiated_twice(self):
        x, weight, bias = leaf(3), leaf(5, 3), leaf(5)
        y, wanted = gradients.LinearFunction.apply(x, weight, bias) ** 2, linear(x, weight, bias) ** 2
        assert_same_second_gradients(y, wanted, [x, weight, bias], **EXACT)

    def test_each_call_remembers_its_own_inputs(self):
        first, second = (leaf(4, 3), leaf(5, 3), leaf(5)), (leaf(4, 3), leaf(5, 3), leaf(5))
        y = gradients.LinearFunction.apply(*first)
        gradients.LinearFunction.apply(*second)
        assert_same_gradients(y, linear(*first), first, **EXACT)

    def test_one_tensor_may_be_both_x_and_weight(self):
        x = leaf(3, 3)
        assert_same_gradients(gradients.LinearFunction.apply(x, x, None), linear(x, x, None), [x], **EXACT)

    def test_the_incoming_gradient_may_have_any_strides(self):
        x, weight, bias = leaf(2, 4, 3), leaf(5, 3), leaf(5)
        for use in (lambda y: y.movedim(0, -1), lambda y: y.sum((0, 1)), torch.sum):
            y = gradients.LinearFunction.apply(x, weight, bias)
            assert_same_gradients(use(y), use(linear(x, weight, bias)), [x, weight, bias], **EXACT)

    @pytest.mark.parametrize("written", [0, 1])
    def test_a_write_to_what_forward_saw_gives_no_wrong_gradient(self, written):
        given = [leaf(4, 3), leaf(5, 3), leaf(5)]
        y = gradients.LinearFunction.apply(*given)
        wanted = gradients_of(linear(*given), given)
        with torch.no_grad():
            given[written].add_(1)
        raises_or_is_right(y, given, wanted)

    def test_writes_into_none_of_its_inputs_nor_the_incoming_gradient(self):
        writes_nowhere(gradients.LinearFunction.apply, leaf(4, 3), leaf(5, 3), leaf(5))
        writes_nowhere(gradients.LinearFunction.apply, leaf(3, 3), leaf(3, 3), leaf(3))
        writes_nowhere(gradients.LinearFunction.apply, leaf(3), leaf(5, 3), leaf(5))
        writes_nowhere(gradients.LinearFunction.apply, leaf(4, 3), leaf(5, 3), None)

    def test_backward_stays_on_the_device(self):
        backward_stays_on_the_device(gradients.LinearFunction.apply, leaf(2, 4, 3), leaf(5, 3), leaf(5))

    def test_backward_takes_no_more_operations_for_more_rows(self):
        apply = gradients.LinearFunction.apply
        few, many = (backward_operations(apply, leaf(n, 2, 3), leaf(n + 2, 3), leaf(n + 2)) for n in (3, 8))
        expect(many <= few, f"expected as many operations in backward for 8 rows as for 3, got {many} against {few}")

    @pytest.mark.parametrize(
        "x, weight", [((4, 2), (5, 3)), ((4, 5), (5, 3)), ((4, 1), (5, 3)), ((4, 3), (5, 1)), ((2,), (5, 3)),
                      ((6, 4, 0), (5, 3)), ((4, 3), (5, 0)), ((0, 2), (5, 3))], ids=str,
    )  # fmt: skip
    def test_refuses_an_x_that_does_not_end_in_the_weights_i(self, x, weight):
        for bias in (None, sample(5)):
            with refuses(ValueError, mentions=[*x, *weight]):
                gradients.LinearFunction.apply(sample(*x), sample(*weight).requires_grad_(), bias)

    @pytest.mark.parametrize("bias", [(1,), (4,), (3,), (6,), (0,)], ids=str)
    def test_refuses_a_bias_of_another_size(self, bias):
        """A bias of [1] would be broadcast without a word."""
        with refuses(ValueError, mentions=[*bias, 5]):
            gradients.LinearFunction.apply(sample(4, 3), sample(5, 3), sample(*bias))

    @pytest.mark.parametrize("bias", [(), (1, 5), (4, 5), (5, 1)], ids=str)
    def test_refuses_a_bias_that_is_no_vector(self, bias):
        with refuses(ValueError):
            gradients.LinearFunction.apply(sample(4, 3), sample(5, 3), sample(*bias))

    @pytest.mark.parametrize(
        "x, weight", [((4, 3), (3,)), ((4, 3), (2, 5, 3)), ((4, 3), ()), ((), (5, 3)), ((), (5, 1))]
    )
    def test_refuses_a_weight_that_is_no_matrix_and_an_x_without_dimensions(self, x, weight):
        with refuses(ValueError):
            gradients.LinearFunction.apply(sample(*x), sample(*weight), None)

    def test_has_a_backward_of_its_own(self):
        y = gradients.LinearFunction.apply(leaf(4, 3), leaf(5, 3), leaf(5))
        own = isinstance(y.grad_fn, torch.autograd.function.BackwardCFunction)
        expect(own, "expected a torch.autograd.Function with a backward of its own")

    def test_a_bias_of_one_is_refused_for_an_empty_batch_too(self):
        with refuses(ValueError, mentions=[1, 5]):
            gradients.LinearFunction.apply(sample(0, 3), sample(5, 3), sample(1))


def logsumexp(x, dim):
    """As the formula says, for values that exp can take."""
    return x.exp().sum(dim).log()


class Weighted(torch.autograd.Function):
    """Stands for a sum of y with weights, also where y is infinite: what comes back to y are the weights."""

    @staticmethod
    def forward(ctx, y, weights):
        ctx.save_for_backward(weights)
        return y.new_zeros(())

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.saved_tensors[0], None


class TestLogSumExp:
    def test_is_the_logarithm_of_the_sum_of_exponentials(self):
        x = torch.tensor([[1.0, 2.0, 3.0], [0.5, 4.0, 0.5]]).log()
        assert_same(gradients.LogSumExp.apply(x, 1), torch.tensor([6.0, 5.0]).log())
        assert_same(gradients.LogSumExp.apply(torch.zeros(2, 3), 1), torch.full((2,), math.log(3)))
        assert_same(gradients.LogSumExp.apply(torch.zeros(2, 3), 0), torch.full((3,), math.log(2)))

    @given(shape=shapes(min_dims=1, max_dims=3), data=st.data())
    def test_agrees_with_the_formula_over_any_dimension(self, shape, data):
        dim = data.draw(st.integers(-len(shape), len(shape) - 1))
        x = leaf(*shape)
        y, wanted = gradients.LogSumExp.apply(x, dim), logsumexp(x, dim)
        assert_same(y, wanted, **EXACT)
        assert_same_gradients(y, wanted, [x], **EXACT)

    @pytest.mark.parametrize("dim", [0, 1, 2, -1, -2, -3])
    def test_a_negative_dim_counts_from_the_end(self, dim):
        for shape in ((2, 3, 4), (3, 3, 3)):
            x = leaf(*shape)
            y, wanted = gradients.LogSumExp.apply(x, dim), logsumexp(x, dim)
            assert_same(y, wanted, **EXACT)
            assert_same_gradients(y, wanted, [x], **EXACT)

    @pytest.mark.parametrize("dim", [0, 1, -1])
    def test_the_gradient_can_be_differentiated_again(self, dim):
        x = leaf(2, 3, 4)
        y, wanted = gradients.LogSumExp.apply(x, dim), logsumexp(x, dim)
        assert_same_second_gradients(y, wanted, [x], **EXACT)
        y, wanted = gradients.LogSumExp.apply(x, dim) ** 2, logsumexp(x, dim) ** 2
        assert_same_second_gradients(y, wanted, [x], **EXACT)

    @pytest.mark.parametrize(
        "shape, dim, wanted", [((1, 3, 1), 1, (1, 1)), ((1, 3), 0, (3,)), ((2, 1), 1, (2,)), ((3,), 0, ())]
    )
    def test_only_dim_disappears(self, shape, dim, wanted):
        found = gradients.LogSumExp.apply(torch.zeros(shape), dim)
        assert_same(found, torch.full(wanted, math.log(shape[dim])))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
    @pytest.mark.parametrize("dim", [0, 1, -1, -2])
    def test_values_that_exp_cannot_take_give_finite_results_and_gradients(self, dtype, dim):
        """Each row has its own peak: one row lies at 1e4, the next at -1e4."""
        x = torch.tensor([[1e4, 1e4 - 1, 1e4], [-1e4, -1e4 + 2, -1e4 + 1], [1e4, 0.0, -1e4], [0.0, 0.5, -1e4]])
        x = (x if dim in (1, -1) else x.T.contiguous()).to(dtype).requires_grad_()
        y = gradients.LogSumExp.apply(x, dim)
        wide = x.detach().double().requires_grad_()
        wanted = torch.logsumexp(wide, dim)
        assert_same(y, wanted.to(dtype))
        (found,), (right,) = gradients_of(y, [x]), gradients_of(wanted, [wide])
        loose = 1e-3 if dtype == torch.float32 else 1e-9
        assert_same(found, right.to(dtype), rtol=loose, atol=loose, what="the gradient")

    def test_half_precision_at_1e4_is_finite_too(self):
        x = torch.tensor([[1e4, 1e4, -1e4], [-1e4, -1e4, -1e4]], dtype=torch.float16, requires_grad=True)
        y = gradients.LogSumExp.apply(x, 1)
        assert_same(y, torch.tensor([1e4, -1e4], dtype=torch.float16))
        (found,) = torch.autograd.grad(y.sum(), x)
        expect(bool(found.isfinite().all()), "expected a finite gradient, got nan or inf")

    def test_an_entry_of_minus_infinity_adds_nothing_and_has_no_gradient(self):
        """It is how a mask says: not this one."""
        x = float64(-INF, 0.3, -INF, -1.2, 2.0).requires_grad_()
        y = gradients.LogSumExp.apply(x, 0)
        rest = float64(0.3, -1.2, 2.0).requires_grad_()
        wanted = logsumexp(rest, 0)
        assert_same(y, wanted, **EXACT)
        (found,), (right,) = gradients_of(y, [x]), gradients_of(wanted, [rest])
        assert_same(found, float64(0, right[0], 0, right[1], right[2]), what="the gradient", **EXACT)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16], ids=str)
    @pytest.mark.parametrize("dim", [1, -2])
    def test_a_row_of_nothing_but_minus_infinity_gives_minus_infinity_and_no_gradient(self, dtype, dim):
        rows = torch.tensor([[-INF, -INF, -INF], [0.0, -INF, 1.0]])
        x = (rows if dim == 1 else rows.T.contiguous()).to(dtype).requires_grad_()
        y = gradients.LogSumExp.apply(x, dim)
        assert_same(y, torch.tensor([-INF, math.log(1 + math.e)], dtype=dtype))
        (found,) = torch.autograd.grad(Weighted.apply(y, torch.tensor([5.0, 1 + math.e], dtype=dtype)), x)
        wanted = torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, math.e]], dtype=dtype)
        assert_same(found if dim == 1 else found.T, wanted, what="the gradient")

    def test_there_is_no_nan_in_the_second_derivative_either(self):
        finite = float64(0.3, -1.2, 2.0)
        x = torch.full((3, 5), -INF, dtype=torch.float64)
        x[0, [1, 3, 4]] = finite
        x[2] = 1e4
        x.requires_grad_()
        weight, incoming = doubles(3, 5), float64(0.7, 1.9, -0.4).requires_grad_()
        y = gradients.LogSumExp.apply(x, 1)
        (first,) = torch.autograd.grad(Weighted.apply(y, incoming), x, create_graph=True)
        expect(first.requires_grad, "expected a gradient that can be differentiated again, it has no history")
        to_x, to_incoming = torch.autograd.grad((first * weight).sum(), (x, incoming))
        expect(not bool(to_x.isnan().any()), f"expected no nan in the second derivative, got {to_x.tolist()}")
        expect(not bool(to_incoming.isnan().any()), "expected no nan for the incoming gradient, got one")
        share = finite.softmax(0)
        part = weight[0, [1, 3, 4]]
        wanted = torch.zeros(3, 5, dtype=torch.float64)
        wanted[0, [1, 3, 4]] = 0.7 * share * (part - (share * part).sum())
        wanted[2] = -0.4 * 0.2 * (weight[2] - weight[2].mean())
        assert_same(to_x, wanted, what="the second derivative", rtol=1e-9, atol=1e-9)
        assert_same(to_incoming, torch.stack([(share * part).sum(), float64(0.0)[0], weight[2].mean()]), atol=1e-9)

    @pytest.mark.parametrize(
        "shape, dim", [((3, 0), 1), ((0, 3), 0), ((0,), 0), ((2, 0, 4), -2), ((0, 3), 1), ((2, 0, 4), 0), ((0, 0), -1)]
    )
    def test_an_empty_row_gives_minus_infinity(self, shape, dim):
        x = torch.zeros(shape, requires_grad=True)
        y = gradients.LogSumExp.apply(x, dim)
        wanted = torch.zeros(shape).sum(dim)
        assert_same(y, torch.full_like(wanted, -INF))
        (found,) = gradients_of(y, [x])
        assert_same(found, torch.zeros(shape), what="the gradient")

    def test_each_call_remembers_its_own_dim_and_x(self):
        x, other = leaf(3, 3), leaf(3, 3)
        y = gradients.LogSumExp.apply(x, 0)
        gradients.LogSumExp.apply(other, 1)
        assert_same_gradients(y, logsumexp(x, 0), [x], **EXACT)

    def test_a_write_to_what_forward_saw_gives_no_wrong_gradient(self):
        x = leaf(2, 3)
        y = gradients.LogSumExp.apply(x, 1)
        wanted = gradients_of(logsumexp(x, 1), [x])
        with torch.no_grad():
            x[0, 1] += 1
        raises_or_is_right(y, [x], wanted)

    def test_the_incoming_gradient_may_have_any_strides(self):
        x = leaf(2, 3, 4)
        for use in (lambda y: y.mT, torch.sum):
            y = gradients.LogSumExp.apply(x, 1)
            assert_same_gradients(use(y), use(logsumexp(x, 1)), [x], **EXACT)

    def test_writes_into_neither_x_nor_the_incoming_gradient(self):
        writes_nowhere(lambda x: gradients.LogSumExp.apply(x, 1), leaf(2, 3))
        writes_nowhere(lambda x: gradients.LogSumExp.apply(x, 0), torch.tensor([[-INF, 1.0]] * 2, requires_grad=True))

    def test_backward_stays_on_the_device(self):
        backward_stays_on_the_device(lambda x: gradients.LogSumExp.apply(x, 1), leaf(2, 3))

    def test_backward_takes_no_more_operations_for_more_rows(self):
        for dim in (0, 1):
            apply = lambda x, dim=dim: gradients.LogSumExp.apply(x, dim)  # noqa: E731
            few, many = (backward_operations(apply, leaf(n, n + 1)) for n in (3, 8))
            expect(
                many <= few, f"expected as many operations in backward for 8 rows as for 3, got {many} against {few}"
            )

    @pytest.mark.parametrize("shape, dim", [((2, 3), 2), ((2, 3), -3), ((4,), 1), ((0, 3), 2), ((3, 0), -5)], ids=str)
    def test_refuses_a_dim_that_x_does_not_have(self, shape, dim):
        with refuses(IndexError, mentions=[dim]):
            gradients.LogSumExp.apply(sample(*shape), dim)

    def test_has_a_backward_of_its_own(self):
        own = isinstance(gradients.LogSumExp.apply(leaf(3), 0).grad_fn, torch.autograd.function.BackwardCFunction)
        expect(own, "expected a torch.autograd.Function with a backward of its own")


def mlp(x, target, w1, b1, w2, b2):
    """The loss that torch computes, and its gradients by autograd."""
    parameters = [p.detach().clone().requires_grad_() for p in (w1, b1, w2, b2)]
    w1, b1, w2, b2 = parameters
    logits = (x @ w1.T + b1).relu() @ w2.T + b2
    loss = torch.nn.functional.cross_entropy(logits, target.long())
    return loss.detach(), dict(zip(NAMES, torch.autograd.grad(loss, parameters), strict=True))


NAMES = ("w1", "b1", "w2", "b2")
INTEGERS = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]


def network(n=6, i=3, h=5, c=4, dtype=torch.float64):
    """The arguments of a call."""
    draw = lambda *shape: sample(*shape, dtype=dtype)  # noqa: E731
    target = torch.arange(n) * 3 % c if c else torch.zeros(n, dtype=torch.int64)
    return [draw(n, i), target, draw(h, i), draw(h), draw(c, h), draw(c)]


def check_mlp(arguments, wanted=None, **tolerances):
    """Loss and gradients are those of autograd."""
    loss, found = gradients.mlp_gradients(*arguments)
    right_loss, right = wanted or mlp(*arguments)
    expect(isinstance(found, dict), f"expected a dict of gradients, got {type(found).__name__}")
    expect(set(found) == set(NAMES), f"expected the keys w1, b1, w2 and b2, got {sorted(found)}")
    assert_same(loss, right_loss, what="the loss", **tolerances)
    for name in ("b2", "w2", "b1", "w1"):
        try:
            assert_same(found[name], right[name], what=f"the gradient of {name}", **tolerances)
        except Mismatch as mismatch:
            raise Mismatch(f"in the gradient of {name}:", *mismatch.lines) from None


class TestMlpGradients:
    def test_loss_and_gradients_of_a_network_that_fits_on_paper(self):
        x, target = torch.tensor([[1.0], [2.0]]), torch.tensor([0, 1])
        w1, b1, w2, b2 = torch.ones(1, 1), torch.zeros(1), torch.zeros(2, 1), torch.zeros(2)
        loss, found = gradients.mlp_gradients(x, target, w1, b1, w2, b2)
        assert_same(loss, torch.tensor(math.log(2)))
        assert_same(found["w2"], torch.tensor([[0.25], [-0.25]]))
        assert_same(found["b2"], torch.zeros(2))
        assert_same(found["w1"], torch.zeros(1, 1))

    @given(n=sizes, i=st.integers(0, 4), h=st.integers(0, 5), c=st.integers(1, 5))
    def test_agree_with_autograd_for_any_sizes(self, n, i, h, c):
        check_mlp(network(n, i, h, c), **EXACT)

    @given(seed=st.integers(0, 99))
    def test_agree_with_autograd_for_any_targets(self, seed):
        arguments = network()
        arguments[1] = torch.randint(4, (6,), generator=torch.Generator().manual_seed(seed))
        check_mlp(arguments, **EXACT)

    def test_the_loss_is_the_mean_over_the_rows(self):
        """Twice the same batch: the same loss and the same gradients."""
        x, target, *parameters = network()
        twice = [torch.cat([x, x]), torch.cat([target, target]), *parameters]
        check_mlp(twice, mlp(x, target, *parameters), **EXACT)

    def test_the_slope_of_relu_at_zero_is_zero(self):
        """A unit that is exactly at 0 is off: it passes nothing back."""
        arguments = network()
        arguments[0][2] = 0
        arguments[3].zero_()
        arguments[2][1] = 0
        check_mlp(arguments, **EXACT)

    def test_hidden_units_that_are_all_off_pass_nothing_back(self):
        arguments = network()
        arguments[3] = torch.full((5,), -100.0, dtype=torch.float64)
        check_mlp(arguments, **EXACT)

    @pytest.mark.parametrize("size", [1e3, 1e4, -1e4])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
    def test_logits_of_any_size_give_a_finite_loss_and_gradients(self, size, dtype):
        arguments = network(dtype=dtype)
        arguments[5] = torch.tensor([0.0, size, -size, size / 2], dtype=dtype)
        check_mlp(arguments, rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize("size", [35.0, 80.0, 500.0])
    def test_a_big_loss_is_not_capped(self, size):
        """The probability of a class may be too small for a number, its logarithm is not."""
        arguments = network(n=3)
        arguments[1] = torch.tensor([2, 2, 0])
        arguments[5] = float64(0.0, size, -size, 1.0)
        check_mlp(arguments, **EXACT)

    def test_a_confident_and_right_network_has_almost_no_loss(self):
        arguments = network(n=2)
        arguments[1] = torch.tensor([1, 1])
        arguments[5] = float64(0.0, 1e4, -1e4, 1.0)
        loss, found = gradients.mlp_gradients(*arguments)
        assert_same(loss, torch.zeros((), dtype=torch.float64))
        expect(all(bool((g.abs() < 1e-12).all()) for g in found.values()), "expected gradients of 0")

    @pytest.mark.parametrize("dtype", INTEGERS, ids=str)
    def test_the_target_may_be_of_any_integers(self, dtype):
        """uint8 would index as a mask, and torch's own loss takes int64 alone."""
        for n, targets in ((4, [1, 0, 1, 1]), (3, [2, 0, 1])):
            arguments = network(n)
            arguments[1] = torch.tensor(targets, dtype=dtype)
            check_mlp(arguments, **EXACT)

    @pytest.mark.parametrize("asked", ["all", "x", *NAMES, "computed"])
    def test_nothing_is_recorded_also_where_the_inputs_require_grad(self, asked):
        arguments = network()
        for name, x in zip(("x", "target", *NAMES), arguments, strict=True):
            if asked in ("all", "computed", name) and name != "target":
                x.requires_grad_()
        if asked == "computed":
            arguments = [x if x is arguments[1] else x * 1 for x in arguments]
        saved = []
        pack = lambda x: saved.append(x) or x  # noqa: E731
        with unchanged(*arguments), state_kept(), torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            loss, found = gradients.mlp_gradients(*arguments)
        for name, result in {"loss": loss, **found}.items():
            expect(not result.requires_grad, f"expected no graph, the {name} requires grad")
        expect(not saved, f"expected nothing to be recorded, autograd kept {len(saved)} tensors for a backward")

    def test_the_grad_of_the_parameters_is_not_touched(self):
        x, target, *parameters = network()
        for p in parameters:
            p.requires_grad_()
        with unchanged(*parameters):
            gradients.mlp_gradients(x, target, *parameters)
        expect(all(p.grad is None for p in parameters), "expected .grad to stay None, it was filled")

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_any_strides_will_do(self, layout):
        arguments = [strided(x, layout) for x in network()]
        check_mlp(arguments, **EXACT)

    @pytest.mark.parametrize("wrong", [4, 5, -1, -4, -100, 1000])
    def test_refuses_a_target_that_is_no_class(self, wrong):
        """A negative one does not count from the end, and -100 is no sign to ignore the row."""
        for place in (0, 3, 5):
            arguments = network()
            arguments[1][place] = wrong
            with state_kept(), unchanged(*arguments), refuses(IndexError, mentions=[wrong]):
                gradients.mlp_gradients(*arguments)

    def test_refuses_any_target_where_there_are_no_classes(self):
        with refuses(IndexError, mentions=[0]):
            gradients.mlp_gradients(*network(c=0))

    def test_refuses_a_mean_over_no_rows(self):
        with state_kept(), refuses(ValueError, mentions=[0]):
            gradients.mlp_gradients(*network(n=0))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bool], ids=str)
    def test_refuses_a_target_that_is_not_of_integers(self, dtype):
        arguments = network()
        arguments[1] = torch.tensor([1, 0, 1, 1, 0, 0]).to(dtype)
        with state_kept(), refuses(TypeError):
            gradients.mlp_gradients(*arguments)

    @pytest.mark.parametrize("place, name", [(0, "x"), (2, "w1"), (3, "b1"), (4, "w2"), (5, "b2")])
    def test_refuses_integers_in_place_of_numbers(self, place, name):
        for dtype in (torch.int64, torch.uint8, torch.bool):
            arguments = network()
            arguments[place] = torch.ones(arguments[place].shape, dtype=dtype)
            with refuses(TypeError):
                gradients.mlp_gradients(*arguments)

    @pytest.mark.parametrize(
        "place, shapes",
        [
            (0, {(1, 3): (1, 6), (6, 1): (1, 3), (6, 2): (2, 3)}),
            (1, {(1,): (1, 6), (5,): (5, 6)}),
            (2, {(5, 1): (1, 3), (1, 3): (1, 5), (7, 3): (7, 5)}),
            (3, {(1,): (1, 5), (7,): (7, 5), (4,): (4, 5)}),
            (4, {(4, 1): (1, 5), (4, 7): (7, 5), (7, 5): (7, 4)}),
            (5, {(1,): (1, 4), (7,): (7, 4)}),
        ],
        ids=["x", "target", *NAMES],
    )
    def test_refuses_shapes_that_do_not_fit_together(self, place, shapes):
        """Broadcasting would go on, with a loss that is plausible and wrong."""
        for shape, numbers in shapes.items():
            arguments = network()
            arguments[place] = torch.zeros(shape, dtype=arguments[place].dtype)
            with state_kept(), unchanged(*arguments), refuses(ValueError, mentions=numbers):
                gradients.mlp_gradients(*arguments)

    @pytest.mark.parametrize(
        "place, shapes",
        [
            (0, [(3,), (1, 6, 3)]),
            (1, [(6, 1), (1, 6), ()]),
            (2, [(3,), (1, 5, 3)]),
            (3, [(1, 5), (), (6, 5)]),
            (4, [(5,), (1, 4, 5)]),
            (5, [(1, 4), (), (6, 4)]),
        ],
        ids=["x", "target", *NAMES],
    )
    def test_refuses_another_number_of_dimensions(self, place, shapes):
        for shape in shapes:
            arguments = network()
            arguments[place] = torch.zeros(shape, dtype=arguments[place].dtype)
            with refuses(ValueError):
                gradients.mlp_gradients(*arguments)

    def test_refuses_a_single_row_without_its_batch(self):
        for x, target in (((3,), (1,)), ((1, 3), ()), ((3,), ())):
            arguments = network(n=1)
            arguments[:2] = doubles(*x), torch.zeros(target, dtype=torch.int64)
            with refuses(ValueError):
                gradients.mlp_gradients(*arguments)


def cubes(x):
    """An f with a slope of its own everywhere."""
    return (x**3).sum()


# The house rules, for every function: `s` makes a sample in the dtype, on the device and with the number of rows `s.n`
# that a rule asks about. autograd Functions may leave integers to torch (R2).
RULES = [
    rule("Square", lambda s: (s(s.n, 4),), build=lambda m: lambda x: m.Square.apply(x), integers_refused=False),
    # Its gradient is not its slope, on purpose.
    rule("RoundSTE", lambda s: (s(s.n, 4, low=-9, high=9),), build=lambda m: lambda x: m.RoundSTE.apply(x),
         integers_refused=False, differentiable=False),
    # Takes float64 alone; gradients made by hand need not be differentiable (R5); calls f for each element (R7).
    rule("numerical_gradient", lambda s: (s(s.n, 2).double(),),
         build=lambda m: lambda x: m.numerical_gradient(cubes, x),
         keeps_dtype=False, differentiable=False, vectorised=False, fails=lambda s: (s(3, 2),)),
    # The same; the result is a Python float.
    rule("gradient_error", lambda s: (s(s.n, 2).double(),), build=lambda m: lambda x: m.gradient_error(cubes, x),
         keeps_dtype=False, differentiable=False, vectorised=False, fails=lambda s: (s(3, 2),)),
    rule("unbroadcast", lambda s: (s(s.n, 2, 3), (2, 1)),
         also={"to a number": {"make": lambda s: (s(s.n, 2), ())},
               "to itself": {"make": lambda s: (s(s.n, 2), (s.n, 2))}}, fails=lambda s: (s(2, 3), (2,))),
    rule("LinearFunction", lambda s: (s(s.n, 2, 3), s(5, 3), s(5)),
         also={"no bias": {"make": lambda s: (s(s.n, 3), s(5, 3), None)},
               "a vector": {"make": lambda s: (s(3), s(5, 3), s(5)), "any_device": False}},
         build=lambda m: lambda x, weight, bias: m.LinearFunction.apply(x, weight, bias),
         integers_refused=False, refused=("linear",), fails=lambda s: (s(4, 3), s(5, 3), s(1))),
    rule("LogSumExp", lambda s: (s(s.n, 3, 4), -2),
         also={"last dimension": {"make": lambda s: (s(s.n, 3), -1)},
               "first dimension": {"make": lambda s: (s(3, s.n), 0)}},
         build=lambda m: lambda x, dim: m.LogSumExp.apply(x, dim),
         integers_refused=False, refused=("logsumexp", "softmax", "log_softmax"), fails=lambda s: (s(2, 3), 2)),
    # Gradients made by hand (R5); a mean over no rows is refused.
    rule("mlp_gradients", lambda s: (s(s.n, 3), s.ints(s.n, high=4), s(5, 3), s(5), s(4, 5), s(4)),
         differentiable=False, empty=False,
         fails=lambda s: (s(2, 3), s.ints(2, low=4, high=6), s(5, 3), s(5), s(4, 5), s(4)),
         refused=("backward", "grad", "make_dual", "cross_entropy", "softmax", "log_softmax", "nll_loss", "logsumexp")),
]  # fmt: skip
