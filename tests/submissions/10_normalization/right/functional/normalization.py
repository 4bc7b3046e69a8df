"""Terse: the channel goes last, so that vectors broadcast by themselves; modules are built of functions."""

import copy
from itertools import chain, pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn


def _floats(*tensors: Tensor | None) -> None:
    wrong = [t.dtype for t in tensors if t is not None and not t.dtype.is_floating_point]
    if wrong:
        raise TypeError(f"not floating: {wrong}")


def _probability(p: float) -> float:
    if p < 0 or p > 1 or p != p:
        raise ValueError(f"{p} is no probability")
    return p


def _wide(t: Tensor) -> Tensor:
    return t.float() if t.dtype.itemsize < 4 else t


def _rows(x: Tensor) -> Tensor:
    """[n c *rest] as [values c]."""
    return x.movedim(1, -1).flatten(0, -2)


def dropout(
    x: Float[Tensor, "*dims"], p: float, training: bool = True, generator: torch.Generator | None = None
) -> Float[Tensor, "*dims"]:
    """Zeros with the kept values put in."""
    _floats(x), _probability(p)
    if not training or p == 0:
        return x.clone()
    keep = torch.full_like(x, 1 - p, dtype=torch.float32).bernoulli(generator=generator).bool()
    return torch.zeros_like(x).masked_scatter(keep, x[keep] / max(1 - p, 1e-30))


class Dropout(nn.Module):
    """dropout as a module."""

    def __init__(self, p: float = 0.5):
        super().__init__()
        self.p = _probability(p)

    def forward(self, x: Float[Tensor, "*dims"]) -> Float[Tensor, "*dims"]:
        return dropout(x, self.p, self.training)

    def __repr__(self) -> str:
        return f"Dropout({self.p})"


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
    """Rows of channels, standardized, and back to the shape."""
    _floats(x, running_mean, running_var, weight, bias)
    if x.ndim < 2:
        raise ValueError(f"no channels in {tuple(x.shape)}")
    vectors = [v for v in (running_mean, running_var, weight, bias) if v is not None]
    wrong = [tuple(v.shape) for v in vectors if v.shape != x.shape[1:2]]
    if wrong:
        raise ValueError(f"{wrong} for {x.shape[1]} channels")
    stats = [running_mean, running_var]
    if (missing := sum(s is None for s in stats)) == 1 or (missing and not training):
        raise ValueError(f"{missing} of 2 buffers missing, training={training}")
    rows = _wide(_rows(x))
    if training and len(rows) == 1:
        raise ValueError(f"a single value per channel in {tuple(x.shape)}")
    if training:
        mean = rows.mean(0)
        var = (rows - mean).square().mean(0)
        if not missing and rows.numel():
            for old, new in zip(stats, (mean, var * len(rows) / (len(rows) - 1)), strict=True):
                old.data.copy_((1 - momentum) * old.data + momentum * new.detach())
    else:
        mean, var = running_mean, running_var
    y = (rows - mean) * (var + eps) ** -0.5
    y = y if weight is None else y * weight
    y = y if bias is None else y + bias
    return y.to(x.dtype).view(x.movedim(1, -1).shape).movedim(-1, 1)


class BatchNorm(nn.Module):
    """batch_norm with its state."""

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float | None = 0.1, affine: bool = True):
        super().__init__()
        if not num_features >= 1:
            raise ValueError(f"{num_features} features")
        self.settings = {"num_features": num_features, "eps": eps, "momentum": momentum, "affine": affine}
        self.num_features, self.eps, self.momentum, self.affine = num_features, eps, momentum, affine
        for name, fill in (("weight", torch.ones), ("bias", torch.zeros)):
            self.register_parameter(name, nn.Parameter(fill(num_features)) if affine else None)
        for name, start in (
            ("running_mean", torch.zeros(num_features)),
            ("running_var", torch.ones(num_features)),
            ("num_batches_tracked", torch.zeros((), dtype=torch.int64)),
        ):
            self.register_buffer(name, start)

    def forward(self, x: Float[Tensor, "n num_features *rest"]) -> Float[Tensor, "n num_features *rest"]:
        seen = self.num_batches_tracked + int(self.training and x.numel() > 0)
        share = (1 / max(int(seen), 1)) if self.momentum is None else self.momentum
        y = batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, self.training, share, self.eps)
        self.num_batches_tracked = seen
        return y

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in self.settings.items())


class NormalizedMLP(nn.Sequential):
    """A Sequential that looks at its input."""

    def __init__(self, sizes, dropout: float = 0.5):
        if len(sizes) < 2 or any(size < 1 for size in sizes):
            raise ValueError(f"{len(sizes)} sizes: {tuple(sizes)}")
        _probability(dropout)
        *pairs, last = pairwise(sizes)
        blocks = ((nn.Linear(i, o, bias=False), BatchNorm(o), nn.ReLU(), Dropout(dropout)) for i, o in pairs)
        super().__init__(*chain.from_iterable(blocks), nn.Linear(*last))
        self.width = sizes[0]

    def forward(self, x: Float[Tensor, "n i"]) -> Float[Tensor, "n o"]:
        if x.shape[1:] != (self.width,):
            raise ValueError(f"{tuple(x.shape)} is not [n {self.width}]")
        return super().forward(x)


@torch.no_grad()
def fold_batch_norm(linear: nn.Linear, norm: BatchNorm | nn.BatchNorm1d) -> nn.Linear:
    """A copy of linear with other numbers in it."""
    mean, var = norm.running_mean, norm.running_var
    if mean is None or var is None:
        raise ValueError("norm has no running statistics")
    if norm.num_features != linear.out_features:
        raise ValueError(f"{linear.out_features} -> {norm.num_features}")
    ones, zeros = torch.ones_like(mean), torch.zeros_like(mean)
    gain, shift = (ones if norm.weight is None else norm.weight), (zeros if norm.bias is None else norm.bias)
    scale = gain / (var + norm.eps).sqrt()
    folded = copy.deepcopy(linear)
    folded.weight = nn.Parameter(scale[:, None] * linear.weight)
    folded.bias = nn.Parameter(((zeros if linear.bias is None else linear.bias) - mean) * scale + shift)
    return folded


def batch_norm_backward(
    grad: Float[Tensor, "n c"], x: Float[Tensor, "n c"], weight: Float[Tensor, " c"] | None, eps: float = 1e-5
) -> tuple[Float[Tensor, "n c"], Float[Tensor, " c"] | None, Float[Tensor, " c"]]:
    """grad without its part along 1 and along the normalized x."""
    _floats(grad, x, weight)
    if x.ndim != 2 or grad.shape != x.shape or (weight is not None and weight.shape != x.shape[1:]):
        raise ValueError(f"shapes {[tuple(t.shape) for t in (grad, x, weight) if t is not None]} do not fit")
    if len(x) < 2:
        raise ValueError(f"{len(x)} rows")
    g, wide = _wide(grad), _wide(x)
    centred = wide - wide.mean(0)
    inv = (centred.square().mean(0) + eps) ** -0.5
    hat = centred * inv
    dbias, dweight = g.sum(0), torch.einsum("nc,nc->c", g, hat)
    dx = inv * (g - g.mean(0) - hat * (g * hat).mean(0))
    if weight is not None:
        dx = dx * weight
    return dx.to(x.dtype), None if weight is None else dweight.to(x.dtype), dbias.to(x.dtype)
