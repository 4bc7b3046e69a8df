"""Straight from the contract: torch.where, mean and var over the dimensions, one check after the other."""

import torch
from torch import nn


def dropout(x, p: float, training: bool = True, generator: torch.Generator | None = None):
    """torch.where with a mask of torch.rand."""
    if not x.is_floating_point():
        raise TypeError(f"x is {x.dtype}")
    if not 0 <= p <= 1:
        raise ValueError(f"p is {p}")
    if not training:
        return x
    keep = torch.rand(x.shape, generator=generator, device=x.device) >= p
    scale = 1 / (1 - p) if p < 1 else 1.0
    return torch.where(keep, x * scale, torch.zeros_like(x))


class Dropout(nn.Module):
    """The function in a module."""

    def __init__(self, p: float = 0.5):
        super().__init__()
        if p < 0 or p > 1:
            raise ValueError(f"p has to be between 0 and 1, but got {p}")
        self.p = p

    def forward(self, x):
        return dropout(x, self.p, training=self.training)

    def extra_repr(self):
        return f"p={self.p}"


def batch_norm(x, running_mean, running_var, weight, bias, training: bool, momentum=0.1, eps=1e-5):
    """The two statistics, the update, the formula."""
    for tensor in (x, running_mean, running_var, weight, bias):
        if tensor is not None and not tensor.is_floating_point():
            raise TypeError(f"floating tensors only, got {tensor.dtype}")
    if x.dim() < 2:
        raise ValueError(f"x needs two dimensions or more, got {x.dim()}")
    c = x.shape[1]
    for tensor in (running_mean, running_var, weight, bias):
        if tensor is not None and tensor.shape != (c,):
            raise ValueError(f"got shape {list(tensor.shape)} for {c} channels")
    if (running_mean is None and running_var is not None) or (running_mean is not None and running_var is None):
        raise ValueError("both buffers or none")
    if not training and running_mean is None:
        raise ValueError("eval needs the buffers")
    if x.numel() == 0:
        return x.clone()
    n = x.numel() // c
    if training and n == 1:
        raise ValueError(f"1 value per channel, shape {list(x.shape)}")

    half = x.dtype in (torch.float16, torch.bfloat16)
    wide = x.float() if half else x
    if training:
        dims = [d for d in range(x.dim()) if d != 1]
        mean = wide.mean(dims)
        var = wide.var(dims, correction=0)
        if running_mean is not None:
            with torch.no_grad():
                running_mean.mul_(1 - momentum).add_(momentum * mean)
                running_var.mul_(1 - momentum).add_(momentum * var * n / (n - 1))
    else:
        mean = running_mean.to(wide.dtype)
        var = running_var.to(wide.dtype)

    shape = [1, c] + [1] * (x.dim() - 2)
    y = (wide - mean.reshape(shape)) / torch.sqrt(var.reshape(shape) + eps)
    if weight is not None:
        y = y * weight.reshape(shape)
    if bias is not None:
        y = y + bias.reshape(shape)
    return y.to(x.dtype)


class BatchNorm(nn.Module):
    """Parameters and buffers as in nn.BatchNorm1d."""

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float | None = 0.1, affine: bool = True):
        super().__init__()
        if num_features < 1:
            raise ValueError(f"num_features must be at least 1, got {num_features}")
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

    def forward(self, x):
        if not self.training:
            return batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, eps=self.eps)
        if self.momentum is None:
            factor = 1.0 / (int(self.num_batches_tracked) + 1)
        else:
            factor = self.momentum
        y = batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, True, factor, self.eps)
        self.num_batches_tracked.add_(1)
        return y

    def extra_repr(self):
        return f"num_features={self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={bool(self.affine)}"


class NormalizedMLP(nn.Module):
    """A list of layers that are called one after the other."""

    def __init__(self, sizes, dropout: float = 0.5):
        super().__init__()
        sizes = list(sizes)
        if len(sizes) < 2:
            raise ValueError(f"at least two sizes, got {len(sizes)}")
        for size in sizes:
            if size < 1:
                raise ValueError(f"sizes must be positive, got {size}")
        if not 0 <= dropout <= 1:
            raise ValueError(f"dropout must be between 0 and 1, got {dropout}")
        self.in_features = sizes[0]
        self.hidden = nn.ModuleList()
        for i in range(len(sizes) - 2):
            self.hidden.append(nn.Linear(sizes[i], sizes[i + 1], bias=False))
            self.hidden.append(BatchNorm(sizes[i + 1]))
            self.hidden.append(nn.ReLU())
            self.hidden.append(Dropout(dropout))
        self.out = nn.Linear(sizes[-2], sizes[-1])

    def forward(self, x):
        if x.dim() != 2 or x.size(1) != self.in_features:
            raise ValueError(f"x must be [n, {self.in_features}], got {list(x.shape)}")
        for layer in self.hidden:
            x = layer(x)
        return self.out(x)


def fold_batch_norm(linear, norm):
    """W' = W · s, b' = (b - mean) · s + beta."""
    if linear.out_features != norm.num_features:
        raise ValueError(f"{linear.out_features} outputs, {norm.num_features} features")
    if norm.running_mean is None or norm.running_var is None:
        raise ValueError("no running statistics")
    with torch.no_grad():
        s = 1 / torch.sqrt(norm.running_var + norm.eps)
        if norm.weight is not None:
            s = norm.weight * s
        b = torch.zeros_like(norm.running_mean) if linear.bias is None else linear.bias
        b = (b - norm.running_mean) * s
        if norm.bias is not None:
            b = b + norm.bias
        new = nn.utils.skip_init(
            nn.Linear,
            linear.in_features,
            linear.out_features,
            device=linear.weight.device,
            dtype=linear.weight.dtype,
        )
        new.weight.copy_(linear.weight * s.unsqueeze(1))
        new.bias.copy_(b)
    return new


def batch_norm_backward(grad, x, weight, eps: float = 1e-5):
    """The formulas of the paper, one by one."""
    for tensor in (grad, x, weight):
        if tensor is not None and not tensor.is_floating_point():
            raise TypeError(f"floating tensors only, got {tensor.dtype}")
    if x.dim() != 2 or grad.shape != x.shape:
        raise ValueError(f"grad {list(grad.shape)} and x {list(x.shape)} must both be [n c]")
    n, c = x.shape
    if weight is not None and weight.shape != (c,):
        raise ValueError(f"weight {list(weight.shape)} does not fit {c} channels")
    if n < 2:
        raise ValueError(f"at least 2 rows, got {n}")
    dtype = x.dtype
    if dtype in (torch.float16, torch.bfloat16):
        x, grad = x.float(), grad.float()
        weight = None if weight is None else weight.float()
    with torch.no_grad():
        mean = x.mean(0)
        var = x.var(0, correction=0)
        std = torch.sqrt(var + eps)
        x_hat = (x - mean) / std
        d_hat = grad if weight is None else grad * weight
        d_var = (d_hat * (x - mean)).sum(0) * -0.5 / std**3
        d_mean = -d_hat.sum(0) / std
        dx = d_hat / std + d_var * 2 * (x - mean) / n + d_mean / n
        dweight = None if weight is None else (grad * x_hat).sum(0).to(dtype)
        dbias = grad.sum(0).to(dtype)
    return dx.to(dtype), dweight, dbias
