"""Functional and terse: einsum, a normal distribution's ndtr, submodules in one line each."""

from collections.abc import Callable
from functools import reduce

import torch
from jaxtyping import Float
from torch import Tensor, nn


def _need(ok: bool, error: type[Exception], *facts: object) -> None:
    if not ok:
        raise error(*facts)


def gelu(x: Float[Tensor, "*dims"]) -> Float[Tensor, "*dims"]:
    """x times the normal distribution function."""
    _need(x.dtype.is_floating_point, TypeError, x.dtype)
    return torch.special.ndtr(x) * x


def feed_forward(
    x: Float[Tensor, "*batch d"],
    w1: Float[Tensor, "f d"],
    b1: Float[Tensor, " f"],
    w2: Float[Tensor, "d f"],
    b2: Float[Tensor, " d"],
    activation: Callable[[Tensor], Tensor] = torch.relu,
) -> Float[Tensor, "*batch d"]:
    """einsum over the features."""
    given = [x, w1, b1, w2, b2]
    _need(all(t.dtype.is_floating_point for t in given), TypeError, *(t.dtype for t in given))
    f, d = w1.shape
    wanted = [(*x.shape[:-1], d), (f, d), (f,), (d, f), (d,)]
    _need([*map(tuple, (t.shape for t in given))] == wanted, ValueError, "shapes", *(t.shape for t in given))
    linear = lambda h, wb: torch.einsum("...i,oi->...o", h, wb[0]) + wb[1]  # noqa: E731
    return linear(activation(linear(x, (w1, b1))), (w2, b2))


class _Gelu(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return gelu(x)


class PositionwiseFeedForward(nn.Module):
    """The activation is a submodule, so that repr shows it."""

    def __init__(self, d_model: int, d_ff: int, dropout: float = 0.1, activation: str = "relu"):
        super().__init__()
        _need(min(d_model, d_ff) > 0, ValueError, "widths", d_model, d_ff)
        _need(0 <= dropout <= 1, ValueError, "dropout", dropout)
        _need(activation in ("relu", "gelu"), ValueError, activation)
        self.fc1, self.fc2 = nn.Linear(d_model, d_ff), nn.Linear(d_ff, d_model)
        self.act = {"relu": nn.ReLU, "gelu": _Gelu}[activation]()
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        return reduce(lambda h, layer: layer(h), (self.fc1, self.act, self.dropout, self.fc2), x)


class GatedFeedForward(nn.Module):
    """silu by hand; the widths are read from the weights."""

    def __init__(self, d_model: int, d_ff: int):
        super().__init__()
        _need(d_model > 0 < d_ff, ValueError, "widths", d_model, d_ff)
        for name, sizes in {"gate": (d_model, d_ff), "up": (d_model, d_ff), "down": (d_ff, d_model)}.items():
            self.add_module(name, nn.Linear(*sizes, bias=False))

    def forward(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        width = self.gate.weight.shape[1]
        _need(x.shape[-1:] == (width,), ValueError, "shape", *x.shape, "width", width)
        g = self.gate(x)
        return self.down(g * g.sigmoid() * self.up(x))


class FeedForwardSublayer(nn.Module):
    """Which norm comes is decided by two small steps around the branch."""

    def __init__(self, d_model: int, d_ff: int, dropout: float = 0.1, norm_first: bool = True):
        super().__init__()
        self.ffn = PositionwiseFeedForward(d_model, d_ff, dropout)
        self.dropout, self.norm, self.norm_first = nn.Dropout(dropout), nn.LayerNorm(d_model), norm_first

    def forward(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        before, after = (self.norm, nn.Identity()) if self.norm_first else (nn.Identity(), self.norm)
        return after(self.dropout(self.ffn(before(x))) + x)

    def __repr__(self) -> str:
        return super().__repr__() + f"[{'pre' if self.norm_first else 'post'}-norm, norm_first={self.norm_first}]"


def count_parameters(d_model: int, d_ff: int, bias: bool = True) -> int:
    """A column of ones is a bias."""
    _need(d_model >= 1 <= d_ff, ValueError, d_model, d_ff)
    return (d_model + bool(bias)) * d_ff + (d_ff + bool(bias)) * d_model


def count_flops(tokens: int, d_model: int, d_ff: int) -> int:
    """Four for each token and hidden connection."""
    _need(all(n >= 1 for n in (tokens, d_model, d_ff)), ValueError, tokens, d_model, d_ff)
    return 4 * tokens * d_model * d_ff


def feed_forward_chunked(ffn: nn.Module, x: Float[Tensor, "batch time d"], chunk: int) -> Float[Tensor, "batch time d"]:
    """A generator of slices; one empty slice where there is no time."""
    _need(x.dtype.is_floating_point, TypeError, x.dtype)
    _need(chunk >= 1, ValueError, chunk)
    starts = range(0, x.shape[1] or 1, chunk)
    return torch.cat([*map(ffn, (x[:, start : start + chunk] for start in starts))], 1)
