"""Channels first: everything is a [c values] table, and einsum does the rest."""

from collections import OrderedDict
from collections.abc import Sequence
from copy import deepcopy
from itertools import chain, pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn


def _need(ok: bool, *what: object, error: type[Exception] = ValueError) -> None:
    if not ok:
        raise error(" ".join(str(part) for part in what))


def _floats(*tensors: Tensor | None) -> None:
    _need(all(t.dtype.is_floating_point for t in tensors if t is not None), "not floating", error=TypeError)


def _wide(t: Tensor | None, default: float, like: Tensor) -> Tensor:
    return like.new_full((len(like),), default) if t is None else t.to(like.dtype)


def dropout(
    x: Float[Tensor, "*dims"], p: float, training: bool = True, generator: torch.Generator | None = None
) -> Float[Tensor, "*dims"]:
    """Picks the kept ones out and puts them into zeros."""
    _floats(x)
    _need(0 <= p <= 1, "probability", p)
    if not training or not p:
        return x.view_as(x)
    if p == 1:
        return x.masked_fill(torch.ones_like(x, dtype=torch.bool), 0.0)
    keep = torch.rand(x.shape, dtype=torch.float32, device=x.device, generator=generator).gt(p)
    return torch.where(keep, x / (1 - p), 0.0)


class Dropout(nn.Module):
    """A view of `dropout`."""

    def __init__(self, p: float = 0.5):
        _need(0 <= p <= 1, "probability", p)
        super().__init__()
        self.rate = p

    def forward(self, x: Float[Tensor, "*dims"]) -> Float[Tensor, "*dims"]:
        return dropout(x, self.rate, self.training)

    def extra_repr(self) -> str:
        return str(self.rate)


def batch_norm(
    x: Float[Tensor, "n c *rest"],
    running_mean: Float[Tensor, " c"] | None,
    running_var: Float[Tensor, " c"] | None,
    weight: Float[Tensor, " c"] | None,
    bias: Float[Tensor, " c"] | None,
    training: bool,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Float[Tensor, "n c *rest"]:
    """[c values] and back."""
    rows = (running_mean, running_var, weight, bias)
    _floats(x, *rows)
    _need(x.ndim > 1, "too few dimensions:", *x.shape)
    _need(
        all(t is None or t.shape == x.shape[1:2] for t in rows), [t is not None and [*t.shape] for t in rows], *x.shape
    )
    _need(sum(t is None for t in rows[:2]) in ((0, 2) if training else (0,)), "running statistics")
    first = x.transpose(0, 1)
    table = first.reshape(x.shape[1], x.numel() // max(x.shape[1], 1)).to(torch.promote_types(x.dtype, torch.float32))
    count = table.shape[1] if x.numel() else 0
    _need(count != 1 or not training, "a single value in", *x.shape)
    if count == 0:
        return x + 0
    if training:
        mean = table.mean(1)
        off = table - mean[:, None]
        var = torch.einsum("cv,cv->c", off, off) / count
        if running_mean is not None:
            for old, new in ((running_mean, mean), (running_var, var * count / (count - 1))):
                old.mul_(1 - momentum).add_(new.detach(), alpha=momentum)
    else:
        off, var = table - running_mean[:, None], running_var.to(table.dtype)
    y = off * (_wide(weight, 1.0, table) * (var + eps) ** -0.5)[:, None] + _wide(bias, 0.0, table)[:, None]
    return y.to(x.dtype).reshape(first.shape).transpose(0, 1)


class BatchNorm(nn.Module):
    """The settings in one dict."""

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float | None = 0.1, affine: bool = True):
        _need(num_features > 0, "features:", num_features)
        super().__init__()
        self.num_features, self.eps = num_features, eps
        self.settings = {"num_features": num_features, "eps": eps, "momentum": momentum, "affine": affine}
        for name, value in ("weight", torch.ones), ("bias", torch.zeros):
            self.register_parameter(name, nn.Parameter(value(num_features)) if affine else None)
        for name, value in ("running_mean", torch.zeros), ("running_var", torch.ones):
            self.register_buffer(name, value(num_features))
        self.register_buffer("num_batches_tracked", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Float[Tensor, "n c *rest"]) -> Float[Tensor, "n c *rest"]:
        share = self.settings["momentum"]
        if share is None:
            share = (1.0 + self.num_batches_tracked.item()) ** -1
        stats = self.running_mean, self.running_var
        y = batch_norm(x, *stats, self.weight, self.bias, self.training, share, self.eps)
        self.num_batches_tracked += self.training
        return y

    def extra_repr(self) -> str:
        return ", ".join(f"{k}={v}" for k, v in self.settings.items())


class NormalizedMLP(nn.Sequential):
    """Is a Sequential with names itself."""

    def __init__(self, sizes: Sequence[int], dropout: float = 0.5):
        _need(len(sizes) > 1 and min(sizes) > 0, len(sizes), "sizes:", *sizes)
        _need(0 <= dropout <= 1, "probability", dropout)
        *inner, end = pairwise(sizes)
        block = lambda i, o: (nn.Linear(i, o, bias=False), BatchNorm(o), nn.ReLU(), Dropout(dropout))  # noqa: E731
        layers = chain.from_iterable(block(i, o) for i, o in inner)
        super().__init__(OrderedDict((f"layer{k}", m) for k, m in enumerate((*layers, nn.Linear(*end)))))
        self.width = sizes[0]

    def forward(self, x: Float[Tensor, "n first"]) -> Float[Tensor, "n last"]:
        _need(x.shape[1:] == (self.width,), *x.shape, "is not", self.width, "wide")
        return super().forward(x)


def fold_batch_norm(linear: nn.Linear, norm: BatchNorm | nn.BatchNorm1d) -> nn.Linear:
    """What norm does to the zero and to the unit vectors says all."""
    _need(linear.out_features == norm.num_features, linear.out_features, "is not", norm.num_features)
    _need(norm.running_mean is not None, "no statistics")
    with torch.no_grad():
        mean, var = (t.to(torch.promote_types(t.dtype, torch.float32)) for t in (norm.running_mean, norm.running_var))
        slope = _wide(norm.weight, 1.0, mean) / torch.sqrt(var + norm.eps)
        offset = torch.addcmul(_wide(norm.bias, 0.0, mean), _wide(linear.bias, 0.0, mean) - mean, slope)
        weight = torch.einsum("oi,o->oi", linear.weight.to(slope.dtype), slope)
    folded = deepcopy(linear)
    for name, value in ("weight", weight), ("bias", offset):
        setattr(folded, name, nn.Parameter(value.to(linear.weight.dtype)))
    return folded


def batch_norm_backward(
    grad: Float[Tensor, "n c"], x: Float[Tensor, "n c"], weight: Float[Tensor, " c"] | None, eps: float = 1e-5
) -> tuple[Float[Tensor, "n c"], Float[Tensor, " c"] | None, Float[Tensor, " c"]]:
    """Two projections: off the ones, off the normalised."""
    _floats(grad, x, weight)
    _need(x.ndim == 2 and grad.shape == x.shape, *grad.shape, "against", *x.shape)
    _need(weight is None or weight.shape == x.shape[1:], "weight", *(() if weight is None else weight.shape), *x.shape)
    _need(len(x) > 1, len(x), "rows")
    g, v = (t.to(torch.promote_types(t.dtype, torch.float32)) for t in (grad, x))
    v = v - v.mean(0)
    inverse = torch.rsqrt((v * v).mean(0) + eps)
    z = v * inverse
    down, across = g.sum(0), torch.einsum("nc,nc->c", g, z)
    dx = (g - (down + z * across) / len(x)) * inverse * (1 if weight is None else weight)
    return dx.to(x.dtype), None if weight is None else across.to(weight.dtype), down.to(x.dtype)
