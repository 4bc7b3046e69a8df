"""The specs of kata 05. One class a public name; the house rules that all of them share are in the table at the end."""

import copy
import functools
import gc
import math
import pickle
import weakref
from itertools import pairwise

import modules
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dojo import devices
from dojo.compare import assert_same, assert_same_gradients, expect, gradients_of, refuses
from dojo.guards import Refused, state_kept
from dojo.rules import check_slope, rule
from dojo.strategies import reseed, sample, shapes

FLOAT64 = {"rtol": 1e-12, "atol": 1e-12}
INTEGERS = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]


# What several classes use ---------------------------------------------------------------------------------------------


@pytest.fixture
def no_torch_linear(monkeypatch):
    """Whoever makes a torch.nn.Linear meanwhile is told that it is refused."""

    def refused(*args, **kwargs):
        raise Refused("torch.nn.Linear")

    monkeypatch.setattr(nn.Linear, "__init__", refused)


class Descent(torch.optim.Optimizer):
    """Plain gradient descent: p ← p - lr · p.grad, for each group with its own lr."""

    def __init__(self, *groups):
        """Groups are pairs of parameters and lr. torch's own constructor is left out: it imports much."""
        self.param_groups = [{"params": list(parameters), "lr": lr} for parameters, lr in groups]
        self.defaults, self.state = {"lr": 0.1}, {}

    def __repr__(self):
        return "Descent()"

    def zero_grad(self, set_to_none=True):
        for group in self.param_groups:
            for p in group["params"]:
                if set_to_none:
                    p.grad = None
                elif p.grad is not None:
                    p.grad.zero_()

    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.no_grad():
            for group in self.param_groups:
                for p in group["params"]:
                    if p.grad is not None:
                        p.sub_(group["lr"] * p.grad)
        return loss


class Spy(nn.Module):
    """Gives its input back and notes the mode in which it was called, for itself and for `inner`."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Identity()
        self.modes = []

    def __repr__(self):
        return "Spy()"

    def forward(self, x):
        self.modes.append((self.training, self.inner.training))
        return x


class Line(nn.Module):
    """x @ weight + bias with weights that do not change from run to run; `spy` sees what comes out."""

    def __init__(self, inputs=3, outputs=2, dtype=torch.float64):
        super().__init__()
        self.weight = nn.Parameter(sample(inputs, outputs, dtype=dtype))
        self.bias = nn.Parameter(sample(outputs, dtype=dtype))
        self.spy = Spy()

    def __repr__(self):
        return "Line()"

    def forward(self, x):
        return self.spy(x @ self.weight + self.bias)


def tilted(outputs, targets):
    """A mean of squares that tells outputs and targets apart."""
    return ((outputs - targets).square() + 0.3 * outputs).mean()


def some_batches(*rows, inputs=3, outputs=2):
    """One batch of (inputs, targets) for each number of rows, the later ones with bigger targets."""
    return [
        (sample(n, inputs, dtype=torch.float64), sample(n, outputs, dtype=torch.float64) + 2 * i)
        for i, n in enumerate(rows)
    ]


def descend_by_hand(model, batches, lr=0.1):
    """One update for each batch, spelled out: the losses before the updates."""
    losses = []
    for x, y in batches:
        loss = tilted(x @ model.weight + model.bias, y)
        gradients = torch.autograd.grad(loss, [model.weight, model.bias])
        with torch.no_grad():
            for p, g in zip([model.weight, model.bias], gradients, strict=True):
                p -= lr * g
        losses.append(loss.item())
    return losses


def assert_float(value, wanted, what="the result", rtol=1e-10):
    """A Python float, and this one."""
    expect(type(value) is float, f"expected {what} to be a Python float, got {type(value).__name__}: {value!r}"[:200])
    expect(
        math.isclose(value, wanted, rel_tol=rtol, abs_tol=1e-12),
        f"expected {what} to be {wanted:.10g}, got {value:.10g}",
    )


def assert_same_parameters(model, wanted, message):
    """Both models hold the same numbers."""
    for (name, p), q in zip(model.named_parameters(), wanted.parameters(), strict=True):
        close = torch.allclose(p, q, rtol=1e-10, atol=1e-12)
        expect(close, message, f"{name}: expected {q.flatten()[0].item():.7g} first, got {p.flatten()[0].item():.7g}")


def assert_works_on(device, model, *shape):
    """The model gives there what it gives here, and gradients reach its parameters."""
    x = sample(*shape)
    wanted = model(x)
    gradients = gradients_of(wanted, list(model.parameters()))
    with devices.on(device):
        x, moved = x.to(device), copy.deepcopy(model).to(device)
        with devices.no_strays():
            found = moved(x)
        expect(found.device.type == device, f"expected a result on {device}, got one on {found.device.type}")
        assert_same(found, wanted.detach(), device=False, rtol=1e-4, atol=1e-5)
        for p, q in zip(gradients_of(found, list(moved.parameters())), gradients, strict=True):
            assert_same(p, q, device=False, rtol=1e-4, atol=1e-5)


# Linear ---------------------------------------------------------------------------------------------------------------


def assert_uniform(values, bound, what):
    """The values are spread evenly between -bound and bound (a Kolmogorov-Smirnov bound of one in 100,000)."""
    ordered = values.detach().double().flatten().sort().values
    n, largest = len(ordered), ordered.abs().max().item()
    expect(largest <= bound * (1 + 1e-6), f"expected {what} between -{bound:.4g} and {bound:.4g}, got ±{largest:.4g}")
    gap = ((ordered / bound + 1) / 2 - torch.arange(n) / n).abs().max().item()
    expect(
        gap < 2.5 / math.sqrt(n) + 1 / n,
        f"expected {what} spread evenly between -{bound:.4g} and {bound:.4g}",
        f"got values from {ordered[0].item():.4g} to {ordered[-1].item():.4g}, on average {ordered.mean().item():.4g}",
    )


class TestLinear:
    @given(
        batch=shapes(max_dims=3, min_size=0), inputs=st.integers(1, 5), outputs=st.integers(1, 5), bias=st.booleans()
    )
    def test_maps_the_last_dimension_as_torchs_own_with_the_same_weights(self, batch, inputs, outputs, bias):
        layer = modules.Linear(inputs, outputs, bias=bias).double()
        x = sample(*batch, inputs, dtype=torch.float64)
        weight, offset = layer.state_dict()["weight"], layer.state_dict().get("bias")
        assert_same(layer(x), F.linear(x, weight, offset), **FLOAT64)

    def test_each_output_is_a_row_of_the_weight_times_the_input_plus_its_bias(self):
        layer = modules.Linear(2, 3)
        layer.load_state_dict({"weight": torch.tensor([[1.0, 2], [3, 4], [5, 6]]), "bias": torch.tensor([0.5, 0, -1])})
        assert_same(layer(torch.tensor([10.0, 100])), torch.tensor([210.5, 430, 649]))

    @pytest.mark.parametrize("bias", [True, False])
    def test_loads_the_state_dict_of_torchs_own_and_the_other_way_round(self, bias):
        """Whoever swaps the layer keeps the trained weights."""
        ours, theirs = modules.Linear(3, 5, bias=bias), nn.Linear(3, 5, bias=bias)
        wanted, found = {k: list(v.shape) for k, v in theirs.state_dict().items()}, ours.state_dict()
        found = {key: list(value.shape) for key, value in found.items()}
        expect(found == wanted, f"expected state_dict to hold {wanted}, it holds {found}")
        x = sample(4, 3)
        ours.load_state_dict(theirs.state_dict())
        assert_same(ours(x), theirs(x))
        theirs.load_state_dict(modules.Linear(3, 5, bias=bias).state_dict())

    def test_weight_and_bias_are_parameters_that_are_trained(self):
        layer = modules.Linear(3, 5)
        found = sorted(name for name, p in layer.named_parameters() if p.requires_grad)
        expect(found == ["bias", "weight"], f"expected weight and bias among parameters(), found {found}")

    def test_gradients_reach_weight_and_bias(self):
        layer = modules.Linear(3, 5).double()
        x = sample(4, 2, 3, dtype=torch.float64)
        parameters = [layer.weight, layer.bias]
        assert_same_gradients(layer(x), F.linear(x, layer.weight, layer.bias), parameters, **FLOAT64)

    def test_a_weight_that_is_assigned_anew_is_the_one_that_counts(self):
        """Layers share a weight by assigning the one's to the other."""
        layer = modules.Linear(3, 5, bias=False)
        layer.weight = nn.Parameter(sample(5, 3))
        x = sample(4, 3)
        assert_same(layer(x), F.linear(x, layer.weight).detach())

    @pytest.mark.parametrize("inputs, outputs", [(12, 4000), (4000, 12)])
    def test_starts_evenly_spread_up_to_one_over_the_root_of_the_inputs(self, inputs, outputs):
        """Then outputs are about as big as inputs, however wide the layer is."""
        torch.manual_seed(0)
        layer = modules.Linear(inputs, outputs)
        assert_uniform(layer.weight, inputs**-0.5, "each element of weight")
        assert_uniform(layer.bias, inputs**-0.5, "each element of bias")
        different = len(layer.weight.detach().unique()) / layer.weight.numel()
        expect(different > 0.9, f"expected each element of weight drawn by itself, only {different:.0%} differ")

    def test_a_weight_without_bias_starts_the_same_way(self):
        torch.manual_seed(0)
        assert_uniform(modules.Linear(9, 2000, bias=False).weight, 1 / 3, "each element of weight")

    def test_starts_from_the_global_generator(self):
        """torch.manual_seed makes a whole program repeatable: a layer must neither ignore nor reset it."""

        def draw(seed):
            torch.manual_seed(seed)
            return [p for _ in range(2) for p in modules.Linear(4, 3).parameters()]

        with torch.random.fork_rng(devices=[]):
            first, again, other = draw(5), draw(5), draw(6)
        same = all(torch.equal(p, q) for p, q in zip(first, again, strict=True))
        expect(same, "expected equal layers for equal seeds, they differ")
        changed = not any(torch.equal(p, q) for p, q in zip(first, other, strict=True))
        expect(changed, "expected other weights and biases for another seed, some are the same")
        expect(not torch.equal(first[0], first[2]), "expected two layers made in a row to differ, they are equal")

    def test_is_made_without_torchs_own(self, no_torch_linear):
        layer = modules.Linear(3, 5)
        expect(not isinstance(layer, nn.Linear), "torch.nn.Linear is refused here: build on torch.nn.Module")

    @pytest.mark.parametrize("device", devices.DEVICES)
    def test_works_on_another_device(self, device):
        """`.to()` moves what is registered, and nothing else."""
        assert_works_on(device, modules.Linear(3, 5), 4, 2, 3)

    def test_shows_whether_it_has_a_bias(self):
        texts = repr(modules.Linear(3, 5)), repr(modules.Linear(3, 5, bias=False))
        expect(texts[0] != texts[1], f"expected repr to tell a layer with bias from one without, both are {texts[0]}")

    def test_has_a_bias_unless_told_otherwise(self):
        assert "bias" in modules.Linear(3, 5).state_dict()
        assert list(modules.Linear(3, 5, False).state_dict()) == ["weight"]

    @pytest.mark.parametrize("shape", [(2, 4), (2, 1), (4,), (3, 5), (2, 3, 0), (3, 2)])
    def test_refuses_another_last_dimension(self, shape):
        layer = modules.Linear(3, 5)
        with refuses(ValueError, mentions=[3, shape[-1]]):
            layer(sample(*shape))

    def test_refuses_another_last_dimension_where_it_would_broadcast(self):
        layer = modules.Linear(1, 5)
        with refuses(ValueError, mentions=[1, 4]):
            layer(sample(2, 4))

    def test_refuses_a_number_without_dimensions(self):
        for layer in (modules.Linear(3, 5), modules.Linear(1, 5)):
            with refuses(ValueError):
                layer(torch.tensor(2.0))

    @pytest.mark.parametrize("sizes, wrong", [((0, 3), 0), ((3, 0), 0), ((-2, 3), -2), ((3, -4), -4)])
    def test_refuses_less_than_one_feature(self, sizes, wrong):
        with refuses(ValueError, mentions=[wrong]):
            modules.Linear(*sizes)


# MLP ------------------------------------------------------------------------------------------------------------------


class AddOne(nn.Module):
    """An activation that shows where it is applied: it does not leave 0 at 0."""

    def forward(self, x):
        return x + 1


class Widths(nn.Module):
    """An activation that notes how wide its inputs are."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def forward(self, x):
        self.seen.add(x.shape[-1])
        return x.sin()


class Scale(nn.Module):
    """An activation with a buffer, as a quantised or normalising one has."""

    def __init__(self):
        super().__init__()
        self.register_buffer("factor", torch.ones(1))

    def forward(self, x):
        return x * self.factor


def layer_shapes(sizes):
    """The shapes of the weights and biases of layers of these widths."""
    return sorted([(o, i) for i, o in pairwise(sizes)] + [(o,) for o in sizes[1:]])


def parameter_shapes(model):
    return sorted(tuple(p.shape) for p in model.parameters())


def passing_on(sizes, dropout):
    """An MLP with AddOne whose weights pass every input on, or nothing where widths differ; biases are 0."""
    model = modules.MLP(sizes, AddOne, dropout)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
            if p.ndim == 2 and p.shape[0] == p.shape[1]:
                p.fill_diagonal_(1.0)
    return model


class TestMLP:
    def test_an_activation_follows_every_layer_but_the_last(self):
        model = modules.MLP([3, 5, 4, 2], activation=nn.Tanh).double()
        found = parameter_shapes(model)
        expect(
            found == layer_shapes([3, 5, 4, 2]),
            f"expected weights and biases {layer_shapes([3, 5, 4, 2])}, got {found}",
        )
        p = {tuple(p.shape): p for p in model.parameters()}
        x = sample(7, 3, dtype=torch.float64)
        hidden = F.linear(x, p[5, 3], p[5,]).tanh()
        wanted = F.linear(F.linear(hidden, p[4, 5], p[4,]).tanh(), p[2, 4], p[2,])
        found = model(x)
        assert_same(found, wanted, **FLOAT64)
        assert_same_gradients(found, wanted, list(p.values()), **FLOAT64)

    @given(sizes=st.lists(st.integers(1, 5), min_size=2, max_size=5), batch=shapes(max_dims=2, min_size=0))
    @settings(max_examples=15)
    def test_n_sizes_make_n_minus_1_layers(self, sizes, batch):
        model = modules.MLP(sizes)
        found = parameter_shapes(model)
        expect(found == layer_shapes(sizes), f"expected weights and biases {layer_shapes(sizes)}, got {found}")
        result = model(sample(*batch, sizes[0]))
        expect(result.shape == (*batch, sizes[-1]), f"expected {[*batch, sizes[-1]]}, got {list(result.shape)}")

    @given(sizes=st.lists(st.integers(1, 5), min_size=2, max_size=5))
    @settings(max_examples=10)
    def test_is_built_of_the_linear_above(self, sizes):
        model = modules.MLP(sizes)
        found = sum(isinstance(layer, modules.Linear) for layer in model.modules())
        expect(found == len(sizes) - 1, f"expected {len(sizes) - 1} layers of your Linear for {sizes}, found {found}")

    def test_is_made_without_torchs_linear(self, no_torch_linear):
        assert modules.MLP([3, 5, 2])(sample(4, 3)).shape == (4, 2)

    def test_two_sizes_make_one_layer_and_nothing_else(self):
        model = modules.MLP([3, 2], AddOne, dropout=0.9)
        p = {tuple(p.shape): p for p in model.parameters()}
        x = sample(4, 3)
        assert_same(model(x), F.linear(x, p[2, 3], p[2,]).detach())

    def test_the_activation_is_relu_unless_told_otherwise(self):
        model = modules.MLP([3, 6, 2])
        p = {tuple(p.shape): p for p in model.parameters()}
        x = sample(9, 3)
        assert_same(model(x), F.linear(F.linear(x, p[6, 3], p[6,]).relu(), p[2, 6], p[2,]).detach())

    def test_each_hidden_layer_has_an_activation_of_its_own(self):
        """An activation can have parameters and state, which are not for all layers."""
        model = modules.MLP([3, 5, 4, 2], Widths)
        model(sample(7, 3))
        seen = [sorted(module.seen) for module in model.modules() if isinstance(module, Widths)]
        expect(sorted(seen) == [[4], [5]], f"expected two activations, for widths 5 and 4, they saw {seen}")

    def test_parameters_of_activations_are_among_the_models(self):
        model = modules.MLP([3, 5, 4, 2], nn.PReLU)
        wanted, found = sorted([*layer_shapes([3, 5, 4, 2]), (1,), (1,)]), parameter_shapes(model)
        expect(found == wanted, f"expected parameters {wanted}, got {found}")
        x = sample(50, 3)
        gradients = gradients_of(model(x), list(model.parameters()))
        expect(all(g.any() for g in gradients), "expected each parameter to take part in the result, one does not")

    def test_buffers_of_activations_are_saved_and_loaded(self):
        model, other = modules.MLP([3, 5, 4, 2], Scale), modules.MLP([3, 5, 4, 2], Scale)
        for number, buffer in enumerate(model.buffers(), 2):
            buffer.fill_(number)
        expect(len(list(model.buffers())) == 2, f"expected 2 buffers, found {len(list(model.buffers()))}")
        other.load_state_dict(model.state_dict())
        x = sample(7, 3)
        assert_same(other(x), model(x).detach())

    def test_modes_reach_activations(self):
        model = modules.MLP([3, 5, 4, 2], nn.RReLU).eval()
        modes = [module.training for module in model.modules() if isinstance(module, nn.RReLU)]
        assert modes == [False, False]

    def test_dropout_comes_after_the_activation_in_training_mode(self):
        """Dropout before an activation can leave anything in the places that were to be 0."""
        torch.manual_seed(0)
        found = passing_on([1, 20, 20], dropout=0.3).train()(torch.zeros(300, 1)).detach()
        kept = found != 0
        assert_same(found, torch.where(kept, torch.tensor(1 / 0.7), 0.0))
        share, error = kept.float().mean().item(), math.sqrt(0.3 * 0.7 / kept.numel())
        expect(abs(share - 0.7) < 5 * error, f"expected about 70% of the hidden values to be kept, got {share:.1%}")
        expect(bool((kept != kept[0]).any()), "expected other places to be dropped in other rows")

    def test_every_hidden_layer_has_dropout(self):
        torch.manual_seed(0)
        found = passing_on([1, 20, 20, 20], dropout=0.3).train()(torch.zeros(300, 1)).detach()
        values = {0.0: 0.3, 1 / 0.7: 0.3 * 0.7, (1 / 0.7 + 1) / 0.7: 0.7 * 0.7}
        for value, probability in values.items():
            share = torch.isclose(found, torch.tensor(value)).float().mean().item()
            error = math.sqrt(probability * (1 - probability) / found.numel())
            expect(abs(share - probability) < 5 * error, f"expected {value:.4g} at {probability:.0%}, got {share:.1%}")

    def test_nothing_is_dropped_in_eval_mode(self):
        found = passing_on([1, 20, 20], dropout=0.3).eval()(torch.zeros(30, 1))
        assert_same(found.detach(), torch.ones(30, 20))

    def test_nothing_is_dropped_unless_told(self):
        model = modules.MLP([1, 20, 20], AddOne).train()
        x = sample(30, 1)
        first = model(x).detach()
        assert_same(model(x), first)

    def test_drops_what_its_generator_state_says(self):
        model = passing_on([1, 20, 20], dropout=0.4).train()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            first, second = model(torch.zeros(9, 1)).detach(), model(torch.zeros(9, 1)).detach()
            torch.manual_seed(3)
            assert_same(model(torch.zeros(9, 1)), first)
        expect(not torch.equal(first, second), "expected other places to be dropped in the next call")

    @pytest.mark.parametrize("device", devices.DEVICES)
    def test_works_on_another_device(self, device):
        """`.to()` moves what is registered, activations with parameters too."""
        assert_works_on(device, modules.MLP([3, 7, 5, 2], nn.PReLU, dropout=0.3).eval(), 4, 2, 3)

    def test_can_be_pickled_also_when_it_was_made_with_a_lambda(self):
        model = modules.MLP([3, 5, 2], activation=lambda: nn.LeakyReLU(0.3))
        x = sample(4, 3)
        assert_same(pickle.loads(pickle.dumps(model))(x), model(x).detach())

    def test_leaves_the_sizes_as_they_are_and_takes_a_tuple_too(self):
        sizes = [3, 5, 4, 2]
        modules.MLP(sizes)
        expect(sizes == [3, 5, 4, 2], f"expected the list of sizes to stay [3, 5, 4, 2], it is {sizes}")
        assert parameter_shapes(modules.MLP((3, 5, 4, 2))) == layer_shapes(sizes)

    @pytest.mark.parametrize("sizes", [[], [4]])
    def test_refuses_fewer_than_two_sizes(self, sizes):
        with refuses(ValueError):
            modules.MLP(sizes)

    @pytest.mark.parametrize("sizes, wrong", [([4, 0, 3], 0), ([-2, 3], -2), ([4, 3, -1], -1)])
    def test_refuses_a_size_below_one(self, sizes, wrong):
        with refuses(ValueError, mentions=[wrong]):
            modules.MLP(sizes)

    @pytest.mark.parametrize("dropout", [-0.1, 1.5])
    def test_refuses_a_dropout_that_is_no_probability(self, dropout):
        with refuses(ValueError, mentions=[dropout]):
            modules.MLP([4, 3, 2], dropout=dropout)

    @pytest.mark.parametrize("shape", [(2, 5), (3,), (4, 1)])
    def test_refuses_another_last_dimension(self, shape):
        model = modules.MLP([4, 3, 2])
        with refuses(ValueError, mentions=[4, shape[-1]]):
            model(sample(*shape))

    @pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU, nn.Sigmoid])
    def test_learns_with_dropout_behind_any_activation(self, activation):
        """Dropout that writes into what an activation keeps for backward makes backward raise."""
        with torch.random.fork_rng(devices=[]):
            model = modules.MLP([3, 5, 5, 2], activation, 0.5).train()
            model(sample(4, 3)).sum().backward()
        expect(all(p.grad is not None for p in model.parameters()), "expected a gradient for every parameter")


# count_parameters -----------------------------------------------------------------------------------------------------


class Own(nn.Module):
    """Parameters of its own, of 0, 1 and 3 dimensions and without elements, a buffer, and parts below it."""

    def __init__(self):
        super().__init__()
        self.scalar = nn.Parameter(torch.tensor(1.5))  # 1
        self.cube = nn.Parameter(torch.zeros(2, 3, 5))  # 30
        self.empty = nn.Parameter(torch.zeros(0, 7))  # 0
        self.register_buffer("table", torch.zeros(11))
        self.part = nn.Sequential(nn.Linear(4, 3), nn.ModuleDict({"deep": nn.Linear(3, 2, bias=False)}))  # 15 + 6

    def __repr__(self):
        return "Own()"


class TestCountParameters:
    @pytest.mark.parametrize("trainable_only", [False, True])
    def test_counts_every_number_at_any_depth(self, trainable_only):
        assert modules.count_parameters(Own(), trainable_only) == 52

    def test_buffers_are_not_parameters(self):
        assert modules.count_parameters(nn.BatchNorm1d(7)) == 14

    def test_layers_of_one_shape_count_each(self):
        assert modules.count_parameters(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))) == 24

    def test_a_weight_that_two_layers_share_counts_once(self):
        model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
        model[2].weight = model[0].weight
        assert modules.count_parameters(model) == 24

    def test_a_layer_that_is_used_twice_counts_once(self):
        layer = nn.Linear(4, 4)
        assert modules.count_parameters(nn.Sequential(layer, nn.Sequential(layer, nn.Tanh(), layer))) == 20

    def test_frozen_parameters_count_unless_only_trainable_ones_are_asked_for(self):
        model = Own()
        model.cube.requires_grad_(False)
        model.part[0].bias.requires_grad_(False)
        assert modules.count_parameters(model) == 52
        assert modules.count_parameters(model, trainable_only=False) == 52
        assert modules.count_parameters(model, trainable_only=True) == 19
        assert modules.count_parameters(model.requires_grad_(False), True) == 0

    def test_a_frozen_weight_that_is_shared_counts_once_or_not_at_all(self):
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        model[1].weight = model[0].weight
        model[0].weight.requires_grad_(False)
        assert modules.count_parameters(model) == 24
        assert modules.count_parameters(model, trainable_only=True) == 8

    def test_a_model_without_parameters_has_none(self):
        assert modules.count_parameters(nn.ReLU()) == 0
        assert modules.count_parameters(nn.Sequential(), trainable_only=True) == 0

    def test_gives_a_python_int(self):
        for model in (Own(), nn.ReLU()):
            found = modules.count_parameters(model)
            expect(type(found) is int, f"expected a Python int, got {type(found).__name__}: {found!r}")

    def test_big_models_need_no_memory(self):
        """On the meta device there are shapes and no numbers: nothing can be read, only counted."""
        model = nn.ParameterList([torch.empty(10**5, 10**5 + 1, device="meta")])
        assert modules.count_parameters(model) == 10**10 + 10**5

    def test_leaves_the_model_as_it_is(self):
        model = Own()
        model.cube.requires_grad_(False)
        before = [(name, id(p), p.requires_grad) for name, p in model.named_parameters()]
        modules.count_parameters(model, trainable_only=True)
        assert [(name, id(p), p.requires_grad) for name, p in model.named_parameters()] == before
        assert model.training


# FocalLoss ------------------------------------------------------------------------------------------------------------


def focal_by_hand(logits, targets, gamma):
    """The losses, number by number, in double precision."""
    losses = []
    for row, target in zip(logits.tolist(), targets.tolist(), strict=True):
        largest = max(row)
        shares = [math.exp(z - largest) for z in row]
        miss = sum(share for k, share in enumerate(shares) if k != target) / sum(shares)  # 1 - p
        entropy = math.log(sum(shares)) + largest - row[target]
        losses.append(miss**gamma * entropy)
    return torch.tensor(losses, dtype=torch.float64)


EXTREME = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0], [1e4, 1e4, -1e4]])  # sure and right, sure and wrong, torn


class TestFocalLoss:
    @given(
        n=st.integers(1, 5), c=st.integers(1, 6), gamma=st.sampled_from([0.0, 0.5, 1.0, 1.7, 2.0, 5.0]), data=st.data()
    )
    def test_weighs_each_cross_entropy_by_how_far_the_probability_is_from_1(self, n, c, gamma, data):
        logits = sample(n, c, dtype=torch.float64, low=-4, high=4)
        targets = torch.tensor(data.draw(st.lists(st.integers(0, c - 1), min_size=n, max_size=n)))
        found = modules.FocalLoss(gamma, reduction="none")(logits, targets)
        assert_same(found, focal_by_hand(logits, targets, gamma), **FLOAT64)

    @pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
    def test_gamma_0_is_cross_entropy(self, reduction):
        logits, targets = sample(6, 4, dtype=torch.float64), torch.tensor([0, 3, 1, 1, 2, 3])
        logits.requires_grad_()
        found = modules.FocalLoss(0.0, reduction)(logits, targets)
        wanted = F.cross_entropy(logits, targets, reduction=reduction)
        assert_same(found, wanted.detach(), **FLOAT64)
        assert_same_gradients(found, wanted, [logits], **FLOAT64)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
    def test_gamma_0_is_cross_entropy_in_half_precision_too(self, dtype):
        logits, targets = sample(6, 4, dtype=dtype), torch.tensor([0, 3, 1, 1, 2, 3])
        wanted = F.cross_entropy(logits.float(), targets, reduction="none").to(dtype)
        assert_same(modules.FocalLoss(0, "none")(logits, targets), wanted, rtol=1e-2, atol=1e-2)

    def test_mean_divides_by_the_rows_and_sum_does_not(self):
        logits, targets = sample(5, 3, dtype=torch.float64), torch.tensor([2, 0, 1, 1, 0])
        losses = focal_by_hand(logits, targets, 1.7)
        assert_same(modules.FocalLoss(1.7, "sum")(logits, targets), losses.sum(), **FLOAT64)
        assert_same(modules.FocalLoss(1.7, "mean")(logits, targets), losses.sum() / 5, **FLOAT64)

    def test_gamma_is_2_and_the_mean_is_taken_unless_told_otherwise(self):
        logits, targets = sample(5, 3, dtype=torch.float64), torch.tensor([2, 0, 1, 1, 0])
        assert_same(modules.FocalLoss()(logits, targets), focal_by_hand(logits, targets, 2.0).mean(), **FLOAT64)

    @pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
    @pytest.mark.parametrize("gamma", [0, 0.5, 1, 1.7, 2])
    def test_the_gradient_is_the_slope(self, gamma, reduction):
        logits, targets = sample(4, 3, dtype=torch.float64).requires_grad_(), torch.tensor([0, 2, 1, 1])
        loss = modules.FocalLoss(gamma, reduction)
        check_slope(lambda: loss(logits, targets), [logits])

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
    @pytest.mark.parametrize("gamma", [0, 0.5, 1, 1.7, 5])
    def test_logits_of_10000_have_their_value(self, gamma, dtype):
        """exp(1e4) is infinite and the logarithm of exp(-1e4) too: probabilities must not be computed on the way."""
        loss = modules.FocalLoss(gamma, "none")
        wanted = torch.tensor([0.0, 2e4, 0.5**gamma * math.log(2)], dtype=torch.float64)
        found = loss(EXTREME.to(dtype), torch.tensor([0, 0, 1]))
        assert_same(
            found.double(), wanted, rtol=1e-5 if dtype.itemsize > 2 else 1e-2, atol=1e-5 if dtype.itemsize > 2 else 1e-2
        )

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
    @pytest.mark.parametrize("gamma", [0, 0.5, 1, 1.7, 5])
    def test_logits_of_10000_have_a_finite_gradient(self, gamma, dtype):
        """A sure mistake is pushed back with full strength; nan would end the training."""
        logits = EXTREME.to(dtype).requires_grad_()
        losses = modules.FocalLoss(gamma, "none")(logits, torch.tensor([0, 0, 1]))
        (gradient,) = torch.autograd.grad(losses.sum() / 4, logits)
        expect(bool(gradient.isfinite().all()), f"expected finite gradients, got {gradient.tolist()}")
        assert_same(4 * gradient[0], torch.zeros(3, dtype=dtype), atol=1e-2)
        assert_same(4 * gradient[1], torch.tensor([-1.0, 1.0, 0.0], dtype=dtype), atol=1e-2)

    @pytest.mark.parametrize("gamma", [0, 0.5, 0.9, 1, 2])
    @pytest.mark.parametrize("reduction", ["mean", "sum"])
    def test_a_probability_of_exactly_1_has_no_loss_and_a_finite_gradient(self, gamma, reduction):
        """The slope of (1-p)^0.5 is infinite at 1, and infinity times the loss of 0 is nan."""
        for gap in (30.0, 90.0, 1e3, 1e4):
            logits = torch.tensor([[0.0, gap], [0.3, 0.1]], requires_grad=True)
            loss = modules.FocalLoss(gamma, reduction)(logits, torch.tensor([1, 0]))
            (gradient,) = torch.autograd.grad(loss, logits)
            expect(bool(gradient.isfinite().all()), f"expected finite gradients, got {gradient.tolist()}")
            assert_same(gradient[0], torch.zeros(2))
            alone = focal_by_hand(logits[1:], torch.tensor([0]), gamma).sum().float() / (
                2 if reduction == "mean" else 1
            )
            assert_same(loss, alone)

    def test_one_class_alone_is_sure_and_has_no_loss(self):
        logits = sample(3, 1).requires_grad_()
        losses = modules.FocalLoss(0.5, "none")(logits, torch.zeros(3, dtype=torch.int64))
        assert_same(losses, torch.zeros(3))
        assert_same(torch.autograd.grad(losses.sum(), logits)[0], torch.zeros(3, 1))

    @pytest.mark.parametrize("gap", [3.0, 7.0, 10.0, 14.0])
    def test_what_is_nearly_sure_counts_by_its_own_small_weight(self, gap):
        for gamma in (0.5, 1.7):
            logits, targets = torch.tensor([[gap, 0.0, -1.0]], dtype=torch.float64), torch.tensor([0])
            wanted = focal_by_hand(logits, targets, gamma)
            assert_same(modules.FocalLoss(gamma, "none")(logits, targets), wanted, rtol=1e-6, atol=0)

    @pytest.mark.parametrize("shift", [-500.0, 3000.0])
    def test_adding_one_number_to_all_logits_of_a_row_changes_nothing(self, shift):
        logits, targets = sample(4, 3, dtype=torch.float64), torch.tensor([1, 0, 2, 1])
        found = modules.FocalLoss(1.7, "none")(logits + shift, targets)
        assert_same(found, focal_by_hand(logits, targets, 1.7), rtol=1e-8, atol=1e-8)

    @pytest.mark.parametrize("dtype", INTEGERS, ids=str)
    def test_targets_of_any_integer_dtype_will_do(self, dtype):
        """Also where the number of classes does not fit the dtype."""
        logits, targets = sample(4, 300, dtype=torch.float64), torch.tensor([0, 127, 5, 99])
        found = modules.FocalLoss(1.7, "none")(logits, targets.to(dtype))
        assert_same(found, focal_by_hand(logits, targets, 1.7), **FLOAT64)

    @pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
    @pytest.mark.parametrize("target", [-100, -1, -4, 4, 7])
    def test_refuses_a_target_that_is_no_class(self, target, reduction):
        """-100 means "ignore" to cross_entropy: here it is a mistake like any other."""
        loss = modules.FocalLoss(1.7, reduction)
        with refuses(IndexError, mentions=[target]):
            loss(sample(3, 4), torch.tensor([0, target, 3]))

    @pytest.mark.parametrize("dtype", [torch.int8, torch.int32], ids=str)
    def test_refuses_a_target_that_is_no_class_in_any_integer_dtype(self, dtype):
        for wrong, classes in ((-1, 300), (-100, 4), (4, 4)):
            with refuses(IndexError, mentions=[wrong]):
                modules.FocalLoss()(sample(2, classes), torch.tensor([wrong, 0], dtype=dtype))

    @pytest.mark.parametrize("dtype", [torch.bool, torch.float32, torch.float64, torch.float16], ids=str)
    def test_refuses_targets_that_are_not_integers(self, dtype):
        loss = modules.FocalLoss()
        with refuses(TypeError):
            loss(sample(2, 4), torch.tensor([1, 0]).to(dtype))

    @pytest.mark.parametrize("rows", [1, 2, 4, 0])
    def test_refuses_another_number_of_targets_than_rows(self, rows):
        """One target for all rows would be a silent broadcast."""
        loss = modules.FocalLoss()
        with refuses(ValueError, mentions=[rows, 3]):
            loss(sample(3, 4), torch.zeros(rows, dtype=torch.int64))

    @pytest.mark.parametrize(
        "logits, targets", [((3, 4), (3, 1)), ((3, 4), ()), ((4,), ()), ((2, 4, 3), (2, 3)), ((3, 4), (3, 4))]
    )
    def test_refuses_other_numbers_of_dimensions(self, logits, targets):
        loss = modules.FocalLoss()
        with refuses(ValueError):
            loss(sample(*logits), torch.zeros(targets, dtype=torch.int64))

    def test_no_rows_add_up_to_0(self):
        logits = torch.zeros(0, 4, requires_grad=True)
        found = modules.FocalLoss(1.7, "sum")(logits, torch.zeros(0, dtype=torch.int64))
        assert_same(found, torch.tensor(0.0))
        assert_same(torch.autograd.grad(found, logits)[0], torch.zeros(0, 4))

    @pytest.mark.parametrize("gamma", [-0.5, -2])
    def test_refuses_a_negative_gamma(self, gamma):
        with refuses(ValueError, mentions=[gamma]):
            modules.FocalLoss(gamma)

    @pytest.mark.parametrize("reduction", ["avg", "", "None", "batchmean"])
    def test_refuses_any_other_reduction_when_it_is_made(self, reduction):
        with refuses(ValueError):
            modules.FocalLoss(reduction=reduction)

    def test_has_nothing_to_train(self):
        """gamma is chosen, not learnt: gradient descent would drive it to where the loss is smallest."""
        assert list(modules.FocalLoss(1.7).parameters()) == []

    @pytest.mark.parametrize("reduction", ["mean", "sum"])
    def test_keeps_the_dtype_of_the_logits_for_every_reduction(self, reduction):
        for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
            logits = sample(3, 4, dtype=dtype).requires_grad_()
            found = modules.FocalLoss(1.7, reduction)(logits, torch.tensor([0, 3, 1]))
            wanted = focal_by_hand(logits.detach(), torch.tensor([0, 3, 1]), 1.7)
            wanted = getattr(wanted, reduction)().to(dtype)
            assert_same(
                found, wanted, rtol=1e-2 if dtype.itemsize == 2 else None, atol=1e-2 if dtype.itemsize == 2 else None
            )


# train_step -----------------------------------------------------------------------------------------------------------


class TestTrainStep:
    def test_makes_one_update_and_gives_the_loss_before_it(self):
        model = Line()
        wanted = copy.deepcopy(model)
        ((x, y),) = some_batches(4)
        found = modules.train_step(model, tilted, Descent((model.parameters(), 0.1)), x, y)
        (loss,) = descend_by_hand(wanted, [(x, y)])
        assert_float(found, loss, "the loss before the update")
        assert_same_parameters(model, wanted, "expected one update with the gradients of this batch")

    def test_gradients_do_not_pile_up_over_steps(self):
        model = Line()
        wanted, optimizer = copy.deepcopy(model), Descent((model.parameters(), 0.1))
        batches = some_batches(4, 3, 5)
        found = [modules.train_step(model, tilted, optimizer, x, y) for x, y in batches]
        for loss, right in zip(found, descend_by_hand(wanted, batches), strict=True):
            assert_float(loss, right, "the loss before the update")
        assert_same_parameters(model, wanted, "expected each update with the gradients of its own batch alone")

    def test_what_stood_in_grad_before_does_not_count(self):
        model = Line()
        wanted = copy.deepcopy(model)
        batches = some_batches(4)
        for p in model.parameters():
            p.grad = torch.full_like(p, 100.0)
        modules.train_step(model, tilted, Descent((model.parameters(), 0.1)), *batches[0])
        descend_by_hand(wanted, batches)
        assert_same_parameters(model, wanted, "expected an update without the gradients from before the step")

    def test_nor_does_that_of_parameters_that_only_the_optimizer_holds(self):
        """An optimizer can hold what the model does not know, and what this loss does not reach."""
        model = Line()
        model.unused = nn.Parameter(torch.ones(3, dtype=torch.float64))
        other = nn.Parameter(torch.ones(2, dtype=torch.float64))
        other.grad, model.unused.grad = torch.full_like(other, 5.0), torch.full_like(model.unused, 7.0)
        optimizer = Descent(([model.weight], 0.1), ([model.bias, model.unused], 0.2), ([other], 0.3))
        modules.train_step(model, tilted, optimizer, *some_batches(4)[0])
        for name, p in (("a parameter of the model", model.unused), ("a parameter outside the model", other)):
            left = bool((p == 1).all())
            expect(left, f"expected {name} to stay 1: this loss does not reach it, it became {p[0].item():.4g}")

    def test_each_group_has_its_own_settings(self):
        model = Line()
        wanted = copy.deepcopy(model)
        ((x, y),) = some_batches(4)
        modules.train_step(model, tilted, Descent(([model.weight], 0.1), ([model.bias], 0.4)), x, y)
        gradients = torch.autograd.grad(tilted(wanted(x), y), [wanted.weight, wanted.bias])
        assert_same(model.weight, wanted.weight.detach() - 0.1 * gradients[0])
        assert_same(model.bias, wanted.bias.detach() - 0.4 * gradients[1])

    def test_what_the_optimizer_does_not_hold_is_not_updated(self):
        model = Line()
        bias = model.bias.detach().clone()
        modules.train_step(model, tilted, Descent(([model.weight], 0.1)), *some_batches(4)[0])
        assert_same(model.bias, bias)

    @pytest.mark.parametrize("training", [True, False])
    def test_the_model_runs_in_training_mode_and_stays_in_it(self, training):
        """Dropout and batch normalisation behave otherwise in eval mode, submodules too."""
        model = Line().train(training)
        model.spy.inner.eval()
        modules.train_step(model, tilted, Descent((model.parameters(), 0.1)), *some_batches(4)[0])
        modes = set(model.spy.modes)
        expect(modes == {(True, True)}, f"expected every module in training mode while it runs, got {model.spy.modes}")
        left = all(module.training for module in model.modules())
        expect(left, "expected every module to be left in training mode, one is not")

    def test_a_loss_of_float32_is_a_python_float_too(self):
        model = Line(dtype=torch.float32)
        found = modules.train_step(model, tilted, Descent((model.parameters(), 0.1)), sample(4, 3), sample(4, 2))
        expect(type(found) is float, f"expected a Python float, got {type(found).__name__}")

    def test_the_inputs_may_be_anything_that_the_model_takes(self):
        model = nn.Embedding(6, 3)
        before = model.weight.detach().clone()
        ids, targets = torch.tensor([5, 0, 5, 2]), torch.tensor([0, 2, 2, 1])
        modules.train_step(model, F.cross_entropy, Descent((model.parameters(), 0.1)), ids, targets)
        changed = (model.weight != before).any(dim=1).tolist()
        assert changed == [True, False, True, False, False, True]

    def test_a_frozen_parameter_stays_and_the_others_learn(self):
        model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
        model[0].weight.requires_grad_(False)
        before = [p.detach().clone() for p in model.parameters()]
        modules.train_step(model, F.mse_loss, Descent((model.parameters(), 0.1)), sample(5, 3), sample(5, 2) + 9)
        changed = [not torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True)]
        expect(changed == [False, True, True, True], f"expected all but the frozen weight to change, got {changed}")
        expect(not model[0].weight.requires_grad, "expected the frozen weight to stay frozen")


# fit ------------------------------------------------------------------------------------------------------------------


class Loader:
    """Gives its k-th list of batches in the k-th epoch (the last one from then on): an iterable, not an iterator."""

    def __init__(self, *epochs):
        self.epochs, self.read = epochs, 0

    def __repr__(self):
        return "Loader()"

    def __iter__(self):
        self.read += 1  # at the first batch that is asked for: whoever calls iter() only to look reads nothing
        yield from self.epochs[min(self.read, len(self.epochs)) - 1]


class Traced(torch.autograd.Function):
    """Passes its input on; `alive` tells how many graphs with such a node are still held by somebody."""

    tokens: list[weakref.ref] = []

    class Token:
        pass

    @staticmethod
    def forward(ctx, x):
        ctx.token = Traced.Token()
        Traced.tokens.append(weakref.ref(ctx.token))
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad

    @classmethod
    def alive(cls):
        count = sum(token() is not None for token in cls.tokens)
        if count > 1:
            gc.collect()
        return sum(token() is not None for token in cls.tokens)


class TestFit:
    def test_each_epoch_has_the_mean_loss_over_its_samples(self):
        """A last batch with fewer rows weighs less: the mean of the batches' means would be another number."""
        model = Line()
        wanted, batches = copy.deepcopy(model), some_batches(5, 3, 1)
        found = modules.fit(model, tilted, Descent((model.parameters(), 0.1)), batches, epochs=3)
        expect(isinstance(found, list) and len(found) == 3, f"expected a list of 3 numbers, got {found!r}"[:200])
        for epoch, loss in enumerate(found, 1):
            means = descend_by_hand(wanted, batches)
            right = (5 * means[0] + 3 * means[1] + means[2]) / 9
            assert_float(loss, right, f"the mean of epoch {epoch}")
        assert_same_parameters(model, wanted, "expected one update for each batch of each epoch")

    @given(rows=st.lists(st.integers(1, 5), min_size=1, max_size=4), epochs=st.integers(1, 3))
    @settings(max_examples=10)
    def test_any_sizes_of_batches_and_any_number_of_epochs(self, rows, epochs):
        model = Line()
        wanted, batches = copy.deepcopy(model), some_batches(*rows)
        found = modules.fit(model, tilted, Descent((model.parameters(), 0.02)), batches, epochs)
        right = []
        for _ in range(epochs):
            means = descend_by_hand(wanted, batches, 0.02)
            right.append(sum(n * mean for n, mean in zip(rows, means, strict=True)) / sum(rows))
        expect(len(found) == epochs, f"expected {epochs} numbers, got {len(found)}")
        for loss, mean in zip(found, right, strict=True):
            assert_float(loss, mean, "the mean of an epoch")
        assert_same_parameters(model, wanted, "expected one update for each batch of each epoch")

    def test_batches_are_read_anew_in_each_epoch(self):
        """A loader that shuffles gives other batches each time."""
        model = Line()
        wanted, epochs = copy.deepcopy(model), [some_batches(2, 3), some_batches(4), some_batches(1, 2)]
        loader = Loader(*epochs)
        found = modules.fit(model, tilted, Descent((model.parameters(), 0.1)), loader, epochs=3)
        for loss, batches in zip(found, epochs, strict=True):
            means = descend_by_hand(wanted, batches)
            rows = [len(x) for x, _ in batches]
            right = sum(n * mean for n, mean in zip(rows, means, strict=True)) / sum(rows)
            assert_float(loss, right, "the mean of an epoch")
        expect(loader.read == 3, f"expected the loader to be read once an epoch, it was read {loader.read} times")
        assert_same_parameters(model, wanted, "expected the batches of the second epoch in the second epoch")

    def test_an_iterator_that_can_be_read_once_serves_one_epoch(self):
        model = Line()
        wanted, batches = copy.deepcopy(model), some_batches(4, 2)
        (found,) = modules.fit(model, tilted, Descent((model.parameters(), 0.1)), (b for b in batches), epochs=1)
        means = descend_by_hand(wanted, batches)
        assert_float(found, (4 * means[0] + 2 * means[1]) / 6)

    @pytest.mark.parametrize(
        "once", [iter, lambda batches: (b for b in batches), lambda b: zip(*zip(*b, strict=True), strict=True)]
    )
    def test_refuses_an_iterator_that_is_empty_at_the_second_epoch(self, once):
        """It would train for one epoch and look as if it had for all."""
        model = Line()
        with refuses(ValueError):
            modules.fit(model, tilted, Descent((model.parameters(), 0.1)), once(some_batches(4, 2)), epochs=2)

    def test_refuses_an_epoch_without_samples(self):
        model = Line()
        optimizer = Descent((model.parameters(), 0.1))
        for batches in ([], (), iter([]), Loader([]), Loader(some_batches(2), [], some_batches(2))):
            with refuses(ValueError):
                modules.fit(model, tilted, optimizer, batches, epochs=1 if not isinstance(batches, Loader) else 3)

    @pytest.mark.parametrize("epochs", [0, -2])
    def test_refuses_less_than_one_epoch_before_anything_happens(self, epochs):
        model, loader = Line().eval(), Loader(some_batches(4))
        wanted = copy.deepcopy(model)
        with refuses(ValueError, mentions=[epochs]):
            modules.fit(model, tilted, Descent((model.parameters(), 0.1)), loader, epochs)
        assert loader.read == 0 and not model.training
        assert_same_parameters(model, wanted, "expected the parameters to stay as they were")

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    def test_a_loss_that_is_not_finite_raises_before_its_update(self, value):
        """One update with nan makes the whole model nan: what was learnt so far is lost."""
        model = Line()
        wanted, batches = copy.deepcopy(model), some_batches(4, 3, 2)

        def breaks_at_the_second(outputs, targets):
            return tilted(outputs, targets) + (value if len(targets) == 3 else 0.0)

        optimizer = Descent((model.parameters(), 0.1))
        with refuses(FloatingPointError):
            modules.fit(model, breaks_at_the_second, optimizer, batches, epochs=2)
        descend_by_hand(wanted, batches[:1])
        assert_same_parameters(model, wanted, "expected the parameters as the last finite loss left them")

    def test_nan_in_the_data_never_reaches_the_parameters(self):
        model = Line()
        wanted, batches = copy.deepcopy(model), some_batches(4, 3)
        batches[1][0][2, 1] = math.nan
        with refuses(FloatingPointError):
            modules.fit(model, tilted, Descent((model.parameters(), 0.1)), batches, epochs=1)
        descend_by_hand(wanted, batches[:1])
        assert_same_parameters(model, wanted, "expected the parameters as the last finite loss left them")

    def test_a_loss_that_is_only_big_is_finite(self):
        model = Line()
        optimizer = Descent((model.parameters(), 0.0))
        (found,) = modules.fit(
            model, lambda outputs, targets: tilted(outputs, targets) + 1e30, optimizer, some_batches(2), 1
        )
        assert_float(found, 1e30)

    def test_what_stood_in_grad_before_does_not_count(self):
        model = Line()
        other = nn.Parameter(torch.ones(2, dtype=torch.float64))
        wanted, batches = copy.deepcopy(model), some_batches(4, 3)
        for p in (*model.parameters(), other):
            p.grad = torch.full_like(p, 100.0)
        modules.fit(model, tilted, Descent((model.parameters(), 0.1), ([other], 0.1)), batches, epochs=1)
        descend_by_hand(wanted, batches)
        assert_same_parameters(model, wanted, "expected updates without the gradients from before")
        expect(bool((other == 1).all()), "expected a parameter that no loss reaches to stay as it was")

    def test_the_model_runs_in_training_mode(self):
        model = Line().eval()
        modules.fit(model, tilted, Descent((model.parameters(), 0.1)), some_batches(4, 3), epochs=2)
        expect(set(model.spy.modes) == {(True, True)}, f"expected training mode while it runs, got {model.spy.modes}")

    def test_graphs_of_earlier_batches_are_gone(self):
        """A loss that is kept as a tensor keeps the whole graph behind it: memory grows until the epoch ends."""
        model, alive = Line(), []
        model.spy.forward = Traced.apply  # in the model: who keeps its outputs keeps the graph too
        Traced.tokens = []

        class Watching:
            def __iter__(self):
                for batch in some_batches(2, 3, 1, 4, 2):
                    alive.append(Traced.alive())
                    yield batch

        history = modules.fit(model, tilted, Descent((model.parameters(), 0.1)), Watching(), epochs=3)
        expect(len(Traced.tokens) >= 15, f"expected a loss for each of the 15 batches, got {len(Traced.tokens)}")
        expect(max(alive) <= 1, f"expected no graph but the last when a batch is asked for, {max(alive)} were alive")
        gc.collect()
        left = Traced.alive()
        expect(left == 0, f"expected no graph to be alive when fit has ended, {left} are")
        expect(all(type(loss) is float for loss in history), f"expected Python floats, got {history!r}"[:200])

    def test_batches_may_be_lists_of_two_as_a_dataloader_gives_them(self):
        model = Line()
        wanted, batches = copy.deepcopy(model), some_batches(4, 3)
        (found,) = modules.fit(model, tilted, Descent((model.parameters(), 0.1)), [list(b) for b in batches], 1)
        means = descend_by_hand(wanted, batches)
        assert_float(found, (4 * means[0] + 3 * means[1]) / 7)


# evaluate -------------------------------------------------------------------------------------------------------------


class Classifier(nn.Module):
    """Takes logits and gives them back, through modules in several modes; one of them stands in two places."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0, dtype=torch.float64))
        shared = nn.Dropout(0.5)
        self.first = nn.Sequential(Spy(), shared)
        self.second = nn.Sequential(nn.Dropout(0.5), shared, nn.Sequential(nn.Dropout(0.3)))
        self.train()
        self.second.training = self.first[0].training = self.second[2][0].training = False

    def __repr__(self):
        return "Classifier()"

    def forward(self, x):
        return self.second(self.first(x * self.scale))

    def modes(self):
        return {name: module.training for name, module in self.named_modules(remove_duplicate=False)}


def labelled(*rows):
    """One batch of (logits [n 3], classes [n]) for each number of rows, the later ones with bigger losses."""
    return [
        (sample(n, 3, dtype=torch.float64) * (i + 1), sample(n, low=0, high=3, dtype=torch.int64))
        for i, n in enumerate(rows)
    ]


def score_by_hand(batches):
    """Mean cross-entropy and share of right rows, row by row."""
    losses, right = [], []
    for logits, targets in batches:
        for row, target in zip(logits.tolist(), targets.tolist(), strict=True):
            losses.append(math.log(sum(math.exp(z) for z in row)) - row[target])
            right.append(row.index(max(row)) == target)
    return sum(losses) / len(losses), sum(right) / len(right)


class Halt(BaseException):
    """What ends a program from outside, as KeyboardInterrupt does."""


def assert_modes(model, wanted):
    """Every module has the mode that it had."""
    for name, mode in model.modes().items():
        text = "training" if wanted[name] else "eval"
        expect(mode == wanted[name], f"expected module {name or 'itself'!r} back in {text} mode, it is not")


class TestEvaluate:
    def test_gives_mean_loss_and_accuracy_over_the_samples(self):
        """A last batch with fewer rows weighs less."""
        batches = labelled(5, 3, 1)
        loss, accuracy = score_by_hand(batches)
        assert 0 < accuracy < 1
        found = modules.evaluate(Classifier(), F.cross_entropy, batches)
        expect(isinstance(found, tuple) and len(found) == 2, f"expected a tuple of two floats, got {found!r}"[:200])
        assert_float(found[0], loss, "the mean loss")
        assert_float(found[1], accuracy, "the accuracy")

    @given(rows=st.lists(st.integers(1, 6), min_size=1, max_size=4), seed=st.integers(0, 99))
    @settings(max_examples=15)
    def test_any_sizes_of_batches(self, rows, seed):
        reseed(seed)
        batches = labelled(*rows)
        found = modules.evaluate(nn.Identity(), F.cross_entropy, batches)
        for value, right, what in zip(found, score_by_hand(batches), ("mean loss", "accuracy"), strict=True):
            assert_float(value, right, f"the {what}")

    def test_all_right_is_1_and_all_wrong_is_0(self):
        logits = torch.eye(3) * 5
        for shift, share in ((0, 1.0), (1, 0.0)):
            batches = [(logits, (torch.arange(3) + shift) % 3)]
            assert_float(modules.evaluate(nn.Identity(), F.cross_entropy, batches)[1], share, "the accuracy")

    def test_the_loss_is_the_one_that_was_asked_for(self):
        batches = labelled(4, 2)
        tilt = lambda outputs, targets: (outputs[:, 0] * 2 + targets).mean()  # noqa: E731
        rows = [2 * row[0] + t for x, y in batches for row, t in zip(x.tolist(), y.tolist(), strict=True)]
        assert_float(modules.evaluate(Classifier(), tilt, batches)[0], sum(rows) / 6, "the mean loss")

    def test_batches_are_read_once(self):
        """An iterator serves as well as a list."""
        batches = labelled(4, 2)
        found = modules.evaluate(Classifier(), F.cross_entropy, (batch for batch in batches))
        assert_float(found[0], score_by_hand(batches)[0], "the mean loss")
        loader = Loader(batches)
        modules.evaluate(Classifier(), F.cross_entropy, loader)
        expect(loader.read == 1, f"expected the loader to be read once, it was read {loader.read} times")

    def test_every_module_runs_in_eval_mode(self):
        """With dropout the same model would score otherwise each time."""
        model = Classifier()
        model.first[0].inner.train()
        modules.evaluate(model, F.cross_entropy, labelled(4, 2))
        modes = model.first[0].modes
        expect(set(modes) == {(False, False)}, f"expected every module in eval mode while it runs, got {modes}")

    @pytest.mark.parametrize("training", [True, False, None])
    def test_puts_every_module_back_into_the_mode_that_it_had(self, training):
        """A frozen part is kept in eval mode within a model in training mode: train() would switch it on."""
        model = Classifier()
        if training is not None:
            model.train(training)
        before = model.modes()
        modules.evaluate(model, F.cross_entropy, labelled(4, 2))
        assert_modes(model, before)

    @pytest.mark.parametrize("error", [ZeroDivisionError, Halt])
    @pytest.mark.parametrize("where", ["the model", "the loss", "the batches", "the second batch"])
    def test_puts_the_modes_back_when_something_raises(self, where, error):
        model, batches = Classifier(), labelled(4, 2)
        before = model.modes()

        def breaks(*_):
            raise error

        def breaking(after):
            yield from batches[:after]
            raise error

        if where == "the model":
            model.second[0].forward = breaks
        loss_fn = breaks if where == "the loss" else F.cross_entropy
        given = {"the batches": breaking(0), "the second batch": breaking(1)}.get(where, batches)
        with state_kept(), pytest.raises(error):
            modules.evaluate(model, loss_fn, given)
        assert_modes(model, before)

    def test_nothing_is_recorded_and_nothing_is_changed(self):
        """A graph for each batch would cost the memory that evaluation need not have."""
        model, seen = Classifier(), []
        model.scale.grad = torch.tensor(3.0, dtype=torch.float64)

        def watching(outputs, targets):
            seen.append(outputs.requires_grad)
            return F.cross_entropy(outputs, targets)

        modules.evaluate(model, watching, labelled(4, 2))
        expect(not any(seen), "expected outputs that do not require grad: nothing is trained here")
        assert model.scale.item() == 1 and model.scale.grad.item() == 3
        expect(model.scale.requires_grad, "expected the parameters to require grad as before, one does not")

    @pytest.mark.parametrize("recording", [True, False])
    def test_leaves_grad_mode_as_it_was(self, recording):
        with torch.set_grad_enabled(recording):
            modules.evaluate(Classifier(), F.cross_entropy, labelled(4, 2))
            expect(torch.is_grad_enabled() == recording, f"expected grad mode {recording} afterwards as before")

    @pytest.mark.parametrize("batches", [lambda: [], lambda: iter(()), lambda: labelled(0)])
    def test_refuses_to_score_nothing(self, batches):
        model = Classifier()
        before = model.modes()
        with state_kept(), refuses(ValueError):
            modules.evaluate(model, F.cross_entropy, batches())
        assert_modes(model, before)


# GradientRecorder -----------------------------------------------------------------------------------------------------


def deep_model():
    """Parameters at three depths, in float64."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Sequential(nn.Linear(4, 2, bias=False)))
    model.scale = nn.Parameter(torch.ones(()))
    for p in model.double().parameters():
        p.data.copy_(sample(*p.shape, dtype=torch.float64))
    return model


def lossy(model, x):
    return (model(x) * model.scale).square().sum()


def norms_by_hand(loss, model):
    """What one backward of this loss brings to each parameter: its norm, number by number."""
    names, parameters = zip(*model.named_parameters(), strict=True)
    gradients = torch.autograd.grad(loss, parameters)
    return {n: math.sqrt(sum(v * v for v in g.flatten().tolist())) for n, g in zip(names, gradients, strict=True)}


def assert_history(recorder, wanted, rtol=1e-10):
    """The history holds these norms; a parameter that was not reached may have an empty list or no key."""
    expect(isinstance(recorder.history, dict), f"expected history to be a dict, got {type(recorder.history).__name__}")
    found = {name: norms for name, norms in recorder.history.items() if len(norms)}
    expect(set(found) == set(wanted), f"expected norms for {sorted(wanted)}, got them for {sorted(found)}")
    for name, norms in found.items():
        expect(isinstance(norms, list), f"expected a list of norms for {name}, got {type(norms).__name__}")
        right = wanted[name]
        expect(len(norms) == len(right), f"expected {len(right)} norms for {name}, one a backward, got {len(norms)}")
        for norm, value in zip(norms, right, strict=True):
            assert_float(norm, value, f"a norm of {name}", rtol)


def hooks_of(model):
    """What torch holds in hooks for a model's parameters and modules."""
    held = [p._backward_hooks for p in model.parameters()]
    held += [getattr(p, "_post_accumulate_grad_hooks", None) for p in model.parameters()]
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    held += [getattr(module, kind) for module in model.modules() for kind in kinds]
    return sum(len(hooks) for hooks in held if hooks)


class TestGradientRecorder:
    def test_notes_the_norm_that_each_backward_brings(self):
        model = nn.Linear(2, 1)
        with modules.GradientRecorder(model) as recorder:
            for x in ([3.0, 4.0], [5.0, 12.0], [0.0, -0.5]):
                model(torch.tensor([x])).sum().backward()
        assert_history(recorder, {"weight": [5.0, 13.0, 0.5], "bias": [1.0, 1.0, 1.0]}, rtol=1e-6)

    def test_not_the_norm_of_what_has_piled_up(self):
        """A norm of the sum of all gradients so far would grow from step to step."""
        model = nn.Linear(2, 1, bias=False)
        model.weight.grad = torch.tensor([[30.0, 40.0]])
        with modules.GradientRecorder(model) as recorder:
            model(torch.tensor([[3.0, 4.0]])).sum().backward()
            model(torch.tensor([[-3.0, 4.0]])).sum().backward()
        assert_history(recorder, {"weight": [5.0, 5.0]}, rtol=1e-6)
        assert_same(model.weight.grad, torch.tensor([[30.0, 48.0]]))

    def test_every_parameter_has_its_own_list_under_its_name(self):
        model, batches = deep_model(), [sample(5, 3, dtype=torch.float64) for _ in range(3)]
        norms = [norms_by_hand(lossy(model, x), model) for x in batches]
        with modules.GradientRecorder(model) as recorder:
            for x in batches:
                lossy(model, x).backward()
        assert_history(recorder, {name: [norm[name] for norm in norms] for name in norms[0]}, rtol=1e-12)

    def test_gradients_are_what_they_would_be_without_it(self):
        model, x = deep_model(), sample(5, 3, dtype=torch.float64)
        wanted = torch.autograd.grad(lossy(model, x), list(model.parameters()))
        with modules.GradientRecorder(model):
            lossy(model, x).backward()
        for p, gradient in zip(model.parameters(), wanted, strict=True):
            expect(torch.equal(p.grad, gradient), "expected the gradients to be the same as without the recorder")

    def test_the_gradients_stay_when_the_block_ends(self):
        model = nn.Linear(2, 1)
        with modules.GradientRecorder(model):
            model(torch.tensor([[3.0, 4.0]])).sum().backward()
            model(torch.tensor([[3.0, 4.0]])).sum().backward()
        assert_same(model.weight.grad, torch.tensor([[6.0, 8.0]]))

    def test_follows_a_training_loop(self):
        model, x = deep_model(), sample(5, 3, dtype=torch.float64)
        wanted, optimizer = {}, Descent((model.parameters(), 0.01))
        with modules.GradientRecorder(model) as recorder:
            for step in range(4):
                twin = copy.deepcopy(model)  # what differentiates the model itself may be recorded too
                for name, norm in norms_by_hand(lossy(twin, x), twin).items():
                    wanted.setdefault(name, []).append(norm)
                expected = len(recorder.history.get("0.weight", []))
                expect(expected == step, f"expected {step} norms before backward number {step + 1}, got {expected}")
                optimizer.zero_grad(set_to_none=step % 2 == 0)
                lossy(model, x).backward()
                optimizer.step()
        assert_history(recorder, wanted)

    def test_one_graph_can_be_walked_twice(self):
        model = nn.Linear(2, 1, bias=False)
        with modules.GradientRecorder(model) as recorder:
            loss = (7 * model(torch.tensor([[3.0, 4.0]]))).sum()
            loss.backward(retain_graph=True)
            loss.backward()
        assert_history(recorder, {"weight": [35.0, 35.0]}, rtol=1e-6)

    def test_a_parameter_used_twice_has_one_norm_that_of_the_sum(self):
        """Two uses bring one gradient: that is what backward adds."""
        model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
        model[1].weight = model[0].weight
        x = torch.tensor([[3.0, 4.0]])
        norms = norms_by_hand(model(x).square().sum(), model)
        with modules.GradientRecorder(model) as recorder:
            model(x).square().sum().backward()
        expect(set(recorder.history) == {"0.weight"}, f"expected one key, 0.weight, got {sorted(recorder.history)}")
        assert_history(recorder, {"0.weight": [norms["0.weight"]]}, rtol=1e-5)

    def test_what_is_not_reached_has_no_norms_and_a_zero_gradient_has_one(self):
        model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
        with modules.GradientRecorder(model) as recorder:
            (0 * model[0](torch.ones(1, 2))).sum().backward()
        assert_history(recorder, {"0.weight": [0.0], "0.bias": [0.0]})

    def test_a_model_without_parameters_has_an_empty_history(self):
        with modules.GradientRecorder(nn.Tanh()) as recorder:
            pass
        assert_history(recorder, {})

    def test_with_gives_the_recorder_itself(self):
        recorder = modules.GradientRecorder(nn.Linear(2, 1))
        with recorder as found:
            pass
        expect(found is recorder, f"expected `with recorder as r` to give the recorder, got {type(found).__name__}")

    def test_history_is_there_before_and_in_the_block(self):
        model = nn.Linear(2, 1)
        recorder = modules.GradientRecorder(model)
        assert_history(recorder, {})
        with recorder:
            model(torch.tensor([[3.0, 4.0]])).sum().backward()
            assert_history(recorder, {"weight": [5.0], "bias": [1.0]}, rtol=1e-6)

    def test_nothing_is_noted_before_and_after_the_block(self):
        model, x = nn.Linear(2, 1), torch.tensor([[3.0, 4.0]])
        recorder = modules.GradientRecorder(model)
        model(x).sum().backward()
        assert_history(recorder, {})
        with recorder:
            early = model(x).sum()
        early.backward()
        model(x).sum().backward()
        assert_history(recorder, {})

    def test_a_graph_made_before_the_block_is_noted_too(self):
        model = nn.Linear(2, 1)
        loss = model(torch.tensor([[3.0, 4.0]])).sum()
        with modules.GradientRecorder(model) as recorder:
            loss.backward()
        assert_history(recorder, {"weight": [5.0], "bias": [1.0]}, rtol=1e-6)

    def test_leaves_no_hook_behind(self):
        """A hook that stays runs in every later backward, and keeps alive what it holds."""
        model, x = nn.Linear(2, 1), torch.tensor([[3.0, 4.0]])
        recorder = modules.GradientRecorder(model)
        expect(hooks_of(model) == 0, f"expected no hooks before the block, {hooks_of(model)} are there")
        with recorder:
            model(x).sum().backward()
        expect(hooks_of(model) == 0, f"expected no hooks after the block, {hooks_of(model)} are left")
        model(x).sum().backward()
        assert_history(recorder, {"weight": [5.0], "bias": [1.0]}, rtol=1e-6)

    def test_leaves_no_hook_behind_when_the_block_raises(self):
        model, x = nn.Linear(2, 1), torch.tensor([[3.0, 4.0]])
        recorder = modules.GradientRecorder(model)
        for error in (ZeroDivisionError, Halt):
            with pytest.raises(error), recorder:
                raise error
            expect(hooks_of(model) == 0, f"expected no hooks after the block, {hooks_of(model)} are left")
            model(x).sum().backward()
            assert_history(recorder, {})

    def test_what_was_noted_before_the_block_raised_is_kept(self):
        model = nn.Linear(2, 1, bias=False)
        recorder = modules.GradientRecorder(model)
        with pytest.raises(ZeroDivisionError), recorder:
            model(torch.tensor([[3.0, 4.0]])).sum().backward()
            raise ZeroDivisionError
        assert_history(recorder, {"weight": [5.0]}, rtol=1e-6)

    def test_the_model_does_not_keep_the_recorder_alive(self):
        model = nn.Linear(2, 1)
        recorder = modules.GradientRecorder(model)
        with recorder:
            model(torch.tensor([[3.0, 4.0]])).sum().backward()
        gone = weakref.ref(recorder)
        del recorder
        gc.collect()
        expect(gone() is None, "expected nothing in the model to hold the recorder after the block, something does")

    def test_hooks_of_others_go_on_working(self):
        model, x, seen = nn.Linear(2, 1, bias=False), torch.tensor([[3.0, 4.0]]), []
        model.weight.register_hook(lambda g: seen.append("tensor"))
        model.weight.register_post_accumulate_grad_hook(lambda p: seen.append("accumulated"))
        model.register_forward_hook(lambda *_: seen.append("forward"))
        with modules.GradientRecorder(model):
            model(x).sum().backward()
        model(x).sum().backward()
        expect(seen == ["forward", "tensor", "accumulated"] * 2, f"expected the user's own hooks to run, got {seen}")

    def test_two_recorders_do_not_disturb_each_other(self):
        model, x = nn.Linear(2, 1, bias=False), torch.tensor([[3.0, 4.0]])
        with modules.GradientRecorder(model) as outer:
            with modules.GradientRecorder(model) as inner:
                model(x).sum().backward()
            model(2 * x).sum().backward()
        assert_history(inner, {"weight": [5.0]}, rtol=1e-6)
        assert_history(outer, {"weight": [5.0, 10.0]}, rtol=1e-6)

    def test_each_recorder_has_a_history_of_its_own(self):
        first, second = modules.GradientRecorder(nn.Linear(2, 1)), modules.GradientRecorder(nn.Linear(2, 1))
        with first:
            first_model = nn.Linear(2, 1)
        with modules.GradientRecorder(first_model) as third:
            first_model(torch.tensor([[3.0, 4.0]])).sum().backward()
        assert_history(first, {})
        assert_history(second, {})
        assert_history(third, {"weight": [5.0], "bias": [1.0]}, rtol=1e-6)

    def test_leaves_global_state_and_the_parameters_alone(self):
        model = deep_model()
        before = [(name, id(p), p.requires_grad, p.detach().clone()) for name, p in model.named_parameters()]
        with state_kept(), modules.GradientRecorder(model):
            lossy(model, torch.ones(5, 3, dtype=torch.float64)).backward()
        for (name, p), (old, number, requires, value) in zip(model.named_parameters(), before, strict=True):
            expect(
                (name, id(p), p.requires_grad) == (old, number, requires), f"expected {old} to stay the same parameter"
            )
            assert_same(p, value)

    @pytest.mark.parametrize("device", devices.DEVICES)
    def test_records_on_another_device(self, device):
        with devices.on(device):
            model = nn.Linear(2, 1).to(device)
            x = torch.tensor([[3.0, 4.0]], device=device)
            with devices.no_strays(), modules.GradientRecorder(model) as recorder:
                model(x).sum().backward()
        assert_history(recorder, {"weight": [5.0], "bias": [1.0]}, rtol=1e-6)


# The house rules ------------------------------------------------------------------------------------------------------


def training(name):
    """The function, called with grad mode on whatever it was: training under no_grad is not asked."""

    def build(module):
        function = getattr(module, name)

        @functools.wraps(function)
        def with_gradients(*args, **kwargs):
            with torch.enable_grad():
                return function(*args, **kwargs)

        return with_gradients

    return build


def lookup(s):
    """A classifier of integers: what requires grad are its parameters alone, so that inputs have no `.grad`."""
    model = nn.Embedding(5, 4)
    return model.to(s.device, s.dtype)


def learner(s):
    """A model, a loss and an optimizer."""
    model = lookup(s)
    return model, F.cross_entropy, Descent((model.parameters(), 0.1))


def pairs(s):
    """Two batches of (inputs, targets)."""
    return [(s.ints(s.n), s.ints(s.n, high=4)), (s.ints(s.n + 1), s.ints(s.n + 1, high=4))]


# `s` makes a sample in the dtype, on the device and with the number of rows `s.n` that a rule asks about.
RULES = [
    # Modules may leave integers to torch. Devices: a spec of their own asks for the parameters too.
    rule("Linear", lambda s: (s(s.n, 2, 3),), build=lambda m: m.Linear(3, 5), refused=("linear",),
         also={"no bias": {"build": lambda m: m.Linear(3, 5, bias=False)}, "rows": {"make": lambda s: (s(s.n, 3),)}},
         integers_refused=False, module={"shows": (3, 5), "state": ("weight", "bias")}, any_device=False,
         fails=lambda s: (s(2, 4),)),
    # In eval mode: dropout draws from the global generator. The state's other keys are the learner's own affair.
    rule("MLP", lambda s: (s(s.n, 2, 3),), build=lambda m: m.MLP([3, 7, 5, 2], nn.PReLU, 0.3).eval(),
         also={"no hidden layer": {"build": lambda m: m.MLP([3, 2])},
               "in training": {"build": lambda m: m.MLP([3, 7, 2], nn.Tanh)}},
         refused=("linear",), integers_refused=False, module={"shows": (3, 7, 5, 2, 0.3, "PReLU")}, any_device=False,
         fails=lambda s: (s(2, 4),)),
    # What follows returns no tensors.
    rule("count_parameters", lambda s: (nn.Linear(3, 4),)),
    rule("FocalLoss", lambda s: (s(s.n, 4), s.ints(s.n, high=4)), build=lambda m: m.FocalLoss(1.7, "none"),
         also={"gamma 0": {"build": lambda m: m.FocalLoss(0.0, "none")},
               "sum": {"build": lambda m: m.FocalLoss(0.5, "sum")},
               "mean": {"build": lambda m: m.FocalLoss(), "empty": False}},
         integers_refused=False, module={"shows": (1.7, "none")},
         fails=lambda s: (s(3, 4), s.ints(3, low=4, high=6))),
    # The mean of nothing is nan.
    rule("train_step", lambda s: (*learner(s), s.ints(s.n), s.ints(s.n, high=4)), build=training("train_step"),
         empty=False),
    # Batches without rows are not asked.
    rule("fit", lambda s: (*learner(s), pairs(s), 2), build=training("fit"), empty=False,
         fails=lambda s: (*learner(s), [], 2)),
    rule("evaluate", lambda s: (nn.Sequential(lookup(s), nn.Dropout(0.5)), F.cross_entropy, pairs(s)), empty=False,
         fails=lambda s: (lookup(s), F.cross_entropy, [])),
    rule("GradientRecorder", lambda s: (nn.Linear(3, 4),)),
]  # fmt: skip
