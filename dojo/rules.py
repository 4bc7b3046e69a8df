"""The house rules, written once and asked of each function by its line in a kata's table.

    RULES = [
        rule("center_crop", lambda s: (s(s.n, 3, 5, 7), 3, 4), is_view=True),
        rule("one_hot", lambda s: (s.ints(s.n, 4, high=6), 6), refused=("one_hot", "eye")),
    ]

The function after the name makes the arguments of a call; `s(2, 3)` is a float tensor, `s.ints` and `s.bools` are what
they say, and `s.n` is the number of rows: the size that the amount of work must not depend on, and that may be 0.
For every line, `attach` adds specs to the class of that name, so that TestCenterCrop holds all that is asked of it.
`also` names further cases, with what is different in them: `also={"p 1": {"make": lambda s: (s(s.n, 4), 1.0)}}`.
"""

import copy
import inspect
import pickle
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from dojo import devices
from dojo.compare import (
    Mismatch,
    assert_same,
    assert_same_gradients,
    describe,
    expect,
    gradients_of,
    refuses,
)
from dojo.guards import count_ops, floats_in, shares_memory, state_kept, tensors_in, unchanged
from dojo.loading import spec_class
from dojo.strategies import GENERATOR, reseed, sample, strided

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@dataclass
class Samples:
    """Makes the arguments of one call: `s(2, 3)`, `s.ints(4, high=6)`, `s.bools(4)`; `s.n` rows, on `s.device`."""

    n: int = 3
    dtype: torch.dtype = torch.float32
    device: str = "cpu"

    def __call__(self, *shape: int, low: float = -2, high: float = 2) -> Tensor:
        return sample(*shape, dtype=self.dtype, low=low, high=high, device=self.device)

    def ints(self, *shape: int, low: int = 0, high: int = 5, dtype: torch.dtype = torch.int64) -> Tensor:
        """Integers from low to high (excluded)."""
        return sample(*shape, dtype=dtype, low=low, high=high, device=self.device)

    def bools(self, *shape: int) -> Tensor:
        """True and False."""
        return sample(*shape, dtype=torch.bool, device=self.device)


@dataclass(frozen=True)
class Rule:
    """One function of a kata and the house rules that are asked of it; what a flag switches off needs a reason."""

    name: str
    make: Callable[[Samples], tuple]
    build: Callable[[ModuleType], Callable] | None = None  # what is called, where it is not the function itself
    refused: tuple[str, ...] = ()  # R10: operations that may not be used
    fails: Callable[[Samples], tuple] | None = None  # arguments that are refused: R1, R6, R8
    is_view: bool = False  # the result looks at the memory of the first argument
    is_copy: bool = False  # the result looks at the memory of no argument
    writes: tuple[int, ...] = ()  # R1: positions of arguments that the function is there to change
    keeps_dtype: bool = True  # R2: floating results have the dtype of the input
    dtypes: tuple[torch.dtype, ...] = FLOATS
    integers_refused: bool = True  # R2: TypeError for integer tensors where floating ones are asked
    any_device: bool = True  # R3
    any_strides: bool = True  # R4
    differentiable: bool = True  # R5
    vectorised: bool = True  # R7
    empty: bool = True  # R9: s.n may be 0
    random: bool = False  # R12: takes `generator`
    module: dict[str, tuple] | None = None  # R11: "shows": settings that repr must show, "state": keys of state_dict
    also: dict[str, dict[str, object]] = field(default_factory=dict)  # other options: each by what is not as above

    def cases(self) -> dict[str, "Rule"]:
        """The rule for each of the other options."""
        return {name: replace(self, also={}, **changes) for name, changes in self.also.items()}

    def function(self, learner: ModuleType) -> Callable:
        return (self.build or (lambda module: getattr(module, self.name)))(learner)

    def arguments(self, **settings) -> tuple:
        """The arguments of one call: the same values for equal settings."""
        reseed()
        return self.make(Samples(**settings))

    @cached_property
    def has_floats(self) -> bool:
        return bool(floats_in(self.arguments()))

    @cached_property
    def has_tensors(self) -> bool:
        return bool(tensors_in(self.arguments()))

    @property
    def line(self) -> int:
        """Where the rule stands in the spec file."""
        return self.make.__code__.co_firstlineno


def rule(name: str, make: Callable[[Samples], tuple], **flags) -> Rule:
    """A line of a kata's table: see Rule for the flags."""
    return Rule(name, make, **flags)


def attach(spec: ModuleType, learner: ModuleType) -> None:
    """Adds the house rules' specs to the classes of a spec module, which must have one for each line of its RULES."""
    lines = getattr(spec, "RULES", ())
    names = [line.name for line in lines]
    for line in lines:
        owner = getattr(spec, spec_class(line.name, names), None)
        if owner is None:
            raise LookupError(f"{spec.__name__} has a rule for {line.name} but no class for it")
        owner.rule = line
        for applies, check in CHECKS:
            if applies(line):
                setattr(owner, check.__name__, _as_spec(check, line, learner))
            cases = {name: case for name, case in line.cases().items() if check in OF_EACH_CASE and applies(case)}
            if cases:
                setattr(owner, f"{check.__name__}_also", _as_spec(check, line, learner, cases))


def _as_spec(check: Callable, line: Rule, learner: ModuleType, cases: dict[str, Rule] | None = None) -> Callable:
    """The check as a method that pytest collects, parametrised over what it asks for, and over cases if there are."""

    def spec(self, case=None, **given):
        asked = cases[case] if case else line
        check(asked, asked.function(learner), **given)

    spec.__name__, spec.__doc__ = check.__name__, check.__doc__
    _self = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    names = list(inspect.signature(check).parameters)[2:] + (["case"] if cases else [])
    asked = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in names]
    spec.__signature__ = inspect.Signature([_self, *asked])
    values = {"device": devices.DEVICES, "dtype": line.dtypes, "layout": ("transposed", "sliced", "expanded")}
    values["case"] = list(cases or ())
    for name in names:
        spec = pytest.mark.parametrize(name, values[name], ids=_label)(spec)
    return spec


def _label(value: object) -> str:
    return str(value).removeprefix("torch.")


def _leaves(arguments: tuple) -> tuple[tuple, list[Tensor]]:
    """The arguments with each floating tensor as a leaf that requires grad, and those leaves."""
    leaves: list[Tensor] = []

    def leaf(x):
        if isinstance(x, Tensor) and x.is_floating_point():
            leaves.append(x.detach().clone().requires_grad_())
            return leaves[-1]
        return x

    return tree_map(leaf, arguments), leaves


def _fitted(function: Callable, arguments: tuple) -> Callable:
    """The function; of a module a copy with the dtype and device of the arguments (itself, once it has been moved)."""
    if isinstance(function, nn.Module):
        for x in floats_in(arguments)[:1]:
            moved = any(own.device.type != "cpu" for own in (*function.parameters(), *function.buffers()))
            return function if moved else copy.deepcopy(function).to(x.device, x.dtype)
    return function


def _call(line: Rule, function: Callable, arguments: tuple) -> list[Tensor]:
    """The tensors that the call returns; what is written to must not be a leaf that requires grad."""
    function = _fitted(function, arguments)
    arguments = tuple(a * 1 if i in line.writes and a.requires_grad else a for i, a in enumerate(arguments))
    return tensors_in(function(*arguments, **_generator(line, arguments)))


def _generator(line: Rule, arguments: tuple) -> dict[str, torch.Generator]:
    if not line.random:
        return {}
    device = next((x.device for x in tensors_in(arguments) if x.device.type == "cuda"), "cpu")
    return {"generator": torch.Generator(device).manual_seed(7)}


# R1 and R6 -----------------------------------------------------------------------------------------------------------


def test_leaves_its_arguments_as_they_are(line: Rule, function: Callable):
    """The caller's tensors are the caller's: a function that writes into them changes results far away."""
    parameters = inspect.signature(function).parameters.values()
    # What x.double() gives is a copy of float32, and float64 itself.
    for dtype in (torch.float32, torch.float64) if line.keeps_dtype else (torch.float32,):
        arguments = line.arguments(dtype=dtype)
        names = [f"`{p.name}`" for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
        names += [f"argument {i}" for i in range(len(names), len(arguments))]  # behind *args
        kept = [(name, a) for i, (name, a) in enumerate(zip(names, arguments, strict=False)) if i not in line.writes]
        with unchanged(*(a for _, a in kept), names=tuple(name for name, _ in kept)):
            _fitted(function, arguments)(*arguments, **_generator(line, arguments))


def test_leaves_gradients_and_global_state_alone(line: Rule, function: Callable):
    """Random state, default dtype, grad mode and .grad belong to the whole program, not to one function."""
    arguments, leaves = _leaves(line.arguments())
    for leaf in leaves:
        leaf.grad = torch.ones_like(leaf)
    default = torch.get_default_dtype()
    for grad in (torch.enable_grad, torch.no_grad):
        for dtype in (torch.float64, torch.float32):
            torch.set_default_dtype(dtype)
            try:
                with grad(), state_kept():
                    results = _call(line, function, arguments)
            finally:
                torch.set_default_dtype(default)
                torch.set_grad_enabled(True)
            for leaf in leaves:
                expect(
                    leaf.grad is not None and bool((leaf.grad == 1).all()),
                    "expected the .grad of the inputs to stay as it was, it was changed",
                )
            if line.keeps_dtype and line.has_floats:
                for x in floats_in(results):
                    expect(
                        x.dtype == torch.float32,
                        f"expected float32 for float32 inputs while the default dtype is {_label(dtype)}, "
                        f"got {_label(x.dtype)}",
                    )


def test_changes_nothing_when_it_refuses(line: Rule, function: Callable):
    """An error must leave the caller where the call found them."""
    arguments = line.fails(Samples())
    before = torch.is_grad_enabled()
    try:
        with unchanged(*arguments), state_kept(), refuses((ValueError, TypeError, IndexError)):
            function(*arguments, **_generator(line, arguments))
    finally:
        torch.set_grad_enabled(before)


# R2 ------------------------------------------------------------------------------------------------------------------


def test_keeps_the_dtype(line: Rule, function: Callable, dtype: torch.dtype):
    """float64 in means float64 precision out; half precision stays half, so that memory stays half too."""
    arguments = line.arguments(dtype=dtype)
    exact = tree_map(
        lambda x: x.float() if isinstance(x, Tensor) and x.dtype in (torch.float16, torch.bfloat16) else x, arguments
    )
    found = _call(line, function, arguments)
    wanted = _call(line, function, exact)
    for x, y in zip(found, wanted, strict=True):
        if x.is_floating_point():
            expect(x.dtype == dtype, f"expected {_label(dtype)} for {_label(dtype)} inputs, got {_label(x.dtype)}")
            if dtype.itemsize == 2 and not line.random:  # another dtype may draw another stream
                assert_same(x.float(), y, rtol=1e-2, atol=1e-2)


def test_raises_type_error_for_integers(line: Rule, function: Callable):
    """Integers cannot hold the result: better an error at once than a rounded one later."""
    arguments = tree_map(lambda x: x.long() if isinstance(x, Tensor) and x.is_floating_point() else x, line.arguments())
    with refuses(TypeError):
        function(*arguments, **_generator(line, arguments))


# R3 ------------------------------------------------------------------------------------------------------------------


def test_works_on_another_device(line: Rule, function: Callable, device: str):
    """New tensors belong on the device of the input; otherwise the code stops at the first GPU."""
    here = [x.detach() for x in _call(line, function, line.arguments())]
    with devices.on(device):
        arguments, leaves = _leaves(line.arguments(device=device))
        function = _fitted(function, arguments)  # moved before strays count: it comes from the CPU
        with devices.no_strays():
            there = _call(line, function, arguments)
        for x, y in zip(there, here, strict=True):
            expect(x.device.type == device, f"expected a result on {device}, got one on {x.device.type}")
            if not line.random:
                assert_same(x, y, device=False, rtol=1e-4, atol=1e-5)
        flowing = [x for x in there if x.requires_grad]
        if line.differentiable and flowing:
            total = sum(x.sum() for x in flowing)
            with devices.no_strays():
                torch.autograd.grad(total, leaves, allow_unused=True)


# R4 ------------------------------------------------------------------------------------------------------------------


def test_works_for_any_strides(line: Rule, function: Callable, layout: str):
    """A transposed, sliced or expanded tensor is as good as its contiguous copy."""
    arguments, leaves = _leaves(line.arguments())
    if layout == "expanded" and line.writes:
        layout = "sliced"
    given = tree_map(lambda x: strided(x, layout) if isinstance(x, Tensor) else x, arguments)
    dense = tree_map(lambda x: strided(x, layout).contiguous() if isinstance(x, Tensor) else x, arguments)
    found, wanted = _call(line, function, given), _call(line, function, dense)
    for x, y in zip(found, wanted, strict=True):
        if line.random:  # what is drawn in the order of memory differs: the kata's own specs look at the values
            expect(x.shape == y.shape, f"expected shape {list(y.shape)} for {layout} inputs, got {list(x.shape)}")
            continue
        try:
            assert_same(x, y.detach().contiguous())
            if line.differentiable and x.requires_grad and leaves:
                assert_same_gradients(x, y, leaves)
        except Mismatch as mismatch:
            strides = ", ".join(str(x.stride()) for x in tensors_in(given))
            raise Mismatch(*mismatch.lines, f"for {layout} inputs with strides {strides}") from None


# R5 ------------------------------------------------------------------------------------------------------------------


def test_gradients_are_right(line: Rule, function: Callable):
    """The gradient is the slope of the function: compared with the difference of two close calls, in float64."""
    arguments, leaves = _leaves(line.arguments(dtype=torch.float64))
    if not leaves:
        return
    for number, out in enumerate(floats_in(_call(line, function, arguments))):
        expect(out.requires_grad, "expected a result that gradients flow through, got one that does not require grad")
        check_slope(lambda number=number: floats_in(_call(line, function, arguments))[number], leaves)


def check_slope(f: Callable[[], Tensor], leaves: list[Tensor], eps: float = 1e-6) -> None:
    """Raises Mismatch unless the gradient of f() for each leaf is the slope along random directions."""
    cotangent = torch.rand(f().shape, dtype=torch.float64, generator=GENERATOR) + 0.5
    scalar = lambda: (f() * cotangent).sum()  # noqa: E731
    gradients = torch.autograd.grad(scalar(), leaves, allow_unused=True)
    for leaf, gradient in zip(leaves, gradients, strict=True):
        gradient = torch.zeros_like(leaf) if gradient is None else gradient
        expect(bool(gradient.isfinite().all()), "expected a finite gradient, got nan or inf")
        for _ in range(2):
            direction = torch.rand(leaf.shape, dtype=torch.float64, generator=GENERATOR) - 0.5
            with torch.no_grad():
                start = leaf.clone()
                leaf.copy_(start + eps * direction)
                above = scalar()
                leaf.copy_(start - eps * direction)
                below = scalar()
                leaf.copy_(start)
            slope, claimed = (above - below) / (2 * eps), (gradient * direction).sum()
            if not torch.isclose(slope, claimed, rtol=1e-4, atol=1e-5):
                raise Mismatch(
                    f"expected the gradient to be the slope: {slope.item():.6g} along a random direction, "
                    f"got {claimed.item():.6g}",
                    f"for the input {describe(leaf)}",
                )


# R7 ------------------------------------------------------------------------------------------------------------------


def test_takes_no_more_operations_for_more_rows(line: Rule, function: Callable):
    """A loop over rows runs one small operation after another where one large one would do."""
    counts = []
    for n in (3, 8):
        arguments, _ = _leaves(line.arguments(n=n))
        with count_ops() as forward:
            _call(line, function, arguments)
        counts.append(forward.total())
    few, many = counts
    expect(
        many <= few,
        f"expected as many tensor operations for 8 rows as for 3, got {many} against {few}",
        "a loop over rows: one operation on the whole tensor does it at once",
    )


# R9 ------------------------------------------------------------------------------------------------------------------


def test_works_without_rows(line: Rule, function: Callable):
    """A batch can be empty: the last one of a filtered data set, a sentence without tokens."""
    arguments, leaves = _leaves(line.arguments(n=0))
    found = _call(line, function, arguments)
    three, four = (_call(line, function, line.arguments(n=n)) for n in (3, 4))
    for x, at3, at4 in zip(found, three, four, strict=True):
        shape = [a - 3 * (b - a) for a, b in zip(at3.shape, at4.shape, strict=True)]
        expect(list(x.shape) == shape, f"expected shape {shape} for no rows, got {list(x.shape)}")
        expect(x.dtype == at3.dtype, f"expected {_label(at3.dtype)} for no rows, got {_label(x.dtype)}")
        if line.differentiable and leaves and x.requires_grad:
            gradients_of(x, leaves)


# Memory --------------------------------------------------------------------------------------------------------------


def test_looks_at_the_memory_of_its_input(line: Rule, function: Callable):
    """A view costs nothing and shows later writes; a copy costs memory, and writes to it are lost."""
    for layout in ("contiguous", "transposed", "sliced") if line.any_strides else ("contiguous",):
        arguments = line.arguments()
        if layout != "contiguous":
            arguments = (strided(arguments[0], layout), *arguments[1:])
        with count_ops() as ops:
            (result,) = _call(line, function, arguments)
        source = arguments[0]
        expect(
            shares_memory(result, source),
            f"expected a view of the input's memory, got a copy (for a {layout} input)",
        )
        copies = [name for name in ops if name in ("clone", "copy_", "_to_copy", "cat", "stack")]
        expect(not copies, f"expected nothing to be copied on the way, {', '.join(copies)} was")


def test_has_memory_of_its_own(line: Rule, function: Callable):
    """Writes to the result must not reach the inputs."""
    arguments = line.arguments()
    for result in _call(line, function, arguments):
        for number, given in enumerate(tensors_in(arguments)):
            expect(not shares_memory(result, given), f"expected a copy, the result shares memory with input {number}")


# R11 -----------------------------------------------------------------------------------------------------------------


def test_is_a_well_behaved_module(line: Rule, function: nn.Module):
    """state_dict, copies, pickles and moves are what makes a module usable by code that never saw it."""
    arguments = line.arguments()
    wanted = _call(line, function.eval(), arguments)
    text = repr(function)
    for setting in line.module.get("shows", ()):
        expect(str(setting) in text, f"expected repr to show the setting {setting}, got {text!r}")
    if "state" in line.module:
        keys, found = sorted(line.module["state"]), sorted(function.state_dict())
        expect(found == keys, f"expected state_dict to hold {keys}, it holds {found}")
    plain = [name for module in function.modules() for name, value in vars(module).items() if isinstance(value, Tensor)]
    expect(not plain, f"expected every tensor to be a registered parameter or buffer, {', '.join(plain)} is neither")
    loaded = copy.deepcopy(function)
    with torch.no_grad():
        for x in loaded.state_dict().values():
            x.zero_()
    loaded.load_state_dict(function.state_dict())
    copies = {
        "a deep copy": copy.deepcopy(function),
        "a pickled copy": pickle.loads(pickle.dumps(function)),
        "a module that loaded its state_dict": loaded,
    }
    for name, other in copies.items():
        for x, y in zip(_call(line, other.eval(), arguments), wanted, strict=True):
            assert_same(x, y.detach(), what=f"the result of {name}")
    shared = {id(x) for x in function.state_dict(keep_vars=True).values()} & {
        id(x) for x in copies["a deep copy"].state_dict(keep_vars=True).values()
    }
    expect(not shared, "expected a deep copy to have parameters of its own")
    for dtype in (torch.float64, torch.float16):
        moved = copy.deepcopy(function).to(dtype)
        for x in moved.parameters():
            expect(x.dtype == dtype, f"expected .to({_label(dtype)}) to reach every parameter")
    for training in (True, False):
        modes = {module.training for module in function.train(training).modules()}
        expect(modes == {training}, "expected train() and eval() to reach every submodule")


# R12 -----------------------------------------------------------------------------------------------------------------


def test_draws_from_its_generator_alone(line: Rule, function: Callable):
    """A run can be repeated only if every random number comes from the generator that was given."""
    arguments = line.arguments(n=50)

    def draw(generator):
        return tensors_in(function(*arguments, generator=generator))

    seeded = lambda: torch.Generator().manual_seed(3)  # noqa: E731
    generator = seeded()
    with state_kept():
        first, second = draw(generator), draw(generator)
    again = draw(seeded())
    expect(
        all(torch.equal(x, y) for x, y in zip(first, again, strict=True)),
        "expected equal results for generators in equal states, they differ",
    )
    expect(
        any(not torch.equal(x, y) for x, y in zip(first, second, strict=True)),
        "expected two calls with one generator to differ, they are equal",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        one, two = draw(None), draw(None)
        torch.manual_seed(3)
        expect(
            all(torch.equal(x, y) for x, y in zip(one, draw(None), strict=True)),
            "expected the global generator's seed to decide when no generator is given",
        )
    expect(
        any(not torch.equal(x, y) for x, y in zip(one, two, strict=True)),
        "expected two calls to differ when no generator is given, they are equal",
    )


CHECKS = [
    (lambda line: True, test_leaves_its_arguments_as_they_are),
    (lambda line: True, test_leaves_gradients_and_global_state_alone),
    (lambda line: line.fails is not None, test_changes_nothing_when_it_refuses),
    (lambda line: line.keeps_dtype and line.has_floats, test_keeps_the_dtype),
    (lambda line: line.integers_refused and line.has_floats, test_raises_type_error_for_integers),
    (lambda line: line.any_device and line.has_tensors, test_works_on_another_device),
    (lambda line: line.any_strides and line.has_tensors, test_works_for_any_strides),
    (lambda line: line.differentiable and line.has_floats, test_gradients_are_right),
    (lambda line: line.vectorised and line.has_tensors, test_takes_no_more_operations_for_more_rows),
    (lambda line: line.empty and line.has_tensors, test_works_without_rows),
    (lambda line: line.is_view, test_looks_at_the_memory_of_its_input),
    (lambda line: line.is_copy, test_has_memory_of_its_own),
    (lambda line: line.module is not None, test_is_a_well_behaved_module),
    (lambda line: line.random, test_draws_from_its_generator_alone),
]
OF_EACH_CASE = {
    test_leaves_its_arguments_as_they_are,
    test_leaves_gradients_and_global_state_alone,
    test_keeps_the_dtype,
    test_raises_type_error_for_integers,
    test_works_on_another_device,
    test_works_for_any_strides,
    test_gradients_are_right,
    test_takes_no_more_operations_for_more_rows,
    test_works_without_rows,
}
