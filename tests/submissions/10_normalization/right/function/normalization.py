"""Custom autograd Functions: the hand-made backward is the one that batch_norm uses."""

import math
from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn


class NotAProbability(ValueError):
    pass


def _probability(p: float) -> float:
    if math.isnan(p) or p < 0.0 or p > 1.0:
        raise NotAProbability(p)
    return p


def _check_float(tensors: Iterable[Tensor | None]) -> None:
    bad = [t.dtype for t in tensors if t is not None and not t.is_floating_point()]
    if bad:
        raise TypeError(f"{bad[0]} is not supported")


class _Drop(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, kept, scale):
        ctx.save_for_backward(kept)
        ctx.scale = scale
        y = x.mul(scale)
        y[~kept] = 0
        return y

    @staticmethod
    def backward(ctx, grad):
        (kept,) = ctx.saved_tensors
        return (grad * ctx.scale).masked_fill(~kept, 0), None, None


def dropout(
    x: Float[Tensor, "*dims"], p: float, training: bool = True, generator: torch.Generator | None = None
) -> Float[Tensor, "*dims"]:
    """Draws who is kept."""
    _check_float([x])
    _probability(p)
    if not training:
        return x
    chance = torch.full(x.shape, 1 - p, dtype=torch.float32, device=x.device)
    kept = torch.bernoulli(chance, generator=generator).bool()
    return _Drop.apply(x, kept, 1.0 if p == 1 else 1 / (1 - p))


class Dropout(nn.Module):
    """dropout."""

    def __init__(self, p: float = 0.5):
        super().__init__()
        self.p = _probability(p)

    def forward(self, x: Float[Tensor, "*dims"]) -> Float[Tensor, "*dims"]:
        if self.training:
            return dropout(x, self.p)
        return x

    def __repr__(self) -> str:
        return f"Dropout({self.p})"


def _statistics(x: Tensor, dims: list[int]) -> tuple[Tensor, Tensor]:
    mean = x.mean(dims, keepdim=True)
    mean = mean + (x - mean).mean(dims, keepdim=True)
    return mean, (x - mean).pow(2).mean(dims, keepdim=True)


class _Normalize(torch.autograd.Function):
    """x [n c rest] -> normalised x, mean and biased variance [1 c 1]."""

    @staticmethod
    def forward(ctx, x, eps):
        mean, var = _statistics(x, [0, 2])
        ctx.save_for_backward(x)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, var)
        return (x - mean) / (var + eps).sqrt(), mean, var

    @staticmethod
    def backward(ctx, grad, *_):
        (x,) = ctx.saved_tensors
        n, c, rest = x.shape
        flat = (t.transpose(1, 2).reshape(n * rest, c) for t in (grad, x))
        dx, _, _ = batch_norm_backward(*flat, None, ctx.eps)
        return dx.reshape(n, rest, c).transpose(1, 2), None


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
    """[n c rest] with one rest dimension."""
    given = {"running_mean": running_mean, "running_var": running_var, "weight": weight, "bias": bias}
    given = {name: t for name, t in given.items() if t is not None}
    _check_float([x, *given.values()])
    if x.dim() < 2:
        raise ValueError(f"no channels in a shape of {tuple(x.shape)}")
    for name, t in given.items():
        if tuple(t.shape) != (x.size(1),):
            raise ValueError(f"{name}: {tuple(t.shape)}, channels: {x.size(1)}")
    buffers = [name for name in given if name.startswith("running")]
    if len(buffers) == 1 or (not buffers and not training):
        raise ValueError(f"running statistics given: {buffers}")
    flat = x.reshape(x.size(0), x.size(1), math.prod(x.shape[2:]))
    if flat.dtype not in (torch.float32, torch.float64):
        flat = flat.float()
    size = flat.size(0) * flat.size(2)
    empty = x.numel() == 0
    if training and size == 1 and not empty:
        raise ValueError(f"{size} value per channel in {tuple(x.shape)}")

    if empty:
        y = flat * 1.0
    elif training:
        y, mean, var = _Normalize.apply(flat, eps)
        if buffers:
            with torch.no_grad():
                fresh = mean.view(-1), var.view(-1) * (size / (size - 1))
                for buffer, new in zip((running_mean, running_var), fresh, strict=True):
                    buffer.add_(new - buffer, alpha=momentum)
    else:
        y = (flat - running_mean[:, None]) / (running_var.to(flat.dtype)[:, None] + eps).sqrt()
    if weight is not None:
        y = y * weight[:, None]
    if bias is not None:
        y = y + bias[:, None]
    return y.to(x.dtype).reshape(x.shape)


class BatchNorm(nn.Module):
    """batch_norm."""

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float | None = 0.1, affine: bool = True):
        super().__init__()
        if num_features <= 0:
            raise ValueError(f"{num_features} features")
        self.num_features, self.eps, self.momentum, self.affine = num_features, eps, momentum, affine
        self.weight = nn.Parameter(torch.ones(num_features)) if affine else None
        self.bias = nn.Parameter(torch.zeros(num_features)) if affine else None
        self.running_mean = nn.Buffer(torch.zeros(num_features))
        self.running_var = nn.Buffer(torch.ones(num_features))
        self.num_batches_tracked = nn.Buffer(torch.tensor(0))

    def forward(self, x: Float[Tensor, "n c *rest"]) -> Float[Tensor, "n c *rest"]:
        if not self.training:
            return batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, eps=self.eps)
        self.num_batches_tracked += 1
        try:
            momentum = 1 / self.num_batches_tracked.item() if self.momentum is None else self.momentum
            return batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, True, momentum, self.eps)
        except Exception:
            self.num_batches_tracked -= 1
            raise

    def __repr__(self) -> str:
        return f"BatchNorm({self.num_features}, {self.eps}, {self.momentum}, {self.affine})"


class _Hidden(nn.Module):
    def __init__(self, before: int, after: int, p: float):
        super().__init__()
        self.linear = nn.Linear(before, after, bias=False)
        self.norm = BatchNorm(after)
        self.dropout = Dropout(p)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(torch.relu(self.norm(self.linear(x))))


class NormalizedMLP(nn.Module):
    """Blocks and a head."""

    def __init__(self, sizes: Sequence[int], dropout: float = 0.5):
        super().__init__()
        sizes = tuple(sizes)
        if len(sizes) < 2 or any(size < 1 for size in sizes):
            raise ValueError(f"{len(sizes)} sizes: {sizes}")
        _probability(dropout)
        self.blocks = nn.ModuleList(_Hidden(*sizes[i : i + 2], dropout) for i in range(len(sizes) - 2))
        self.head = nn.Linear(sizes[-2], sizes[-1])
        self.features = sizes[0]

    def forward(self, x: Float[Tensor, "n first"]) -> Float[Tensor, "n last"]:
        if tuple(x.shape) != (len(x) if x.dim() else 0, self.features):
            raise ValueError(f"{tuple(x.shape)} where (n, {self.features}) belongs")
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def fold_batch_norm(linear: nn.Linear, norm: BatchNorm | nn.BatchNorm1d) -> nn.Linear:
    """In float64, as a product with a diagonal matrix."""
    if linear.weight.size(0) != norm.num_features:
        raise ValueError(f"{linear.weight.size(0)} != {norm.num_features}")
    if norm.running_var is None:
        raise ValueError("nothing tracked")

    def double(t: Tensor | None, otherwise: float) -> Tensor:
        return torch.full_like(norm.running_var, otherwise).double() if t is None else t.detach().double()

    gain = double(norm.weight, 1.0) / (norm.running_var.double() + norm.eps).sqrt()
    bias = gain * (double(linear.bias, 0.0) - norm.running_mean.double()) + double(norm.bias, 0.0)
    dtype = linear.weight.dtype
    folded = nn.Linear.__new__(nn.Linear)  # without __init__, which would draw
    nn.Module.__init__(folded)
    folded.in_features, folded.out_features = linear.in_features, linear.out_features
    folded.weight = nn.Parameter((torch.diag(gain) @ linear.weight.detach().double()).to(dtype))
    folded.bias = nn.Parameter(bias.to(dtype))
    return folded


def batch_norm_backward(
    grad: Float[Tensor, "n c"], x: Float[Tensor, "n c"], weight: Float[Tensor, " c"] | None, eps: float = 1e-5
) -> tuple[Float[Tensor, "n c"], Float[Tensor, " c"] | None, Float[Tensor, " c"]]:
    """n·dx = gain · (n·g - sum(g) - z·sum(g·z))."""
    _check_float([grad, x, weight])
    if x.dim() != 2 or grad.shape != x.shape or (weight is not None and weight.shape != x.shape[1:]):
        shapes = [tuple(t.shape) for t in (grad, x, weight) if t is not None]
        raise ValueError(f"shapes do not fit: {shapes}")
    n = x.size(0)
    if n <= 1:
        raise ValueError(f"n = {n}")
    dtype = x.dtype
    if dtype not in (torch.float32, torch.float64):
        x, grad = x.float(), grad.float()
    with torch.no_grad():
        mean, var = _statistics(x, [0])
        std = (var + eps).sqrt()
        z = (x - mean) / std
        by_bias, by_weight = grad.sum(0), (grad * z).sum(0)
        dx = (n * grad - by_bias - z * by_weight) / (n * std)
        if weight is not None:
            dx = dx * weight
    return dx.to(dtype), None if weight is None else by_weight.to(dtype), by_bias.to(dtype)
