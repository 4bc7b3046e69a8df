"""Straight from the contract: a step at a time, masks as tensors of booleans, torch.where."""

import math

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn


def rnn_step(
    x: Float[Tensor, "b i"],
    h: Float[Tensor, "b h"],
    w_ih: Float[Tensor, "h i"],
    w_hh: Float[Tensor, "h h"],
    b_ih: Float[Tensor, " h"],
    b_hh: Float[Tensor, " h"],
) -> Float[Tensor, "b h"]:
    """The formula."""
    for tensor in (x, h, w_ih, w_hh, b_ih, b_hh):
        if not tensor.is_floating_point():
            raise TypeError("rnn_step takes floating tensors")
    if x.ndim != 2 or h.ndim != 2:
        raise ValueError(f"x and h have two dimensions, got {x.shape} and {h.shape}")
    (b, i), hidden = x.shape, h.shape[1]
    if h.shape != (b, hidden):
        raise ValueError(f"x {tuple(x.shape)} and h {tuple(h.shape)} have different batches")
    if w_ih.shape != (hidden, i):
        raise ValueError(f"w_ih is {tuple(w_ih.shape)}, expected {(hidden, i)}")
    if w_hh.shape != (hidden, hidden):
        raise ValueError(f"w_hh is {tuple(w_hh.shape)}, expected {(hidden, hidden)}")
    if b_ih.shape != (hidden,):
        raise ValueError(f"b_ih is {tuple(b_ih.shape)}, expected {(hidden,)}")
    if b_hh.shape != (hidden,):
        raise ValueError(f"b_hh is {tuple(b_hh.shape)}, expected {(hidden,)}")
    return torch.tanh(x @ w_ih.T + b_ih + h @ w_hh.T + b_hh)


def locked_dropout(
    x: Float[Tensor, "batch time dim"], p: float, training: bool = True, generator: torch.Generator | None = None
) -> Float[Tensor, "batch time dim"]:
    """torch.where with a mask [batch 1 dim]."""
    if not x.is_floating_point():
        raise TypeError(f"floating tensors only, got {x.dtype}")
    if not 0 <= p <= 1:
        raise ValueError(f"p must be in [0, 1], got {p}")
    if x.ndim != 3:
        raise ValueError(f"x must be [batch time dim], got {tuple(x.shape)}")
    if not training:
        return x
    keep = torch.rand(x.shape[0], 1, x.shape[2], generator=generator, device=x.device) >= p
    zeros = torch.zeros_like(x)
    if p == 1:
        return torch.where(keep, x, zeros)
    return torch.where(keep, x / (1 - p), zeros)


class LockedDropout(nn.Module):
    """A module around the function."""

    def __init__(self, p: float = 0.5):
        super().__init__()
        if not 0 <= p <= 1:
            raise ValueError(f"p must be in [0, 1], got {p}")
        self.p = p

    def forward(self, x: Float[Tensor, "batch time dim"]) -> Float[Tensor, "batch time dim"]:
        return locked_dropout(x, self.p, self.training)

    def extra_repr(self) -> str:
        return f"p={self.p}"


class VariationalRNN(nn.Module):
    """rnn_step in a double loop."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        input_dropout: float = 0.0,
        hidden_dropout: float = 0.0,
    ):
        super().__init__()
        if input_size < 1 or hidden_size < 1 or num_layers < 1:
            raise ValueError(f"sizes must be at least 1: {input_size}, {hidden_size}, {num_layers}")
        if not 0 <= input_dropout <= 1:
            raise ValueError(f"input_dropout must be in [0, 1], got {input_dropout}")
        if not 0 <= hidden_dropout <= 1:
            raise ValueError(f"hidden_dropout must be in [0, 1], got {hidden_dropout}")
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.input_dropout = input_dropout
        self.hidden_dropout = hidden_dropout
        for layer in range(num_layers):
            size = input_size if layer == 0 else hidden_size
            setattr(self, f"weight_ih_l{layer}", nn.Parameter(torch.empty(hidden_size, size)))
            setattr(self, f"weight_hh_l{layer}", nn.Parameter(torch.empty(hidden_size, hidden_size)))
            setattr(self, f"bias_ih_l{layer}", nn.Parameter(torch.empty(hidden_size)))
            setattr(self, f"bias_hh_l{layer}", nn.Parameter(torch.empty(hidden_size)))
        k = 1 / math.sqrt(hidden_size)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -k, k)

    def forward(
        self, x: Float[Tensor, "b t i"], h0: Float[Tensor, "layers b h"] | None = None
    ) -> tuple[Float[Tensor, "b t h"], Float[Tensor, "layers b h"]]:
        if x.ndim != 3 or x.shape[2] != self.input_size:
            raise ValueError(f"x must be [b t {self.input_size}], got {tuple(x.shape)}")
        b, t, _ = x.shape
        if t == 0:
            raise ValueError(f"x has 0 steps: {tuple(x.shape)}")
        if h0 is None:
            h0 = torch.zeros(self.num_layers, b, self.hidden_size, dtype=x.dtype, device=x.device)
        if h0.shape != (self.num_layers, b, self.hidden_size):
            raise ValueError(f"h0 must be {(self.num_layers, b, self.hidden_size)}, got {tuple(h0.shape)}")
        finals = []
        for layer in range(self.num_layers):
            w_ih = getattr(self, f"weight_ih_l{layer}")
            w_hh = getattr(self, f"weight_hh_l{layer}")
            b_ih = getattr(self, f"bias_ih_l{layer}")
            b_hh = getattr(self, f"bias_hh_l{layer}")
            x = locked_dropout(x, self.input_dropout, self.training)
            h = h0[layer]
            drop = self.training and self.hidden_dropout > 0
            if drop:
                keep = torch.rand(b, self.hidden_size, device=x.device) >= self.hidden_dropout
            outputs = []
            for step in range(t):
                h_in = h
                if drop:
                    h_in = torch.where(keep, h, torch.zeros_like(h))
                    if self.hidden_dropout < 1:
                        h_in = h_in / (1 - self.hidden_dropout)
                h = rnn_step(x[:, step], h_in, w_ih, w_hh, b_ih, b_hh)
                outputs.append(h)
            x = torch.stack(outputs, 1)
            finals.append(h)
        return x, torch.stack(finals)

    def extra_repr(self) -> str:
        return (
            f"input_size={self.input_size}, hidden_size={self.hidden_size}, num_layers={self.num_layers}, "
            f"input_dropout={self.input_dropout}, hidden_dropout={self.hidden_dropout}"
        )


def drop_connect(
    weight: Float[Tensor, "*dims"], p: float, training: bool = True, generator: torch.Generator | None = None
) -> Float[Tensor, "*dims"]:
    """torch.where with a mask of the weight's shape."""
    if not weight.is_floating_point():
        raise TypeError(f"floating weights only, got {weight.dtype}")
    if not 0 <= p <= 1:
        raise ValueError(f"p must be in [0, 1], got {p}")
    if not training:
        return weight
    keep = torch.rand(weight.shape, generator=generator, device=weight.device) >= p
    if p == 1:
        return torch.where(keep, weight, torch.zeros_like(weight))
    return torch.where(keep, weight / (1 - p), torch.zeros_like(weight))


def mc_dropout(
    model: nn.Module, x: Shaped[Tensor, "..."], samples: int, generator: torch.Generator | None = None
) -> tuple[Float[Tensor, "*out"], Float[Tensor, "*out"]]:
    """fork_rng, a dict of modes, a list of predictions."""
    if samples < 2:
        raise ValueError(f"samples must be at least 2, got {samples}")
    kinds = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
    names = ("Dropout", "LockedDropout", "VariationalRNN")
    before = {module: module.training for module in model.modules()}
    try:
        model.eval()
        for module in model.modules():
            if isinstance(module, kinds) or type(module).__name__ in names:
                module.training = True
        predictions = []
        with torch.no_grad():
            if generator is None:
                for _ in range(samples):
                    predictions.append(model(x.clone()))
            else:
                seed = torch.randint(0, 2**62, (1,), generator=generator, device=generator.device).item()
                devices = [x.device] if x.is_cuda else []
                with torch.random.fork_rng(devices=devices):
                    torch.manual_seed(seed)
                    for _ in range(samples):
                        predictions.append(model(x.clone()))
        predictions = torch.stack(predictions)
        return predictions.mean(0), predictions.std(0)
    finally:
        for module, mode in before.items():
            module.training = mode
