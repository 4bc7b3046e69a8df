"""Explicit: a class for the shapes of a batch, shapes in comments, batch_norm as a custom autograd Function."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn


def dropout(x: Tensor, p: float, training: bool = True, generator: torch.Generator | None = None) -> Tensor:
    """Draws uniform numbers; zeroes a copy where they are below p."""
    if not torch.is_floating_point(x):
        raise TypeError("dropout needs a floating tensor, not " + str(x.dtype))
    if not (p >= 0 and p <= 1):
        raise ValueError("dropout probability out of [0, 1]: " + str(p))
    if not training or p == 0:
        return x * 1
    uniform = torch.empty(x.shape, dtype=torch.float64, device=x.device).uniform_(generator=generator)
    dropped = uniform < p
    if p < 1:
        scaled = x / (1 - p)
    else:
        scaled = x * 1
    scaled = scaled.clone()
    scaled[dropped] = 0
    return scaled


class Dropout(nn.Module):
    """Keeps p."""

    def __init__(self, p: float = 0.5) -> None:
        if not (p >= 0 and p <= 1):
            raise ValueError("dropout probability out of [0, 1]: " + str(p))
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return dropout(x, self.p, True)
        return dropout(x, self.p, False)

    def extra_repr(self) -> str:
        return f"p={self.p}"


class _Normalize(torch.autograd.Function):
    """[m c] -> [m c] by the batch's own statistics, which it gives as well."""

    @staticmethod
    def forward(ctx, rows: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        mean = rows.mean(dim=0)  # [c]
        centred = rows - mean  # [m c]
        var = (centred * centred).mean(dim=0)  # [c]
        inv_std = 1.0 / (var + eps).sqrt()
        normalized = centred * inv_std
        ctx.save_for_backward(normalized, inv_std)
        ctx.mark_non_differentiable(mean, var)
        return normalized, mean, var

    @staticmethod
    def backward(ctx, grad: Tensor, _mean: Tensor, _var: Tensor) -> tuple[Tensor, None]:
        normalized, inv_std = ctx.saved_tensors
        through_mean = grad.mean(dim=0)
        through_var = normalized * (grad * normalized).mean(dim=0)
        return inv_std * (grad - through_mean - through_var), None


def batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Everything on [m c], with m = n * product of rest."""
    _check_batch(x, running_mean, running_var, weight, bias)
    if running_mean is None and running_var is not None:
        raise ValueError("running_mean is missing")
    if running_var is None and running_mean is not None:
        raise ValueError("running_var is missing")
    if not training and running_mean is None:
        raise ValueError("eval mode needs running statistics")
    n, c, rest = x.shape[0], x.shape[1], x.shape[2:]
    m = n * rest.numel()
    if training and m == 1 and c > 0:
        raise ValueError("cannot normalize one value: " + str(list(x.shape)))

    compute = torch.float64 if x.dtype == torch.float64 else torch.float32
    rows = x.to(compute).reshape(n, c, rest.numel()).transpose(1, 2).reshape(m, c)
    if training:
        rows, mean, var = _Normalize.apply(rows, eps)
        if running_mean is not None and m > 0:
            unbiased = var * (m / (m - 1))
            with torch.no_grad():
                running_mean += momentum * (mean.to(running_mean.dtype) - running_mean)
                running_var += momentum * (unbiased.to(running_var.dtype) - running_var)
    else:
        rows = (rows - running_mean.to(compute)) / torch.sqrt(running_var.to(compute) + eps)
    if weight is not None:
        rows = rows * weight.to(compute)
    if bias is not None:
        rows = rows + bias.to(compute)
    return rows.reshape(n, rest.numel(), c).transpose(1, 2).reshape(x.shape).to(x.dtype)


def _check_batch(x: Tensor, *vectors: Tensor | None) -> None:
    present = [vector for vector in vectors if vector is not None]
    for tensor in [x, *present]:
        if not torch.is_floating_point(tensor):
            raise TypeError("expected floating tensors, got " + str(tensor.dtype))
    if x.dim() < 2:
        raise ValueError("expected [n c *rest], got " + str(list(x.shape)))
    for vector in present:
        if list(vector.shape) != [x.shape[1]]:
            raise ValueError(f"expected [{x.shape[1]}], got {list(vector.shape)}")


class BatchNorm(nn.Module):
    """The buffers' names are torch's."""

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float | None = 0.1, affine: bool = True) -> None:
        if num_features < 1:
            raise ValueError("num_features must be positive: " + str(num_features))
        super().__init__()
        self.num_features = num_features
        self.eps = eps
        self.momentum = momentum
        self.affine = affine
        self.weight: nn.Parameter | None
        self.bias: nn.Parameter | None
        if affine:
            self.weight = nn.Parameter(torch.empty(num_features))
            self.bias = nn.Parameter(torch.empty(num_features))
            nn.init.ones_(self.weight)
            nn.init.zeros_(self.bias)
        else:
            self.weight = None
            self.bias = None
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))
        self.register_buffer("num_batches_tracked", torch.tensor(0, dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        _check_batch(x, self.running_mean)
        if self.training and x.numel() == x.shape[1]:
            raise ValueError("cannot normalize one value: " + str(list(x.shape)))
        factor = 0.0 if self.momentum is None else self.momentum
        if self.training and x.numel() > 0:
            self.num_batches_tracked += 1
            if self.momentum is None:
                factor = 1.0 / float(self.num_batches_tracked)
        return batch_norm(
            x,
            running_mean=self.running_mean,
            running_var=self.running_var,
            weight=self.weight,
            bias=self.bias,
            training=self.training,
            momentum=factor,
            eps=self.eps,
        )

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.affine}"


class _Hidden(nn.Module):
    def __init__(self, in_features: int, out_features: int, p: float) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, out_features, bias=False)
        self.norm = BatchNorm(out_features)
        self.dropout = Dropout(p)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(torch.relu(self.norm(self.linear(x))))


class NormalizedMLP(nn.Module):
    """Blocks, then a head."""

    def __init__(self, sizes: Sequence[int], dropout: float = 0.5) -> None:
        if len(sizes) < 2:
            raise ValueError("need at least two sizes, got " + str(len(sizes)))
        if min(sizes) < 1:
            raise ValueError("sizes must be positive, got " + str(min(sizes)))
        Dropout(dropout)  # raises if it is no probability
        super().__init__()
        self.sizes = tuple(sizes)
        self.blocks = nn.ModuleList(_Hidden(i, o, dropout) for i, o in pairwise(sizes[:-1]))
        self.head = nn.Linear(sizes[-2], sizes[-1], bias=True)

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 2:
            raise ValueError("expected two dimensions, got " + str(list(x.shape)))
        if x.shape[1] != self.sizes[0]:
            raise ValueError(f"expected {self.sizes[0]} features, got {x.shape[1]}")
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def fold_batch_norm(linear: nn.Linear, norm: "BatchNorm | nn.BatchNorm1d") -> nn.Linear:
    """Computes in float64 and copies the result into a new layer."""
    if norm.running_mean is None or norm.running_var is None:
        raise ValueError("the norm does not track running statistics")
    if len(norm.running_mean) != len(linear.weight):
        raise ValueError(f"widths differ: {len(linear.weight)} and {len(norm.running_mean)}")
    weight = linear.weight.detach().double()
    bias = torch.zeros_like(weight[:, 0]) if linear.bias is None else linear.bias.detach().double()
    scale = 1.0 / torch.sqrt(norm.running_var.double() + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight.detach().double()
    bias = (bias - norm.running_mean.double()) * scale
    if norm.bias is not None:
        bias = bias + norm.bias.detach().double()
    before = torch.get_rng_state()
    result = nn.Linear(weight.shape[1], weight.shape[0], device="cpu")
    torch.set_rng_state(before)
    result.to(device=linear.weight.device, dtype=linear.weight.dtype)
    result.load_state_dict({"weight": weight * scale.unsqueeze(1), "bias": bias})
    return result


def batch_norm_backward(
    grad: Tensor, x: Tensor, weight: Tensor | None, eps: float = 1e-5
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Node by node, from the result back to x."""
    _check_batch(x, weight)
    _check_batch(grad, weight)
    if x.dim() != 2 or list(grad.shape) != list(x.shape):
        raise ValueError(f"expected two [n c], got {list(grad.shape)} and {list(x.shape)}")
    n = x.shape[0]
    if n < 2:
        raise ValueError("need 2 rows or more, got " + str(n))
    compute = torch.float64 if x.dtype == torch.float64 else torch.float32
    g = grad.detach().to(compute)
    rows = x.detach().to(compute)
    # forward
    centred = rows - rows.sum(dim=0) / n
    root = torch.sqrt((centred**2).sum(dim=0) / n + eps)
    normalized = centred / root
    # backward
    d_bias = g.sum(dim=0)
    d_weight = None if weight is None else (g * normalized).sum(dim=0).to(x.dtype)
    d_normalized = g if weight is None else g * weight.detach().to(compute)
    d_root = -(d_normalized * centred).sum(dim=0) / root**2
    d_square = (d_root / (2 * root * n)).expand_as(rows)
    d_centred = d_normalized / root + 2 * centred * d_square
    d_x = d_centred - d_centred.sum(dim=0) / n
    return d_x.to(x.dtype), d_weight, d_bias.to(x.dtype)
