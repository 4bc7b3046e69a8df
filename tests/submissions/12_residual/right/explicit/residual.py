"""Written out and named, with helpers, hooks that are removed, and rows put back by a permutation."""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn as nn
from jaxtyping import Float
from torch import Tensor


def _positive(name: str, value: int) -> int:
    if value <= 0:
        raise ValueError(f"{name} must be positive: {value}")
    return value


class _Wide(nn.Module):
    """A module for inputs whose last dimension is `features`."""

    def __init__(self, features: int):
        super().__init__()
        self.features = _positive("features", features)

    def extra_repr(self) -> str:
        return f"features={self.features}"

    def _check(self, x: Tensor) -> None:
        found = x.shape[-1] if x.ndim else "no"
        if found != self.features:
            raise ValueError(f"{found} features where {self.features} are wanted")


class ResidualBlock(_Wide):
    """The notebook's block, its last steps in the block's own memory."""

    def __init__(self, features: int):
        super().__init__(features)
        self.fc1 = nn.Linear(features, features)
        self.relu = nn.ReLU()
        self.fc2 = nn.Linear(features, features)

    def forward(self, x: Float[Tensor, "*batch features"]) -> Float[Tensor, "*batch features"]:
        self._check(x)
        change = self.fc2(self.relu(self.fc1(x)))
        change += x
        return self.relu(change)


class Residual(nn.Module):
    """A branch and a way around it."""

    def __init__(self, branch: nn.Module, shortcut: nn.Module | None = None):
        super().__init__()
        self.branch = branch
        self.add_module("shortcut", shortcut)

    def forward(self, x: Float[Tensor, "*dims"]) -> Float[Tensor, "*out"]:
        change = self.branch(x)
        kept = x
        if self.shortcut is not None:
            kept = self.shortcut(x)
        if list(change.shape) != list(kept.shape):
            raise ValueError(f"cannot add {list(change.shape)} to {list(kept.shape)} without broadcasting")
        return torch.add(kept, change)


class PreActivationBlock(_Wide):
    """Norm and activation before each layer."""

    def __init__(self, features: int, hidden: int, zero_init: bool = True):
        super().__init__(features)
        _positive("hidden", hidden)
        self.norm = nn.LayerNorm(features)
        self.fc1 = nn.Linear(features, hidden)
        self.fc2 = nn.Linear(hidden, features)
        self.activation = nn.ReLU()
        if zero_init:
            for parameter in self.fc2.parameters():
                parameter.data.zero_()

    def forward(self, x: Float[Tensor, "*batch features"]) -> Float[Tensor, "*batch features"]:
        self._check(x)
        branch = x
        for step in (self.norm, self.activation, self.fc1, self.activation, self.fc2):
            branch = step(branch)
        return x + branch


class ConvResidualBlock(nn.Module):
    """Convolution, norm, activation, convolution, norm; around it identity or projection; activation."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1):
        super().__init__()
        for name, value in (("in_channels", in_channels), ("out_channels", out_channels), ("stride", stride)):
            _positive(name, value)
        self.conv1 = nn.Conv2d(in_channels, out_channels, (3, 3), (stride, stride), (1, 1), bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, (3, 3), (1, 1), (1, 1), bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        same = stride == 1 and in_channels == out_channels
        self.shortcut = nn.Identity() if same else self._projection(in_channels, out_channels, stride)
        self.channels = in_channels

    @staticmethod
    def _projection(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
        conv = nn.Conv2d(in_channels, out_channels, (1, 1), (stride, stride), bias=False)
        return nn.Sequential(OrderedDict(conv=conv, bn=nn.BatchNorm2d(out_channels)))

    def forward(self, x: Float[Tensor, "b in_channels h w"]) -> Float[Tensor, "b out_channels out_h out_w"]:
        if len(x.shape) != 4 or x.shape[1] != self.channels:
            raise ValueError(f"wanted {self.channels} channels in dimension 1 of 4, got {list(x.shape)}")
        way_around = self.shortcut(x)
        hidden = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(hidden)) + way_around)


class HighwayBlock(_Wide):
    """From x towards h by the gate's share."""

    def __init__(self, features: int, gate_bias: float = -1.0):
        super().__init__(features)
        self.gate = nn.Linear(features, features)
        self.fc = nn.Linear(features, features)
        self.gate.bias = nn.Parameter(torch.full_like(self.gate.bias, gate_bias))

    def forward(self, x: Float[Tensor, "*batch features"]) -> Float[Tensor, "*batch features"]:
        self._check(x)
        openness = self.gate(x)
        carry, transform = torch.sigmoid(-openness), torch.sigmoid(openness)
        return carry * x + transform * torch.relu(self.fc(x))


def stochastic_depth(
    x: Float[Tensor, "b *rest"],
    branch: Callable[[Tensor], Tensor],
    p: float,
    training: bool = True,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "b *rest"]:
    """Kept rows first, then the dropped ones, then all back in their places."""
    if not (p >= 0 and p <= 1):
        raise ValueError(f"{p} is no probability")
    if not torch.is_floating_point(x):
        raise TypeError(f"floating tensors only, not {x.dtype}")
    if x.ndim < 1:
        raise ValueError(f"{x.ndim} dimensions: there are no samples")

    def change(samples: Tensor) -> Tensor:
        result = branch(samples)
        if result.shape != samples.shape:
            raise ValueError(f"branch made {list(result.shape)} of {list(samples.shape)}")
        return result

    if not training:
        return change(x) + x
    keep = torch.bernoulli(torch.full((x.shape[0],), 1.0 - p, device=x.device), generator=generator)
    kept = torch.where(keep == 1)[0]
    dropped = torch.where(keep == 0)[0]
    if kept.numel() == 0:
        return x * 1
    samples = x.index_select(0, kept)
    rows = torch.cat([samples + change(samples) * (1 / (1 - p)), x.index_select(0, dropped)])
    places = torch.cat([kept, dropped]).argsort()
    return rows.index_select(0, places)


@contextmanager
def _scratch_buffers(model: nn.Module) -> Iterator[None]:
    """Copies in the place of the model's buffers, and the buffers back at the end."""
    originals = [
        (module, name, buffer)
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    try:
        for module, name, buffer in originals:
            module._buffers[name] = buffer.clone()
        yield
    finally:
        for module, name, buffer in originals:
            module._buffers[name] = buffer


def gradient_norms(model: nn.Sequential, x: Float[Tensor, "..."]) -> list[float]:
    """Forward pre-hooks keep what goes in and pass a copy on."""
    if not torch.is_floating_point(x):
        raise TypeError(f"floating tensors only, not {x.dtype}")
    if len(model) == 0:
        return []
    seen = []

    def note(module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        seen.append(args[0])
        return (args[0].clone(),)

    handles = []
    try:
        with _scratch_buffers(model), torch.enable_grad():
            for layer in dict.fromkeys(model):
                handles.append(layer.register_forward_pre_hook(note))
            result = model(x.detach().requires_grad_())
    finally:
        for handle in handles:
            handle.remove()
    gradients = torch.autograd.grad([result], seen, [result.detach()])
    return [float(torch.sqrt((gradient.to(torch.float64) ** 2).sum())) for gradient in gradients]


class _Layer(nn.Module):
    """Linear, activation, Linear, and a skip if wanted."""

    def __init__(self, features: int, skip: bool):
        super().__init__()
        self.skip = skip
        self.first = nn.Linear(features, features)
        self.activation = nn.GELU()
        self.second = nn.Linear(features, features)

    def extra_repr(self) -> str:
        return f"skip={self.skip}"

    def forward(self, x: Tensor) -> Tensor:
        out = self.second(self.activation(self.first(x)))
        return x + out if self.skip else out


def deep_stack(depth: int, features: int, residual: bool) -> nn.Sequential:
    """Named layers of one class."""
    _positive("depth", depth)
    _positive("features", features)
    stack = nn.Sequential()
    for number in range(depth):
        stack.add_module(f"layer{number}", _Layer(features, residual))
    return stack
