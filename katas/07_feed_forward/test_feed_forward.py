"""The specs of kata 07. One class a public name; the house rules that all of them share are in the table at the end."""

import math
from itertools import product

import feed_forward
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dojo import devices, rules
from dojo.compare import assert_same, assert_same_gradients, expect, expect_share, refuses
from dojo.guards import count_ops, live_bytes
from dojo.rules import rule
from dojo.strategies import sample, shapes

FLOAT64 = {"rtol": 1e-12, "atol": 1e-12}
INTEGERS = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]
LOUD = (ValueError, RuntimeError, IndexError, TypeError)  # for what torch itself finds


# What several classes use ---------------------------------------------------------------------------------------------


def filled(module, largest=1.0):
    """The module with values in all its parameters that repeat from run to run, up to `largest`."""
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(sample(*p.shape, dtype=torch.float64, low=-largest, high=largest))
    return module


def passing_on(d_model, dropout=0.1, activation="relu"):
    """A network whose hidden features are all 1 before the activation and reach the output, where 0.5 is added."""
    ffn = feed_forward.PositionwiseFeedForward(d_model, d_model, dropout, activation)
    identity = torch.eye(d_model)
    ffn.load_state_dict(
        {
            "fc1.weight": identity,
            "fc1.bias": torch.ones(d_model),
            "fc2.weight": identity,
            "fc2.bias": torch.full((d_model,), 0.5),
        }
    )
    return ffn


def two_layers(x, p, activation=F.relu):
    """What the two-layer network gives with the parameters p, by torch's own functions and without dropout."""
    return F.linear(activation(F.linear(x, p["fc1.weight"], p["fc1.bias"])), p["fc2.weight"], p["fc2.bias"])


def assert_each_position_alone(module, d):
    """Where one position changes, its own output changes and no other."""
    for shape in [(3,), (2, 4), (2, 3, 5), (4,), (3, 1, 2, 2)]:
        x = sample(*shape, d)
        before = module(x).detach()
        for position in (torch.zeros(len(shape)), torch.tensor(shape) - 1, (torch.tensor(shape) - 1) // 2):
            at = tuple(position.long().tolist())
            changed = x.clone()
            changed[at] = 3 - x[at]
            after = module(changed).detach()
            others = torch.ones(shape, dtype=torch.bool)
            others[at] = False
            moved = ~torch.isclose(before, after, rtol=1e-4, atol=1e-5).all(-1)
            where = f"for x of shape {[*shape, d]}"
            count = int((moved & others).sum())
            expect(
                count == 0, f"expected only the output at {list(at)} to change with x there, {count} others did", where
            )
            expect(bool(moved[at]), f"expected the output at {list(at)} to change with x there, it did not", where)


def assert_starts_from_the_global_generator(build):
    """Equal weights for equal seeds, other weights for other seeds and for a second module."""

    def draw(seed):
        torch.manual_seed(seed)
        return [p.detach() for _ in range(2) for p in build().parameters()]

    with torch.random.fork_rng(devices=[]):
        first, again, other = draw(5), draw(5), draw(6)
    same = all(torch.equal(p, q) for p, q in zip(first, again, strict=True))
    expect(same, "expected equal modules for equal seeds of torch.manual_seed, they differ")
    half = len(first) // 2
    for name, others in (("another seed", other[:half]), ("the second of two modules made in a row", first[half:])):
        changed = [not torch.equal(p, q) for p, q in zip(first, others, strict=False) if p.ndim == 2]
        expect(all(changed), f"expected other weights for {name}, some are the same")


HOUSE_RULES = {
    "strides": lambda line, f: rules.test_works_for_any_strides(line, f, "transposed"),
    "device": lambda line, f: rules.test_works_on_another_device(line, f, "sim"),
    "rows": rules.test_takes_no_more_operations_for_more_rows,
    "no rows": rules.test_works_without_rows,
    "slope": rules.test_gradients_are_right,
    "arguments": rules.test_leaves_its_arguments_as_they_are,
    "module": rules.test_is_a_well_behaved_module,
}


# gelu -----------------------------------------------------------------------------------------------------------------


def gelu_by_hand(x):
    """x times the normal distribution function, number by number."""
    values = [0.5 * v * math.erfc(-v / math.sqrt(2)) for v in x.flatten().tolist()]
    return torch.tensor(values, dtype=torch.float64).reshape(x.shape)


class TestGelu:
    def test_is_the_exact_function_not_an_approximation(self):
        """The one by tanh differs in the fourth decimal: enough for a loaded model to answer otherwise."""
        x = torch.tensor([-3.0, -2.0, -1.0, -0.25, 0.0, 0.5, 1.0, 2.0, 2.7, 4.0], dtype=torch.float64)
        assert_same(feed_forward.gelu(x), gelu_by_hand(x), **FLOAT64)
        assert_same(feed_forward.gelu(x.float()), gelu_by_hand(x).float())

    def test_known_values(self):
        found = feed_forward.gelu(torch.tensor([-2.0, 0.0, 2.0]))
        assert_same(found, torch.tensor([-0.0455003, 0.0, 1.9544997]))

    @given(shape=shapes(max_dims=4, min_size=0), largest=st.sampled_from([0.1, 1.0, 3.0, 8.0]))
    def test_is_x_times_the_probability_that_a_normal_variable_is_below_x(self, shape, largest):
        x = sample(*shape, dtype=torch.float64, low=-largest, high=largest)
        assert_same(feed_forward.gelu(x), gelu_by_hand(x), **FLOAT64)

    def test_a_number_without_dimensions(self):
        x = torch.tensor(1.0, requires_grad=True)
        found = feed_forward.gelu(x)
        assert_same(found, torch.tensor(0.8413447))
        assert_same(torch.autograd.grad(found, x)[0], torch.tensor(1.0833155))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
    def test_far_above_0_it_is_x_and_far_below_it_is_0(self, dtype):
        x = torch.tensor([20.0, 1e4, 1e30, -20.0, -1e4, -1e30], dtype=dtype)
        found = feed_forward.gelu(x)
        assert_same(found[:3], x[:3], rtol=1e-6, atol=0)
        assert_same(found[3:], torch.zeros(3, dtype=dtype), atol=1e-5)

    def test_near_0_it_is_half_of_x(self):
        x = torch.tensor([1e-200, -3e-100, 7e-30], dtype=torch.float64)
        assert_same(feed_forward.gelu(x), 0.5 * x, rtol=1e-12, atol=0)

    def test_its_slope(self):
        """Below 0 it falls before it rises: unlike relu it has a slope there to learn from."""
        points = [-4.0, -1.5, -0.7, 0.0, 0.3, 1.0, 2.5]
        x = torch.tensor(points, dtype=torch.float64, requires_grad=True)
        (found,) = torch.autograd.grad(feed_forward.gelu(x).sum(), x)
        slopes = [0.5 * math.erfc(-v / 2**0.5) + v * math.exp(-v * v / 2) / math.sqrt(2 * math.pi) for v in points]
        assert_same(found, torch.tensor(slopes, dtype=torch.float64), **FLOAT64)

    def test_far_out_the_slope_is_0_or_1(self):
        x = torch.tensor([20.0, 1e4, -20.0, -1e4], requires_grad=True)
        (found,) = torch.autograd.grad(feed_forward.gelu(x).sum(), x)
        assert_same(found, torch.tensor([1.0, 1.0, 0.0, 0.0]))

    @pytest.mark.parametrize("dtype", INTEGERS, ids=str)
    def test_refuses_integers_of_any_width(self, dtype):
        with refuses(TypeError):
            feed_forward.gelu(torch.tensor([0, 1, 2], dtype=dtype))


# feed_forward ---------------------------------------------------------------------------------------------------------


def network_by_hand(x, w1, b1, w2, b2):
    """Relu between two linear maps, number by number, for x [rows d]."""
    rows = []
    for row in x.tolist():
        hidden = [
            max(0.0, bias + sum(w * v for w, v in zip(weights, row, strict=True)))
            for weights, bias in zip(w1.tolist(), b1.tolist(), strict=True)
        ]
        rows.append(
            [
                bias + sum(w * h for w, h in zip(weights, hidden, strict=True))
                for weights, bias in zip(w2.tolist(), b2.tolist(), strict=True)
            ]
        )
    return torch.tensor(rows, dtype=torch.float64).reshape(x.shape)


def layers(d, f, dtype=torch.float64):
    """w1, b1, w2, b2."""
    return [sample(*shape, dtype=dtype) for shape in ((f, d), (f,), (d, f), (d,))]


class TestFeedForward:
    def test_known_values(self):
        w1, b1 = torch.tensor([[1.0], [-1.0], [2.0]]), torch.tensor([0.0, 0.0, -3.0])
        w2, b2 = torch.tensor([[1.0, 10.0, 100.0]]), torch.tensor([0.5])
        found = feed_forward.feed_forward(torch.tensor([[-2.0], [1.0], [2.0]]), w1, b1, w2, b2)
        assert_same(found, torch.tensor([[20.5], [1.5], [102.5]]))

    @given(batch=shapes(max_dims=3), d=st.integers(1, 5), f=st.integers(1, 7))
    def test_is_a_sum_over_hidden_features_of_a_relu_of_a_sum(self, batch, d, f):
        x, parameters = sample(*batch, d, dtype=torch.float64), layers(d, f)
        wanted = network_by_hand(x.reshape(-1, d), *parameters).reshape(x.shape)
        assert_same(feed_forward.feed_forward(x, *parameters), wanted, **FLOAT64)

    @pytest.mark.parametrize("batch", [(), (4,), (1, 1), (2, 4), (2, 3, 2, 4)], ids=str)
    @pytest.mark.parametrize("d, f", [(3, 5), (5, 3), (4, 4)])
    def test_any_leading_dimensions(self, batch, d, f):
        x, parameters = sample(*batch, d, dtype=torch.float64), layers(d, f)
        wanted = network_by_hand(x.reshape(-1, d), *parameters).reshape(x.shape)
        assert_same(feed_forward.feed_forward(x, *parameters), wanted, **FLOAT64)

    @pytest.mark.parametrize(
        "activation",
        [torch.tanh, F.silu, nn.Softplus(), lambda h: h.softmax(-1), lambda h: h + 1],
        ids=["tanh", "silu", "a module", "softmax", "plus one"],
    )
    def test_any_function_can_stand_in_between(self, activation):
        x, (w1, b1, w2, b2) = sample(2, 4, 3, dtype=torch.float64), layers(3, 5)
        wanted = torch.einsum("btf,df->btd", activation(torch.einsum("btd,fd->btf", x, w1) + b1), w2) + b2
        assert_same(feed_forward.feed_forward(x, w1, b1, w2, b2, activation), wanted, **FLOAT64)
        assert_same(feed_forward.feed_forward(x, w1, b1, w2, b2, activation=activation), wanted, **FLOAT64)

    def test_gradients_reach_all_five_tensors(self):
        given = [t.requires_grad_() for t in (sample(2, 4, 3, dtype=torch.float64), *layers(3, 5))]
        x, w1, b1, w2, b2 = given
        wanted = (x @ w1.mT + b1).clamp(min=0) @ w2.mT + b2
        assert_same_gradients(feed_forward.feed_forward(*given), wanted, given, **FLOAT64)

    def test_nothing_is_recorded_where_gradients_are_off(self):
        given = [t.requires_grad_() for t in (sample(4, 3), *layers(3, 5, torch.float32))]
        with torch.no_grad():
            found = feed_forward.feed_forward(*given)
        expect(not found.requires_grad, "expected a result without a graph under torch.no_grad, it requires grad")

    @pytest.mark.parametrize("shape", [(0, 3), (2, 0, 3), (0, 2, 3)], ids=str)
    def test_no_rows(self, shape):
        assert feed_forward.feed_forward(sample(*shape), *layers(3, 5, torch.float32)).shape == shape

    def test_no_features(self):
        """A sum over nothing is 0."""
        w1, b1, w2, b2 = layers(0, 5, torch.float32)
        assert feed_forward.feed_forward(sample(2, 4, 0), w1, b1, w2, b2).shape == (2, 4, 0)

    def test_no_hidden_features_leave_the_second_bias(self):
        """A sum over nothing is 0."""
        w1, b1, w2, b2 = layers(3, 0, torch.float32)
        found = feed_forward.feed_forward(sample(2, 4, 3), w1, b1, w2, b2)
        assert_same(found, b2.expand(2, 4, 3))

    @pytest.mark.parametrize(
        "name, shape, wrong",
        [
            *(("x", (*batch, d), [d]) for batch, d in [((2,), 4), ((2,), 1), ((), 4), ((2,), 6), ((2,), 0), ((3,), 5)]),
            *(("w1", shape, []) for shape in [(5, 4), (4, 3), (5, 1), (1, 3)]),
            *(("b1", (f,), [f]) for f in (1, 4, 0)),
            *(("w2", shape, [wrong]) for shape, wrong in [((3, 4), 4), ((3, 1), 1), ((1, 5), 1), ((4, 5), 4)]),
            *(("b2", (d,), [d]) for d in (1, 4, 0)),
        ],
        ids=lambda given: given if isinstance(given, str) else "x".join(map(str, given)),
    )
    def test_refuses_sizes_that_do_not_fit_together(self, name, shape, wrong):
        """A bias of size 1 would broadcast in silence, and the network would be another one."""
        sizes = {"x": (2, 3), "w1": (5, 3), "b1": (5,), "w2": (3, 5), "b2": (3,), name: shape}
        with refuses(ValueError, mentions=wrong):
            feed_forward.feed_forward(*(sample(*size) for size in sizes.values()))

    def test_refuses_a_second_layer_with_another_width_than_x(self):
        """Something of another size could not be added to x where the network stands in a Transformer."""
        with refuses(ValueError, mentions=[7]):
            feed_forward.feed_forward(sample(2, 3), sample(5, 3), sample(5), sample(7, 5), sample(7))

    @pytest.mark.parametrize("number, shape", [(2, ()), (2, (1, 5)), (4, ()), (4, (1, 3)), (4, (2, 3))])
    def test_refuses_biases_of_another_number_of_dimensions(self, number, shape):
        given = [sample(2, 3), *layers(3, 5, torch.float32)]
        given[number] = sample(*shape)
        with refuses(LOUD):
            feed_forward.feed_forward(*given)

    def test_refuses_an_x_without_dimensions(self):
        for d in (1, 3):
            with refuses(LOUD):
                feed_forward.feed_forward(torch.tensor(2.0), *layers(d, 5, torch.float32))

    @pytest.mark.parametrize("number", range(5), ids=["x", "w1", "b1", "w2", "b2"])
    def test_refuses_integers_in_any_of_the_five(self, number):
        given = [sample(2, 3), *layers(3, 5, torch.float32)]
        given[number] = given[number].long()
        with refuses(TypeError):
            feed_forward.feed_forward(*given)


# PositionwiseFeedForward ----------------------------------------------------------------------------------------------


class TestPositionwiseFeedForward:
    @pytest.mark.parametrize("activation", ["relu", "gelu"])
    @pytest.mark.parametrize("training", [True, False], ids=["dropout 0", "eval"])
    def test_computes_each_position_from_itself_alone(self, activation, training):
        """The same network stands at every position; only attention lets positions see each other."""
        ffn = feed_forward.PositionwiseFeedForward(4, 9, 0.0 if training else 0.3, activation)
        assert_each_position_alone(filled(ffn).train(training), 4)

    @given(batch=shapes(max_dims=3, min_size=0), d_model=st.integers(1, 5), d_ff=st.integers(1, 6))
    @settings(max_examples=15)
    def test_is_linear_relu_linear(self, batch, d_model, d_ff):
        ffn = filled(feed_forward.PositionwiseFeedForward(d_model, d_ff)).double().eval()
        x = sample(*batch, d_model, dtype=torch.float64)
        assert_same(ffn(x), two_layers(x, ffn.state_dict()), **FLOAT64)

    @pytest.mark.parametrize("activation, torchs", [("relu", F.relu), ("gelu", F.gelu)], ids=["relu", "gelu"])
    def test_has_the_activation_that_was_asked_for(self, activation, torchs):
        """gelu is the exact one."""
        for ffn in (
            feed_forward.PositionwiseFeedForward(3, 5, 0.2, activation),
            feed_forward.PositionwiseFeedForward(d_model=3, d_ff=5, activation=activation),
        ):
            filled(ffn).double().eval()
            x = sample(2, 4, 3, dtype=torch.float64)
            assert_same(ffn(x), two_layers(x, ffn.state_dict(), torchs), **FLOAT64)

    def test_its_activation_is_relu_unless_told_otherwise(self):
        ffn = filled(feed_forward.PositionwiseFeedForward(3, 5)).double().eval()
        x = sample(2, 4, 3, dtype=torch.float64)
        assert_same(ffn(x), two_layers(x, ffn.state_dict(), F.relu), **FLOAT64)

    @pytest.mark.parametrize("activation, torchs", [("relu", F.relu), ("gelu", F.gelu)], ids=["relu", "gelu"])
    def test_gradients_reach_x_and_every_parameter(self, activation, torchs):
        ffn = filled(feed_forward.PositionwiseFeedForward(3, 5, 0.0, activation)).double()
        x, p = sample(2, 4, 3, dtype=torch.float64).requires_grad_(), dict(ffn.named_parameters())
        assert_same_gradients(ffn(x), two_layers(x, p, torchs), [x, *p.values()], **FLOAT64)

    def test_its_parameters_are_those_of_two_layers(self):
        found = {k: list(v.shape) for k, v in feed_forward.PositionwiseFeedForward(3, 5).state_dict().items()}
        wanted = {"fc1.weight": [5, 3], "fc1.bias": [5], "fc2.weight": [3, 5], "fc2.bias": [3]}
        expect(found == wanted, f"expected state_dict to hold {wanted}, it holds {found}")
        trained = [name for name, p in feed_forward.PositionwiseFeedForward(3, 5).named_parameters() if p.requires_grad]
        expect(sorted(trained) == sorted(wanted), f"expected all of them to be trained, {sorted(trained)} are")

    def test_has_the_submodules_fc1_fc2_and_dropout(self):
        """Code that loads weights or switches dropout finds them by these names."""
        names = {name for name, _ in feed_forward.PositionwiseFeedForward(3, 5).named_children()}
        missing = {"fc1", "fc2", "dropout"} - names
        expect(not missing, f"expected submodules fc1, fc2 and dropout, {', '.join(sorted(missing))} is not among them")

    @pytest.mark.parametrize("activation, activated", [("relu", 1.0), ("gelu", 0.8413447)], ids=["relu", "gelu"])
    def test_dropout_comes_between_the_activation_and_the_second_layer(self, activation, activated):
        """A dropped hidden feature is 0 for fc2, one that is kept is scaled, and fc2's bias stays."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            found = passing_on(40, 0.3, activation).train()(torch.zeros(300, 40)).detach()
        kept = found > 0.6
        assert_same(found, torch.where(kept, 0.5 + activated / 0.7, 0.5), rtol=1e-5)
        expect_share(kept, 0.7, "hidden features that are kept")

    def test_the_probability_of_dropout_is_a_tenth_unless_told_otherwise(self):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            ffn = feed_forward.PositionwiseFeedForward(60, 60)
            ffn.load_state_dict(passing_on(60).state_dict())
            dropped = ffn.train()(torch.zeros(300, 60)) == 0.5
        expect_share(dropped, 0.1, "hidden features that are dropped")

    def test_each_hidden_feature_is_dropped_by_itself(self):
        """Other places at other positions, and not a whole feature or a whole position at once."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            kept = passing_on(20, 0.4).train()(torch.zeros(5, 30, 20)) > 0.6
        for dim, other in enumerate(("batch", "position", "feature")):
            same = (kept == kept.narrow(dim, 0, 1)).all()
            expect(not same, f"expected other places to be dropped at another {other}, they are the same")
        expect_share(kept[:, 1::2] == kept[:, ::2], 0.52, "neighbours in time that share their fate")

    def test_a_vector_of_features_has_dropout_too(self):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            found = passing_on(60, 0.5).train()(torch.zeros(60))
        kept = found > 0.6
        assert_same(found.detach(), torch.where(kept, 2.5, 0.5))
        expect(0 < int(kept.sum()) < 60, f"expected some of 60 features to be dropped, {60 - int(kept.sum())} were")

    @pytest.mark.parametrize("activation, activated", [("relu", 1.0), ("gelu", 0.8413447)], ids=["relu", "gelu"])
    def test_nothing_is_dropped_in_eval_mode(self, activation, activated):
        found = passing_on(20, 0.3, activation).eval()(torch.zeros(30, 20))
        assert_same(found.detach(), torch.full((30, 20), 0.5 + activated))

    def test_switches_with_every_train_and_eval(self):
        ffn, x = passing_on(20, 0.5), torch.zeros(30, 20)
        for training in (True, False, True, False):
            whole = bool((ffn.train(training)(x) == 1.5).all())
            acts, mode = "" if training else "not ", "training" if training else "eval"
            expect(whole != training, f"expected dropout {acts}to act in {mode} mode")

    def test_is_in_training_mode_also_where_gradients_are_off(self):
        """torch.no_grad says that nothing is recorded, not that the network is in use."""
        for training in (True, False):
            with torch.no_grad():
                whole = bool((passing_on(20, 0.5).train(training)(torch.zeros(30, 20)) == 1.5).all())
            mode = "training" if training else "eval"
            expect(whole != training, f"expected dropout to follow the {mode} mode under torch.no_grad, it did not")

    def test_drops_what_the_generator_state_says(self):
        ffn, x = passing_on(20, 0.4).train(), torch.zeros(9, 20)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            first, second = ffn(x).detach(), ffn(x).detach()
            torch.manual_seed(3)
            assert_same(ffn(x), first)
        expect(not torch.equal(first, second), "expected other places to be dropped in the next call")

    def test_the_gradient_passes_where_nothing_was_dropped(self):
        ffn, x = passing_on(20, 0.3).train(), torch.zeros(30, 20, requires_grad=True)
        found = ffn(x)
        (gradient,) = torch.autograd.grad(found.sum(), x)
        assert_same(gradient, torch.where(found.detach() > 0.6, 1 / 0.7, 0.0))

    def test_starts_from_the_global_generator(self):
        """torch.manual_seed makes a whole program repeatable: a layer must neither ignore nor reset it."""
        assert_starts_from_the_global_generator(lambda: feed_forward.PositionwiseFeedForward(4, 7))

    @pytest.mark.parametrize("asked", HOUSE_RULES)
    def test_the_house_rules_hold_for_relu_too(self, asked):
        """What is asked of every function below is asked of gelu there, and here of the other activation."""
        line = rules.Rule(
            "PositionwiseFeedForward",
            lambda s: (s(s.n, 2, 5),),
            build=lambda m: filled(m.PositionwiseFeedForward(5, 7, 0.3)).eval(),
            module={"shows": (5, 7, 0.3)},
        )
        HOUSE_RULES[asked](line, line.function(feed_forward))

    def test_shows_its_activation(self):
        texts = [repr(feed_forward.PositionwiseFeedForward(3, 5, activation=name)) for name in ("relu", "gelu")]
        expect(texts[0] != texts[1], f"expected repr to tell relu from gelu, both are {texts[0]}")

    @pytest.mark.parametrize("shape", [(2, 4), (4, 6), (2, 1), (5,)], ids=str)
    def test_refuses_another_last_dimension(self, shape):
        ffn = feed_forward.PositionwiseFeedForward(3, 5)
        with refuses(LOUD):
            ffn(sample(*shape))

    @pytest.mark.parametrize("widths, wrong", [((0, 3), 0), ((3, 0), 0), ((-2, 3), -2), ((3, -4), -4)], ids=str)
    def test_refuses_a_width_below_one(self, widths, wrong):
        with refuses(ValueError, mentions=[wrong]):
            feed_forward.PositionwiseFeedForward(*widths)

    @pytest.mark.parametrize("dropout", [-0.1, 1.5])
    def test_refuses_a_dropout_that_is_no_probability(self, dropout):
        with refuses(ValueError, mentions=[dropout]):
            feed_forward.PositionwiseFeedForward(3, 5, dropout)

    @pytest.mark.parametrize("activation", ["tanh", "silu", "", "relu6"])
    def test_refuses_any_other_activation_when_it_is_made(self, activation):
        with refuses(ValueError):
            feed_forward.PositionwiseFeedForward(3, 5, activation=activation)


# GatedFeedForward -----------------------------------------------------------------------------------------------------


def gated_by_hand(x, p):
    """The sum over hidden features of down · g · sigmoid(g) · u, number by number, for x [rows d]."""
    rows = []
    for row in x.tolist():
        hidden = []
        for gate, up in zip(p["gate.weight"].tolist(), p["up.weight"].tolist(), strict=True):
            g = sum(w * v for w, v in zip(gate, row, strict=True))
            u = sum(w * v for w, v in zip(up, row, strict=True))
            hidden.append(g / (1 + math.exp(-g)) * u)
        rows.append([sum(w * h for w, h in zip(down, hidden, strict=True)) for down in p["down.weight"].tolist()])
    return torch.tensor(rows, dtype=torch.float64).reshape(x.shape)


class TestGatedFeedForward:
    def test_computes_each_position_from_itself_alone(self):
        """The same network stands at every position; only attention lets positions see each other."""
        assert_each_position_alone(filled(feed_forward.GatedFeedForward(4, 9)), 4)

    def test_known_values(self):
        ffn = feed_forward.GatedFeedForward(d_model=1, d_ff=2)
        up, down = torch.tensor([[2.0], [10.0]]), torch.tensor([[1.0, 100.0]])
        ffn.load_state_dict({"gate.weight": torch.tensor([[1.0], [0.0]]), "up.weight": up, "down.weight": down})
        assert_same(ffn(torch.tensor([[3.0], [-3.0]])).detach(), torch.tensor([[17.146335], [0.8536473]]), rtol=1e-5)

    @given(batch=shapes(max_dims=3), d_model=st.integers(1, 4), d_ff=st.integers(1, 5))
    @settings(max_examples=15)
    def test_each_hidden_feature_is_silu_of_the_gate_times_the_other_branch(self, batch, d_model, d_ff):
        ffn = filled(feed_forward.GatedFeedForward(d_model, d_ff)).double()
        x = sample(*batch, d_model, dtype=torch.float64)
        wanted = gated_by_hand(x.reshape(-1, d_model), ffn.state_dict()).reshape(x.shape)
        assert_same(ffn(x), wanted, **FLOAT64)

    @pytest.mark.parametrize("batch", [(), (4,), (1, 1), (2, 4), (2, 3, 2, 4)], ids=str)
    def test_any_leading_dimensions(self, batch):
        ffn = filled(feed_forward.GatedFeedForward(3, 5)).double()
        x = sample(*batch, 3, dtype=torch.float64)
        assert_same(ffn(x), gated_by_hand(x.reshape(-1, 3), ffn.state_dict()).reshape(x.shape), **FLOAT64)

    def test_gradients_reach_x_and_the_three_weights(self):
        ffn = filled(feed_forward.GatedFeedForward(3, 5)).double()
        x, p = sample(2, 4, 3, dtype=torch.float64).requires_grad_(), dict(ffn.named_parameters())
        g, u = torch.einsum("btd,fd->btf", x, p["gate.weight"]), torch.einsum("btd,fd->btf", x, p["up.weight"])
        wanted = torch.einsum("btf,df->btd", g * torch.sigmoid(g) * u, p["down.weight"])
        assert_same_gradients(ffn(x), wanted, [x, *p.values()], **FLOAT64)

    def test_has_three_weights_and_no_bias(self):
        found = {k: list(v.shape) for k, v in feed_forward.GatedFeedForward(3, 5).named_parameters()}
        wanted = {"gate.weight": [5, 3], "up.weight": [5, 3], "down.weight": [3, 5]}
        expect(found == wanted, f"expected parameters {wanted}, got {found}")

    def test_has_the_submodules_gate_up_and_down(self):
        names = {name for name, _ in feed_forward.GatedFeedForward(3, 5).named_children()}
        missing = {"gate", "up", "down"} - names
        expect(not missing, f"expected submodules gate, up and down, {', '.join(sorted(missing))} is not among them")

    def test_gate_and_up_start_with_weights_of_their_own(self):
        ffn = feed_forward.GatedFeedForward(3, 5)
        expect(not torch.equal(ffn.gate.weight, ffn.up.weight), "expected gate and up to differ, they are the same")

    def test_an_x_of_zeros_gives_zeros(self):
        """Without biases, and silu(0) is 0."""
        ffn = filled(feed_forward.GatedFeedForward(3, 5))
        assert_same(ffn(torch.zeros(2, 3)).detach(), torch.zeros(2, 3))

    @pytest.mark.parametrize("size", [1e3, -1e3])
    def test_a_gate_far_from_0_is_open_or_shut_with_finite_gradients(self, size):
        """exp(1000) is infinite: it must reach neither the value nor the gradient."""
        ffn = feed_forward.GatedFeedForward(1, 1)
        one = torch.ones(1, 1)
        ffn.load_state_dict({"gate.weight": one, "up.weight": one, "down.weight": one})
        x = torch.tensor([[size]], requires_grad=True)
        found = ffn(x)
        assert_same(found.detach(), torch.tensor([[max(size, 0.0) * size]]))
        (gradient,) = torch.autograd.grad(found.sum(), x)
        assert_same(gradient, torch.tensor([[2 * max(size, 0.0)]]))

    def test_starts_from_the_global_generator(self):
        """torch.manual_seed makes a whole program repeatable: a layer must neither ignore nor reset it."""
        assert_starts_from_the_global_generator(lambda: feed_forward.GatedFeedForward(4, 7))

    @pytest.mark.parametrize("shape", [(2, 4), (2, 1), (4,), (2, 5), (2, 3, 6), (3, 2), (2, 0)], ids=str)
    def test_refuses_another_last_dimension(self, shape):
        ffn = feed_forward.GatedFeedForward(3, 5)
        with refuses(ValueError, mentions=[3, shape[-1]]):
            ffn(sample(*shape))

    def test_refuses_another_last_dimension_where_it_would_broadcast(self):
        ffn = feed_forward.GatedFeedForward(1, 5)
        with refuses(ValueError, mentions=[1, 4]):
            ffn(sample(2, 4))

    def test_refuses_a_number_without_dimensions(self):
        for d_model in (1, 3):
            ffn = feed_forward.GatedFeedForward(d_model, 5)
            with refuses(LOUD):
                ffn(torch.tensor(2.0))

    @pytest.mark.parametrize("widths, wrong", [((0, 3), 0), ((3, 0), 0), ((-2, 3), -2), ((3, -4), -4)], ids=str)
    def test_refuses_a_width_below_one(self, widths, wrong):
        with refuses(ValueError, mentions=[wrong]):
            feed_forward.GatedFeedForward(*widths)


# FeedForwardSublayer --------------------------------------------------------------------------------------------------


both_orders = pytest.mark.parametrize("norm_first", [True, False], ids=["norm first", "norm last"])


def sublayer_by_hand(x, p, norm_first):
    """The two formulas, by torch's own functions and without dropout."""
    inner = {name.removeprefix("ffn."): value for name, value in p.items()}
    norm = lambda v: F.layer_norm(v, v.shape[-1:], p["norm.weight"], p["norm.bias"])  # noqa: E731
    return x + two_layers(norm(x), inner) if norm_first else norm(x + two_layers(x, inner))


def branch_states(norm_first, dropout=0.3, p=0.3, rows=2000):
    """What the dropouts of a sublayer did to each feature of its branch: 0 dropped after ffn, 1 dropped in ffn, 2 kept.

    Every hidden feature is 1 whatever x is, and becomes one output by a weight and a bias of its own: the branch is 0,
    or the bias scaled once, or the weight scaled once plus the bias and all of it scaled again.
    """
    weight, bias = torch.tensor([1.0, 2.0, -1.5]), torch.tensor([0.4, 1.1, -0.6])
    given = {} if dropout is None else {"dropout": dropout}
    sublayer = filled(feed_forward.FeedForwardSublayer(3, 3, norm_first=norm_first, **given)).train()
    state = sublayer.state_dict()
    state["ffn.fc1.weight"], state["ffn.fc1.bias"] = torch.zeros(3, 3), torch.ones(3)
    state["ffn.fc2.weight"], state["ffn.fc2.bias"] = weight.diag(), bias
    sublayer.load_state_dict(state)
    x = torch.tensor([1.0, -2.0, 4.0])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        found = sublayer(x.expand(rows, 3)).detach()
    scale = 1 / (1 - p)
    choices = torch.tensor(list(product(range(3), repeat=3)))
    branch = torch.stack([0 * bias, scale * bias, scale * (scale * weight + bias)])
    possible = x + branch[choices, torch.arange(3)]
    if not norm_first:
        possible = F.layer_norm(possible, (3,), state["norm.weight"], state["norm.bias"])
    distance, nearest = (found[:, None] - possible).abs().amax(-1).min(1)
    formula = "x + dropout(ffn(norm(x)))" if norm_first else "norm(x + dropout(ffn(x)))"
    far = ~(distance < 1e-4)  # nan is far too
    got, whole = ([round(v, 3) for v in row.tolist()] for row in (found[far.long().argmax()], scale * weight + bias))
    expect(
        not far.any(),
        f"expected {formula} in training mode, with nothing but features of the branch dropped, got {got}",
        f"for x = {x.tolist()}, where ffn gives {whole} if nothing is dropped in it",
    )
    return choices[nearest]


class TestFeedForwardSublayer:
    @both_orders
    @pytest.mark.parametrize("training", [True, False], ids=["dropout 0", "eval"])
    def test_computes_each_position_from_itself_alone(self, norm_first, training):
        """The norm is over the features of one position, never over the sequence."""
        sublayer = feed_forward.FeedForwardSublayer(4, 9, 0.0 if training else 0.3, norm_first)
        assert_each_position_alone(filled(sublayer).train(training), 4)

    @both_orders
    def test_known_values(self, norm_first):
        """A branch of zeros leaves x as it is, or normalized."""
        sublayer = feed_forward.FeedForwardSublayer(2, 3, 0.4, norm_first)
        state = sublayer.state_dict()
        state["ffn.fc2.weight"], state["ffn.fc2.bias"] = torch.zeros(2, 3), torch.zeros(2)
        sublayer.load_state_dict(state)
        found = sublayer.eval()(torch.tensor([5.0, 3.0])).detach()
        assert_same(found, torch.tensor([5.0, 3.0] if norm_first else [1.0, -1.0]), rtol=1e-4)

    @pytest.mark.parametrize("batch", [(), (4,), (1, 1), (2, 4), (2, 3, 2, 4)], ids=str)
    @both_orders
    def test_is_a_norm_a_network_and_a_residual_in_the_order_asked_for(self, norm_first, batch):
        """x + ffn(norm(x)), or norm(x + ffn(x)); x itself is not normalized in the first."""
        sublayer = filled(feed_forward.FeedForwardSublayer(3, 5, 0.4, norm_first)).double().eval()
        x = sample(*batch, 3, dtype=torch.float64)
        assert_same(sublayer(x), sublayer_by_hand(x, sublayer.state_dict(), norm_first), rtol=1e-9, atol=1e-9)

    def test_the_norm_comes_first_unless_told_otherwise(self):
        """Deep stacks train more easily that way: the residual path is free from end to end."""
        sublayer = filled(feed_forward.FeedForwardSublayer(3, 5)).double().eval()
        x = sample(4, 3, dtype=torch.float64)
        assert_same(sublayer(x), sublayer_by_hand(x, sublayer.state_dict(), True), rtol=1e-9, atol=1e-9)

    @both_orders
    def test_gradients_reach_x_and_every_parameter(self, norm_first):
        sublayer = filled(feed_forward.FeedForwardSublayer(3, 5, 0.0, norm_first=norm_first)).double()
        x, p = sample(2, 4, 3, dtype=torch.float64).requires_grad_(), dict(sublayer.named_parameters())
        wanted = sublayer_by_hand(x, p, norm_first)
        assert_same_gradients(sublayer(x), wanted, [x, *p.values()], rtol=1e-9, atol=1e-9)

    def test_its_submodules_are_norm_ffn_and_dropout(self):
        sublayer = feed_forward.FeedForwardSublayer(3, 5)
        names = {name for name, _ in sublayer.named_children()}
        missing = {"norm", "ffn", "dropout"} - names
        expect(
            not missing, f"expected submodules norm, ffn and dropout, {', '.join(sorted(missing))} is not among them"
        )
        for name, kind in (("norm", nn.LayerNorm), ("ffn", feed_forward.PositionwiseFeedForward)):
            part = getattr(sublayer, name)
            expect(isinstance(part, kind), f"expected {name} to be a {kind.__name__}, it is a {type(part).__name__}")

    @both_orders
    def test_its_parameters_are_those_of_the_norm_and_the_network(self, norm_first):
        sublayer = feed_forward.FeedForwardSublayer(3, 5, norm_first=norm_first)
        found = {k: list(v.shape) for k, v in sublayer.named_parameters()}
        wanted = {"norm.weight": [3], "norm.bias": [3], "ffn.fc1.weight": [5, 3], "ffn.fc1.bias": [5]}
        wanted |= {"ffn.fc2.weight": [3, 5], "ffn.fc2.bias": [3]}
        expect(found == wanted, f"expected parameters {wanted}, got {found}")

    @both_orders
    def test_dropout_acts_on_the_branch_and_inside_ffn_but_not_on_x(self, norm_first):
        """What a residual connection carries past the branch must arrive."""
        states = branch_states(norm_first)
        for state, share, what in (
            (0, 0.3, "features of the branch that are dropped after ffn"),
            (1, 0.7 * 0.3, "hidden features that are dropped inside ffn"),
            (2, 0.7 * 0.7, "features of the branch that are kept in both places"),
        ):
            expect_share(states == state, share, what)
        expect_share((states == 0).all(-1), 0.3**3, "positions with all three features dropped")

    @both_orders
    def test_both_probabilities_are_a_tenth_unless_told_otherwise(self, norm_first):
        states = branch_states(norm_first, dropout=None, p=0.1)
        expect_share(states == 0, 0.1, "features of the branch that are dropped")
        expect_share(states == 1, 0.09, "hidden features that are dropped")

    def test_without_dropout_nothing_is_random_in_training_mode(self):
        for norm_first in (True, False):
            sublayer = filled(feed_forward.FeedForwardSublayer(3, 5, 0.0, norm_first)).double().train()
            x = sample(4, 3, dtype=torch.float64)
            assert_same(sublayer(x), sublayer_by_hand(x, sublayer.state_dict(), norm_first), rtol=1e-9, atol=1e-9)

    @both_orders
    def test_drops_what_the_generator_state_says(self, norm_first):
        sublayer, x = filled(feed_forward.FeedForwardSublayer(4, 9, 0.4, norm_first)).train(), sample(9, 4)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            first, second = sublayer(x).detach(), sublayer(x).detach()
            torch.manual_seed(3)
            assert_same(sublayer(x), first)
        expect(not torch.equal(first, second), "expected other places to be dropped in the next call")

    @both_orders
    def test_leaves_x_as_it_is(self, norm_first):
        """x += ... would change the tensor that other parts of the model still use."""
        sublayer = filled(feed_forward.FeedForwardSublayer(3, 5, 0.3, norm_first))
        for training in (True, False):
            x = sample(2, 4, 3)
            before, version = x.clone(), x._version
            sublayer.train(training)(x)
            assert_same(x, before, rtol=0, atol=0, what="x after the call")
            expect(x._version == version, "expected x never to be written to, it was")

    @both_orders
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
    def test_keeps_half_precision_in_both_orders(self, norm_first, dtype):
        sublayer = filled(feed_forward.FeedForwardSublayer(5, 9, 0.3, norm_first)).to(dtype).eval()
        x = sample(4, 5, dtype=dtype)
        p = {name: value.float() for name, value in sublayer.state_dict().items()}
        wanted = sublayer_by_hand(x.float(), p, norm_first).to(dtype)
        assert_same(sublayer(x), wanted, rtol=5e-2, atol=5e-2)

    def test_starts_from_the_global_generator(self):
        """torch.manual_seed makes a whole program repeatable: a layer must neither ignore nor reset it."""
        assert_starts_from_the_global_generator(lambda: feed_forward.FeedForwardSublayer(4, 7))

    @pytest.mark.parametrize("asked", HOUSE_RULES)
    def test_the_house_rules_hold_with_the_norm_last_too(self, asked):
        """What is asked of every function below is asked of the norm first there, and here of the other order."""
        line = rules.Rule(
            "FeedForwardSublayer",
            lambda s: (s(s.n, 2, 5),),
            build=lambda m: filled(m.FeedForwardSublayer(5, 7, 0.3, False)).eval(),
            module={"shows": (5, 7, 0.3)},
        )
        HOUSE_RULES[asked](line, line.function(feed_forward))

    def test_shows_where_its_norm_is(self):
        texts = [repr(feed_forward.FeedForwardSublayer(3, 5, norm_first=first)) for first in (True, False)]
        expect(texts[0] != texts[1], f"expected repr to tell the two orders apart, both are {texts[0]}")

    @both_orders
    @pytest.mark.parametrize("shape", [(2, 4), (4, 6), (2, 1), (5,)], ids=str)
    def test_refuses_another_last_dimension(self, norm_first, shape):
        sublayer = feed_forward.FeedForwardSublayer(3, 5, norm_first=norm_first)
        with refuses(LOUD):
            sublayer(sample(*shape))

    @pytest.mark.parametrize("widths, wrong", [((0, 3), 0), ((3, 0), 0), ((3, -4), -4)], ids=str)
    def test_refuses_a_width_below_one(self, widths, wrong):
        with refuses(ValueError, mentions=[wrong]):
            feed_forward.FeedForwardSublayer(*widths)

    @pytest.mark.parametrize("dropout", [-0.1, 1.5])
    def test_refuses_a_dropout_that_is_no_probability(self, dropout):
        with refuses(ValueError, mentions=[dropout]):
            feed_forward.FeedForwardSublayer(3, 5, dropout)


# count_parameters -----------------------------------------------------------------------------------------------------


def assert_int(found, wanted, what):
    expect(isinstance(found, int), f"expected a Python int, got {type(found).__name__}: {found!r}")
    expect(found == wanted, f"expected {wanted} {what}, got {found}")


class TestCountParameters:
    @given(d_model=st.integers(1, 9), d_ff=st.integers(1, 9), bias=st.booleans())
    def test_counts_the_numbers_in_two_layers(self, d_model, d_ff, bias):
        model = nn.Sequential(nn.Linear(d_model, d_ff, bias=bias), nn.Linear(d_ff, d_model, bias=bias))
        wanted = sum(p.numel() for p in model.parameters())
        assert_int(feed_forward.count_parameters(d_model, d_ff, bias), wanted, "parameters")

    def test_known_values(self):
        assert_int(feed_forward.count_parameters(2, 3), 17, "parameters")
        assert_int(feed_forward.count_parameters(3, 2), 17, "parameters")
        assert_int(feed_forward.count_parameters(d_model=2, d_ff=5, bias=False), 20, "parameters")
        assert_int(feed_forward.count_parameters(512, 2048), 2_099_712, "parameters")
        assert_int(feed_forward.count_parameters(1, 1), 4, "parameters")

    def test_biases_count_unless_told_otherwise(self):
        assert_int(feed_forward.count_parameters(4, 9), 85, "parameters with biases")
        assert_int(feed_forward.count_parameters(4, 9, True), 85, "parameters with biases")
        assert_int(feed_forward.count_parameters(4, 9, False), 72, "parameters without biases")

    def test_widths_that_no_memory_could_hold(self):
        """Counting costs nothing, whatever the size; a float would lose the last digits."""
        d, f = 10**8 + 7, 10**8 + 37
        assert_int(feed_forward.count_parameters(d, f), 20000009000000562, "parameters")
        assert_int(feed_forward.count_parameters(d, f, bias=False), 20000008800000518, "parameters")

    @pytest.mark.parametrize("bias", [True, False])
    @pytest.mark.parametrize(
        "widths, wrong", [((0, 3), 0), ((3, 0), 0), ((-2, 3), -2), ((3, -4), -4), ((-5, -6), None)]
    )
    def test_refuses_a_width_below_one(self, widths, wrong, bias):
        with refuses(ValueError, mentions=[] if wrong is None else [wrong]):
            feed_forward.count_parameters(*widths, bias)


# count_flops ----------------------------------------------------------------------------------------------------------


def flops_by_hand(tokens, d_model, d_ff):
    """Multiplies and adds, one after the other, and counts."""
    count = 0
    for _ in range(tokens):
        for inputs, outputs in ((d_model, d_ff), (d_ff, d_model)):
            for _ in range(outputs):
                total = 0.0
                for _ in range(inputs):
                    total += 0.0 * 0.0
                    count += 2
    return count


class TestCountFlops:
    @given(tokens=st.integers(1, 5), d_model=st.integers(1, 6), d_ff=st.integers(1, 6))
    def test_counts_each_multiplication_and_each_addition_of_the_two_products(self, tokens, d_model, d_ff):
        wanted = flops_by_hand(tokens, d_model, d_ff)
        assert_int(feed_forward.count_flops(tokens, d_model, d_ff), wanted, "flops")

    def test_known_values(self):
        """As torch.utils.flop_counter counts: two for a multiply-add, nothing for biases."""
        assert_int(feed_forward.count_flops(tokens=10, d_model=2, d_ff=3), 240, "flops")
        assert_int(feed_forward.count_flops(7, 3, 5), 420, "flops")
        assert_int(feed_forward.count_flops(1, 1, 1), 4, "flops")
        assert_int(feed_forward.count_flops(1000, 512, 2048), 4_194_304_000, "flops")

    def test_sizes_that_no_memory_could_hold(self):
        """Counting costs nothing, whatever the size; a float would lose the last digits."""
        assert_int(feed_forward.count_flops(1_000_003, 100_003, 1_000_033), 400026400471601188, "flops")

    @pytest.mark.parametrize(
        "sizes, wrong", [((-3, 2, 5), -3), ((4, 0, 5), 0), ((4, -2, 5), -2), ((4, 2, 0), 0), ((4, 2, -7), -7)]
    )
    def test_refuses_sizes_below_one(self, sizes, wrong):
        with refuses(ValueError, mentions=[wrong]):
            feed_forward.count_flops(*sizes)


# feed_forward_chunked -------------------------------------------------------------------------------------------------


class Curve(nn.Module):
    """A module without layers that computes each position from itself alone."""

    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(1.7, dtype=torch.float64))

    def __repr__(self):
        return "Curve()"

    def forward(self, x):
        return (self.factor * x).sin() + 0.3 * x * x.flip(-1)


class Spy(nn.Module):
    """Gives its input back and notes the modes in which it was called, for itself and for `inner`."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Dropout(0.5)
        self.modes = set()

    def __repr__(self):
        return "Spy()"

    def forward(self, x):
        self.modes.add((self.training, self.inner.training))
        return x + 1


class Network(nn.Sequential):
    """An ffn that is not the learner's, with a short name on the screen."""

    def __repr__(self):
        return "Network()"


def network(dtype=torch.float64):
    """Three features, five hidden ones."""
    return filled(Network(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 3))).to(dtype)


class TestFeedForwardChunked:
    @given(b=st.integers(0, 3), time=st.integers(0, 8), chunk=st.integers(1, 10), curve=st.booleans())
    def test_gives_what_ffn_gives_on_the_whole(self, b, time, chunk, curve):
        ffn, x = Curve() if curve else network(), sample(b, time, 3, dtype=torch.float64)
        assert_same(feed_forward.feed_forward_chunked(ffn, x, chunk), ffn(x).detach(), **FLOAT64)

    @pytest.mark.parametrize("time, chunk", [(7, 3), (7, 2), (8, 4), (7, 1), (7, 6), (7, 7), (3, 8), (1, 1), (10, 4)])
    def test_any_chunk_will_do_whether_it_divides_the_time_or_not(self, time, chunk):
        """The last chunk is smaller: it must be neither dropped nor filled up."""
        ffn, x = network(), sample(2, time, 3, dtype=torch.float64)
        for recorded in (True, False):
            with torch.set_grad_enabled(recorded):
                assert_same(feed_forward.feed_forward_chunked(ffn, x, chunk=chunk), ffn(x).detach(), **FLOAT64)

    @pytest.mark.parametrize("time, chunk", [(7, 3), (6, 2), (4, 9)])
    @pytest.mark.parametrize("make", [network, Curve], ids=["network", "curve"])
    def test_gradients_of_x_and_of_the_parameters_are_those_of_the_whole(self, make, time, chunk):
        ffn, x = make(), sample(2, time, 3, dtype=torch.float64).requires_grad_()
        found = feed_forward.feed_forward_chunked(ffn, x, chunk)
        assert_same_gradients(found, ffn(x), [x, *ffn.parameters()], **FLOAT64)

    def test_gradients_flow_in_eval_mode_too(self):
        """Eval mode switches dropout off, not gradients."""
        ffn, x = network().eval(), sample(2, 7, 3, dtype=torch.float64).requires_grad_()
        assert_same_gradients(feed_forward.feed_forward_chunked(ffn, x, 3), ffn(x), [x, *ffn.parameters()], **FLOAT64)

    def test_gradients_reach_the_parameters_where_x_needs_none(self):
        """x is data, the parameters are what is trained."""
        ffn, x = network(), sample(2, 7, 3, dtype=torch.float64)
        assert_same_gradients(feed_forward.feed_forward_chunked(ffn, x, 3), ffn(x), list(ffn.parameters()), **FLOAT64)

    def test_gradients_reach_x_where_the_parameters_are_frozen(self):
        ffn, x = network().requires_grad_(False), sample(2, 7, 3, dtype=torch.float64).requires_grad_()
        assert_same_gradients(feed_forward.feed_forward_chunked(ffn, x, 3), ffn(x), [x], **FLOAT64)

    @pytest.mark.parametrize("nothing", ["under no_grad", "with frozen parameters"])
    @pytest.mark.parametrize("nested", [True, False], ids=["nested", "flat"])
    def test_holds_the_hidden_activations_of_one_chunk_at_a_time(self, nothing, nested):
        """The hidden layer is wide, the output is not: what was used for one chunk must be gone before the next."""
        ffn = Network(nn.Linear(4, 1000), nn.ReLU(), nn.Linear(1000, 4))
        if nested:
            ffn = Network(ffn)
        ffn.requires_grad_(nothing == "under no_grad")
        x = sample(2, 64, 4)
        peaks = []
        for run in (ffn, lambda x: feed_forward.feed_forward_chunked(ffn, x, 4)):
            with torch.set_grad_enabled(nothing != "under no_grad"), live_bytes(x, *ffn.parameters()) as memory:
                run(x)
            peaks.append(memory.peak)
        whole, chunked = peaks
        expect(
            chunked < whole / 8,
            f"expected at most about {whole // 16:,} bytes alive at once, for 4 of 64 time steps, got {chunked:,}",
            f"the whole at once takes {whole:,}; nothing is recorded for backward, {nothing}",
        )

    def test_nothing_is_recorded_where_gradients_are_off(self):
        ffn, x = network(), sample(2, 7, 3, dtype=torch.float64).requires_grad_()
        with torch.no_grad():
            found = feed_forward.feed_forward_chunked(ffn, x, 3)
        expect(not found.requires_grad, "expected a result without a graph under torch.no_grad, it requires grad")

    @pytest.mark.parametrize("times, chunks", [((12, 24), (6, 12)), ((14, 41), (5, 14)), ((8, 30), (8, 30))])
    def test_twice_the_steps_in_chunks_twice_as_long_are_no_more_operations(self, times, chunks):
        """Chunks that are shorter than asked for give away the speed of large products."""
        ffn, counts = network(), []
        for time, chunk in zip(times, chunks, strict=True):
            x = sample(2, time, 3, dtype=torch.float64)
            with torch.no_grad(), count_ops() as ops:
                feed_forward.feed_forward_chunked(ffn, x, chunk)
            counts.append(ops.total())
        few, many = counts
        expect(
            many <= few,
            f"expected as many operations for {times[1]} steps in chunks of {chunks[1]} as for {times[0]} in chunks of "
            f"{chunks[0]}, got {many} against {few}",
        )

    @pytest.mark.parametrize("shape", [(2, 0, 3), (0, 7, 3), (0, 0, 3), (2, 7, 0)], ids=str)
    def test_batches_times_and_features_of_size_0(self, shape):
        ffn = nn.Tanh()
        found = feed_forward.feed_forward_chunked(ffn, sample(*shape), 4)
        assert_same(found, torch.zeros(shape))

    def test_a_single_sequence_of_one_step(self):
        ffn, x = network(), sample(1, 1, 3, dtype=torch.float64)
        assert_same(feed_forward.feed_forward_chunked(ffn, x, 1), ffn(x).detach(), **FLOAT64)

    @pytest.mark.parametrize("training, inner", [(True, True), (False, False), (True, False), (False, True)])
    def test_leaves_the_mode_of_ffn_and_of_its_parts_as_it_is(self, training, inner):
        """In training mode dropout is to act, in eval mode it is not: whoever calls decides."""
        ffn = Spy().train(training)
        ffn.inner.train(inner)
        feed_forward.feed_forward_chunked(ffn, sample(2, 7, 3), 3)
        expect(ffn.modes == {(training, inner)}, f"expected ffn to be called in the mode it has, got {ffn.modes}")
        found = (ffn.training, ffn.inner.training)
        expect(found == (training, inner), f"expected the modes {(training, inner)} to stay, they are {found}")

    def test_leaves_the_parameters_and_their_gradients_as_they_are(self):
        ffn, x = network(), sample(2, 7, 3, dtype=torch.float64)
        before = [p.detach().clone() for p in ffn.parameters()]
        for p in ffn.parameters():
            p.grad = torch.ones_like(p)
        feed_forward.feed_forward_chunked(ffn, x, 3)
        for p, value in zip(ffn.parameters(), before, strict=True):
            assert_same(p.detach(), value, rtol=0, atol=0, what="a parameter after the call")
            expect(
                bool((p.grad == 1).all()) and p.requires_grad,
                "expected parameters and their .grad to stay as they were",
            )

    @pytest.mark.parametrize("device", devices.DEVICES)
    def test_works_on_another_device_where_nothing_is_recorded(self, device):
        ffn, x = network(dtype=torch.float32), sample(2, 7, 3)
        wanted = ffn(x).detach()
        with devices.on(device), torch.no_grad():
            ffn, x = ffn.to(device), x.to(device)
            with devices.no_strays():
                found = feed_forward.feed_forward_chunked(ffn, x, 3)
            expect(found.device.type == device, f"expected a result on {device}, got one on {found.device.type}")
            assert_same(found, wanted, device=False, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("chunk", [0, -1, -4])
    def test_refuses_a_chunk_below_one(self, chunk):
        ffn = network(dtype=torch.float32)
        with refuses(ValueError, mentions=[chunk]):
            feed_forward.feed_forward_chunked(ffn, sample(2, 7, 3), chunk)

    def test_refuses_integers_of_any_width(self):
        for dtype in INTEGERS:
            with refuses(TypeError):
                feed_forward.feed_forward_chunked(nn.Identity(), torch.ones(2, 7, 3, dtype=dtype), 3)


# The house rules ------------------------------------------------------------------------------------------------------


def numbers(s, d, f):
    """w1, b1, w2, b2, small enough for half precision to come close."""
    return [s(*shape, low=-0.4, high=0.4) for shape in ((f, d), (f,), (d, f), (d,))]


# `s` makes a sample in the dtype, on the device and with the number of rows `s.n` that a rule asks about.
RULES = [
    rule("gelu", lambda s: (s(s.n, 2, 3),), refused=("gelu",), fails=lambda s: (s.ints(2, 3),)),
    # A smooth activation: next to a kink of relu a difference of two calls is no slope.
    rule("feed_forward", lambda s: (s(s.n, 2, 3), *numbers(s, 3, 5), torch.tanh),
         fails=lambda s: (s(2, 4), *numbers(s, 3, 5))),
    # In eval mode: dropout draws from the global generator. Modules may leave integers to torch.
    rule("PositionwiseFeedForward", lambda s: (s(s.n, 2, 5),), integers_refused=False,
         also={"relu, training": {"build": lambda m: filled(m.PositionwiseFeedForward(5, 7, 0.0), 0.4),
                                  "differentiable": False}},
         build=lambda m: filled(m.PositionwiseFeedForward(5, 7, 0.3, "gelu"), 0.4).eval(),
         module={"shows": (5, 7, 0.3), "state": ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias")}),
    rule("GatedFeedForward", lambda s: (s(s.n, 2, 5),), build=lambda m: filled(m.GatedFeedForward(5, 7), 0.3),
         integers_refused=False, module={"shows": (5, 7), "state": ("gate.weight", "up.weight", "down.weight")},
         fails=lambda s: (s(2, 4),)),
    rule("FeedForwardSublayer", lambda s: (s(s.n, 2, 5),), integers_refused=False,
         also={"norm last, training": {"build": lambda m: filled(m.FeedForwardSublayer(5, 7, 0.0, False), 0.4)}},
         build=lambda m: filled(m.FeedForwardSublayer(5, 7, 0.3), 0.4).eval(),
         module={"shows": (5, 7, 0.3), "state": ("norm.weight", "norm.bias", "ffn.fc1.weight", "ffn.fc1.bias",
                                                 "ffn.fc2.weight", "ffn.fc2.bias")}),
    rule("count_parameters", lambda s: (3, 5), fails=lambda s: (0, 5)),
    rule("count_flops", lambda s: (4, 3, 5), fails=lambda s: (4, 3, 0)),
    # An ffn whose one parameter has no dimensions goes with tensors of any dtype and device.
    rule("feed_forward_chunked", lambda s: (Curve(), s(s.n, 7, 3, low=-0.5, high=0.5), 3),
         also={"one chunk": {"make": lambda s: (Curve(), s(s.n, 3, 2, low=-0.5, high=0.5), 9)}},
         fails=lambda s: (Curve(), s(2, 7, 3), 0)),
]  # fmt: skip
