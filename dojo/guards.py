"""What the house rules forbid, watched: refused operations, changed inputs, changed global state, growing work."""

import functools
import re
import sys
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from dojo.compare import Mismatch, expect

# Other names for what one name refuses. Names are canonical: no underscores around, no `special_`, `linalg_`, overload.
SIBLINGS = {
    "attention": ("scaled_dot_product_attention", "multi_head_attention_forward", "multi_head_attention",
                  "scaled_dot_product", "multihead_attention", "fused_sdp_choice"),
    "backward": ("grad", "run_backward"),
    "cdist": ("euclidean_dist",),
    "clip_grad_norm": ("clip_grads_with_norm", "get_total_norm"),
    "dropout": ("dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_dropout", "feature_alpha_dropout",
                "fused_dropout"),
    "eye": ("diag", "diag_embed", "diagflat"),
    "logsumexp": ("logcumsumexp", "logaddexp", "logaddexp2"),
    "nll_loss": ("nll_loss2d",),
    "norms": ("norm", "vector_norm", "matrix_norm", "dist", "frobenius_norm", "nuclear_norm", "renorm", "normalize"),
    "optim": ("adagrad", "adam", "adamw", "sgd"),  # the fused ones; the classes are trapped
    "pad_sequence": ("nested_tensor", "nested_tensor_from_tensor_list", "nested_to_padded_tensor"),
    "rnn": ("rnn_tanh", "rnn_relu"),
    "softmax": ("safe_softmax", "softmin"),
    "unfold": ("im2col",),
}  # fmt: skip

PREFIXES = re.compile(r"^(_+|special_|linalg_|native_|fused_|cudnn_|miopen_|mkldnn_|aten::)+")


class Refused(Mismatch):
    """The learner's code called an operation that the kata asks to be built."""

    def __init__(self, name: str):
        super().__init__(f"{name} is refused here: build it from simpler operations")
        self.name = name


def canonical(name: str) -> str:
    """One name for every spelling: `special_softmax`, `_softmax`, `softmax_`, `softmax.int` are all softmax."""
    return re.sub(r"(_copy)?_*$", "", PREFIXES.sub("", name.split(".")[0]))


class refuse(TorchFunctionMode):
    """Raises Refused when one of the named operations is called, whatever its spelling.

    `by` says whose calls count: it is given the calling frame and answers True (refused), False (allowed), or None (ask
    the caller's caller). Without it every call counts. Only the outermost operation is seen, so a legal operation that
    torch builds from a refused one is not caught.
    """

    def __init__(self, *names: str, by: Callable[[FrameType], bool | None] | None = None):
        super().__init__()
        self.names = {sibling for name in names for sibling in (name, *SIBLINGS.get(name, ()))}
        self.by = by
        self.seen: Refused | None = None
        self._verdicts: dict[str, bool] = {}

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        self.check(name, sys._getframe(1))
        return func(*args, **(kwargs or {}))

    def check(self, name: str, frame: FrameType) -> None:
        """Raises Refused if the call that `frame` makes of the operation counts."""
        if self.matches(name) and self.counts(frame):
            self.seen = Refused(canonical(name))
            raise self.seen

    def matches(self, name: str) -> bool:
        """Whether the name spells a refused operation, or a part of its implementation (`batch_norm_backward`)."""
        if name not in self._verdicts:
            plain = canonical(name)
            self._verdicts[name] = any(plain == n or plain.startswith(f"{n}_") for n in self.names)
        return self._verdicts[name]

    def counts(self, frame: FrameType | None) -> bool:
        """Whether the call came from the code whose calls count."""
        if self.by is None:
            return True
        while frame is not None:
            answer = self.by(frame)
            if answer is not None:
                return answer
            frame = frame.f_back
        return False

    def __enter__(self):
        _active.append(self)
        return super().__enter__()

    def __exit__(self, *exc):
        _active.remove(self)
        super().__exit__(*exc)
        if self.seen and exc[0] is None:  # the code caught it and went on
            raise self.seen


_active: list[refuse] = []


def trap(owner: object, attribute: str, name: str) -> None:
    """Puts a wrapper around a plain Python function that no function mode sees; it asks the active `refuse`."""
    function = getattr(owner, attribute)
    if hasattr(function, "_trapped"):
        return

    @functools.wraps(function)
    def trapped(*args, **kwargs):
        for mode in _active:
            mode.check(name, sys._getframe(1))
        return function(*args, **kwargs)

    trapped._trapped = True
    setattr(owner, attribute, trapped)


class _Engine:
    """Stands before autograd's engine, whose methods cannot be replaced.

    torch sets the modes aside while it handles `backward`; here they come back for what a Function's backward calls.
    """

    def __init__(self, engine):
        self._engine = engine

    def run_backward(self, *args, **kwargs):
        with ExitStack() as stack:
            for mode in _active:
                TorchFunctionMode.__enter__(mode)
                stack.callback(TorchFunctionMode.__exit__, mode, None, None, None)
            return self._engine.run_backward(*args, **kwargs)

    def __getattr__(self, name):
        return getattr(self._engine, name)


def set_traps() -> None:
    """Traps what is refused somewhere and never reaches a function mode; before the learner's file can import it."""
    trap(torch, "broadcast_shapes", "broadcast_shapes")
    trap(torch.functional, "broadcast_shapes", "broadcast_shapes")
    trap(torch.utils.data.DataLoader, "__init__", "DataLoader")
    for module in (nn.utils, nn.utils.clip_grad):
        for name in list(vars(module)):
            if canonical(name) in {"clip_grad_norm", *SIBLINGS["clip_grad_norm"]}:
                trap(module, name, name)
    for name, optimizer in list(vars(torch.optim).items()):
        if isinstance(optimizer, type) and optimizer is not Optimizer:
            trap(optimizer, "__init__", "optim")
            trap(optimizer, "step", "optim")
            for module in (sys.modules[optimizer.__module__], torch.optim._functional):
                if hasattr(module, name.lower()):
                    trap(module, name.lower(), "optim")
    if not isinstance(torch.autograd.Variable._execution_engine, _Engine):
        torch.autograd.Variable._execution_engine = _Engine(torch.autograd.Variable._execution_engine)
        trap(_Engine, "run_backward", "run_backward")


class count_ops(TorchDispatchMode):
    """Counts the tensor operations of a block, by name, as they reach the dispatcher.

    >>> with count_ops() as ops: torch.ones(3) + 1
    >>> ops.total()
    2
    """

    def __init__(self):
        super().__init__()
        self.counter: Counter[str] = Counter()

    @classmethod
    def _should_skip_dynamo(cls):
        return False  # True, the default, imports torch._dynamo (seconds) at the first call

    def __enter__(self) -> Counter[str]:
        super().__enter__()
        return self.counter

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.counter[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


class live_bytes(TorchDispatchMode):
    """Follows the memory of the tensors that a block makes: `peak` is the most bytes that were alive at once.

    >>> with live_bytes() as memory: _ = torch.ones(1000) + 1
    >>> memory.peak
    8000
    """

    def __init__(self, *given: Tensor):
        """The memory of the given tensors does not count."""
        super().__init__()
        self.given = {x.untyped_storage()._cdata for x in given}
        self.alive: dict[int, int] = {}
        self.peak = 0

    @classmethod
    def _should_skip_dynamo(cls):
        return False  # True, the default, imports torch._dynamo (seconds) at the first call

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in tensors_in(out):
            storage = x.untyped_storage()
            key = storage._cdata
            if key not in self.given and key not in self.alive:
                self.alive[key] = storage.nbytes()
                weakref.finalize(storage, self.alive.pop, key)
        self.peak = max(self.peak, sum(self.alive.values()))
        return out


def floats_in(tree: object) -> list[Tensor]:
    """The floating-point tensors in nested containers."""
    return [x for x in tree_flatten(tree)[0] if isinstance(x, Tensor) and x.is_floating_point()]


def tensors_in(tree: object) -> list[Tensor]:
    """The tensors in nested containers."""
    return [x for x in tree_flatten(tree)[0] if isinstance(x, Tensor)]


@contextmanager
def unchanged(*values: object, names: tuple[str, ...] = ()) -> Iterator[None]:
    """The block leaves these values (tensors in nested containers) as they are: contents, metadata, `.grad`, never
    written to and put back."""
    before = [(_outline(value), [_Snapshot(leaf) for leaf in tree_flatten(value)[0]]) for value in values]
    yield
    for number, (value, (outline, snapshots)) in enumerate(zip(values, before, strict=True)):
        name = names[number] if number < len(names) else f"argument {number}"
        expect(_outline(value) == outline, f"expected {name} to stay as it was, its container was changed")
        for snapshot in snapshots:
            snapshot.check(name)


def _outline(value: object) -> object:
    """Structure of nested containers and the identity of the leaves."""
    return tree_map(id, value)


class _Snapshot:
    def __init__(self, value: object):
        self.value = value
        if isinstance(value, Tensor):
            self.copy = value.detach().clone()
            self.seen = self._metadata()

    def _metadata(self) -> tuple:
        x = self.value
        return x.shape, x.stride(), x.dtype, x.requires_grad, x._version, id(x.grad) if x.is_leaf else None

    def check(self, name: str) -> None:
        if not isinstance(self.value, Tensor):
            return
        shape, stride, dtype, requires_grad, version, grad = self._metadata()
        if (shape, stride, dtype) != self.seen[:3]:
            raise Mismatch(f"expected {name} to stay as it was, its shape, strides or dtype were changed")
        if not _equal(self.value.detach(), self.copy):
            raise Mismatch(f"expected {name} to stay as it was, its values were changed in place")
        expect(requires_grad == self.seen[3], f"expected {name} to stay as it was, requires_grad was switched")
        expect(version == self.seen[4], f"expected {name} never to be written to, it was (and put back)")
        expect(grad == self.seen[5], f"expected the .grad of {name} to stay as it was, it was replaced")


def _equal(a: Tensor, b: Tensor) -> bool:
    if a.is_floating_point() or a.is_complex():
        return bool(torch.isclose(a, b, rtol=0, atol=0, equal_nan=True).all())
    return bool((a == b).all())


@contextmanager
def state_kept(draws: bool = False) -> Iterator[None]:
    """The block leaves torch's global state as it was: defaults, grad mode, and (unless it draws) the generator."""
    before = _global_state()
    yield
    after = _global_state()
    rng = before.pop("the global random generator"), after.pop("the global random generator")
    for what, value in before.items():
        expect(after[what] == value, f"expected {what} to be left as it was: {value}, it is {after[what]}")
    expect(draws or torch.equal(*rng), "expected the global random generator to be left alone, it was used")


def _global_state() -> dict[str, object]:
    return {
        "the global random generator": torch.get_rng_state(),
        "the default dtype": torch.get_default_dtype(),
        "the default device": torch.get_default_device(),
        "grad mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "anomaly detection": torch.is_anomaly_enabled(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
    }


def shares_memory(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors look at one storage."""
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()
