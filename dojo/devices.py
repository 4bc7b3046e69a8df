"""The devices a spec runs on: the CPU, a simulated accelerator, and CUDA where there is one.

The simulated accelerator works on any machine: its tensors say `sim:0`, keep their values in CPU memory, have autograd,
and refuse to mix with CPU tensors as a real device does. torch.func and generators of its own are not there.
"""

import copy
import os
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from dojo.compare import Mismatch

try:
    from torch.utils.backend_registration import _setup_privateuseone_for_python_backend as _set_up
except ImportError:  # before torch 2.10
    CAN_SIMULATE = False
else:
    CAN_SIMULATE = True
    _set_up("sim")
    # torch.random.fork_rng asks every device for its generator; here that is the CPU's.
    torch.sim.get_rng_state = lambda device=None: torch.get_rng_state()
    torch.sim.set_rng_state = lambda state, device=None: torch.set_rng_state(state)
    # torch.utils.checkpoint asks every device.
    torch.sim.get_amp_supported_dtype = lambda: [torch.float16, torch.bfloat16]

SIM, CPU = torch.device("sim" if CAN_SIMULATE else "privateuseone", 0), torch.device("cpu")
aten = torch.ops.aten
# What a real device accepts with CPU tensors beside its own: copies, and index tensors.
MAY_MIX = {aten._to_copy, aten.copy_, aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}

DEVICES = ["sim", pytest.param("cuda", marks=pytest.mark.cuda)]


def has_cuda() -> bool:
    """Whether a CUDA device can be used; asks the driver without starting CUDA, so that processes can still fork."""
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    return torch.cuda.is_available()


class SimTensor(Tensor):
    """A tensor on the simulated device; `held` has its values."""

    @staticmethod
    def __new__(cls, held: Tensor):
        return Tensor._make_wrapper_subclass(
            cls, held.size(), strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype, device=SIM
        )

    def __init__(self, held: Tensor):
        self.held = held

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func in (Tensor.tolist, Tensor.untyped_storage, Tensor.data_ptr, Tensor.is_set_to):
            return func(*tree_map(_held, args), **(kwargs or {}))
        if func is Tensor.__deepcopy__ and args[0].is_leaf:
            return _deep_copy(*args)  # torch's would make a tensor on the CPU on its way
        with torch._C.DisableTorchFunctionSubclass():  # the default would turn results into SimTensors
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})

    def __repr__(self):
        return f"{self.held!r} on {SIM}"


def _deep_copy(x: SimTensor, memo: dict) -> Tensor:
    if id(x) not in memo:
        copied = x.detach().clone()
        memo[id(x)] = nn.Parameter(copied) if isinstance(x, nn.Parameter) else copied
        memo[id(x)].requires_grad_(x.requires_grad)
        memo[id(x)].grad = copy.deepcopy(x.grad, memo)
    return memo[id(x)]


def _held(x: object) -> object:
    return x.held if isinstance(x, SimTensor) else x


def _run(func, args, kwargs):
    if not torch.is_inference_mode_enabled():
        return _computed(func, args, kwargs)
    with torch.inference_mode(False):  # the tensors that it makes have no counters of versions, which views need
        return _computed(func, args, kwargs)


def _computed(func, args, kwargs):
    tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor)]
    sims = [x for x in tensors if isinstance(x, SimTensor)]
    mixed = any(not isinstance(x, SimTensor) and x.dim() for x in tensors)
    if sims and mixed and func.overloadpacket not in MAY_MIX:
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found at least two devices, {SIM} and cpu! ({func})"
        )
    device = kwargs.get("device")
    target = torch.device(device) if device is not None else SIM if sims else CPU
    if target.type == "sim" and device is not None:
        kwargs = {**kwargs, "device": CPU}
    out = func(*tree_map(_held, args), **tree_map(_held, kwargs))
    if func is aten.copy_.default:
        return args[0]
    if target.type != "sim":
        return out
    known = {id(x.held): x for x in sims}  # an in-place operation returns its own input
    return tree_map(lambda x: known[id(x)] if id(x) in known else SimTensor(x) if isinstance(x, Tensor) else x, out)


class Simulated(TorchDispatchMode):
    """While active, `device="sim"` works in factories and moves, and `strays` notes each CPU tensor that is made.

    A tensor without dimensions is no stray: torch lets `torch.tensor(0.5)` meet a tensor of any device.
    """

    def __init__(self):
        super().__init__()
        self.strays: list[str] = []

    @classmethod
    def _should_skip_dynamo(cls):
        return False  # True, the default, imports torch._dynamo (seconds) at the first call

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = _run(func, args, kwargs or {})
        if func.overloadpacket not in (aten.detach, aten.lift_fresh, aten.alias):
            self.strays += [
                func.overloadpacket.__name__
                for x in tree_flatten(out)[0]
                if isinstance(x, Tensor) and not isinstance(x, SimTensor) and x.dim() and x.device.type == "cpu"
            ]
        return out


# torch.tensor(..., device="sim") and cross_entropy reach these below the mode.
_kernels = torch.library.Library("aten", "IMPL")
_kernels.impl(
    "empty_strided",
    lambda size, stride, dtype=None, **_: SimTensor(torch.empty_strided(size, stride, dtype=dtype)),
    "PrivateUse1",
)
_kernels.impl(
    "empty.memory_format", lambda size, dtype=None, **_: SimTensor(torch.empty(size, dtype=dtype)), "PrivateUse1"
)


def _copy_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    _held(target).copy_(_held(source))
    return target


_kernels.impl("_copy_from", _copy_from, "PrivateUse1")


@contextmanager
def on(device: str):
    """While active, tensors can be made on `device` and moved to it; skips the spec where torch cannot do that."""
    if device != "sim":
        yield
        return
    if not CAN_SIMULATE:
        pytest.skip("torch before 2.10 cannot simulate a device")
    with Simulated() as simulated:
        _active.append(simulated)
        try:
            yield
        finally:
            _active.remove(simulated)


@contextmanager
def no_strays(made: bool = True):
    """On the simulated device the block makes no tensor on the CPU (its result would have to wait for a copy).

    Where `made` is False it may, as a module is when its initial values are drawn, but it moves none there.
    """
    before = [len(simulated.strays) for simulated in _active]
    yield
    for simulated, count in zip(_active, before, strict=True):
        strays = [name for name in simulated.strays[count:] if made or name == "_to_copy"]
        if strays:
            raise Mismatch(
                f"expected every tensor to be made on the device of the input, {strays[0]} made one on the CPU"
            )


_active: list[Simulated] = []
