"""Short: composition, and one layer's backward at a time."""

import copy

import torch
from torch import Tensor, nn


def _need(ok, *numbers):
    if not ok:
        raise ValueError(f"does not fit: {numbers}")


def _need_floating(x):
    if not x.dtype.is_floating_point:
        raise TypeError(x.dtype)


class Residual(nn.Module):
    """shortcut(x) + branch(x)"""

    def __init__(self, branch: nn.Module, shortcut: nn.Module | None = None):
        super().__init__()
        self.shortcut, self.branch = shortcut or nn.Sequential(), branch

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.shortcut(x), self.branch(x)
        _need(a.shape == b.shape, tuple(a.shape), tuple(b.shape))
        return a + b


class ResidualBlock(nn.Module):
    """relu(x + fc2(relu(fc1(x))))"""

    def __init__(self, features: int):
        _need(features > 0, features)
        super().__init__()
        self.fc1, self.fc2 = (nn.Linear(features, features) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        _need(x.shape[-1:] == self.fc2.bias.shape, tuple(x.shape), len(self.fc2.bias))
        return (x + self.fc2(self.fc1(x).relu_())).relu_()


class PreActivationBlock(nn.Module):
    """x + fc2(relu(fc1(relu(norm(x)))))"""

    def __init__(self, features: int, hidden: int, zero_init: bool = True):
        _need(min(features, hidden) > 0, features, hidden)
        super().__init__()
        self.norm, self.fc1, self.fc2 = nn.LayerNorm(features), nn.Linear(features, hidden), nn.Linear(hidden, features)
        if zero_init:
            self.fc2.load_state_dict({k: torch.zeros_like(v) for k, v in self.fc2.state_dict().items()})

    def forward(self, x: Tensor) -> Tensor:
        _need(x.shape[-1:] == self.norm.normalized_shape, tuple(x.shape), *self.norm.normalized_shape)
        return self.fc2(self.fc1(self.norm(x).relu()).relu()) + x


class ConvResidualBlock(nn.Module):
    """The basic block."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1):
        _need(min(in_channels, out_channels, stride) > 0, in_channels, out_channels, stride)
        super().__init__()

        def conv(i, s, k):
            return nn.Conv2d(i, out_channels, k, s, k // 2, bias=False)

        self.conv1, self.bn1 = conv(in_channels, stride, 3), nn.BatchNorm2d(out_channels)
        self.conv2, self.bn2 = conv(out_channels, 1, 3), nn.BatchNorm2d(out_channels)
        projected = (in_channels, 1) != (out_channels, stride)
        layers = [conv(in_channels, stride, 1), nn.BatchNorm2d(out_channels)] if projected else []
        self.shortcut = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        _need(x.ndim == 4 and x.shape[1] == self.conv1.in_channels, tuple(x.shape), self.conv1.in_channels)
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return (y + self.shortcut(x)).relu()


class HighwayBlock(nn.Module):
    """x + t * (h - x)"""

    def __init__(self, features: int, gate_bias: float = -1.0):
        _need(features > 0, features)
        super().__init__()
        self.fc, self.gate = nn.Linear(features, features), nn.Linear(features, features)
        nn.init.constant_(self.gate.bias, gate_bias)

    def forward(self, x: Tensor) -> Tensor:
        _need(x.shape[-1:] == self.gate.bias.shape, tuple(x.shape), len(self.gate.bias))
        return torch.lerp(x, self.fc(x).relu(), self.gate(x).sigmoid())


def stochastic_depth(x: Tensor, branch, p: float, training: bool = True, generator=None) -> Tensor:
    """A change of zeros, filled in where rows are kept."""
    _need(0 <= p <= 1, p)
    _need_floating(x)
    _need(x.ndim > 0, x.ndim)
    p = p if training else 0
    rows = torch.arange(len(x), device=x.device)
    if training:
        rows = rows[torch.rand(len(x), generator=generator, device=x.device) < 1 - p]
    kept = x[rows]
    if training and not len(rows):
        return x
    change = branch(kept)
    _need(change.shape == kept.shape, tuple(change.shape), tuple(kept.shape))
    return x + torch.zeros_like(x).index_copy(0, rows, change / (1 - p))


@torch.enable_grad()
def gradient_norms(model: nn.Sequential, x: Tensor) -> list[float]:
    """The chain rule by hand, from layer to layer."""
    _need_floating(x)
    steps, y = [], x
    for layer in model:
        leaf = y.detach().requires_grad_()
        y = copy.deepcopy(layer)(leaf * 1)
        steps.append((leaf, y))
    grad, norms = y.detach(), []
    for leaf, out in reversed(steps):
        (grad,) = torch.autograd.grad(out, leaf, grad)
        norms.insert(0, grad.double().norm().item())
    return norms


def deep_stack(depth: int, features: int, residual: bool) -> nn.Sequential:
    """Residual or Sequential around the same layers."""
    _need(min(depth, features) > 0, depth, features)
    wrap = Residual if residual else nn.Sequential

    def layer():
        return nn.Sequential(nn.Linear(features, features), nn.LeakyReLU(0.1), nn.Linear(features, features))

    return nn.Sequential(*[wrap(layer()) for _ in range(depth)])
