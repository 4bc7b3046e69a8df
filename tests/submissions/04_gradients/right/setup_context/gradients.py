"""Functions with forward and setup_context apart; saved results; steps as the rows of a matrix."""

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor
from torch.autograd import Function


class Square(Function):
    """x ** 2."""

    @staticmethod
    def forward(x: Float[Tensor, "*dims"]) -> Float[Tensor, "*dims"]:
        return torch.square(x)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, grad: Float[Tensor, "*dims"]) -> Float[Tensor, "*dims"]:
        return 2.0 * ctx.saved_tensors[0] * grad


class RoundSTE(Function):
    """Rounds; the gradient does not notice."""

    @staticmethod
    def forward(x: Float[Tensor, "*dims"]) -> Float[Tensor, "*dims"]:
        return torch.round(x)

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, grad: Float[Tensor, "*dims"]) -> Float[Tensor, "*dims"]:
        return grad.clone()


def numerical_gradient(
    f: Callable[[Float64[Tensor, "*dims"]], Float[Tensor, ""] | float], x: Float64[Tensor, "*dims"], eps: float = 1e-6
) -> Float64[Tensor, "*dims"]:
    """Central differences, one step matrix for all elements."""
    if x.dtype is not torch.float64:
        raise TypeError("float64 only")
    centre = x.detach()
    steps = torch.eye(x.numel(), dtype=x.dtype, device=x.device).mul(eps).reshape(x.numel(), *x.shape)
    result = torch.zeros(x.numel(), dtype=x.dtype, device=x.device)
    for number, step in enumerate(steps):
        above, below = (torch.as_tensor(f(centre + s), dtype=x.dtype).item() for s in (step, -step))
        result[number] = (above - below) / (eps + eps)
    return result.reshape(x.shape)


def gradient_error(
    f: Callable[[Float64[Tensor, "*dims"]], Float[Tensor, ""] | float], x: Float64[Tensor, "*dims"]
) -> float:
    """Autograd against differences."""
    numerical = numerical_gradient(f, x)
    with torch.enable_grad():
        point = x.detach().clone().requires_grad_(True)
        y = f(point)
        found = None
        if torch.is_tensor(y) and y.requires_grad:
            found = torch.autograd.grad([y], [point], allow_unused=True)[0]
    gap = numerical if found is None else found - numerical
    return gap.abs().max().item() if gap.numel() else 0.0


def unbroadcast(grad: Float[Tensor, "..."], shape: Sequence[int]) -> Float[Tensor, "..."]:
    """torch knows how to sum to a size, once the shapes are known to fit."""
    if not torch.is_floating_point(grad):
        raise TypeError(f"not floating: {grad.dtype}")
    try:
        fits = all(size >= 0 for size in shape) and torch.broadcast_shapes(tuple(shape), grad.shape) == grad.shape
    except RuntimeError:
        fits = False
    if not fits:
        raise ValueError(f"{list(grad.shape)} is no broadcast of {list(shape)}")
    return grad.sum_to_size(*shape) if len(shape) else grad.sum()


class LinearFunction(Function):
    """Rows of a matrix, whatever the batch."""

    @staticmethod
    def forward(
        x: Float[Tensor, "*batch i"], weight: Float[Tensor, "o i"], bias: Float[Tensor, " o"] | None
    ) -> Float[Tensor, "*batch o"]:
        shapes = f"x {list(x.shape)}, weight {list(weight.shape)}"
        if weight.dim() != 2 or x.dim() == 0 or x.size(-1) != weight.size(1):
            raise ValueError(shapes)
        rows = x.reshape(math.prod(x.shape[:-1]), x.size(-1))
        if bias is None:
            rows = rows.mm(weight.t())
        elif bias.dim() != 1 or bias.size(0) != weight.size(0):
            raise ValueError(f"{shapes}, bias {list(bias.shape)}")
        else:
            rows = torch.addmm(bias, rows, weight.t())
        return rows.reshape(*x.shape[:-1], weight.size(0))

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, weight, _ = inputs
        # Each gradient needs the other factor only.
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight if ctx.needs_input_grad[0] else None)
        ctx.rows = math.prod(x.shape[:-1])

    @staticmethod
    def backward(
        ctx, grad: Float[Tensor, "*batch o"]
    ) -> tuple[Float[Tensor, "*batch i"] | None, Float[Tensor, "o i"] | None, Float[Tensor, " o"] | None]:
        x, weight = ctx.saved_tensors
        rows = grad.reshape(ctx.rows, grad.size(-1))
        return (
            grad.matmul(weight) if ctx.needs_input_grad[0] else None,
            rows.t().mm(x.reshape(ctx.rows, x.size(-1))) if ctx.needs_input_grad[1] else None,
            rows.sum(0) if ctx.needs_input_grad[2] else None,
        )


class LogSumExp(Function):
    """As torch does it: the gradient from the saved result."""

    @staticmethod
    def forward(x: Float[Tensor, "*dims"], dim: int) -> Float[Tensor, "*rest"]:
        if x.numel() == 0:
            return torch.full_like(x.sum(dim), -math.inf)
        top = torch.amax(x, dim, keepdim=True)
        top = torch.where(top == -math.inf, torch.zeros_like(top), top)
        return torch.log(torch.exp(x - top).sum(dim)) + top.sum(dim)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, ctx.dim = inputs
        ctx.save_for_backward(x, output)

    @staticmethod
    def backward(ctx, grad: Float[Tensor, "*rest"]) -> tuple[Float[Tensor, "*dims"], None]:
        x, result = ctx.saved_tensors
        result = torch.where(result == -math.inf, torch.zeros_like(result), result)
        return grad.unsqueeze(ctx.dim) * torch.exp(x - result.unsqueeze(ctx.dim)), None


def mlp_gradients(
    x: Float[Tensor, "n i"],
    target: Int[Tensor, " n"],
    w1: Float[Tensor, "h i"],
    b1: Float[Tensor, " h"],
    w2: Float[Tensor, "c h"],
    b2: Float[Tensor, " c"],
) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, "..."]]]:
    """Forward and backward with einsum and a mask of the targets."""
    for tensor in (x, w1, b1, w2, b2):
        if tensor.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
            raise TypeError(f"floating tensors, not {tensor.dtype}")
    if target.dtype not in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64):
        raise TypeError(f"whole numbers as target, not {target.dtype}")
    given = [tuple(t.shape) for t in (x, target, w1, b1, w2, b2)]
    if [len(shape) for shape in given] != [2, 1, 2, 1, 2, 1]:
        raise ValueError(f"dimensions of {given}")
    (n, i), (h, c) = x.shape, (w1.shape[0], w2.shape[0])
    if given != [(n, i), (n,), (h, i), (h,), (c, h), (c,)] or n < 1:
        raise ValueError(f"shapes {given} do not fit, or n is 0")
    target = target.to(torch.int64)
    low, high = int(target.min()), int(target.max())
    if low < 0 or high >= c:
        raise IndexError(f"targets from {low} to {high}, classes from 0 to {c - 1}")
    with torch.no_grad():
        before = torch.einsum("ni,hi->nh", x, w1) + b1
        hidden = before.clamp(min=0)
        logits = torch.einsum("nh,ch->nc", hidden, w2) + b2
        is_target = torch.arange(c, device=x.device) == target.unsqueeze(1)
        logits = logits - logits.max(dim=1, keepdim=True).values
        scale = logits.exp().sum(dim=1, keepdim=True)
        losses = scale.log() - torch.where(is_target, logits, 0).sum(dim=1, keepdim=True)
        error = (logits.exp() / scale - is_target.to(x.dtype)) / n
        back = torch.where(before > 0, torch.einsum("nc,ch->nh", error, w2), 0)
        return losses.mean(), {
            "w1": torch.einsum("nh,ni->hi", back, x),
            "b1": back.sum(dim=0),
            "w2": torch.einsum("nc,nh->ch", error, hidden),
            "b2": error.sum(dim=0),
        }
