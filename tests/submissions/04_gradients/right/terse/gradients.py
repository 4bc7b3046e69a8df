"""Terse: closures and one-liners, a softmax of its own for everything that needs one."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor
from torch.autograd import Function

INF = float("inf")


def _need(ok: bool, error: type[Exception], *words: object) -> None:
    if not ok:
        raise error(" ".join(map(str, words)))


def _softmax(x: Tensor, dim: int) -> Tensor:
    """Zero wherever x is -inf; the shift is a constant."""
    if not x.numel():
        return x.exp()
    top = x.detach().max(dim, keepdim=True).values
    e = (x - top.where(top > -INF, 0.0)).exp()
    total = e.sum(dim, keepdim=True)
    return e / (total + (total == 0))


class Square(Function):
    """x²."""

    @staticmethod
    def forward(ctx, x: Float[Tensor, "*dims"]) -> Float[Tensor, "*dims"]:
        ctx.save_for_backward(x)
        return x.pow(2)

    @staticmethod
    def backward(ctx, g: Float[Tensor, "*dims"]) -> Float[Tensor, "*dims"]:
        return torch.mul(*ctx.saved_tensors, g).mul(2)


class RoundSTE(Function):
    """round, and back as it came."""

    @staticmethod
    def forward(ctx, x: Float[Tensor, "*dims"]) -> Float[Tensor, "*dims"]:
        return torch.round(x)

    @staticmethod
    def backward(ctx, g: Float[Tensor, "*dims"]) -> Float[Tensor, "*dims"]:
        return g * 1


def numerical_gradient(
    f: Callable[[Float64[Tensor, "*dims"]], Float[Tensor, ""] | float], x: Float64[Tensor, "*dims"], eps: float = 1e-6
) -> Float64[Tensor, "*dims"]:
    """From a list of numbers, which is copied for each call."""
    _need(x.dtype == torch.float64, TypeError, x.dtype)
    flat = x.detach().flatten().tolist()

    def at(k: int, step: float) -> float:
        moved = [v + step * (j == k) for j, v in enumerate(flat)]
        return float(torch.as_tensor(f(x.new_tensor(moved).view(x.shape)), dtype=torch.float64).detach())

    return x.new_tensor([(at(k, eps) - at(k, -eps)) / eps / 2 for k in range(len(flat))]).view(x.shape)


def gradient_error(
    f: Callable[[Float64[Tensor, "*dims"]], Float[Tensor, ""] | float], x: Float64[Tensor, "*dims"]
) -> float:
    """Adds 0 · x, so that there is always something to differentiate."""
    _need(x.dtype == torch.float64, TypeError, x.dtype)
    if not x.numel():
        return 0.0
    with torch.enable_grad():
        z = x.detach().clone().requires_grad_()
        (g,) = torch.autograd.grad(f(z) + (z * 0).sum(), z)
    return (g - numerical_gradient(f, x)).abs().amax().item()


def unbroadcast(grad: Float[Tensor, "..."], shape: Sequence[int]) -> Float[Tensor, "..."]:
    """Sums in front until the number of dimensions fits, then where a size is 1."""
    _need(grad.is_floating_point(), TypeError, grad.dtype)
    more = grad.ndim - len(shape)
    fits = more >= 0 and all(s in (1, g) for s, g in zip(shape, grad.shape[more:], strict=True))
    _need(fits, ValueError, *shape, "against", *grad.shape)
    for _ in range(more):
        grad = grad.sum(0)
    for dim, size in enumerate(shape):
        grad = grad.sum(dim, keepdim=True) if size == 1 else grad
    return grad


class LinearFunction(Function):
    """einsum forth and back."""

    @staticmethod
    def forward(
        ctx, x: Float[Tensor, "*batch i"], weight: Float[Tensor, "o i"], bias: Float[Tensor, " o"] | None
    ) -> Float[Tensor, "*batch o"]:
        _need(weight.ndim == 2 and x.ndim > 0, ValueError, "dimensions:", *x.shape, "and", *weight.shape)
        _need(x.shape[-1] == weight.shape[1], ValueError, *x.shape, "by", *weight.shape)
        if bias is not None:
            _need(bias.shape == weight.shape[:1], ValueError, "bias", *bias.shape, "for", len(weight))
        ctx.save_for_backward(x, weight)
        return torch.einsum("...i,oi->...o", x, weight) + (0 if bias is None else bias)

    @staticmethod
    def backward(
        ctx, g: Float[Tensor, "*batch o"]
    ) -> tuple[Float[Tensor, "*batch i"] | None, Float[Tensor, "o i"] | None, Float[Tensor, " o"] | None]:
        (x, weight), (to_x, to_weight, to_bias) = ctx.saved_tensors, ctx.needs_input_grad
        rows = lambda t: t[None].flatten(0, -2)  # noqa: E731
        return (
            torch.einsum("...o,oi->...i", g, weight) if to_x else None,
            torch.einsum("no,ni->oi", rows(g), rows(x)) if to_weight else None,
            rows(g).sum(0) if to_bias else None,
        )


class LogSumExp(Function):
    """The gradient is the softmax."""

    @staticmethod
    def forward(ctx, x: Float[Tensor, "*dims"], dim: int) -> Float[Tensor, "*rest"]:
        ctx.save_for_backward(x)
        ctx.dim = dim
        if not x.numel():
            return x.sum(dim).log()
        top = x.max(dim, keepdim=True).values.clamp(min=torch.finfo(x.dtype).min)
        return ((x - top).exp().sum(dim, keepdim=True).log() + top).sum(dim)

    @staticmethod
    def backward(ctx, g: Float[Tensor, "*rest"]) -> tuple[Float[Tensor, "*dims"], None]:
        (x,) = ctx.saved_tensors
        return _softmax(x, ctx.dim).mul(g.unsqueeze(ctx.dim)), None


def mlp_gradients(
    x: Float[Tensor, "n i"],
    target: Int[Tensor, " n"],
    w1: Float[Tensor, "h i"],
    b1: Float[Tensor, " h"],
    w2: Float[Tensor, "c h"],
    b2: Float[Tensor, " c"],
) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, "..."]]]:
    """gather for the loss, scatter_add for its slope."""
    for t in (x, w1, b1, w2, b2):
        _need(t.is_floating_point(), TypeError, t.dtype)
    whole = not target.is_floating_point() and target.dtype != torch.bool
    _need(whole, TypeError, target.dtype)
    ranks = [t.ndim for t in (x, target, w1, b1, w2, b2)]
    _need(ranks == [2, 1, 2, 1, 2, 1], ValueError, "dimensions", ranks)
    pairs = [(len(x), len(target)), (x.shape[1], w1.shape[1]), (len(w1), len(b1)), (len(w1), w2.shape[1])]
    for a, b in [*pairs, (len(w2), len(b2))]:
        _need(a == b, ValueError, a, "is not", b)
    _need(len(x) > 0, ValueError, "no rows: n is 0")
    out = next((t for t in target.tolist() if not 0 <= t < len(w2)), 0)
    _need(0 <= out < len(w2), IndexError, "class", out, "of", len(w2))

    x, w1, b1, w2, b2 = (t.data for t in (x, w1, b1, w2, b2))
    at = target.long()[:, None]
    a = torch.addmm(b1, x, w1.t())
    z = torch.addmm(b2, a.relu(), w2.t())
    z = z - z.amax(1, keepdim=True)
    loss = (z.exp().sum(1, keepdim=True).log() - z.gather(1, at)).mean()
    d2 = _softmax(z, 1).scatter_add(1, at, -torch.ones_like(at, dtype=x.dtype)) / len(x)
    d1 = (d2 @ w2).masked_fill(a <= 0, 0)
    return loss, {"w1": d1.t() @ x, "b1": d1.sum(0), "w2": d2.t() @ a.relu(), "b2": d2.sum(0)}
