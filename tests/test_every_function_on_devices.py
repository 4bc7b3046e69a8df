"""On a machine without a GPU, every function of every kata is refused that strays to the CPU, and no other is."""

import textwrap

import pytest

from dojo.loading import Kata, spec_class
from tests.support import KATAS, reference, save
from tests.test_katas import outcomes, public_names

# Written behind the reference: each function that a spec calls errs about devices, and about nothing else. What it
# calls itself is right. On the CPU all of them compute what the reference does.
SPOILT = """
import functools, inspect
from collections.abc import Iterator
from torch.utils._pytree import tree_leaves, tree_map

_inside = False

def _each(change, values):
    if isinstance(values, Iterator):
        return map(functools.partial(_each, change), values)
    return tree_map(lambda x: change(x) if isinstance(x, torch.Tensor) else x, values)

def _tensors(values):
    optimizers = [x for x in values if isinstance(x, torch.optim.Optimizer)]
    parameters = [p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
    modules = [p for x in values if isinstance(x, torch.nn.Module) for p in x.parameters()]
    return [x for x in [*tree_leaves(values), *parameters, *modules] if isinstance(x, torch.Tensor)]

def _spoilt(function):
    @functools.wraps(function)
    def spoilt(*args, **kwargs):
        global _inside
        if _inside:
            return function(*args, **kwargs)
        _inside = True
        try:
            return _call(function, args, kwargs)
        finally:
            _inside = False
    return spoilt

{call}

for _name, _value in list(globals().items()):
    if getattr(_value, "__module__", None) != __name__ or _name.startswith("_"):
        continue
    if inspect.isclass(_value):
        _methods = [m for m in ("forward", "backward", "step", "get_lr") if m in vars(_value)]
        for _method in _methods or ["__init__"]:
            if _method in vars(_value):
                _own = vars(_value)[_method]
                _static = isinstance(_own, staticmethod)
                _new = _spoilt(_own.__func__ if _static else _own)
                setattr(_value, _method, staticmethod(_new) if _static else _new)
    elif inspect.isfunction(_value):
        globals()[_name] = _spoilt(_value)
"""
CALLS = {
    "is right": """
        def _call(function, args, kwargs):
            return function(*args, **kwargs)
    """,
    "goes by way of the CPU": """
        def _detour(x):
            return x.cpu().to(x.device)

        def _call(function, args, kwargs):
            for x in _tensors((*args, *kwargs.values())):
                _detour(x)
            return function(*_each(_detour, args), **_each(_detour, kwargs))
    """,
    "makes a mask on the CPU": """
        def _call(function, args, kwargs):
            devices = [x.device for x in _tensors((*args, *kwargs.values()))] + [kwargs.get("device")]
            torch.ones(2, dtype=torch.bool).to(devices[0])
            return function(*args, **kwargs)
    """,
    "returns a tensor on the CPU": """
        def _call(function, args, kwargs):
            found = function(*args, **kwargs)
            return found.cpu() if isinstance(found, torch.nn.Module) else _each(lambda x: x.cpu(), found)
    """,
}


# Where there is nothing to stray.
NUMBERS_ONLY = {"broadcast_shape", "resolve_shape", "count_parameters", "count_flops", "deep_stack", "warmup_cosine",
                "WarmupCosine"}  # fmt: skip
MAKE_A_MODULE = {"fold_batch_norm"}  # its initial values may be drawn on the CPU
TAKE_NO_TENSOR = {"causal_mask", "sinusoidal_positions"}
RETURN_NO_TENSOR = {
    "describe", "topological_order", "op_counts", "depth", "to_dot", "same_storage", "element_offset", "gradient_error",
    "train_step", "evaluate", "fit", "GradientRecorder", "accumulate_gradients", "SGD", "Adam", "AdamW",
    "expected_calibration_error", "gradient_norms",
}  # fmt: skip
CANNOT = {
    "is right": set(),
    "goes by way of the CPU": TAKE_NO_TENSOR,
    "makes a mask on the CPU": MAKE_A_MODULE,
    "returns a tensor on the CPU": RETURN_NO_TENSOR,
}


@pytest.mark.parametrize("spoilt", CALLS)
@pytest.mark.parametrize("kata", KATAS, ids=lambda kata: kata.folder.name)
def test_a_function_is_refused_where_it_strays_to_the_cpu(kata: Kata, spoilt, tmp_path):
    source = reference(kata) + "\nimport torch\n" + SPOILT.replace("{call}", textwrap.dedent(CALLS[spoilt]))
    save(tmp_path, kata, source)
    cases = outcomes(kata, tmp_path, tmp_path, "-k", "sim or device")
    refused = {case.get("classname").split(".")[-1] for case in cases if case.find("failure") is not None}
    names = public_names(kata)
    stray = set() if spoilt == "is right" else set(names) - NUMBERS_ONLY - CANNOT[spoilt]
    assert {name for name in names if spec_class(name, names) in refused} == stray
