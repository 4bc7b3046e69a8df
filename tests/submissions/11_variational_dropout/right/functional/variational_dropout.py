"""Terse: a tensor of factors for each mask, einsum, comprehensions."""

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules import dropout as dropouts


def _need(condition: object, error: type[Exception], *what: object) -> None:
    if not condition:
        raise error(*what)


def _drop(
    x: Tensor, shape: Sequence[int], p: float, training: bool, generator: torch.Generator | None = None
) -> Tensor:
    _need(x.is_floating_point(), TypeError, "not floating", x.dtype)
    _need(0 <= p <= 1, ValueError, "no probability", p)
    if not training:
        return x * 1
    noise = torch.empty(shape, device=x.device, dtype=torch.float64).uniform_(generator=generator)
    return torch.where(noise < p, 0, x) / (1 - p or 1)


def rnn_step(
    x: Float[Tensor, "b i"],
    h: Float[Tensor, "b h"],
    w_ih: Float[Tensor, "h i"],
    w_hh: Float[Tensor, "h h"],
    b_ih: Float[Tensor, " h"],
    b_hh: Float[Tensor, " h"],
) -> Float[Tensor, "b h"]:
    """One product of what is joined."""
    given = (x, h, w_ih, w_hh, b_ih, b_hh)
    _need(all(t.is_floating_point() for t in given), TypeError, "floating tensors, please")
    n, k = h.shape
    wanted = ((n, x.shape[-1]), (n, k), (k, x.shape[-1]), (k, k), (k,), (k,))
    shapes = tuple(tuple(t.shape) for t in given)
    _need(shapes == wanted, ValueError, f"shapes {shapes} should be {wanted}")
    return torch.tanh(torch.cat((x, h), 1) @ torch.cat((w_ih, w_hh), 1).mT + (b_ih + b_hh))


def locked_dropout(
    x: Float[Tensor, "batch time dim"], p: float, training: bool = True, generator: torch.Generator | None = None
) -> Float[Tensor, "batch time dim"]:
    """Noise for one step."""
    _need(x.ndim == 3, ValueError, "three dimensions, please", x.shape)
    return _drop(x, (len(x), 1, x.shape[-1]), p, training, generator)


class LockedDropout(nn.Module):
    """With a slot for p."""

    def __init__(self, p: float = 0.5):
        super().__init__()
        _need(0 <= p <= 1, ValueError, f"p={p}")
        self.p = p

    def forward(self, x: Float[Tensor, "batch time dim"]) -> Float[Tensor, "batch time dim"]:
        return locked_dropout(x, p=self.p, training=self.training)

    def extra_repr(self) -> str:
        return str(self.p)


class VariationalRNN(nn.Module):
    """Weights are masked: the columns that a dropped feature would meet."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        input_dropout: float = 0.0,
        hidden_dropout: float = 0.0,
    ):
        super().__init__()
        _need(min(input_size, hidden_size, num_layers) > 0, ValueError, input_size, hidden_size, num_layers)
        _need(0 <= input_dropout <= 1 and 0 <= hidden_dropout <= 1, ValueError, input_dropout, hidden_dropout)
        self.sizes = [input_size, *[hidden_size] * num_layers]
        self.rates = input_dropout, hidden_dropout
        for n, i in enumerate(self.sizes[:-1]):
            for name, *shape in (("weight_ih", hidden_size, i), ("weight_hh", hidden_size, hidden_size),
                                 ("bias_ih", hidden_size), ("bias_hh", hidden_size)):  # fmt: skip
                value = (torch.rand(shape) * 2 - 1) * hidden_size**-0.5
                setattr(self, f"{name}_l{n}", nn.Parameter(value))

    def forward(
        self, x: Float[Tensor, "b t i"], h0: Float[Tensor, "layers b h"] | None = None
    ) -> tuple[Float[Tensor, "b t h"], Float[Tensor, "layers b h"]]:
        first, *widths = self.sizes
        _need(
            x.ndim == 3 and x.shape[-1] == first and x.shape[1], ValueError, f"x {x.shape}, expected {first} features"
        )
        state = (len(widths), len(x), widths[0])
        h0 = x.new_zeros(state) if h0 is None else h0
        _need(h0.shape == state, ValueError, f"h0 {h0.shape} instead of {state}")
        below, last = x.transpose(0, 1), []
        for n, (w_ih, w_hh, b_ih, b_hh) in enumerate(zip(*[iter(self.parameters())] * 4, strict=True)):
            below = _drop(below, below[0].shape, self.rates[0], self.training)
            mask = _drop(torch.ones_like(h0[n]), h0[n].shape, self.rates[1], self.training)
            masked = partial(torch.where, mask == 0, 0)
            states = [h0[n]]
            for step in torch.einsum("tbi,hi->tbh", below, w_ih):
                recurrent = F.linear(masked(states[-1]) * mask, w_hh, b_hh)
                states.append((step + b_ih + recurrent).tanh())
            below = torch.stack(states[1:])
            last += states[-1:]
        return below.transpose(0, 1), torch.stack(last)

    def extra_repr(self) -> str:
        return f"sizes={self.sizes}, layers={len(self.sizes) - 1}, rates={self.rates}"


def drop_connect(
    weight: Float[Tensor, "*dims"], p: float, training: bool = True, generator: torch.Generator | None = None
) -> Float[Tensor, "*dims"]:
    """Noise for every element."""
    return _drop(weight, weight.shape, p, training, generator)


class _Modes(ExitStack):
    """Sets modes; what they were comes back in the end."""

    def set(self, module: nn.Module, mode: bool) -> None:
        self.callback(setattr, module, "training", module.training)
        module.training = mode


def mc_dropout(
    model: nn.Module, x: Shaped[Tensor, "..."], samples: int, generator: torch.Generator | None = None
) -> tuple[Float[Tensor, "*out"], Float[Tensor, "*out"]]:
    """One stack of exits for all that is to be put back."""
    _need(samples > 1, ValueError, f"{samples} samples have no spread")
    names = {*dropouts.__all__, "LockedDropout", "VariationalRNN"}
    with _Modes() as modes:
        for module in model.modules():
            kinds = {c.__name__ for c in type(module).__mro__ if c.__module__ == dropouts.__name__}
            modes.set(module, bool(names & (kinds | {type(module).__name__})))
        modes.enter_context(torch.no_grad())
        if generator is not None:
            seed = int(torch.empty((), dtype=torch.int64, device=generator.device).random_(generator=generator))
            modes.enter_context(torch.random.fork_rng(devices=[x.device] if x.is_cuda else []))
            torch.manual_seed(seed)
        y = torch.stack([model(x + 0) for _ in range(samples)])
    mean = y.mean(0)
    return mean, ((y - mean) ** 2).sum(0).div(samples - 1).sqrt()
