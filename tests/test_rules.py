"""Each house rule accepts a function that keeps it and rejects one that breaks it."""

import functools
import pickle

import pytest
import torch
from torch import Tensor, nn

from dojo import rules
from dojo.compare import Mismatch
from dojo.rules import rule


def line(**flags):
    """A line of a table for functions of one float tensor of rows."""
    return rule("f", lambda s: (s(s.n, 4),), **flags)


def writes(x: Tensor) -> Tensor:
    return x.mul_(2)


def writes_and_restores(x: Tensor) -> Tensor:
    x += 1
    x -= 1
    return x * 2


def draws(x: Tensor) -> Tensor:
    torch.rand(1)
    return x * 2


def leaves_grad_off(x: Tensor) -> Tensor:
    torch.set_grad_enabled(not torch.is_grad_enabled())
    return x * 2


def fills_grad(x: Tensor) -> Tensor:
    if x.requires_grad:
        with torch.enable_grad():
            (x * 3).sum().backward()
    return x * 2


def default_dtype(x: Tensor) -> Tensor:
    return torch.zeros(x.shape) + x * 2


def raises_after_writing(x: Tensor) -> Tensor:
    x += 1
    raise ValueError(f"{x.shape}")


def raises_with_grad_off(x: Tensor) -> Tensor:
    torch.set_grad_enabled(False)
    raise ValueError(f"{x.shape}")


def through_double(x: Tensor) -> Tensor:
    return x.double() * 2


def on_the_cpu(x: Tensor) -> Tensor:
    return x * torch.full((4,), 2.0)


def by_way_of_the_cpu(x: Tensor) -> Tensor:
    return (x.cpu() * 2).to(x.device)


def cpu_index(x: Tensor) -> Tensor:
    return x[:, torch.arange(3, -1, -1)]


def assumes_contiguous(x: Tensor) -> Tensor:
    return x.as_strided(x.shape, (4, 1)) * 2


def refuses_strides(x: Tensor) -> Tensor:
    return x.view(-1).view(x.shape) * 2


def detached(x: Tensor) -> Tensor:
    return x.detach() * 2


def half_gradient(x: Tensor) -> Tensor:
    return x * 1 + x.detach()


def in_single(x: Tensor) -> Tensor:
    return (x.float() * 2).to(x.dtype)


def loops(x: Tensor) -> Tensor:
    return torch.stack([row * 2 for row in x]) if len(x) else x * 2


def fails_when_empty(x: Tensor) -> Tensor:
    return x * 2 + x.max() * 0


def forgets_rows_when_empty(x: Tensor) -> Tensor:
    return x * 2 if len(x) else x.new_zeros(0)


def right(x: Tensor) -> Tensor:
    if not x.is_floating_point():
        raise TypeError(f"expected floats, got {x.dtype}")
    return x * 2


BROKEN = [
    (rules.test_leaves_its_arguments_as_they_are, writes, {}),
    (rules.test_leaves_its_arguments_as_they_are, writes_and_restores, {}),
    (rules.test_leaves_gradients_and_global_state_alone, draws, {}),
    (rules.test_leaves_gradients_and_global_state_alone, leaves_grad_off, {}),
    (rules.test_leaves_gradients_and_global_state_alone, fills_grad, {}),
    (rules.test_leaves_gradients_and_global_state_alone, default_dtype, {}),
    (rules.test_changes_nothing_when_it_refuses, raises_after_writing, {}),
    (rules.test_changes_nothing_when_it_refuses, raises_with_grad_off, {}),
    (rules.test_changes_nothing_when_it_refuses, right, {}),
    (rules.test_keeps_the_dtype, through_double, {"dtype": torch.float16}),
    (rules.test_keeps_the_dtype, through_double, {"dtype": torch.float32}),
    (rules.test_raises_type_error_for_integers, loops, {}),
    (rules.test_works_on_another_device, on_the_cpu, {"device": "sim"}),
    (rules.test_works_on_another_device, by_way_of_the_cpu, {"device": "sim"}),
    (rules.test_works_on_another_device, cpu_index, {"device": "sim"}),
    (rules.test_works_for_any_strides, assumes_contiguous, {"layout": "transposed"}),
    (rules.test_works_for_any_strides, assumes_contiguous, {"layout": "sliced"}),
    (rules.test_works_for_any_strides, assumes_contiguous, {"layout": "expanded"}),
    (rules.test_works_for_any_strides, refuses_strides, {"layout": "transposed"}),
    (rules.test_gradients_are_right, detached, {}),
    (rules.test_gradients_are_right, half_gradient, {}),
    (rules.test_gradients_are_right, in_single, {}),
    (rules.test_takes_no_more_operations_for_more_rows, loops, {}),
    (rules.test_works_without_rows, fails_when_empty, {}),
    (rules.test_works_without_rows, forgets_rows_when_empty, {}),
    (rules.test_looks_at_the_memory_of_its_input, right, {}),
    (rules.test_has_memory_of_its_own, lambda x: x[1:], {}),
]


def name(value):
    return value.__name__.removeprefix("test_") if callable(value) else ""


@pytest.mark.parametrize("check, function, given", BROKEN, ids=name)
def test_a_function_that_breaks_the_rule_is_rejected(check, function, given):
    try:
        with pytest.raises((Mismatch, RuntimeError, IndexError)):
            check(line(fails=lambda s: (s(2, 3),)), function, **given)
    finally:
        torch.set_grad_enabled(True)
        torch.set_default_dtype(torch.float32)


KEPT = [
    (check, given)
    for check, variants in {
        rules.test_leaves_its_arguments_as_they_are: [{}],
        rules.test_leaves_gradients_and_global_state_alone: [{}],
        rules.test_keeps_the_dtype: [{"dtype": dtype} for dtype in rules.FLOATS],
        rules.test_raises_type_error_for_integers: [{}],
        rules.test_works_on_another_device: [{"device": "sim"}],
        rules.test_works_for_any_strides: [{"layout": layout} for layout in ("transposed", "sliced", "expanded")],
        rules.test_gradients_are_right: [{}],
        rules.test_takes_no_more_operations_for_more_rows: [{}],
        rules.test_works_without_rows: [{}],
        rules.test_has_memory_of_its_own: [{}],
    }.items()
    for given in variants
]


@pytest.mark.parametrize("check, given", KEPT, ids=name)
def test_a_function_that_keeps_the_rules_is_accepted(check, given):
    check(line(), right, **given)


def test_an_argument_behind_a_star_is_watched_too():
    def writes_to_the_second(*tensors):
        tensors[1].add_(1)

    two = rule("f", lambda s: (s(3), s(4)))
    with pytest.raises(Mismatch):
        rules.test_leaves_its_arguments_as_they_are(two, writes_to_the_second)


def test_several_results_may_share_one_graph():
    rules.test_works_for_any_strides(line(), lambda x: list(torch.unbind(x.exp() * 2, 1)), layout="sliced")


def test_views_are_accepted_as_views():
    rules.test_looks_at_the_memory_of_its_input(line(is_view=True), lambda x: x[:, 1:])


# Random functions -----------------------------------------------------------------------------------------------------


def noise(x, generator=None):
    return x + torch.rand(x.shape, generator=generator)


def noise_in_pieces(x, generator=None):
    return x + torch.stack([torch.rand(4, generator=generator) for _ in x])


def noise_in_place(x, generator=None):
    """Draws in the dtype of x and in the order of its memory: for other dtypes and strides other values."""
    return x + torch.empty_like(x).uniform_(generator=generator)


def test_a_random_function_may_draw_in_any_way():
    for function in (noise, noise_in_pieces, noise_in_place):
        rules.test_draws_from_its_generator_alone(line(random=True), function)
    rules.test_keeps_the_dtype(line(random=True), noise_in_place, torch.float16)
    rules.test_works_for_any_strides(line(random=True), noise_in_place, "transposed")


@pytest.mark.parametrize(
    "function",
    [
        lambda x, generator=None: x + torch.rand(x.shape),
        lambda x, generator=None: noise(x, generator or torch.Generator().manual_seed(0)),
        lambda x, generator=None: noise(x, torch.Generator().manual_seed(generator.initial_seed() if generator else 0)),
        lambda x, generator=None: x + torch.rand(x.shape, generator=generator) + 0 * torch.rand(1),
    ],
    ids=["the global one", "one of its own", "the seed again", "both"],
)
def test_a_random_function_that_draws_from_elsewhere_is_rejected(function):
    with pytest.raises(Mismatch):
        rules.test_draws_from_its_generator_alone(line(random=True), function)


# Modules --------------------------------------------------------------------------------------------------------------


class Scale(nn.Module):
    """A module that keeps the rules."""

    def __init__(self, factor: float = 3.5):
        super().__init__()
        self.factor = factor
        self.weight = nn.Parameter(torch.linspace(1, 2, 4))
        self.register_buffer("shift", torch.ones(4))

    def forward(self, x):
        return x * self.weight * self.factor + self.shift

    def extra_repr(self):
        return f"factor={self.factor}"


class Unregistered(Scale):
    def __init__(self):
        super().__init__()
        del self.shift
        self.shift = torch.ones(4)


class Silent(Scale):
    def extra_repr(self):
        return ""


class Unpicklable(Scale):
    def __init__(self):
        super().__init__()
        self.scale = lambda x: x * 2


class Forgetful(Scale):
    def __init__(self):
        super().__init__()
        del self.weight
        self.weight = torch.linspace(1, 2, 4)


MODULE = {"shows": ("3.5",)}


def test_a_well_behaved_module_is_accepted():
    rules.test_is_a_well_behaved_module(line(module=MODULE), Scale())


def test_a_module_with_parameters_works_on_another_device():
    rules.test_works_on_another_device(line(module=MODULE), Scale(), device="sim")


@pytest.mark.parametrize("module", [Unregistered, Silent, Unpicklable, Forgetful])
def test_a_module_that_breaks_the_rules_is_rejected(module):
    with pytest.raises((Mismatch, AttributeError, pickle.PicklingError)):
        rules.test_is_a_well_behaved_module(line(module=MODULE), module())


# Attaching ------------------------------------------------------------------------------------------------------------


def test_a_line_of_the_table_adds_its_rules_to_the_class_of_that_name():
    class TestF:
        pass

    spec = type("spec", (), {"TestF": TestF, "RULES": [line(is_view=True, any_device=False)], "__name__": "spec"})
    rules.attach(spec, type("learner", (), {"f": staticmethod(functools.partial(right))}))
    assert hasattr(TestF, "test_looks_at_the_memory_of_its_input")
    assert not hasattr(TestF, "test_works_on_another_device")
    TestF().test_leaves_its_arguments_as_they_are()


def test_a_line_without_a_class_is_an_error():
    spec = type("spec", (), {"RULES": [line()], "__name__": "spec"})
    with pytest.raises(LookupError):
        rules.attach(spec, object())
