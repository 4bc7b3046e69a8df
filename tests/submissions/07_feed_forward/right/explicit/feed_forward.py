"""Careful and wordy: flattens to rows, computes gelu in a wider dtype, writes chunks into a result where it may."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


def _require_floating(**tensors: Tensor) -> None:
    for name, tensor in tensors.items():
        if tensor.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
            raise TypeError(f"{name}: {tensor.dtype} is no floating dtype")


def _require_positive(**sizes: int) -> None:
    wrong = {name: size for name, size in sizes.items() if size <= 0}
    if wrong:
        raise ValueError(f"not positive: {wrong}")


def gelu(x: Float[Tensor, "*dims"]) -> Float[Tensor, "*dims"]:
    """Half precision is computed in float32."""
    _require_floating(x=x)
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    below = (torch.special.erf(wide.div(math.sqrt(2.0))) + 1.0).div(2.0)
    return wide.mul(below).to(x.dtype)


def feed_forward(
    x: Float[Tensor, "*batch d"],
    w1: Float[Tensor, "f d"],
    b1: Float[Tensor, " f"],
    w2: Float[Tensor, "d f"],
    b2: Float[Tensor, " d"],
    activation: Callable[[Tensor], Tensor] = torch.relu,
) -> Float[Tensor, "*batch d"]:
    """Rows of a matrix, through addmm."""
    _require_floating(x=x, w1=w1, b1=b1, w2=w2, b2=b2)
    hidden_size, size = w1.shape
    expected = {"b1": (b1, (hidden_size,)), "w2": (w2, (size, hidden_size)), "b2": (b2, (size,))}
    for name, (tensor, shape) in expected.items():
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)} where w1 asks for {shape}")
    if x.dim() < 1 or x.shape[-1] != size:
        raise ValueError(f"the last dimension of x, of shape {tuple(x.shape)}, is not {size}")
    rows = x.reshape(math.prod(x.shape[:-1]), size)
    hidden = torch.addmm(b1, rows, w1.t()).reshape(*x.shape[:-1], hidden_size)
    hidden = activation(hidden).reshape(rows.shape[0], hidden_size)
    return torch.addmm(b2, hidden, w2.t()).reshape(x.shape)


class PositionwiseFeedForward(nn.Module):
    """Calls feed_forward with an activation that drops out."""

    def __init__(self, d_model: int, d_ff: int, dropout: float = 0.1, activation: str = "relu"):
        _require_positive(d_model=d_model, d_ff=d_ff)
        if not (dropout >= 0 and dropout <= 1):
            raise ValueError(f"{dropout} is not between 0 and 1")
        if activation not in {"relu", "gelu"}:
            raise ValueError(f"activation must be 'relu' or 'gelu', not {activation!r}")
        super().__init__()
        self.d_model, self.d_ff, self.activation = d_model, d_ff, activation
        self.fc1 = nn.Linear(d_model, d_ff)
        self.fc2 = nn.Linear(d_ff, d_model)
        self.dropout = nn.Dropout(p=dropout)

    def _activate(self, hidden: Tensor) -> Tensor:
        activated = hidden.clamp(min=0) if self.activation == "relu" else gelu(hidden)
        return self.dropout(activated)

    def forward(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        first, second = self.fc1, self.fc2
        return feed_forward(x, first.weight, first.bias, second.weight, second.bias, self._activate)

    def extra_repr(self) -> str:
        return f"d_model={self.d_model}, d_ff={self.d_ff}, activation='{self.activation}'"


class GatedFeedForward(nn.Module):
    """Both inner products, then the gate."""

    def __init__(self, d_model: int, d_ff: int):
        _require_positive(d_model=d_model, d_ff=d_ff)
        super().__init__()
        self.gate = nn.Linear(in_features=d_model, out_features=d_ff, bias=False)
        self.up = nn.Linear(in_features=d_model, out_features=d_ff, bias=False)
        self.down = nn.Linear(in_features=d_ff, out_features=d_model, bias=False)

    def forward(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        expected = self.gate.in_features
        found = x.shape[-1] if x.dim() > 0 else None
        if found != expected:
            raise ValueError(f"x of shape {tuple(x.shape)} has {found} features, the layer takes {expected}")
        opened = F.silu(self.gate(x))
        values = self.up(x)
        return self.down(torch.mul(values, opened))


class FeedForwardSublayer(nn.Module):
    """A method for the branch."""

    def __init__(self, d_model: int, d_ff: int, dropout: float = 0.1, norm_first: bool = True):
        super().__init__()
        _require_positive(d_model=d_model, d_ff=d_ff)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(d_model)
        self.ffn = PositionwiseFeedForward(d_model=d_model, d_ff=d_ff, dropout=dropout, activation="relu")
        self.norm_first = bool(norm_first)

    def _branch(self, x: Tensor) -> Tensor:
        return self.dropout(self.ffn(x))

    def forward(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        if not self.norm_first:
            return self.norm(torch.add(x, self._branch(x)))
        return torch.add(x, self._branch(self.norm(x)))

    def extra_repr(self) -> str:
        return "norm_first=" + repr(self.norm_first)


def count_parameters(d_model: int, d_ff: int, bias: bool = True) -> int:
    """The product of each shape."""
    _require_positive(d_model=d_model, d_ff=d_ff)
    shapes = [(d_ff, d_model), (d_model, d_ff)]
    if bias:
        shapes += [(d_ff,), (d_model,)]
    return sum(math.prod(shape) for shape in shapes)


def count_flops(tokens: int, d_model: int, d_ff: int) -> int:
    """Multiplications, and as many additions."""
    _require_positive(tokens=tokens, d_model=d_model, d_ff=d_ff)
    multiplications = tokens * d_ff * d_model + tokens * d_model * d_ff
    additions = multiplications
    return multiplications + additions


def feed_forward_chunked(ffn: nn.Module, x: Float[Tensor, "batch time d"], chunk: int) -> Float[Tensor, "batch time d"]:
    """Without a graph each chunk goes straight into its place."""
    _require_floating(x=x)
    _require_positive(chunk=chunk)
    time = x.shape[1]
    if time <= chunk:
        return ffn(x)
    first = ffn(x[:, :chunk])
    if first.requires_grad:
        rest = [ffn(x[:, start : min(start + chunk, time)]) for start in range(chunk, time, chunk)]
        return torch.cat([first, *rest], dim=1)
    result = first.new_empty((first.shape[0], time, *first.shape[2:]))
    result[:, :chunk] = first
    for start in range(chunk, time, chunk):
        stop = min(start + chunk, time)
        result[:, start:stop] = ffn(x[:, start:stop])
    return result
