"""What a spec says about a result: `assert_same`, `refuses`, `expect_share`. Messages are written for learners."""

import math
import re
from collections.abc import Sequence
from contextlib import contextmanager

import torch
from torch import Tensor


class Mismatch(AssertionError):
    """A result is not what was asked for; its lines say what was expected and what came, most important first."""

    def __init__(self, *lines: str):
        super().__init__("\n".join(lines))
        self.lines = lines


# What torch.testing.assert_close allows (importing it costs as much as a third of torch), looser for half precision.
TOLERANCES = {
    torch.float16: (1e-2, 1e-2),
    torch.bfloat16: (1e-2, 1e-2),
    torch.float32: (1.3e-6, 1e-5),
    torch.float64: (1e-7, 1e-7),
    torch.complex64: (1.3e-6, 1e-5),
    torch.complex128: (1e-7, 1e-7),
}


def describe(value: object, width: int = 40) -> str:
    """A value in a few words: `float32 [2, 3]` for a tensor, its repr for anything small."""
    if isinstance(value, Tensor):
        text = f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
        if value.device.type != "cpu":
            text += f" on {value.device.type}"
        if value.device.type == "cpu" and 0 < value.numel() <= 4 and value.ndim <= 1:
            text += f" = {_number(value) if value.ndim == 0 else '[' + ', '.join(map(_number, value)) + ']'}"
        return text
    if isinstance(value, (list, tuple)) and any(isinstance(part, Tensor) for part in value):
        inside = ", ".join(describe(part) for part in value)
        text = f"[{inside}]" if isinstance(value, list) else f"({inside})"
    elif isinstance(value, dict) and any(isinstance(part, Tensor) for part in value.values()):
        text = "{" + ", ".join(f"{key!r}: {describe(part)}" for key, part in value.items()) + "}"
    else:
        text = repr(value)
    return text if len(text) <= width else f"{text[: width - 1]}…"


def _number(x: Tensor) -> str:
    value = x.item()
    return f"{value:.7g}" if isinstance(value, float) else str(value)


def assert_same(
    actual: object,
    expected: Tensor,
    *,
    rtol: float | None = None,
    atol: float | None = None,
    dtype: bool = True,
    device: bool = True,
    what: str = "the result",
) -> None:
    """Raises Mismatch unless `actual` is a tensor of the same shape, dtype, device and values, asked in that order.

    `what` names what is compared where it is not the result of the call. Tolerances default to torch.testing's for the
    expected dtype; integers and booleans must be equal; nan equals nan.
    """
    if not isinstance(actual, Tensor):
        raise Mismatch(f"expected {what} to be a tensor, got {type(actual).__name__}: {describe(actual)}")
    of = "" if what == "the result" else f"{what}: "
    if actual.shape != expected.shape:
        raise Mismatch(f"{of}expected shape {list(expected.shape)}, got {list(actual.shape)}")
    shape = f"{of}expected shape {list(expected.shape)}   ok"
    if dtype and actual.dtype != expected.dtype:
        raise Mismatch(shape, f"expected {_name(expected.dtype)}, got {_name(actual.dtype)}")
    if device and actual.device.type != expected.device.type:
        raise Mismatch(shape, f"expected a tensor on {expected.device.type}, got one on {actual.device.type}")
    a, e = _plain(actual), _plain(expected)
    if not dtype:
        a = a.to(e.dtype)
    wrong = ~_isclose(a, e, rtol, atol)
    count = int(wrong.sum())
    if count:
        at = tuple(int(i) for i in wrong.nonzero()[0])
        place = f" at {list(at)}" if at else ""
        share = f"      {count} of {wrong.numel()} values differ" if wrong.numel() > 1 else ""
        raise Mismatch(shape, f"expected {_number(e[at])}{place}, got {_number(a[at])}{share}")


def _isclose(actual: Tensor, expected: Tensor, rtol: float | None, atol: float | None) -> Tensor:
    default = TOLERANCES.get(expected.dtype)
    if default is None:
        return actual == expected
    rtol, atol = default[0] if rtol is None else rtol, default[1] if atol is None else atol
    return torch.isclose(actual, expected, rtol=rtol, atol=atol, equal_nan=True)


def _plain(x: Tensor) -> Tensor:
    return x.detach().cpu()


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def expect(condition: bool, *lines: str) -> None:
    """Raises Mismatch with these lines unless the condition holds."""
    if not condition:
        raise Mismatch(*lines)


def expect_share(mask: Tensor, p: float, what: str) -> None:
    """Raises Mismatch unless about a share p of the mask is True: five standard deviations are allowed.

    That is one wrong verdict in a million, where the elements are drawn independently.
    """
    share, bound = mask.double().mean().item(), 5 * math.sqrt(p * (1 - p) / mask.numel())
    expect(abs(share - p) <= bound, f"expected a share of {p:.4g} ± {bound:.3f} of {what}, got {share:.4f}")


@contextmanager
def refuses(error: type[BaseException] | tuple[type[BaseException], ...], mentions: Sequence[object] = ()):
    """The block must raise `error`, and the message must hold each of `mentions` (numbers: as whole numbers).

    NotImplementedError passes through: an unwritten function refuses nothing, though it is a RuntimeError to Python.
    So does a Mismatch, which is another finding.
    """
    names = " or ".join(e.__name__ for e in (error if isinstance(error, tuple) else (error,)))
    try:
        yield
    except (NotImplementedError, Mismatch):
        raise
    except error as raised:
        message = str(raised)
        for part in mentions:
            if not re.search(rf"(?<!\w)(?<!\d\.){re.escape(str(part))}(?!\w|\.\d)", message):
                raise Mismatch(
                    f"expected the {type(raised).__name__} to name {part}, so that the reader sees what is wrong",
                    f"its message is {message!r}",
                ) from None
    except Exception as raised:
        raise Mismatch(f"expected {names}, got {type(raised).__name__}: {raised}") from raised
    else:
        raise Mismatch(f"expected {names}, nothing was raised")


def gradients_of(outputs: Tensor, inputs: Sequence[Tensor], seed: int = 0) -> list[Tensor]:
    """Gradients of the inputs for a random cotangent of the outputs: the same one for equal shapes and seeds.

    The product is summed first: autograd.grad with a tensor of gradients would import sympy.
    """
    generator = torch.Generator().manual_seed(seed)
    cotangent = torch.rand(outputs.shape, generator=generator, dtype=torch.float64) + 0.5
    total = (outputs * cotangent.to(outputs.device, outputs.dtype)).sum()
    found = torch.autograd.grad(total, list(inputs), allow_unused=True, retain_graph=True)  # results may share it
    return [torch.zeros_like(x) if g is None else g for x, g in zip(inputs, found, strict=True)]


def assert_same_gradients(actual: Tensor, expected: Tensor, inputs: Sequence[Tensor], **tolerances) -> None:
    """Raises Mismatch unless both results, made from the same inputs, send the same gradient back to each."""
    expect(actual.requires_grad, "expected a result that gradients flow through, got one that does not require grad")
    pairs = zip(gradients_of(actual, inputs), gradients_of(expected, inputs), strict=True)
    for number, (found, wanted) in enumerate(pairs):
        try:
            assert_same(found, wanted, **tolerances)
        except Mismatch as mismatch:
            raise Mismatch(f"in the gradient of input {number}:", *mismatch.lines) from None
