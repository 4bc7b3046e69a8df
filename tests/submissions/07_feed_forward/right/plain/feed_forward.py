"""Straight from the docstrings, with torch's own layers."""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn


def gelu(x: Float[Tensor, "*dims"]) -> Float[Tensor, "*dims"]:
    """The definition with erf."""
    if not x.is_floating_point():
        raise TypeError(f"gelu needs floats, not {x.dtype}")
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def feed_forward(
    x: Float[Tensor, "*batch d"],
    w1: Float[Tensor, "f d"],
    b1: Float[Tensor, " f"],
    w2: Float[Tensor, "d f"],
    b2: Float[Tensor, " d"],
    activation: Callable[[Tensor], Tensor] = torch.relu,
) -> Float[Tensor, "*batch d"]:
    """Two matrix products."""
    for name, tensor in (("x", x), ("w1", w1), ("b1", b1), ("w2", w2), ("b2", b2)):
        if not tensor.is_floating_point():
            raise TypeError(f"{name} has dtype {tensor.dtype}")
    f, d = w1.shape
    if x.ndim == 0 or x.shape[-1] != d:
        raise ValueError(f"x has shape {list(x.shape)}, but w1 takes {d} features")
    if b1.shape != (f,):
        raise ValueError(f"b1 should be [{f}], is {list(b1.shape)}")
    if w2.shape != (d, f):
        raise ValueError(f"w2 should be [{d}, {f}], is {list(w2.shape)}")
    if b2.shape != (d,):
        raise ValueError(f"b2 should be [{d}], is {list(b2.shape)}")
    hidden = activation(x @ w1.T + b1)
    return hidden @ w2.T + b2


class PositionwiseFeedForward(nn.Module):
    """An if in forward chooses the activation."""

    def __init__(self, d_model: int, d_ff: int, dropout: float = 0.1, activation: str = "relu"):
        super().__init__()
        if d_model < 1:
            raise ValueError(f"d_model is {d_model}")
        if d_ff < 1:
            raise ValueError(f"d_ff is {d_ff}")
        if activation != "relu" and activation != "gelu":
            raise ValueError(f"no activation called {activation}")
        self.dropout = nn.Dropout(dropout)  # complains about what is no probability
        self.fc1 = nn.Linear(d_model, d_ff)
        self.fc2 = nn.Linear(d_ff, d_model)
        self.activation = activation

    def forward(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        out = self.fc1(x)
        out = torch.relu(out) if self.activation == "relu" else gelu(out)
        out = self.dropout(out)
        return self.fc2(out)

    def extra_repr(self) -> str:
        return f"activation={self.activation}"


class GatedFeedForward(nn.Module):
    """nn.functional.silu."""

    def __init__(self, d_model: int, d_ff: int):
        super().__init__()
        if d_model < 1 or d_ff < 1:
            raise ValueError(f"widths must be positive: {d_model}, {d_ff}")
        self.d_model = d_model
        self.gate = nn.Linear(d_model, d_ff, bias=False)
        self.up = nn.Linear(d_model, d_ff, bias=False)
        self.down = nn.Linear(d_ff, d_model, bias=False)

    def forward(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        if x.ndim == 0 or x.size(-1) != self.d_model:
            raise ValueError(f"expected [..., {self.d_model}], got {list(x.shape)}")
        return self.down(nn.functional.silu(self.gate(x)) * self.up(x))


class FeedForwardSublayer(nn.Module):
    """The two formulas."""

    def __init__(self, d_model: int, d_ff: int, dropout: float = 0.1, norm_first: bool = True):
        super().__init__()
        self.ffn = PositionwiseFeedForward(d_model, d_ff, dropout)
        self.norm = nn.LayerNorm(d_model)
        self.dropout = nn.Dropout(dropout)
        self.norm_first = norm_first

    def forward(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        if self.norm_first:
            return x + self.dropout(self.ffn(self.norm(x)))
        else:
            return self.norm(x + self.dropout(self.ffn(x)))

    def extra_repr(self) -> str:
        return f"norm_first={self.norm_first}"


def count_parameters(d_model: int, d_ff: int, bias: bool = True) -> int:
    """Layer by layer."""
    if d_model < 1 or d_ff < 1:
        raise ValueError(f"d_model and d_ff must be at least 1, got {d_model} and {d_ff}")
    total = d_model * d_ff + d_ff * d_model
    if bias:
        total += d_ff
        total += d_model
    return total


def count_flops(tokens: int, d_model: int, d_ff: int) -> int:
    """Two products, two flops a multiply-add."""
    if min(tokens, d_model, d_ff) < 1:
        raise ValueError(f"all of {tokens}, {d_model}, {d_ff} must be at least 1")
    first = 2 * tokens * d_model * d_ff
    second = 2 * tokens * d_ff * d_model
    return first + second


def feed_forward_chunked(ffn: nn.Module, x: Float[Tensor, "batch time d"], chunk: int) -> Float[Tensor, "batch time d"]:
    """split, a loop, cat."""
    if not x.is_floating_point():
        raise TypeError(f"x must be floating, got {x.dtype}")
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}")
    outputs = []
    for part in torch.split(x, chunk, dim=1):
        outputs.append(ffn(part))
    return torch.cat(outputs, dim=1)
