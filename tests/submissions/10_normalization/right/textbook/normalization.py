"""Straight from the text: where, mean, var, sqrt."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

HALF = (torch.float16, torch.bfloat16)


def dropout(
    x: Float[Tensor, "*dims"], p: float, training: bool = True, generator: torch.Generator | None = None
) -> Float[Tensor, "*dims"]:
    """Keep where a uniform number is at least p."""
    if not torch.is_floating_point(x):
        raise TypeError("dropout needs floating point numbers, not " + str(x.dtype))
    if p < 0 or p > 1:
        raise ValueError(f"p = {p} is no probability")
    if not training or p == 0:
        return x.clone()
    keep = torch.rand(x.shape, generator=generator, device=x.device, dtype=torch.float64) >= p
    zero = torch.zeros((), dtype=x.dtype, device=x.device)
    kept = torch.where(keep, x, zero)
    if p == 1:
        return kept
    return kept / (1 - p)


class Dropout(nn.Module):
    """Dropout."""

    def __init__(self, p: float = 0.5):
        super().__init__()
        if p < 0 or p > 1:
            raise ValueError(f"p = {p} is no probability")
        self.p = p

    def forward(self, x: Float[Tensor, "*dims"]) -> Float[Tensor, "*dims"]:
        return dropout(x, p=self.p, training=self.training)

    def extra_repr(self) -> str:
        return f"p={self.p}"


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
    """Mean and var over all dimensions but the second."""
    for tensor in (x, running_mean, running_var, weight, bias):
        if tensor is not None and not torch.is_floating_point(tensor):
            raise TypeError("batch_norm needs floating point numbers, not " + str(tensor.dtype))
    if x.dim() < 2:
        raise ValueError(f"x has shape {list(x.shape)}, expected [n, c, ...]")
    c = x.size(1)
    for tensor in (running_mean, running_var, weight, bias):
        if tensor is not None and list(tensor.shape) != [c]:
            raise ValueError(f"got shape {list(tensor.shape)} for {c} channels")
    if (running_mean is None) is not (running_var is None):
        raise ValueError("one of the two buffers is missing")
    if not training and running_mean is None:
        raise ValueError("eval needs running statistics")
    if x.numel() == 0:
        return x.clone()
    if training and x.numel() == c:
        raise ValueError(f"only 1 value per channel in x of shape {list(x.shape)}")

    dtype = x.dtype
    if dtype in HALF:
        x = x.float()
    shape = [1, c] + [1] * (x.dim() - 2)
    dims = [d for d in range(x.dim()) if d != 1]
    if training:
        mean = x.mean(dim=dims)
        var = x.var(dim=dims, unbiased=False)
        if running_mean is not None:
            with torch.no_grad():
                count = x.numel() / c
                new_mean = (1 - momentum) * running_mean + momentum * mean
                new_var = (1 - momentum) * running_var + momentum * var * count / (count - 1)
                running_mean.copy_(new_mean)
                running_var.copy_(new_var)
    else:
        mean = running_mean.to(x.dtype)
        var = running_var.to(x.dtype)
    y = (x - mean.reshape(shape)) / torch.sqrt(var.reshape(shape) + eps)
    if weight is not None:
        y = y * weight.reshape(shape)
    if bias is not None:
        y = y + bias.reshape(shape)
    return y.to(dtype)


class BatchNorm(nn.Module):
    """Batch normalization."""

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float | None = 0.1, affine: bool = True):
        super().__init__()
        if num_features < 1:
            raise ValueError(f"num_features = {num_features} is too small")
        self.num_features = num_features
        self.eps = eps
        self.momentum = momentum
        self.affine = affine
        if affine:
            self.weight = nn.Parameter(torch.ones(num_features))
            self.bias = nn.Parameter(torch.zeros(num_features))
        else:
            self.register_parameter("weight", None)
            self.register_parameter("bias", None)
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))
        self.register_buffer("num_batches_tracked", torch.tensor(0, dtype=torch.long))

    def forward(self, x: Float[Tensor, "n c *rest"]) -> Float[Tensor, "n c *rest"]:
        if x.dim() < 2 or x.size(1) != self.num_features:
            raise ValueError(f"expected {self.num_features} channels, got shape {list(x.shape)}")
        if self.momentum is None:
            momentum = 1 / (int(self.num_batches_tracked) + 1)
        else:
            momentum = self.momentum
        y = batch_norm(
            x,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            training=self.training,
            momentum=momentum,
            eps=self.eps,
        )
        if self.training:
            self.num_batches_tracked.add_(1)
        return y

    def extra_repr(self) -> str:
        return f"num_features={self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.affine}"


class NormalizedMLP(nn.Module):
    """Layers in a ModuleList."""

    def __init__(self, sizes: Sequence[int], dropout: float = 0.5):
        super().__init__()
        if len(sizes) < 2:
            raise ValueError(f"expected at least 2 sizes, got {len(sizes)}")
        for size in sizes:
            if size < 1:
                raise ValueError(f"size {size} is too small")
        if dropout < 0 or dropout > 1:
            raise ValueError(f"dropout = {dropout} is no probability")
        self.sizes = list(sizes)
        self.hidden = nn.ModuleList()
        for i in range(len(sizes) - 2):
            self.hidden.append(nn.Linear(sizes[i], sizes[i + 1], bias=False))
            self.hidden.append(BatchNorm(sizes[i + 1]))
            self.hidden.append(nn.ReLU())
            self.hidden.append(Dropout(dropout))
        self.last = nn.Linear(sizes[-2], sizes[-1])

    def forward(self, x: Float[Tensor, "n first"]) -> Float[Tensor, "n last"]:
        if x.dim() != 2 or x.size(1) != self.sizes[0]:
            raise ValueError(f"expected [n, {self.sizes[0]}], got {list(x.shape)}")
        for layer in self.hidden:
            x = layer(x)
        return self.last(x)


def fold_batch_norm(linear: nn.Linear, norm: BatchNorm | nn.BatchNorm1d) -> nn.Linear:
    """skip_init, then copy_."""
    if linear.out_features != norm.num_features:
        raise ValueError(f"{linear.out_features} outputs against {norm.num_features} features")
    if norm.running_mean is None:
        raise ValueError("no running statistics")
    folded = nn.utils.skip_init(
        nn.Linear,
        linear.in_features,
        linear.out_features,
        device=linear.weight.device,
        dtype=linear.weight.dtype,
    )
    with torch.no_grad():
        weight, mean, var = linear.weight, norm.running_mean, norm.running_var
        if weight.dtype in HALF:
            weight, mean, var = weight.float(), mean.float(), var.float()
        factor = 1 / torch.sqrt(var + norm.eps)
        if norm.weight is not None:
            factor = norm.weight * factor
        shift = -mean * factor
        if linear.bias is not None:
            shift = (linear.bias - mean) * factor
        if norm.bias is not None:
            shift = shift + norm.bias
        folded.weight.copy_(weight * factor.unsqueeze(1))
        folded.bias.copy_(shift)
    return folded


def batch_norm_backward(
    grad: Float[Tensor, "n c"], x: Float[Tensor, "n c"], weight: Float[Tensor, " c"] | None, eps: float = 1e-5
) -> tuple[Float[Tensor, "n c"], Float[Tensor, " c"] | None, Float[Tensor, " c"]]:
    """The paper's chain rule, step by step."""
    for tensor in (grad, x, weight):
        if tensor is not None and not torch.is_floating_point(tensor):
            raise TypeError("expected floating point numbers, not " + str(tensor.dtype))
    if x.dim() != 2 or x.shape != grad.shape:
        raise ValueError(f"x has shape {list(x.shape)}, grad {list(grad.shape)}")
    n, c = x.shape
    if weight is not None and list(weight.shape) != [c]:
        raise ValueError(f"weight has shape {list(weight.shape)} for {c} channels")
    if n < 2:
        raise ValueError(f"at least 2 rows are needed, got {n}")
    dtype = x.dtype
    if dtype in HALF:
        grad, x = grad.float(), x.float()
        weight = None if weight is None else weight.float()
    mean = x.mean(dim=0)
    var = x.var(dim=0, unbiased=False)
    std = torch.sqrt(var + eps)
    xhat = (x - mean) / std

    dxhat = grad if weight is None else grad * weight
    dvar = (dxhat * (x - mean)).sum(dim=0) * -0.5 / std**3
    dmean = -(dxhat / std).sum(dim=0)
    dx = dxhat / std + dvar * 2 * (x - mean) / n + dmean / n
    dweight = None if weight is None else (grad * xhat).sum(dim=0).to(dtype)
    dbias = grad.sum(dim=0)
    return dx.to(dtype), dweight, dbias.to(dtype)
