"""Straight from the contract: each formula as it is written there."""

import copy
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """relu(x + fc2(relu(fc1(x))))"""

    def __init__(self, features: int):
        super().__init__()
        if features < 1:
            raise ValueError(f"features is {features}")
        self.features = features
        self.fc1 = nn.Linear(features, features)
        self.fc2 = nn.Linear(features, features)

    def forward(self, x: Float[Tensor, "*batch features"]) -> Float[Tensor, "*batch features"]:
        if x.dim() == 0 or x.size(-1) != self.features:
            raise ValueError(f"x has shape {tuple(x.shape)}, features is {self.features}")
        out = self.fc1(x)
        out = torch.relu(out)
        out = self.fc2(out)
        out = out + x
        return torch.relu(out)


class Residual(nn.Module):
    """shortcut(x) + branch(x)"""

    def __init__(self, branch: nn.Module, shortcut: nn.Module | None = None):
        super().__init__()
        self.branch = branch
        self.shortcut = shortcut

    def forward(self, x: Float[Tensor, "*dims"]) -> Float[Tensor, "*out"]:
        a = x if self.shortcut is None else self.shortcut(x)
        b = self.branch(x)
        if a.shape != b.shape:
            raise ValueError(f"{tuple(a.shape)} is not {tuple(b.shape)}")
        return a + b


class PreActivationBlock(nn.Module):
    """x + fc2(relu(fc1(relu(norm(x)))))"""

    def __init__(self, features: int, hidden: int, zero_init: bool = True):
        super().__init__()
        if features < 1:
            raise ValueError(f"features is {features}")
        if hidden < 1:
            raise ValueError(f"hidden is {hidden}")
        self.features = features
        self.norm = nn.LayerNorm(features)
        self.fc1 = nn.Linear(features, hidden)
        self.fc2 = nn.Linear(hidden, features)
        if zero_init:
            with torch.no_grad():
                self.fc2.weight.zero_()
                self.fc2.bias.zero_()

    def forward(self, x: Float[Tensor, "*batch features"]) -> Float[Tensor, "*batch features"]:
        if x.dim() == 0 or x.size(-1) != self.features:
            raise ValueError(f"x has shape {tuple(x.shape)}, features is {self.features}")
        out = torch.relu(self.norm(x))
        out = torch.relu(self.fc1(out))
        return x + self.fc2(out)


class ConvResidualBlock(nn.Module):
    """The ResNet block."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1):
        super().__init__()
        if in_channels < 1:
            raise ValueError(f"in_channels is {in_channels}")
        if out_channels < 1:
            raise ValueError(f"out_channels is {out_channels}")
        if stride < 1:
            raise ValueError(f"stride is {stride}")
        self.in_channels = in_channels
        self.conv1 = nn.Conv2d(in_channels, out_channels, kernel_size=3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(out_channels, out_channels, kernel_size=3, stride=1, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, kernel_size=1, stride=stride, bias=False),
                nn.BatchNorm2d(out_channels),
            )

    def forward(self, x: Float[Tensor, "b in_channels h w"]) -> Float[Tensor, "b out_channels out_h out_w"]:
        if x.dim() != 4:
            raise ValueError(f"x has {x.dim()} dimensions, not 4")
        if x.size(1) != self.in_channels:
            raise ValueError(f"x has {x.size(1)} channels, not {self.in_channels}")
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out = out + self.shortcut(x)
        return self.relu(out)


class HighwayBlock(nn.Module):
    """t * h + (1 - t) * x"""

    def __init__(self, features: int, gate_bias: float = -1.0):
        super().__init__()
        if features < 1:
            raise ValueError(f"features is {features}")
        self.features = features
        self.fc = nn.Linear(features, features)
        self.gate = nn.Linear(features, features)
        with torch.no_grad():
            self.gate.bias.fill_(gate_bias)

    def forward(self, x: Float[Tensor, "*batch features"]) -> Float[Tensor, "*batch features"]:
        if x.dim() == 0 or x.size(-1) != self.features:
            raise ValueError(f"x has shape {tuple(x.shape)}, features is {self.features}")
        t = torch.sigmoid(self.gate(x))
        h = torch.relu(self.fc(x))
        return t * h + (1 - t) * x


def stochastic_depth(
    x: Float[Tensor, "b *rest"],
    branch: Callable[[Tensor], Tensor],
    p: float,
    training: bool = True,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "b *rest"]:
    """x + branch(x) * keep / (1 - p), the branch on kept rows alone."""
    if p < 0 or p > 1:
        raise ValueError(f"p is {p}")
    if not x.is_floating_point():
        raise TypeError(f"x is {x.dtype}")
    if x.dim() == 0:
        raise ValueError("x needs a batch dimension")
    if not training:
        out = branch(x)
        if out.shape != x.shape:
            raise ValueError(f"branch: {tuple(x.shape)} to {tuple(out.shape)}")
        return x + out
    keep = torch.rand(x.size(0), generator=generator, device=x.device) >= p
    if not keep.any():
        return x
    rows = x[keep]
    out = branch(rows)
    if out.shape != rows.shape:
        raise ValueError(f"branch: {tuple(rows.shape)} to {tuple(out.shape)}")
    result = x.clone()
    result[keep] = rows + out / (1 - p)
    return result


def gradient_norms(model: nn.Sequential, x: Float[Tensor, "..."]) -> list[float]:
    """The norms of the gradients at the inputs of the layers, on a copy of the model."""
    if not x.is_floating_point():
        raise TypeError(f"x is {x.dtype}")
    if len(model) == 0:
        return []
    model = copy.deepcopy(model)
    with torch.enable_grad():
        out = x.detach().clone().requires_grad_(True)
        inputs = []
        for layer in model:
            inputs.append(out)
            out = layer(out.clone())
        loss = (out**2).sum() / 2
    gradients = torch.autograd.grad(loss, inputs)
    return [gradient.double().norm().item() for gradient in gradients]


def deep_stack(depth: int, features: int, residual: bool) -> nn.Sequential:
    """depth layers, with or without skips."""
    if depth < 1:
        raise ValueError(f"depth is {depth}")
    if features < 1:
        raise ValueError(f"features is {features}")
    layers = []
    for _ in range(depth):
        layer = nn.Sequential(nn.Linear(features, features), nn.ReLU(), nn.Linear(features, features))
        if residual:
            layer = Residual(layer)
        layers.append(layer)
    return nn.Sequential(*layers)
