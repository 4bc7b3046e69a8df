"""The specs of kata 11. One class a public name; the house rules that all of them share are in the table at the end."""

import copy
import math
from contextlib import contextmanager

import pytest
import torch
import variational_dropout
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dojo import devices
from dojo.compare import assert_same, assert_same_gradients, expect, gradients_of, refuses
from dojo.guards import Refused, count_ops, state_kept, unchanged
from dojo.rules import rule
from dojo.strategies import sample, shapes, strided

FLOAT64 = {"rtol": 1e-12, "atol": 1e-12}
HALF = {"rtol": 2e-2, "atol": 2e-2}
# For another number of dimensions torch's own error is as good as ours, silence is not.
LOUD = (ValueError, RuntimeError, IndexError, TypeError)
LAYOUTS = ("transposed", "sliced", "expanded")


# What several classes use ---------------------------------------------------------------------------------------------


def away_from_zero(*shape, dtype=torch.float64):
    """Values of either sign, none of them near 0: what is 0 afterwards was dropped."""
    x = sample(*shape, dtype=dtype)
    return x + x.sign() * 0.5 + (x == 0)


def kept_places(found, x, p, what="the result"):
    """Where the result is x / (1 - p); everywhere else it must be 0."""
    expect(found.shape == x.shape, f"expected shape {list(x.shape)}, got {list(found.shape)}")
    expect(found.dtype == x.dtype, f"expected {x.dtype}, got {found.dtype}".replace("torch.", ""))
    return dropped_or_scaled(found.detach(), x.detach(), p, what, **tolerance(x.dtype))


def dropped_or_scaled(found, x, p, what, **tolerances):
    """The mask: where something is kept. What is neither 0 nor x / (1 - p) is wrong."""
    kept = found.abs() > 1e-6
    wanted = torch.where(kept, x / (1 - p), 0.0)
    wrong = ~torch.isclose(found, wanted, **tolerances)
    if wrong.any():
        at = tuple(wrong.nonzero()[0].tolist())
        expect(
            False,
            f"expected {what} to be 0 or {(x / (1 - p))[at].item():.7g} at {list(at)}, got {found[at].item():.7g}",
            f"what is kept is divided by 1 - {p}; {int(wrong.sum())} of {wrong.numel()} values differ",
        )
    return kept


def tolerance(dtype):
    return FLOAT64 if dtype == torch.float64 else HALF if dtype.itemsize == 2 else {"rtol": 1e-5, "atol": 1e-6}


def assert_chance(hits, chance, what):
    """About this share of the places is True: within five standard errors of independent decisions."""
    share, error = hits.double().mean().item(), math.sqrt(chance * (1 - chance) / hits.numel())
    expect(abs(share - chance) < 5 * error, f"expected {what} about {chance:.0%} of the time, got {share:.1%}")


def assert_drawn_apart(kept, p, places=("sequence", "feature")):
    """In a mask of two dimensions each place is dropped with probability p, whatever its neighbours are."""
    assert_chance(~kept, p, "a place dropped")
    agree = p * p + (1 - p) * (1 - p)
    for dim, place in enumerate(places):
        a, b = kept.narrow(dim, 1, kept.shape[dim] - 1), kept.narrow(dim, 0, kept.shape[dim] - 1)
        expect(not torch.equal(a, b), f"expected a decision of its own for each {place}, all have the same")
        assert_chance(a == b, agree, f"one {place} and the next decided alike")


def assert_follows_the_global_generator(draw):
    """The same seed gives the same results, each call others."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        first, second = draw(), draw()
        torch.manual_seed(3)
        again = draw()
        torch.manual_seed(4)
        other = draw()
    expect(torch.equal(first, again), "expected equal results for equal seeds of the global generator, they differ")
    expect(not torch.equal(first, second), "expected a new mask at each call, two calls gave the same")
    expect(not torch.equal(first, other), "expected other masks for another seed of the global generator")


def assert_draws_from_the_generator_alone(draw):
    """Whatever the global generator's state is: the generator that was given decides."""
    with torch.random.fork_rng(devices=[]):
        results = []
        for seed in (1, 2):
            torch.manual_seed(seed)
            results.append(draw(torch.Generator().manual_seed(7)))
    expect(torch.equal(*results), "expected the generator that was given to decide alone, the global one mattered")
    expect(
        not torch.equal(results[0], draw(torch.Generator().manual_seed(8))),
        "expected another result for a generator in another state",
    )


@contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@pytest.fixture
def no_torch_rnn(monkeypatch):
    """Whoever makes a torch.nn.RNN or RNNCell meanwhile is told that it is refused."""

    def refused(self, *args, **kwargs):
        raise Refused(f"torch.nn.{type(self).__name__}")

    for kind in (nn.RNN, nn.RNNCell):
        monkeypatch.setattr(kind, "__init__", refused)


# rnn_step -------------------------------------------------------------------------------------------------------------

STEP = ("x", "h", "w_ih", "w_hh", "b_ih", "b_hh")


def step_arguments(b=4, i=3, h=5, dtype=torch.float64):
    """Arguments of a step, all sizes different."""
    return [sample(*shape, dtype=dtype, low=-1, high=1) for shape in [(b, i), (b, h), (h, i), (h, h), (h,), (h,)]]


class TestRnnStep:
    def test_each_unit_is_the_tanh_of_its_sums(self):
        found = variational_dropout.rnn_step(
            torch.tensor([[0.5, -1.0, 2.0]]),
            torch.tensor([[0.25, -0.75]]),
            torch.tensor([[0.1, 0.2, 0.3], [-0.4, 0.5, -0.6]]),
            torch.tensor([[0.7, -0.8], [0.9, 1.0]]),
            torch.tensor([0.01, -0.02]),
            torch.tensor([-0.3, 0.4]),
        )
        # 0.05 - 0.2 + 0.6 + 0.01 + 0.175 + 0.6 - 0.3,  -0.2 - 0.5 - 1.2 - 0.02 + 0.225 - 0.75 + 0.4
        assert_same(found, torch.tensor([[math.tanh(0.935), math.tanh(-2.045)]]))

    @given(b=st.integers(1, 4), i=st.integers(1, 4), h=st.integers(1, 4))
    @settings(max_examples=15)
    def test_agrees_with_sums_over_single_numbers(self, b, i, h):
        given_ = step_arguments(b, i, h)
        x, s, w_ih, w_hh, b_ih, b_hh = (t.tolist() for t in given_)
        wanted = [
            [
                math.tanh(
                    sum(x[n][k] * w_ih[unit][k] for k in range(i))
                    + sum(s[n][k] * w_hh[unit][k] for k in range(h))
                    + b_ih[unit]
                    + b_hh[unit]
                )
                for unit in range(h)
            ]
            for n in range(b)
        ]
        assert_same(variational_dropout.rnn_step(*given_), torch.tensor(wanted, dtype=torch.float64), **FLOAT64)

    def test_agrees_with_torchs_cell_in_values_and_gradients(self):
        leaves = [t.requires_grad_() for t in step_arguments(6, 3, 5)]
        wanted, found = torch.rnn_tanh_cell(*leaves), variational_dropout.rnn_step(*leaves)
        assert_same(found, wanted.detach(), **FLOAT64)
        assert_same_gradients(found, wanted, leaves, **FLOAT64)

    def test_gradients_flow_back_through_several_steps(self):
        """Learning through time needs the way back through every state."""
        x, h, *weights = step_arguments()
        leaves = [x.requires_grad_(), h.requires_grad_(), *(w.requires_grad_() for w in weights)]
        found = wanted = h
        for _ in range(3):
            found = variational_dropout.rnn_step(x, found, *weights)
            wanted = torch.rnn_tanh_cell(x, wanted, *weights)
        assert_same_gradients(found, wanted, leaves, **FLOAT64)

    def test_large_sums_end_at_1_and_minus_1(self):
        x = torch.tensor([[1e4], [-1e4]], dtype=torch.float64, requires_grad=True)
        one, zero = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
        found = variational_dropout.rnn_step(x, torch.zeros_like(x).detach(), one, one, zero, zero)
        assert_same(found, torch.tensor([[1.0], [-1.0]], dtype=torch.float64), **FLOAT64)
        (gradient,) = gradients_of(found, [x])
        assert_same(gradient, torch.zeros_like(x).detach(), **FLOAT64)

    @pytest.mark.parametrize("b, i, h", [(4, 0, 5), (0, 3, 5), (4, 3, 0)])
    def test_any_size_may_be_0(self, b, i, h):
        given_ = step_arguments(b, i, h)
        wanted = (given_[1] @ given_[3].T + given_[4] + given_[5]).tanh() if i == 0 else torch.zeros(b, h).double()
        assert_same(variational_dropout.rnn_step(*given_), wanted, **FLOAT64)

    @pytest.mark.parametrize(
        "argument, shape, wrong",
        [
            ("h", (2, 5), 2), ("h", (1, 5), 1), ("w_ih", (5, 7), 7), ("w_ih", (5, 1), 1), ("w_ih", (6, 3), 6),
            ("w_ih", (1, 3), 1), ("w_hh", (5, 6), 6), ("w_hh", (6, 5), 6), ("w_hh", (1, 5), 1), ("b_ih", (1,), 1),
            ("b_ih", (6,), 6), ("b_hh", (1,), 1), ("b_hh", (4,), 4),
        ],
    )  # fmt: skip
    def test_refuses_shapes_that_do_not_fit_and_broadcasts_nothing(self, argument, shape, wrong):
        """A bias [1] or a single row of h would broadcast: a wrong result instead of an error."""
        arguments = step_arguments()
        arguments[STEP.index(argument)] = sample(*shape, dtype=torch.float64)
        with refuses(ValueError, mentions=[wrong]):
            variational_dropout.rnn_step(*arguments)

    def test_refuses_an_x_with_a_single_row_for_many_states(self):
        x, *others = step_arguments()
        with refuses(ValueError):
            variational_dropout.rnn_step(x[:1], *others)

    @pytest.mark.parametrize(
        "argument, shape", [("b_ih", (1, 5)), ("b_hh", (4, 5)), ("b_hh", ()), ("x", (3,)), ("h", (5,))]
    )
    def test_refuses_another_number_of_dimensions(self, argument, shape):
        arguments = step_arguments()
        arguments[STEP.index(argument)] = sample(*shape, dtype=torch.float64)
        with refuses(LOUD):
            variational_dropout.rnn_step(*arguments)

    @pytest.mark.parametrize("argument", STEP)
    def test_refuses_integers_in_any_argument(self, argument):
        arguments = step_arguments(dtype=torch.float32)
        arguments[STEP.index(argument)] = arguments[STEP.index(argument)].long()
        with refuses(TypeError):
            variational_dropout.rnn_step(*arguments)


# locked_dropout -------------------------------------------------------------------------------------------------------


def assert_locked(kept):
    """All steps of a sequence have the mask of its first one."""
    expect(
        torch.equal(kept, kept[:, :1].expand_as(kept)),
        "expected what is dropped at one step of a sequence to be dropped at all of them, the mask changes",
    )


class TestLockedDropout:
    @pytest.mark.parametrize("p", [0.3, 0.8])
    def test_one_decision_for_each_sequence_and_feature_holds_at_every_step(self, p):
        """A mask that changes at every step erases within a few of them what a state holds."""
        torch.manual_seed(0)
        x = away_from_zero(60, 4, 50)
        kept = kept_places(variational_dropout.locked_dropout(x, p), x, p)
        assert_locked(kept)
        assert_drawn_apart(kept[:, 0], p)

    @pytest.mark.parametrize("shape", [(1, 5, 2000), (2000, 5, 1), (40, 1, 50)])
    def test_a_single_sequence_feature_or_step_is_decided_the_same_way(self, shape):
        torch.manual_seed(0)
        x = away_from_zero(*shape)
        kept = kept_places(variational_dropout.locked_dropout(x, 0.3), x, 0.3)
        assert_locked(kept)
        assert_chance(~kept[:, 0], 0.3, "a place dropped")

    @given(b=st.integers(1, 4), t=st.integers(1, 4), d=st.integers(1, 4), p=st.sampled_from([0.0, 0.2, 0.5, 0.9]))
    def test_what_is_kept_is_divided_by_1_minus_p(self, b, t, d, p):
        """Sums over many features then stay as large as without dropout."""
        x = away_from_zero(b, t, d)
        generator = torch.Generator().manual_seed(b + 4 * t + 16 * d)
        assert_locked(kept_places(variational_dropout.locked_dropout(x, p, True, generator), x, p))

    def test_gradients_are_scaled_where_kept_and_0_where_dropped(self):
        torch.manual_seed(0)
        x = away_from_zero(5, 3, 7).requires_grad_()
        found = variational_dropout.locked_dropout(x, 0.3)
        kept = kept_places(found, x, 0.3)
        expect(bool(kept.any()) and not bool(kept.all()), "expected some features dropped and some kept")
        assert_same_gradients(found, x * (kept.double() / 0.7), [x], **FLOAT64)

    def test_p_0_drops_nothing(self):
        x = away_from_zero(4, 3, 50)
        for p in (0, 0.0):
            assert_same(variational_dropout.locked_dropout(x, p), x, **FLOAT64)

    def test_p_1_gives_zeros(self):
        x = away_from_zero(4, 3, 50).requires_grad_()
        x.data[0, 0, :3] = torch.tensor([math.nan, math.inf, -math.inf])
        for p in (1, 1.0):
            found = variational_dropout.locked_dropout(x, p)
            assert_same(found, torch.zeros(4, 3, 50, dtype=torch.float64), rtol=0, atol=0)
            if found.requires_grad:
                assert_same(gradients_of(found, [x])[0], torch.zeros(4, 3, 50, dtype=torch.float64), rtol=0, atol=0)

    @pytest.mark.parametrize("p", [0, 0.4, 1])
    def test_without_training_the_values_are_those_of_x_and_nothing_is_drawn(self, p):
        x = away_from_zero(4, 3, 50).requires_grad_()
        with state_kept():
            found = variational_dropout.locked_dropout(x, p, training=False)
        assert_same(found, x.detach(), rtol=0, atol=0)
        assert_same_gradients(found, x * 1, [x], **FLOAT64)
        assert_same(variational_dropout.locked_dropout(x, p, False), x.detach(), rtol=0, atol=0)

    def test_a_dropped_place_is_0_also_where_x_is_nan_or_infinite(self):
        """0 times nan is nan: a mask that is multiplied lets it through."""
        torch.manual_seed(0)
        x = torch.ones(3, 4, 60)
        x[0], x[1], x[2, 1] = math.nan, math.inf, -math.inf
        x.requires_grad_()
        found = variational_dropout.locked_dropout(x, 0.5)
        dropped = found.detach() == 0
        for row, what in enumerate(["nan", "inf", "-inf at one step"]):
            expect(bool(dropped[row].any()), f"expected zeros where features with {what} were dropped, found none")
        assert_locked(dropped)
        assert_same(found[2, 0], torch.where(dropped[2, 0], 0.0, 2.0))
        gradient = gradients_of(found, [x])[0]
        expect(
            bool((gradient[dropped] == 0).all()), "expected the gradient to be 0 where nan and infinity were dropped"
        )

    @pytest.mark.parametrize("shape", [(0, 3, 4), (3, 0, 4), (3, 4, 0)])
    @pytest.mark.parametrize("p", [0.3, 1.0])
    def test_any_size_may_be_0(self, shape, p):
        x = sample(*shape)
        for training in (True, False):
            assert_same(variational_dropout.locked_dropout(x, p, training), x)

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_the_mask_holds_for_any_strides(self, layout):
        """In an expanded batch all sequences lie in one place; each has its own mask all the same."""
        torch.manual_seed(0)
        x = strided(away_from_zero(40, 3, 50), layout).requires_grad_()
        found = variational_dropout.locked_dropout(x, 0.3)
        kept = kept_places(found, x, 0.3)
        assert_locked(kept)
        assert_drawn_apart(kept[:, 0], 0.3)
        assert_same(gradients_of(found, [x])[0], gradients_of(x * (kept.double() / 0.7), [x])[0], **FLOAT64)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
    def test_keeps_the_dtype_and_the_values(self, dtype):
        x = away_from_zero(9, 3, 11, dtype=dtype)
        for default in (torch.float32, torch.float64):
            with default_dtype(default):
                found = variational_dropout.locked_dropout(x, 0.3, generator=torch.Generator().manual_seed(5))
            kept = kept_places(found, x, 0.3)
            assert_locked(kept)
            expect(bool(kept.any()) and not bool(kept.all()), "expected some features dropped and some kept")

    def test_takes_no_more_operations_for_more_steps(self):
        """One mask with a size of 1 for time broadcasts: no loop over steps is needed."""
        counts = []
        for time in (3, 9):
            x = sample(2, time, 5)
            with count_ops() as ops:
                variational_dropout.locked_dropout(x, 0.3)
            counts.append(ops.total())
        expect(
            counts[1] <= counts[0], f"expected as many operations for 9 steps as for 3, got {counts[1]}, {counts[0]}"
        )

    def test_draws_from_the_generator_that_was_given(self):
        x = torch.ones(9, 2, 20)
        assert_draws_from_the_generator_alone(
            lambda generator: variational_dropout.locked_dropout(x, 0.4, generator=generator)
        )

    @pytest.mark.parametrize("training", [True, False])
    @pytest.mark.parametrize("p", [-0.1, 1.5, 3, -1])
    def test_refuses_what_is_no_probability(self, p, training):
        with refuses(ValueError, mentions=[p]):
            variational_dropout.locked_dropout(sample(2, 3, 4), p, training)

    @pytest.mark.parametrize("training", [True, False])
    def test_refuses_integers(self, training):
        with refuses(TypeError):
            variational_dropout.locked_dropout(torch.ones(2, 3, 4, dtype=torch.int64), 0.3, training)

    @pytest.mark.parametrize("shape", [(3, 4), (4,), (2, 3, 4, 5)])
    def test_refuses_another_number_of_dimensions(self, shape):
        with refuses(LOUD):
            variational_dropout.locked_dropout(sample(*shape), 0.3)


# LockedDropout --------------------------------------------------------------------------------------------------------


class TestLockedDropoutClass:
    def test_in_training_mode_one_mask_holds_for_a_whole_sequence(self):
        torch.manual_seed(0)
        x = away_from_zero(60, 4, 50)
        kept = kept_places(variational_dropout.LockedDropout(0.3).train()(x), x, 0.3)
        assert_locked(kept)
        assert_drawn_apart(kept[:, 0], 0.3)

    def test_half_of_the_features_are_dropped_unless_told(self):
        torch.manual_seed(0)
        x = away_from_zero(60, 2, 50)
        kept = kept_places(variational_dropout.LockedDropout()(x), x, 0.5)
        assert_drawn_apart(kept[:, 0], 0.5)

    def test_in_eval_mode_the_values_are_those_of_x_and_nothing_is_drawn(self):
        x = away_from_zero(4, 3, 50)
        layer = variational_dropout.LockedDropout(p=0.6).eval()
        with state_kept():
            assert_same(layer(x), x, rtol=0, atol=0)

    def test_can_be_switched_to_and_fro(self):
        x = away_from_zero(4, 3, 50)
        layer = variational_dropout.LockedDropout(p=0.6)
        for training in (False, True, False, True):
            expect(
                torch.equal(layer.train(training)(x), x) != training,
                f"expected dropout {'on after train()' if training else 'off after eval()'}",
            )

    def test_follows_the_mode_of_the_model_around_it(self):
        model = nn.Sequential(nn.Sequential(variational_dropout.LockedDropout(1.0)))
        x = away_from_zero(2, 3, 4)
        assert_same(model.eval()(x), x)
        assert_same(model.train()(x), torch.zeros_like(x))

    def test_draws_a_new_mask_at_each_call_from_the_global_generator(self):
        layer = variational_dropout.LockedDropout(0.4)
        assert_follows_the_global_generator(lambda: layer(torch.ones(9, 2, 20)))

    def test_a_copy_drops_as_the_original_does(self):
        layer = copy.deepcopy(variational_dropout.LockedDropout(0.4))
        assert_follows_the_global_generator(lambda: layer(torch.ones(9, 2, 20)))

    def test_gradients_are_scaled_where_kept_and_0_where_dropped(self):
        torch.manual_seed(0)
        x = away_from_zero(5, 3, 7).requires_grad_()
        found = variational_dropout.LockedDropout(0.3)(x)
        assert_same_gradients(found, x * (kept_places(found, x, 0.3).double() / 0.7), [x], **FLOAT64)

    def test_0_and_1_are_probabilities(self):
        x = away_from_zero(2, 3, 4)
        assert_same(variational_dropout.LockedDropout(0)(x), x)
        assert_same(variational_dropout.LockedDropout(1)(x * math.nan), torch.zeros_like(x))

    def test_leaves_x_and_global_state_alone_in_training_mode_too(self):
        x = away_from_zero(4, 3, 5)
        layer = variational_dropout.LockedDropout(0.5)
        with unchanged(x, names=("`x`",)), state_kept(draws=True):
            layer(x)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
    def test_keeps_the_dtype_in_training_mode_too(self, dtype):
        x = away_from_zero(9, 3, 11, dtype=dtype)
        layer = variational_dropout.LockedDropout(0.3)
        with default_dtype(torch.float64):
            assert_locked(kept_places(layer(x), x, 0.3))

    @pytest.mark.parametrize("device", devices.DEVICES)
    def test_works_on_another_device_in_training_mode_too(self, device):
        x = away_from_zero(9, 3, 11)
        with devices.on(device):
            there, layer = x.to(device), variational_dropout.LockedDropout(0.3).to(device)
            with devices.no_strays():
                found = layer(there)
            expect(found.device.type == device, f"expected a result on {device}, got one on {found.device.type}")
            assert_locked(kept_places(found.cpu(), x, 0.3))

    @pytest.mark.parametrize("p", [-0.1, 1.5, 3, -1])
    def test_refuses_what_is_no_probability_when_it_is_made(self, p):
        """An error where p was written is easier to find than one in the middle of training."""
        with refuses(ValueError, mentions=[p]):
            variational_dropout.LockedDropout(p)

    @pytest.mark.parametrize("shape", [(3, 4), (2, 3, 4, 5)])
    def test_refuses_another_number_of_dimensions(self, shape):
        layer = variational_dropout.LockedDropout(0.3)
        with refuses(LOUD):
            layer(sample(*shape))


# VariationalRNN -------------------------------------------------------------------------------------------------------


def pair(inputs, hidden, layers, **dropout):
    """A VariationalRNN and a torch.nn.RNN with the same parameters, in float64."""
    theirs = nn.RNN(inputs, hidden, layers, batch_first=True).double()
    ours = variational_dropout.VariationalRNN(inputs, hidden, layers, **dropout).double()
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def assert_same_run(found, wanted, leaves=()):
    """The same output and h_n, and the same gradients from both."""
    for number, what in enumerate(("output", "h_n")):
        assert_same(found[number], wanted[number].detach(), rtol=1e-10, atol=1e-12, what=what)
        if leaves:
            assert_same_gradients(found[number], wanted[number], leaves, rtol=1e-9, atol=1e-11)


def mixing(n):
    """A matrix that can be undone and is not symmetric: each row has 0.5 at its place and 0.3 at the one before."""
    eye = torch.eye(n, dtype=torch.float64)
    return 0.5 * eye + 0.3 * eye.roll(1, 0)


def set_weights(rnn, layer, w_ih, w_hh):
    """These weights for one layer, and biases that differ from unit to unit."""
    n = w_hh.shape[0]
    b_ih, b_hh = torch.linspace(0.2, 0.4, n), torch.linspace(0.15, -0.05, n)
    values = {"weight_ih": w_ih, "weight_hh": w_hh, "bias_ih": b_ih, "bias_hh": b_hh}
    state = rnn.state_dict()
    rnn.load_state_dict({**state, **{f"{name}_l{layer}": value for name, value in values.items()}})


def weights_of(rnn, layer):
    """w_ih, w_hh and the sum of the biases."""
    state = rnn.state_dict()
    w_ih, w_hh, b_ih, b_hh = (state[f"{name}_l{layer}"] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
    return w_ih, w_hh, b_ih + b_hh


def input_that_entered(rnn, layer, states, before):
    """What weight_ih was multiplied by, from the states [b t h] and those before them: the formula undone."""
    w_ih, w_hh, bias = weights_of(rnn, layer)
    return torch.linalg.solve(w_ih, (states.detach().atanh() - bias - before @ w_hh.T).mT).mT


def state_that_entered(rnn, layer, states, inputs):
    """What weight_hh was multiplied by."""
    w_ih, w_hh, bias = weights_of(rnn, layer)
    return torch.linalg.solve(w_hh, (states.detach().atanh() - bias - inputs @ w_ih.T).mT).mT


def kept_in(entered, given_, p, what):
    """Where x / (1 - p) entered a product; everywhere else it must have been 0."""
    return dropped_or_scaled(entered, given_.expand_as(entered), p, what, rtol=1e-7, atol=1e-8)


def earlier(states, h0):
    """The states [b t h] one step before."""
    return torch.cat([h0[:, None], states[:, :-1]], 1).detach()


class TestVariationalRNN:
    @pytest.mark.parametrize("layers", [1, 2, 3])
    @pytest.mark.parametrize("time", [1, 4])
    @pytest.mark.parametrize("first", ["no h0", "h0"])
    def test_without_dropout_it_is_torchs_rnn(self, layers, time, first):
        ours, theirs = pair(3, 5, layers)
        x = sample(4, time, 3, dtype=torch.float64).requires_grad_()
        h0 = [sample(layers, 4, 5, dtype=torch.float64).requires_grad_()] if first == "h0" else []
        found, wanted = ours(x, *h0), theirs(x, *h0)
        assert_same_run(found, wanted, [x, *h0])
        for name, parameter in ours.named_parameters():
            for a, b in zip(found, wanted, strict=True):
                assert_same(
                    gradients_of(a, [parameter])[0],
                    gradients_of(b, [theirs.get_parameter(name)])[0],
                    rtol=1e-9, atol=1e-11, what=f"the gradient of {name}",
                )  # fmt: skip

    def test_in_eval_mode_nothing_is_dropped(self):
        ours, theirs = pair(3, 5, 2, input_dropout=0.4, hidden_dropout=0.7)
        x, h0 = sample(4, 6, 3, dtype=torch.float64), sample(2, 4, 5, dtype=torch.float64)
        with state_kept():
            found = ours.eval()(x, h0)
        assert_same_run(found, theirs(x, h0))
        expect(not torch.equal(ours.train()(x, h0)[0], found[0]), "expected dropout on again after train()")

    def test_dropout_is_off_unless_told(self):
        ours, theirs = pair(3, 5, 2)
        x = sample(4, 6, 3, dtype=torch.float64)
        assert_same_run(ours.train()(x), theirs(x))

    def test_one_layer_unless_told(self):
        rnn = variational_dropout.VariationalRNN(3, 5)
        output, h_n = rnn(sample(4, 6, 3))
        expect(output.shape == (4, 6, 5), f"expected output of shape [4, 6, 5], got {list(output.shape)}")
        expect(h_n.shape == (1, 4, 5), f"expected h_n of shape [1, 4, 5], got {list(h_n.shape)}")

    def test_h0_can_be_given_by_name_and_none_is_zeros(self):
        ours, theirs = pair(3, 5, 2)
        x, h0 = sample(4, 6, 3, dtype=torch.float64), sample(2, 4, 5, dtype=torch.float64)
        assert_same_run(ours(x, h0=h0), theirs(x, h0))
        assert_same_run(ours(x, h0=None), theirs(x, torch.zeros_like(h0)))

    def test_a_long_sequence_can_be_run_in_two_parts(self):
        ours, theirs = pair(3, 5, 2)
        x = sample(4, 7, 3, dtype=torch.float64)
        first, state = ours(x[:, :3])
        second, state = ours(x[:, 3:], state)
        assert_same_run((torch.cat([first, second], 1), state), theirs(x))

    @pytest.mark.parametrize("layers", [1, 2, 3])
    def test_has_the_parameters_of_torchs_rnn_under_their_names(self, layers):
        """Whoever swaps the network keeps the trained weights."""
        ours, theirs = variational_dropout.VariationalRNN(3, 5, layers), nn.RNN(3, 5, layers, batch_first=True)
        found = {name: list(p.shape) for name, p in ours.named_parameters() if p.requires_grad}
        wanted = {name: list(p.shape) for name, p in theirs.named_parameters()}
        expect(found == wanted, f"expected the parameters {wanted}", f"got {found}")
        theirs.load_state_dict(ours.state_dict())
        ours.load_state_dict(nn.RNN(3, 5, layers).state_dict())

    def test_parameters_start_evenly_spread_up_to_one_over_the_root_of_the_hidden_size(self):
        torch.manual_seed(0)
        rnn = variational_dropout.VariationalRNN(7, 400, 2)
        bound = 400**-0.5
        for name, parameter in rnn.named_parameters():
            ordered = parameter.detach().double().flatten().sort().values
            n, largest = len(ordered), ordered.abs().max().item()
            expect(largest <= bound * (1 + 1e-6), f"expected {name} between ±{bound:.4g}, got ±{largest:.4g}")
            gap = ((ordered / bound + 1) / 2 - torch.arange(n) / n).abs().max().item()
            expect(
                gap < 2.5 / math.sqrt(n) + 1 / n,
                f"expected {name} spread evenly between -{bound:.4g} and {bound:.4g}",
                f"got values from {ordered[0].item():.4g} to {ordered[-1].item():.4g}",
            )
            different = len(ordered.unique()) / n
            expect(different > 0.9, f"expected each element of {name} drawn by itself, only {different:.0%} differ")

    def test_starts_from_the_global_generator(self):
        """torch.manual_seed makes a whole program repeatable: a module must neither ignore nor reset it."""

        def draw(seed):
            torch.manual_seed(seed)
            return [p for _ in range(2) for p in variational_dropout.VariationalRNN(3, 5, 2).parameters()]

        with torch.random.fork_rng(devices=[]):
            first, again, other = draw(5), draw(5), draw(6)
        same = all(torch.equal(p, q) for p, q in zip(first, again, strict=True))
        expect(same, "expected equal networks for equal seeds, they differ")
        changed = not any(torch.equal(p, q) for p, q in zip(first, other, strict=True))
        expect(changed, "expected other parameters for another seed, some are the same")
        expect(not torch.equal(first[0], first[8]), "expected two networks made in a row to differ, they are equal")

    def test_is_made_and_run_without_torchs_own(self, no_torch_rnn):
        rnn = variational_dropout.VariationalRNN(3, 5, 2, 0.3, 0.3)
        expect(not isinstance(rnn, nn.RNNBase), "torch.nn.RNN is refused here: build on torch.nn.Module")
        rnn(sample(4, 2, 3))
        rnn.eval()(sample(4, 2, 3))

    def test_output_and_h_n_are_the_states_themselves_without_a_mask(self):
        """The next layer or the loss decides itself what to drop: a state that is masked twice loses too much."""
        torch.manual_seed(0)
        rnn = variational_dropout.VariationalRNN(6, 7, 2, input_dropout=0.5, hidden_dropout=0.5)
        output, h_n = rnn(sample(50, 4, 6), sample(2, 50, 7))
        for what, states in (("output", output), ("h_n", h_n)):
            zeros = (states == 0).double().mean().item()
            expect(zeros == 0, f"expected states without dropped places in {what}, {zeros:.0%} are 0")
            largest = states.abs().max().item()
            expect(largest <= 1, f"expected {what} to be what tanh gives, at most 1 in size, got {largest:.3g}")
        assert_same(h_n[-1], output[:, -1].detach())

    @pytest.mark.parametrize("layer", [0, 1], ids=["layer 0", "layer 1"])
    def test_the_input_mask_is_one_for_each_sequence_and_feature_and_holds_at_every_step(self, layer):
        """What enters weight_ih is looked at through weights that can be undone."""
        torch.manual_seed(0)
        n, p = 40, 0.3
        rnn = variational_dropout.VariationalRNN(n, n, layer + 1, input_dropout=p).double()
        x, h0 = 0.4 * away_from_zero(50, 4, n), 0.2 * away_from_zero(layer + 1, 50, n)
        inputs = x
        if layer == 1:  # the one below gives the same states at every step, whatever it gets
            set_weights(rnn, 0, torch.zeros(n, n), torch.zeros(n, n))
            inputs = weights_of(rnn, 0)[2].tanh().expand(50, 4, n)
        set_weights(rnn, layer, mixing(n), 0.2 * mixing(n).T)
        output, _ = rnn(x, h0)
        entered = input_that_entered(rnn, layer, output, earlier(output, h0[layer]))
        kept = kept_in(entered, inputs, p, f"what enters weight_ih_l{layer}")
        assert_locked(kept)
        assert_drawn_apart(kept[:, 0], p)

    @pytest.mark.parametrize("layer", [0, 1], ids=["layer 0", "layer 1"])
    def test_the_hidden_mask_is_one_for_each_sequence_and_unit_and_holds_at_every_step(self, layer):
        """With a new mask at each step nothing stays in the state for long. The first state, h0, is masked too."""
        torch.manual_seed(0)
        n, q = 40, 0.4
        rnn = variational_dropout.VariationalRNN(n, n, layer + 1, hidden_dropout=q).double()
        x, h0 = 0.4 * away_from_zero(50, 4, n), 0.3 * away_from_zero(layer + 1, 50, n)
        inputs = x
        if layer == 1:
            set_weights(rnn, 0, torch.zeros(n, n), torch.zeros(n, n))
            inputs = weights_of(rnn, 0)[2].tanh().expand(50, 4, n)
        set_weights(rnn, layer, 0.2 * mixing(n).T, 0.8 * mixing(n))
        output, _ = rnn(x, h0)
        entered = state_that_entered(rnn, layer, output, inputs)
        kept = kept_in(entered, earlier(output, h0[layer]), q, f"what enters weight_hh_l{layer}")
        assert_locked(kept)
        assert_drawn_apart(kept[:, 0], q)

    def test_each_layer_has_an_input_mask_of_its_own(self):
        torch.manual_seed(0)
        n, p = 40, 0.3
        rnn = variational_dropout.VariationalRNN(n, n, 3, input_dropout=p).double()
        x, h0 = 0.4 * away_from_zero(50, 1, n), 0.2 * away_from_zero(3, 50, n)
        for layer in range(3):
            set_weights(rnn, layer, mixing(n), 0.2 * mixing(n).T)
        _, h_n = rnn(x, h0)
        masks, inputs = [], x
        for layer in range(3):
            states = h_n[layer][:, None]
            entered = input_that_entered(rnn, layer, states, h0[layer][:, None])
            masks.append(kept_in(entered, inputs, p, f"what enters weight_ih_l{layer}"))
            inputs = states.detach()
        for above in (1, 2):
            assert_drawn_apart(masks[above][:, 0], p)
            assert_chance(masks[above] == masks[above - 1], 0.3**2 + 0.7**2, "the masks of two layers alike")

    def test_each_layer_has_a_hidden_mask_of_its_own(self):
        torch.manual_seed(0)
        n, q = 40, 0.4
        rnn = variational_dropout.VariationalRNN(n, n, 3, hidden_dropout=q).double()
        x, h0 = 0.4 * away_from_zero(50, 1, n), 0.3 * away_from_zero(3, 50, n)
        for layer in range(3):
            set_weights(rnn, layer, 0.2 * mixing(n).T, 0.8 * mixing(n))
        _, h_n = rnn(x, h0)
        masks, inputs = [], x
        for layer in range(3):
            states = h_n[layer][:, None]
            entered = state_that_entered(rnn, layer, states, inputs)
            masks.append(kept_in(entered, h0[layer][:, None], q, f"what enters weight_hh_l{layer}"))
            inputs = states.detach()
        for above in (1, 2):
            assert_drawn_apart(masks[above][:, 0], q)
            assert_chance(masks[above] == masks[above - 1], 0.4**2 + 0.6**2, "the masks of two layers alike")

    def test_input_and_hidden_masks_have_their_own_probability_and_draw(self):
        kept_inputs, kept_states = self.look_at_both_masks(60, 30, p=0.2, q=0.6)[-2:]
        assert_drawn_apart(kept_inputs, 0.2)
        assert_drawn_apart(kept_states, 0.6)
        kept_inputs, kept_states = self.look_at_both_masks(60, 30, p=0.4, q=0.4)[-2:]
        assert_chance(kept_inputs == kept_states, 0.4**2 + 0.6**2, "the masks of input and state alike")

    @staticmethod
    def look_at_both_masks(b, n, p, q, time=4, inputs=None):
        """Half of the units read the input, the others the states of the first half: both masks can be read off."""
        torch.manual_seed(0)
        inputs = inputs or n
        rnn = variational_dropout.VariationalRNN(inputs, 2 * n, 1, p, q).double()
        zeros = torch.zeros(n, n, dtype=torch.float64)
        from_input = torch.cat([0.6 * mixing(n)[:, :inputs], zeros[:, :inputs]])
        from_state = torch.cat([torch.cat([zeros, zeros], 1), torch.cat([0.4 * mixing(n), zeros], 1)])
        set_weights(rnn, 0, from_input, from_state)
        x = (0.4 * away_from_zero(b, time, inputs)).requires_grad_()
        h0 = (0.3 * away_from_zero(1, b, 2 * n)).requires_grad_()
        output, h_n = rnn(x, h0)
        bias = weights_of(rnn, 0)[2]
        first, second = (output.detach().atanh() - bias).chunk(2, -1)
        entered = torch.linalg.lstsq(from_input[:n], first.flatten(0, 1).T).solution.T.view_as(x)
        kept_inputs = kept_in(entered, x.detach(), p, "what enters weight_ih_l0")
        entered = torch.linalg.solve(0.4 * mixing(n), second.mT).mT
        before = earlier(output, h0[0].detach())[..., :n]
        kept_states = kept_in(entered, before, q, "what enters weight_hh_l0")
        assert_locked(kept_inputs)
        assert_locked(kept_states)
        return rnn, x, h0, output, h_n, kept_inputs[:, 0], kept_states[:, 0]

    def test_gradients_pass_both_masks_with_their_scales(self):
        rnn, x, h0, output, h_n, kept_inputs, kept_states = self.look_at_both_masks(5, 6, p=0.3, q=0.45)
        parameters = [rnn.get_parameter(f"{name}_l0") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
        w_ih, w_hh, b_ih, b_hh = parameters
        # Which of the other half of the states were kept cannot be seen: their weights are 0.
        factor = torch.cat([kept_states.double() / 0.55, torch.zeros(5, 6)], 1)
        h, states = h0[0], []
        for step in range(4):
            h = (x[:, step] * (kept_inputs.double() / 0.7) @ w_ih.T + b_ih + (h * factor) @ w_hh.T + b_hh).tanh()
            states.append(h)
        wanted = torch.stack(states, 1)
        assert_same_run((output, h_n), (wanted, h[None]), [x, h0, w_ih, b_ih, b_hh])
        found = gradients_of(output, [w_hh])[0]
        assert_same(found[:, :6], gradients_of(wanted, [w_hh])[0][:, :6], rtol=1e-9, atol=1e-11)

    @pytest.mark.parametrize("layers", [1, 3])
    def test_with_input_dropout_1_nothing_of_the_input_enters(self, layers):
        """Also where it is nan: what is dropped is 0."""
        ours, theirs = pair(3, 5, layers, input_dropout=1.0)
        x, h0 = sample(4, 6, 3, dtype=torch.float64), sample(layers, 4, 5, dtype=torch.float64)
        x[0], x[1, 2], x[2, :, 1] = math.nan, math.inf, -math.inf
        with torch.no_grad():
            for name, parameter in theirs.named_parameters():
                if name.startswith("weight_ih"):
                    parameter.zero_()
        found, wanted = ours(x, h0), theirs(torch.zeros_like(x), h0)
        assert_same_run(found, wanted)
        for name, parameter in ours.named_parameters():
            gradient = gradients_of(found[0], [parameter])[0]
            expect(bool(gradient.isfinite().all()), f"expected a finite gradient for {name}, got nan or inf")

    @pytest.mark.parametrize("layers", [1, 3])
    def test_with_hidden_dropout_1_each_step_stands_alone(self, layers):
        ours, theirs = pair(3, 5, layers, hidden_dropout=1)
        x, h0 = sample(4, 6, 3, dtype=torch.float64), sample(layers, 4, 5, dtype=torch.float64)
        h0[:, 0], h0[:, 1, 2], h0[:, 2] = math.nan, math.inf, -math.inf
        with torch.no_grad():
            for name, parameter in theirs.named_parameters():
                if name.startswith("weight_hh"):
                    parameter.zero_()
        found, wanted = ours(x, h0), theirs(x)
        assert_same_run(found, wanted)
        for name, parameter in ours.named_parameters():
            gradient = gradients_of(found[0], [parameter])[0]
            expect(bool(gradient.isfinite().all()), f"expected a finite gradient for {name}, got nan or inf")

    @pytest.mark.parametrize("which", ["input_dropout", "hidden_dropout"])
    def test_nan_that_is_dropped_does_no_harm(self, which):
        """0 times nan is nan: a mask that is multiplied lets it through."""
        torch.manual_seed(0)
        rnn = variational_dropout.VariationalRNN(3, 5, **{which: 0.5})
        x, h0 = sample(100, 4, 3), sample(1, 100, 5)
        if which == "input_dropout":
            x[..., 1] = math.nan
        else:
            h0[..., 2] = math.nan
        output, _ = rnn(x, h0)
        clean = output.detach().isfinite().flatten(1).all(1)
        assert_chance(clean, 0.5, "a sequence without nan, because it was dropped,")

    def test_draws_new_masks_at_each_call_from_the_global_generator(self):
        for dropout in ({"input_dropout": 0.4}, {"hidden_dropout": 0.4}):
            rnn, x = variational_dropout.VariationalRNN(7, 9, 2, **dropout), sample(5, 3, 7)
            assert_follows_the_global_generator(lambda rnn=rnn, x=x: rnn(x)[0])
            assert_follows_the_global_generator(lambda rnn=rnn, x=x: rnn(x)[1][0])

    def test_sequences_do_not_touch_each_other(self):
        rnn = variational_dropout.VariationalRNN(3, 5, 2, 0.4, 0.4)
        x = sample(4, 6, 3).requires_grad_()
        output, h_n = rnn(x)
        for result in (output[1], h_n[:, 1]):
            gradient = gradients_of(result, [x])[0]
            expect(not bool(gradient[[0, 2, 3]].any()), "expected each sequence to be computed from itself alone")

    def test_no_step_knows_later_ones(self):
        rnn = variational_dropout.VariationalRNN(3, 5, 2)
        x = sample(4, 6, 3).requires_grad_()
        gradient = gradients_of(rnn(x)[0][:, 2], [x])[0]
        expect(not bool(gradient[:, 3:].any()), "expected a state to depend on its own step and those before it alone")

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_the_masks_hold_for_any_strides(self, layout):
        torch.manual_seed(0)
        n, q = 30, 0.4
        rnn = variational_dropout.VariationalRNN(n, n, hidden_dropout=q).double()
        x, h0 = strided(0.4 * away_from_zero(50, 3, n), layout), 0.3 * away_from_zero(50, n)
        h0 = strided(h0, layout)
        set_weights(rnn, 0, 0.2 * mixing(n).T, 0.8 * mixing(n))
        output, _ = rnn(x, h0[None])
        kept = kept_in(state_that_entered(rnn, 0, output, x), earlier(output, h0), q, "what enters weight_hh_l0")
        assert_locked(kept)
        assert_drawn_apart(kept[:, 0], q)

    def test_takes_no_more_operations_for_more_sequences_with_dropout_on(self):
        rnn, counts = variational_dropout.VariationalRNN(3, 5, 2, 0.3, 0.3), []
        for b in (3, 9):
            x, h0 = sample(b, 4, 3), sample(2, b, 5)
            with count_ops() as ops:
                rnn(x, h0)
            counts.append(ops.total())
        expect(
            counts[1] <= counts[0],
            f"expected as many operations for 9 sequences as for 3, got {counts[1]} against {counts[0]}",
        )

    @pytest.mark.parametrize("dropout", [0.0, 0.3, 1.0])
    def test_a_batch_may_be_empty(self, dropout):
        rnn = variational_dropout.VariationalRNN(3, 5, 2, dropout, dropout)
        for given_ in ((sample(0, 4, 3),), (sample(0, 4, 3), sample(2, 0, 5))):
            output, h_n = rnn(*given_)
            assert_same(output, torch.zeros(0, 4, 5))
            assert_same(h_n, torch.zeros(2, 0, 5))

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision_stays_half(self, dtype):
        rnn = variational_dropout.VariationalRNN(3, 5, 2, 0.3, 0.3).to(dtype).eval()
        x, h0 = sample(4, 3, 3, dtype=dtype), sample(2, 4, 5, dtype=dtype)
        wide = copy.deepcopy(rnn).float()
        for found, wanted in zip(rnn(x, h0), wide(x.float(), h0.float()), strict=True):
            expect(found.dtype == dtype, f"expected {dtype}, got {found.dtype}".replace("torch.", ""))
            assert_same(found.float(), wanted.detach(), rtol=5e-2, atol=5e-2)
        for found in rnn.train()(x):
            expect(found.dtype == dtype, f"expected {dtype}, got {found.dtype}".replace("torch.", ""))

    def test_the_default_dtype_does_not_matter(self):
        rnn = variational_dropout.VariationalRNN(3, 5, 2, 0.3, 0.3)
        with default_dtype(torch.float64):
            for found in rnn(sample(4, 6, 3)):
                expect(found.dtype == torch.float32, f"expected float32, got {found.dtype}".replace("torch.", ""))

    def test_leaves_its_arguments_and_global_state_alone_in_training_mode_too(self):
        rnn = variational_dropout.VariationalRNN(3, 5, 2, 0.3, 0.3)
        x, h0, parameters = sample(4, 6, 3), sample(2, 4, 5), list(rnn.parameters())
        with unchanged(x, h0, parameters, names=("`x`", "`h0`", "the parameters")), state_kept(draws=True):
            rnn(x, h0)

    @pytest.mark.parametrize("device", devices.DEVICES)
    @pytest.mark.parametrize("dropout", [0.0, 0.3])
    def test_works_on_another_device(self, device, dropout):
        """`.to()` moves what is registered; masks and first states belong where the input is."""
        rnn = variational_dropout.VariationalRNN(3, 5, 2, dropout, dropout)
        x, h0 = sample(4, 6, 3), sample(2, 4, 5)
        wanted = rnn.eval()(x, h0)[0].detach()
        with devices.on(device):
            moved = copy.deepcopy(rnn).to(device)
            there, first = x.to(device), h0.to(device)
            with devices.no_strays():
                results = [*moved.train()(there), *moved(there, first)]
                found = moved.eval()(there, first)[0]
            for result in results:
                expect(result.device.type == device, f"expected results on {device}, got one on {result.device.type}")
            assert_same(found, wanted, device=False, rtol=1e-4, atol=1e-5)
            for gradient in gradients_of(results[2], list(moved.parameters())):
                expect(gradient.device.type == device, f"expected gradients on {device}, got {gradient.device.type}")

    def test_is_saved_and_copied_with_its_settings(self):
        rnn = copy.deepcopy(variational_dropout.VariationalRNN(3, 5, 2, 1.0, 1.0))
        x = sample(4, 6, 3)
        output, _ = rnn(x)
        assert_same(output, output[:1, :1].detach().expand(4, 6, 5))

    @pytest.mark.parametrize(
        "setting", [{"num_layers": 3}, {"input_dropout": 0.25}, {"hidden_dropout": 0.25}, {"hidden_dropout": 1.0}]
    )
    def test_shows_every_setting(self, setting):
        plain = {"num_layers": 2, "input_dropout": 0.15, "hidden_dropout": 0.15}
        texts = [repr(variational_dropout.VariationalRNN(7, 8, **{**plain, **other})) for other in ({}, setting)]
        expect(texts[0] != texts[1], f"expected repr to show {setting}, it is the same without: {texts[0]}")

    def test_refuses_a_sequence_without_steps(self):
        """It has no last state."""
        for rnn in (variational_dropout.VariationalRNN(3, 5), variational_dropout.VariationalRNN(3, 5, 2, 0.3, 0.3)):
            for training in (True, False):
                with refuses(ValueError, mentions=[0]):
                    rnn.train(training)(sample(4, 0, 3))

    @pytest.mark.parametrize("inputs", [4, 1, 5, 0])
    def test_refuses_another_number_of_features(self, inputs):
        rnn = variational_dropout.VariationalRNN(3, 5, 2, 0.3, 0.3)
        for training in (True, False):
            with refuses(ValueError, mentions=[inputs]):
                rnn.train(training)(sample(4, 6, inputs))

    def test_refuses_other_features_where_they_would_broadcast(self):
        rnn = variational_dropout.VariationalRNN(1, 5)
        with refuses(ValueError, mentions=[4]):
            rnn(sample(2, 6, 4))

    @pytest.mark.parametrize(
        "shape, wrong", [((2, 1, 5), 1), ((1, 4, 5), 1), ((3, 4, 5), 3), ((2, 4, 1), 1), ((2, 4, 7), 7)]
    )
    def test_refuses_an_h0_of_another_shape_and_broadcasts_nothing(self, shape, wrong):
        rnn = variational_dropout.VariationalRNN(3, 5, 2)
        with refuses(ValueError, mentions=[wrong]):
            rnn(sample(4, 6, 3), sample(*shape))

    @pytest.mark.parametrize("shapes_", [((6, 3),), ((2, 4, 6, 3),), ((4, 6, 3), (4, 5)), ((4, 6, 3), (5,))])
    def test_refuses_another_number_of_dimensions(self, shapes_):
        rnn = variational_dropout.VariationalRNN(3, 5, 2)
        with refuses(LOUD):
            rnn(*(sample(*shape) for shape in shapes_))

    @pytest.mark.parametrize(
        "sizes, wrong", [((0, 5, 2), 0), ((3, 0, 2), 0), ((3, 5, 0), 0), ((-2, 5), -2), ((3, 5, -1), -1)]
    )
    def test_refuses_sizes_below_one(self, sizes, wrong):
        with refuses(ValueError, mentions=[wrong]):
            variational_dropout.VariationalRNN(*sizes)

    @pytest.mark.parametrize("which", ["input_dropout", "hidden_dropout"])
    @pytest.mark.parametrize("p", [-0.1, 1.5, 7])
    def test_refuses_what_is_no_probability(self, which, p):
        with refuses(ValueError, mentions=[p]):
            variational_dropout.VariationalRNN(3, 5, **{which: p})


# drop_connect ---------------------------------------------------------------------------------------------------------


class TestDropConnect:
    @pytest.mark.parametrize("p", [0.3, 0.8])
    def test_each_connection_is_decided_by_itself(self, p):
        """Whole rows are units: dropping those is ordinary dropout."""
        torch.manual_seed(0)
        weight = away_from_zero(60, 50)
        kept = kept_places(variational_dropout.drop_connect(weight, p), weight, p)
        assert_drawn_apart(kept, p, ("row", "column"))

    @pytest.mark.parametrize("shape", [(2000,), (1, 2000), (2000, 1), (20, 10, 3, 4)])
    def test_a_weight_of_any_shape_is_dropped_the_same_way(self, shape):
        torch.manual_seed(0)
        weight = away_from_zero(*shape)
        kept = kept_places(variational_dropout.drop_connect(weight, 0.3), weight, 0.3)
        assert_chance(~kept, 0.3, "a connection dropped")
        for dim in (dim for dim, size in enumerate(shape) if size > 1):
            expect(
                not torch.equal(kept, kept.narrow(dim, 0, 1).expand_as(kept)),
                f"expected a decision for each element, along dimension {dim} all are alike",
            )

    def test_a_weight_without_dimensions_is_one_connection(self):
        weight = torch.tensor(3.0)
        found = {variational_dropout.drop_connect(weight, 0.5).item() for _ in range(60)}
        expect(found == {0.0, 6.0}, f"expected 0 or 6 for a weight of 3 and p = 0.5, got {sorted(found)}")

    @given(shape=shapes(max_dims=4), p=st.sampled_from([0.0, 0.2, 0.5, 0.9]))
    def test_what_is_kept_is_divided_by_1_minus_p(self, shape, p):
        weight = away_from_zero(*shape)
        generator = torch.Generator().manual_seed(len(shape))
        kept_places(variational_dropout.drop_connect(weight, p, True, generator), weight, p)

    def test_the_gradient_goes_to_the_weight_that_was_given_with_the_scale(self):
        """The optimizer holds the original weight: what its gradient lacks is never learned."""
        torch.manual_seed(0)
        weight = nn.Parameter(away_from_zero(5, 7))
        found = variational_dropout.drop_connect(weight, 0.3)
        kept = kept_places(found, weight, 0.3)
        expect(bool(kept.any()) and not bool(kept.all()), "expected some connections dropped and some kept")
        assert_same_gradients(found, weight * (kept.double() / 0.7), [weight], **FLOAT64)

    def test_a_layer_learns_through_it(self):
        torch.manual_seed(0)
        weight, x = nn.Parameter(away_from_zero(5, 7)), sample(4, 7, dtype=torch.float64)
        used = variational_dropout.drop_connect(weight, 0.3)
        (x @ used.T).square().sum().backward()
        kept = kept_places(used, weight, 0.3)
        assert_same(weight.grad, 2 * (x @ used.T).detach().T @ x * (kept.double() / 0.7), rtol=1e-10, atol=1e-12)

    def test_the_weight_itself_stays_as_it_is(self):
        weight = nn.Parameter(away_from_zero(5, 7))
        with unchanged(weight, names=("`weight`",)):
            for _ in range(2):
                variational_dropout.drop_connect(weight, 0.5)

    def test_p_0_drops_nothing(self):
        weight = away_from_zero(20, 30)
        for p in (0, 0.0):
            assert_same(variational_dropout.drop_connect(weight, p), weight, **FLOAT64)

    def test_p_1_gives_zeros(self):
        weight = away_from_zero(20, 30).requires_grad_()
        weight.data[0, :3] = torch.tensor([math.nan, math.inf, -math.inf])
        for p in (1, 1.0):
            found = variational_dropout.drop_connect(weight, p)
            assert_same(found, torch.zeros(20, 30, dtype=torch.float64), rtol=0, atol=0)
            if found.requires_grad:
                assert_same(gradients_of(found, [weight])[0], torch.zeros(20, 30).double(), rtol=0, atol=0)

    @pytest.mark.parametrize("p", [0, 0.4, 1])
    def test_without_training_the_values_are_those_of_the_weight_and_nothing_is_drawn(self, p):
        weight = nn.Parameter(away_from_zero(20, 30))
        with state_kept():
            found = variational_dropout.drop_connect(weight, p, training=False)
        assert_same(found, weight.detach(), rtol=0, atol=0)
        assert_same_gradients(found, weight * 1, [weight], **FLOAT64)
        assert_same(variational_dropout.drop_connect(weight, p, False), weight.detach(), rtol=0, atol=0)

    def test_a_dropped_connection_is_0_also_where_it_is_nan_or_infinite(self):
        """0 times nan is nan: a mask that is multiplied lets it through."""
        torch.manual_seed(0)
        weight = torch.ones(3, 60)
        weight[0], weight[1], weight[2] = math.nan, math.inf, -math.inf
        weight.requires_grad_()
        found = variational_dropout.drop_connect(weight, 0.5)
        dropped = found.detach() == 0
        for row, what in enumerate(["nan", "inf", "-inf"]):
            expect(bool(dropped[row].any()), f"expected zeros where {what} was dropped, found none")
        gradient = gradients_of(found, [weight])[0]
        expect(
            bool((gradient[dropped] == 0).all()), "expected the gradient to be 0 where nan and infinity were dropped"
        )

    @pytest.mark.parametrize("shape", [(0,), (0, 4), (3, 0), (3, 0, 4)])
    @pytest.mark.parametrize("p", [0.3, 1.0])
    def test_a_weight_may_be_empty(self, shape, p):
        for training in (True, False):
            assert_same(variational_dropout.drop_connect(torch.zeros(shape), p, training), torch.zeros(shape))

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_the_mask_holds_for_any_strides(self, layout):
        """The rows of an expanded weight lie in one place; each has its own mask all the same."""
        torch.manual_seed(0)
        weight = strided(away_from_zero(60, 50), layout).requires_grad_()
        found = variational_dropout.drop_connect(weight, 0.3)
        kept = kept_places(found, weight, 0.3)
        assert_drawn_apart(kept, 0.3, ("row", "column"))
        assert_same(
            gradients_of(found, [weight])[0], gradients_of(weight * (kept.double() / 0.7), [weight])[0], **FLOAT64
        )

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
    def test_keeps_the_dtype_and_the_values(self, dtype):
        weight = away_from_zero(9, 11, dtype=dtype)
        for default in (torch.float32, torch.float64):
            with default_dtype(default):
                found = variational_dropout.drop_connect(weight, 0.3, generator=torch.Generator().manual_seed(5))
            kept = kept_places(found, weight, 0.3)
            expect(bool(kept.any()) and not bool(kept.all()), "expected some connections dropped and some kept")

    def test_takes_no_more_operations_for_more_columns(self):
        counts = []
        for columns in (3, 9):
            weight = sample(4, columns)
            with count_ops() as ops:
                variational_dropout.drop_connect(weight, 0.3)
            counts.append(ops.total())
        expect(counts[1] <= counts[0], f"expected as many operations for 9 columns as for 3, got {counts[1]}")

    def test_draws_from_the_generator_that_was_given(self):
        weight = torch.ones(9, 20)
        assert_draws_from_the_generator_alone(
            lambda generator: variational_dropout.drop_connect(weight, 0.4, generator=generator)
        )

    @pytest.mark.parametrize("training", [True, False])
    @pytest.mark.parametrize("p", [-0.1, 1.5, 3, -1])
    def test_refuses_what_is_no_probability(self, p, training):
        with refuses(ValueError, mentions=[p]):
            variational_dropout.drop_connect(sample(2, 4), p, training)

    @pytest.mark.parametrize("training", [True, False])
    def test_refuses_integers(self, training):
        with refuses(TypeError):
            variational_dropout.drop_connect(torch.ones(3, 4, dtype=torch.int64), 0.3, training)


# mc_dropout -----------------------------------------------------------------------------------------------------------


DROPOUTS = ("Dropout", "LockedDropout", "VariationalRNN")  # names of classes that count, whoever defined them


class Notes(list):
    """A list that stays the same one when the model that writes to it is copied."""

    def __deepcopy__(self, memo):
        return self


class Chain(nn.Sequential):
    """A model that is shown in one line."""

    def __repr__(self):
        return f"Chain({', '.join(type(part).__name__ for part in self)})"


class Watched(nn.Module):
    """A model that notes, whenever it is called, in which mode each of its modules is."""

    def __init__(self, *parts):
        super().__init__()
        self.parts = nn.Sequential(*parts)
        self.seen = Notes()

    def __repr__(self):
        return "Watched()"

    def forward(self, x):
        self.seen.append({name or "the model": module.training for name, module in self.named_modules()})
        return self.parts(x)


class Same(nn.Module):
    """Gives its input back."""

    def forward(self, x):
        return x


def named(name):
    """A module whose class has this name, wherever it was defined."""
    return type(name, (Same,), {})()


class Broken(nn.Module):
    """A model that cannot be called."""

    def forward(self, x):
        raise ZeroDivisionError("this model is broken")


class Add(nn.Module):
    """x + number."""

    def __init__(self, number):
        super().__init__()
        self.number = number

    def forward(self, x):
        return x + self.number


class Total(nn.Module):
    """The sum of x: a single number."""

    def forward(self, x):
        return x.sum()


def modes(model):
    return [module.training for module in model.modules()]


def assert_modes_kept(model, before):
    wrong = [
        f"{name or 'the model'} ({type(module).__name__})"
        for (name, module), mode in zip(model.named_modules(), before, strict=True)
        if module.training != mode
    ]
    expect(not wrong, f"expected every module back in the mode it had, {', '.join(wrong)} is not")


class TestMcDropout:
    @pytest.mark.parametrize("samples", [2, 3, 10])
    def test_mean_and_unbiased_std_of_the_samples(self, samples):
        """With dropout 0.5 on ones each sample is 0 or 2: the mean says how many were 2, and so what the std is."""
        torch.manual_seed(0)
        x = torch.ones(20, 30, dtype=torch.float64)
        mean, std = variational_dropout.mc_dropout(nn.Dropout(0.5), x, samples)
        for result in (mean, std):
            expect(result.shape == x.shape, f"expected shape {list(x.shape)}, got {list(result.shape)}")
            expect(result.dtype == x.dtype, f"expected float64, got {result.dtype}".replace("torch.", ""))
        twos = mean * samples / 2
        whole = torch.isclose(twos, twos.round(), rtol=1e-9, atol=1e-9)
        expect(
            bool(whole.all()),
            f"expected the mean of {samples} samples, each 0 or 2",
            f"got {mean[~whole].flatten()[:1].tolist()}",
        )
        expect(bool(((twos > 0.5) & (twos < samples - 0.5)).any()), "expected samples that differ, all are the same")
        wanted = ((twos * (2 - mean) ** 2 + (samples - twos) * mean**2) / (samples - 1)).sqrt()
        wrong = ~torch.isclose(std, wanted, rtol=1e-9, atol=1e-7)
        if wrong.any():
            right, middle, found = (values[wrong][0].item() for values in (wanted, mean, std))
            expect(
                False,
                f"expected a std of {right:.5g} where {samples} samples, each 0 or 2, have a mean of {middle:.5g}, "
                f"got {found:.5g}",
                "the unbiased std divides by samples - 1",
            )

    def test_samples_are_drawn_anew_for_each_and_for_each_element(self):
        torch.manual_seed(0)
        mean, std = variational_dropout.mc_dropout(nn.Dropout(0.5), torch.ones(40, 50), 2)
        assert_chance(std > 0, 0.5, "two samples different at a place")
        assert_chance(mean == 0, 0.25, "both samples dropped at a place")

    def test_many_samples_come_close_to_what_is_expected(self):
        torch.manual_seed(0)
        model = Chain(nn.Dropout(0.2), nn.Flatten())
        mean, std = variational_dropout.mc_dropout(model, torch.full((30, 5, 4), 3.0), samples=100)
        expect(mean.shape == (30, 20) and std.shape == (30, 20), f"expected shapes [30, 20], got {list(mean.shape)}")
        # Kept with 0.8: mean 3, standard deviation 3 * sqrt(0.2 / 0.8) = 1.5.
        expect(abs(mean.mean().item() - 3) < 0.05, f"expected a mean of about 3, got {mean.mean().item():.3f}")
        expect(abs(std.mean().item() - 1.5) < 0.05, f"expected a std of about 1.5, got {std.mean().item():.3f}")

    def test_std_is_precise_far_from_zero(self):
        """The mean of squares less the square of the mean loses what small spread there is."""
        torch.manual_seed(0)
        model = Chain(nn.Dropout(0.5), Add(4000.0))
        mean, std = variational_dropout.mc_dropout(model, torch.ones(20, 30), 3)
        twos = ((mean.double() - 4000) * 3 / 2).round()
        rest = 2 * twos / 3
        variance = (twos * (2 - rest) ** 2 + (3 - twos) * rest**2) / 2
        assert_same(std.double(), variance.sqrt(), rtol=1e-3, atol=1e-3, what="the std")

    def test_a_model_without_dropout_is_sure(self):
        model, x = nn.Linear(3, 4).double(), sample(5, 3, dtype=torch.float64)
        mean, std = variational_dropout.mc_dropout(model, x, 4)
        assert_same(mean, model(x).detach(), **FLOAT64)
        assert_same(std, torch.zeros(5, 4, dtype=torch.float64), atol=1e-7)

    def test_a_prediction_may_be_a_single_number(self):
        torch.manual_seed(0)
        model = Chain(nn.Dropout(0.5), Total())
        mean, std = variational_dropout.mc_dropout(model, torch.ones(9, 9), 5)
        expect(
            mean.shape == () and std.shape == (), f"expected no dimensions, got {list(mean.shape)}, {list(std.shape)}"
        )
        expect(std.item() > 0, "expected samples that differ, their std is 0")

    @pytest.mark.parametrize("training", [True, False])
    @pytest.mark.parametrize(
        "dropout, shape",
        [
            (nn.Dropout, (4, 3)), (nn.Dropout1d, (4, 3, 2)), (nn.Dropout2d, (4, 3, 2, 5)),
            (nn.Dropout3d, (4, 3, 2, 5, 2)), (nn.AlphaDropout, (4, 3)), (nn.FeatureAlphaDropout, (4, 3, 2)),
            *((lambda name=name: named(name), (4, 3)) for name in DROPOUTS),
        ],
        ids=["Dropout", "Dropout1d", "Dropout2d", "Dropout3d", "AlphaDropout", "FeatureAlphaDropout",
             *(f"another {name}" for name in DROPOUTS)],
    )  # fmt: skip
    def test_every_kind_of_dropout_is_on_and_all_else_in_eval_mode(self, dropout, shape, training):
        model = Watched(nn.Tanh(), Chain(Chain(dropout()), nn.Tanh()), dropout())
        model.train(training)
        variational_dropout.mc_dropout(model, torch.ones(shape), 2)
        for seen in model.seen:
            on = sorted(name for name, mode in seen.items() if mode)
            expect(
                on == ["parts.1.0.0", "parts.2"],
                f"expected only the {type(model.parts[2]).__name__} modules, parts.1.0.0 and parts.2, in training mode",
                f"in training mode were {', '.join(on) or 'none'}",
            )
        assert_modes_kept(model, [training] * len(modes(model)))

    def test_the_model_can_be_the_dropout(self):
        torch.manual_seed(0)
        for model in (nn.Dropout(0.5).eval(), nn.AlphaDropout(0.5).eval()):
            std = variational_dropout.mc_dropout(model, torch.ones(9, 9), 4)[1]
            expect(bool(std.any()), f"expected {model} to be on, its samples are all the same")
            expect(not model.training, "expected the model back in eval mode, it is in training mode")

    @pytest.mark.parametrize("name", ["DropoutRate", "NoDropout", "LockedDropoutStack", "RNN", "dropout"])
    def test_other_names_are_not_dropout(self, name):
        model = Watched(named(name)).train()
        variational_dropout.mc_dropout(model, torch.ones(2, 3), 2)
        for seen in model.seen:
            expect(
                not any(seen.values()), f"expected a module of the class {name} in eval mode, it was in training mode"
            )

    @pytest.mark.parametrize("training", [True, False])
    def test_batch_norm_uses_and_keeps_its_running_statistics(self, training):
        """In training mode it would learn from what is to be predicted."""
        norm = nn.BatchNorm1d(3).double()
        norm.running_mean.copy_(torch.tensor([1.0, -2.0, 3.0]))
        norm.running_var.copy_(torch.tensor([4.0, 0.25, 9.0]))
        before = [buffer.clone() for buffer in norm.buffers()]
        model = Chain(norm, nn.Dropout(0.0)).train(training)
        x = sample(6, 3, dtype=torch.float64)
        mean, _ = variational_dropout.mc_dropout(model, x, 3)
        for buffer, old in zip(norm.buffers(), before, strict=True):
            expect(
                torch.equal(buffer, old), "expected batch norm's running statistics to stay as they were, it learned"
            )
        assert_same(mean, (x - before[0]) / (before[1] + norm.eps).sqrt(), rtol=1e-9, atol=1e-9)

    def test_puts_each_module_back_into_the_mode_that_it_had(self):
        """Some parts may be frozen in eval mode while the rest is trained."""
        model = Chain(
            Chain(nn.Dropout(), nn.Tanh(), Chain(nn.Dropout(), nn.BatchNorm1d(3))),
            nn.Dropout(), named("LockedDropout"), nn.Dropout(), named("VariationalRNN"),
        )  # fmt: skip
        for pattern in (0b0101_1010_1100_1, 0b1010_0101_0011_0):
            for bit, module in enumerate(model.modules()):
                module.training = bool(pattern >> bit & 1)
            before = modes(model)
            for generator in (None, torch.Generator().manual_seed(1)):
                variational_dropout.mc_dropout(model, torch.ones(4, 3), 2, generator)
                assert_modes_kept(model, before)

    @pytest.mark.parametrize("generator", [False, True])
    def test_puts_modes_back_when_the_model_raises(self, generator):
        """An error in an evaluation must not change how training goes on."""
        model = Chain(Chain(nn.Dropout(), nn.Tanh()), nn.Dropout(), nn.Tanh(), Broken())
        for pattern in (0b011_0101, 0b100_1010):
            for bit, module in enumerate(model.modules()):
                module.training = bool(pattern >> bit & 1)
            before = modes(model)
            with refuses(ZeroDivisionError):
                variational_dropout.mc_dropout(
                    model, torch.ones(4, 3), 2, torch.Generator().manual_seed(1) if generator else None
                )
            assert_modes_kept(model, before)

    def test_leaves_global_state_alone_when_the_model_raises(self):
        model = Chain(nn.Dropout(), Broken())
        generator = torch.Generator().manual_seed(1)
        try:
            for grad in (torch.enable_grad, torch.no_grad):
                with grad():
                    with state_kept(), refuses(ZeroDivisionError):
                        variational_dropout.mc_dropout(model, torch.ones(4, 3), 2, generator)
                    with state_kept(draws=True), refuses(ZeroDivisionError):
                        variational_dropout.mc_dropout(model, torch.ones(4, 3), 2)
        finally:
            torch.set_grad_enabled(True)

    def test_records_no_gradients_and_leaves_them_on(self):
        model, x = Chain(nn.Linear(3, 4), nn.Dropout(0.5)), sample(5, 3).requires_grad_()
        for generator in (None, torch.Generator().manual_seed(1)):
            try:
                with state_kept(draws=generator is None):
                    results = variational_dropout.mc_dropout(model, x, 3, generator)
            finally:
                torch.set_grad_enabled(True)
            for what, result in zip(("mean", "std"), results, strict=True):
                expect(not result.requires_grad, f"expected no gradients to be recorded, the {what} requires grad")
        expect(all(p.grad is None for p in (x, *model.parameters())), "expected no .grad to be filled")
        expect(model(x).requires_grad, "expected the model to record gradients as before when it is called afterwards")

    def test_parameters_stay_as_they_are(self):
        model = Chain(nn.Linear(3, 4), nn.Dropout(0.5))
        with unchanged(list(model.parameters()), names=("the parameters",)):
            variational_dropout.mc_dropout(model, sample(5, 3), 3)

    def test_token_ids_are_welcome(self):
        torch.manual_seed(0)
        model = Chain(nn.Embedding(7, 3), nn.Dropout(0.5)).eval()
        tokens = torch.tensor([[0, 3, 6], [5, 5, 1]])
        mean, std = variational_dropout.mc_dropout(model, tokens, 20)
        expect(mean.shape == (2, 3, 3) and mean.dtype == torch.float32, f"expected float32 [2, 3, 3], got {mean.shape}")
        expect(bool(std.any()), "expected samples that differ, their std is 0")

    @pytest.mark.filterwarnings("ignore:.*degrees of freedom")
    def test_a_batch_may_be_empty(self):
        for result in variational_dropout.mc_dropout(nn.Dropout(0.4), torch.zeros(0, 3), 5):
            assert_same(result, torch.zeros(0, 3))

    def test_with_a_generator_the_global_one_does_not_matter(self):
        model, x = Chain(nn.Dropout(0.4), nn.Tanh()), torch.ones(9, 20)
        assert_draws_from_the_generator_alone(
            lambda generator: torch.cat(variational_dropout.mc_dropout(model, x, 3, generator))
        )

    def test_with_a_generator_the_samples_of_one_call_differ_too(self):
        generator = torch.Generator().manual_seed(5)
        mean, std = variational_dropout.mc_dropout(nn.Dropout(0.5), torch.ones(40, 50), 2, generator=generator)
        assert_chance(std > 0, 0.5, "two samples different at a place")
        assert_chance(mean == 0, 0.25, "both samples dropped at a place")

    def test_without_a_generator_the_global_one_moves_on(self):
        model, x = nn.Dropout(0.4), torch.ones(9, 20)
        assert_follows_the_global_generator(lambda: torch.cat(variational_dropout.mc_dropout(model, x, 3)))

    @pytest.mark.parametrize("device", devices.DEVICES)
    def test_works_on_another_device(self, device):
        torch.manual_seed(0)
        x = sample(5, 3)
        model = Chain(nn.Dropout(0.5), nn.Linear(3, 4))
        sure = Chain(nn.Dropout(0.0), copy.deepcopy(model[1]))
        wanted = sure(x).detach()
        with devices.on(device):
            there, model, sure = x.to(device), model.to(device), sure.to(device)
            with devices.no_strays():
                results = [
                    *variational_dropout.mc_dropout(model, there, 3),
                    *variational_dropout.mc_dropout(sure, there, 3),
                ]
            for result in results:
                expect(result.device.type == device, f"expected results on {device}, got one on {result.device.type}")
            expect(bool((results[1].cpu() > 0).any()), "expected samples that differ, their std is 0")
            assert_same(results[2], wanted, device=False, rtol=1e-4, atol=1e-5)

    @pytest.mark.cuda
    def test_on_cuda_the_devices_generator_is_seeded_and_put_back(self):
        """A model on CUDA draws from the generator of its device, not from the CPU's."""
        model, x = nn.Dropout(0.4), torch.ones(9, 20, device="cuda")
        before = torch.cuda.get_rng_state()
        results = []
        for seed in (7, 7, 8):
            with state_kept():
                generator = torch.Generator("cuda").manual_seed(seed)
                results.append(torch.cat(variational_dropout.mc_dropout(model, x, 3, generator)))
        expect(
            torch.equal(before, torch.cuda.get_rng_state()), "expected CUDA's generator to be left alone, it was used"
        )
        expect(
            torch.equal(results[0], results[1]), "expected equal results for generators in equal states, they differ"
        )
        expect(not torch.equal(results[0], results[2]), "expected other results for a generator in another state")

    @pytest.mark.parametrize("samples", [1, 0, -3])
    def test_refuses_fewer_than_two_samples_and_changes_nothing(self, samples):
        """One sample has no spread: its unbiased std is 0 divided by 0."""
        model = Watched(nn.Dropout()).train()
        before, generator = modes(model), torch.Generator().manual_seed(1)
        for given_ in (None, generator):
            with state_kept(), refuses(ValueError, mentions=[samples]):
                variational_dropout.mc_dropout(model, torch.ones(4, 3), samples, given_)
            assert_modes_kept(model, before)


# The house rules ------------------------------------------------------------------------------------------------------

WHOLE_KATA = ("dropout", "rnn")


# `s` makes a sample in the dtype, on the device and with the number of rows `s.n` that a rule asks about.
RULES = [
    # Values between -1 and 1: in half precision larger ones would lose digits in the sums before tanh.
    rule("rnn_step", lambda s: (s(s.n, 3, low=-.5, high=.5), s(s.n, 5, low=-.5, high=.5), s(5, 3, low=-.5, high=.5),
                                s(5, 5, low=-.5, high=.5), s(5, low=-.5, high=.5), s(5, low=-.5, high=.5)),
         refused=WHOLE_KATA, fails=lambda s: (s(4, 3), s(4, 5), s(5, 3), s(5, 5), s(5), s(1))),
    rule("locked_dropout", lambda s: (s(s.n, 4, 5), 0.3), refused=WHOLE_KATA, random=True,
         also={"p 0": {"make": lambda s: (s(s.n, 4, 5), 0.0)},
               "p 1": {"make": lambda s: (s(s.n, 4, 5), 1.0), "differentiable": False},
               "eval": {"make": lambda s: (s(s.n, 4, 5), 0.3, False)}},
         fails=lambda s: (s(2, 3, 4), 1.5)),
    # In eval mode: in training mode modules draw from the global generator. They may leave integers to torch.
    rule("LockedDropout", lambda s: (s(s.n, 4, 5),), build=lambda m: m.LockedDropout(0.3).eval(), refused=WHOLE_KATA,
         integers_refused=False, module={"shows": (0.3,)}),
    # Half precision is compared in the class: rounded weights and several steps add up.
    rule("VariationalRNN", lambda s: (s(s.n, 4, 7), s(2, s.n, 8)), refused=WHOLE_KATA,
         build=lambda m: m.VariationalRNN(7, 8, 2, 0.15, 0.4).eval(), dtypes=(torch.float32, torch.float64),
         also={"no h0": {"make": lambda s: (s(s.n, 4, 7),)},
               "one step": {"make": lambda s: (s(s.n, 1, 7), s(2, s.n, 8))}},
         integers_refused=False, fails=lambda s: (s(3, 4, 7), s(2, 1, 8)),
         module={"shows": (7, 8, 0.15, 0.4),
                 "state": tuple(f"{name}_l{layer}" for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
                                for layer in (0, 1))}),
    rule("drop_connect", lambda s: (s(s.n, 4, 5), 0.3), refused=WHOLE_KATA, random=True,
         also={"p 0": {"make": lambda s: (s(s.n, 4), 0.0)},
               "p 1": {"make": lambda s: (s(s.n, 4), 1.0), "differentiable": False},
               "eval": {"make": lambda s: (s(s.n, 4), 0.3, False)}},
         fails=lambda s: (s(2, 3), -0.5)),
    # The caller's model uses torch's dropout below the learner's function: nothing can be refused. x may hold integers.
    # Devices: the simulated one has no generator, so a spec in the class calls without. Nothing is differentiated.
    # Empty batches: in the class, since torch warns there.
    rule("mc_dropout", lambda s: (Chain(nn.Dropout(0.4), nn.Tanh()), s(s.n, 3), 5), random=True, empty=False,
         integers_refused=False, any_device=False, differentiable=False, fails=lambda s: (nn.Dropout(0.4), s(4, 3), 1)),
]  # fmt: skip
