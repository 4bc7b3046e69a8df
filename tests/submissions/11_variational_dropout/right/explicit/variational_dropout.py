"""Everything named and written out: autograd Function for the mask, Welford's update for the spread."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn


class _Masked(torch.autograd.Function):
    """Selects and scales, with its backward."""

    @staticmethod
    def forward(ctx, x: Tensor, keep: Tensor, factor: float) -> Tensor:
        ctx.save_for_backward(keep)
        ctx.factor = factor
        return torch.where(keep, x * factor, torch.zeros((), dtype=x.dtype, device=x.device))

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        (keep,) = ctx.saved_tensors
        return grad * keep * ctx.factor, None, None


class _Mask:
    """A draw of who is kept, to be used as often as one likes."""

    def __init__(self, shape: Sequence[int], p: float, device: torch.device, generator: torch.Generator | None = None):
        chances = torch.full(tuple(shape), 1.0 - p, dtype=torch.float32, device=device)
        self.keep = torch.bernoulli(chances, generator=generator).bool()
        self.factor = 0.0 if p == 1 else 1.0 / (1.0 - p)

    def __call__(self, x: Tensor) -> Tensor:
        return _Masked.apply(x, self.keep, self.factor)


def _as_probability(p: float) -> float:
    if p < 0 or p > 1 or math.isnan(p):
        raise ValueError(f"a probability lies between 0 and 1, unlike {p}")
    return float(p)


def _as_floating(tensor: Tensor) -> Tensor:
    if tensor.dtype.is_floating_point:
        return tensor
    raise TypeError(f"cannot take {tensor.dtype}")


def rnn_step(
    x: Float[Tensor, "b i"],
    h: Float[Tensor, "b h"],
    w_ih: Float[Tensor, "h i"],
    w_hh: Float[Tensor, "h h"],
    b_ih: Float[Tensor, " h"],
    b_hh: Float[Tensor, " h"],
) -> Float[Tensor, "b h"]:
    """addmm twice."""
    for tensor in (x, h, w_ih, w_hh, b_ih, b_hh):
        _as_floating(tensor)
    batch, inputs = x.size()
    units = w_hh.size(0)
    expected = {"h": (h, (batch, units)), "w_ih": (w_ih, (units, inputs)), "w_hh": (w_hh, (units, units)),
                "b_ih": (b_ih, (units,)), "b_hh": (b_hh, (units,))}  # fmt: skip
    for name, (tensor, shape) in expected.items():
        if tuple(tensor.size()) != shape:
            raise ValueError(f"{name} has shape {list(tensor.size())} where {list(shape)} fits x {list(x.size())}")
    from_input = torch.addmm(b_ih, x, w_ih.t())
    from_state = torch.addmm(b_hh, h, w_hh.t())
    return (from_input + from_state).tanh()


def locked_dropout(
    x: Float[Tensor, "batch time dim"], p: float, training: bool = True, generator: torch.Generator | None = None
) -> Float[Tensor, "batch time dim"]:
    """A mask for batch and features."""
    p = _as_probability(p)
    _as_floating(x)
    if x.dim() != 3:
        raise ValueError(f"expected 3 dimensions, found {x.dim()}")
    if not training or p == 0:
        return x.clone()
    batch, _, dim = x.size()
    return _Mask((batch, 1, dim), p, x.device, generator)(x)


class LockedDropout(nn.Module):
    """The function with a memory for p."""

    def __init__(self, p: float = 0.5):
        super().__init__()
        self.p = _as_probability(p)

    def forward(self, x: Float[Tensor, "batch time dim"]) -> Float[Tensor, "batch time dim"]:
        return locked_dropout(x, self.p, self.training)

    def extra_repr(self) -> str:
        return f"p={self.p}"


class VariationalRNN(nn.Module):
    """Step by step through all layers: the layers' loop is the inner one."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        input_dropout: float = 0.0,
        hidden_dropout: float = 0.0,
    ):
        super().__init__()
        for size in (input_size, hidden_size, num_layers):
            if size <= 0:
                raise ValueError(f"a size of {size} is too small")
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        self.input_dropout = _as_probability(input_dropout)
        self.hidden_dropout = _as_probability(hidden_dropout)
        limit = hidden_size**-0.5
        for layer in range(num_layers):
            width = hidden_size if layer else input_size
            for name, shape in (
                (f"weight_ih_l{layer}", (hidden_size, width)),
                (f"weight_hh_l{layer}", (hidden_size, hidden_size)),
                (f"bias_ih_l{layer}", (hidden_size,)),
                (f"bias_hh_l{layer}", (hidden_size,)),
            ):
                self.register_parameter(name, nn.Parameter(nn.init.uniform_(torch.empty(shape), -limit, limit)))

    def _mask(self, p: float, batch: int, features: int, device: torch.device):
        if self.training and p > 0:
            return _Mask((batch, features), p, device)
        return lambda tensor: tensor

    def forward(
        self, x: Float[Tensor, "b t i"], h0: Float[Tensor, "layers b h"] | None = None
    ) -> tuple[Float[Tensor, "b t h"], Float[Tensor, "layers b h"]]:
        if x.dim() != 3:
            raise ValueError(f"x has {x.dim()} dimensions, not 3")
        batch, time, features = x.size()
        if features != self.input_size:
            raise ValueError(f"x has {features} features, not {self.input_size}")
        if time < 1:
            raise ValueError(f"x has {time} steps")
        if h0 is None:
            states = [x.new_zeros(batch, self.hidden_size) for _ in range(self.num_layers)]
        elif tuple(h0.size()) != (self.num_layers, batch, self.hidden_size):
            raise ValueError(f"h0 {list(h0.size())} is not {[self.num_layers, batch, self.hidden_size]}")
        else:
            states = list(h0)
        widths = [self.input_size] + [self.hidden_size] * (self.num_layers - 1)
        input_masks = [self._mask(self.input_dropout, batch, width, x.device) for width in widths]
        hidden_masks = [self._mask(self.hidden_dropout, batch, self.hidden_size, x.device) for _ in widths]
        outputs = []
        for step in range(time):
            signal = x.select(1, step)
            for layer in range(self.num_layers):
                signal = rnn_step(
                    input_masks[layer](signal),
                    hidden_masks[layer](states[layer]),
                    *(getattr(self, f"{kind}_l{layer}") for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")),
                )
                states[layer] = signal
            outputs.append(signal.unsqueeze(1))
        return torch.cat(outputs, dim=1), torch.cat([state.unsqueeze(0) for state in states])

    def extra_repr(self) -> str:
        shown = ("input_size", "hidden_size", "num_layers", "input_dropout", "hidden_dropout")
        return ", ".join(f"{name}={getattr(self, name)}" for name in shown)


def drop_connect(
    weight: Float[Tensor, "*dims"], p: float, training: bool = True, generator: torch.Generator | None = None
) -> Float[Tensor, "*dims"]:
    """A mask for every element."""
    p = _as_probability(p)
    _as_floating(weight)
    if not training:
        return weight.clone()
    return _Mask(weight.size(), p, weight.device, generator)(weight)


def mc_dropout(
    model: nn.Module, x: Shaped[Tensor, "..."], samples: int, generator: torch.Generator | None = None
) -> tuple[Float[Tensor, "*out"], Float[Tensor, "*out"]]:
    """Welford's update: no prediction is kept."""
    if samples < 2:
        raise ValueError(f"{samples} is too few: two at least")
    modules = list(model.modules())
    modes = [module.training for module in modules]
    cpu_state = torch.get_rng_state() if generator is not None else None
    cuda_state = torch.cuda.get_rng_state(x.device) if generator is not None and x.is_cuda else None
    try:
        if generator is not None:
            seed = torch.randint(2**40, (1,), generator=generator, device=generator.device)
            torch.manual_seed(int(seed))
        for module in modules:
            known = isinstance(module, nn.modules.dropout._DropoutNd)
            module.training = known or module.__class__.__name__ in {"Dropout", "LockedDropout", "VariationalRNN"}
        with torch.no_grad():
            mean = squares = dtype = None
            for count in range(1, samples + 1):
                prediction = model(x.clone())
                dtype = prediction.dtype
                wide = prediction.to(torch.promote_types(dtype, torch.float32))
                if mean is None:
                    mean, squares = wide.clone(), torch.zeros_like(wide)
                else:
                    change = wide - mean
                    mean = mean + change / count
                    squares = squares + change * (wide - mean)
            return mean.to(dtype), (squares / (samples - 1)).sqrt().to(dtype)
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode
        if cpu_state is not None:
            torch.set_rng_state(cpu_state)
        if cuda_state is not None:
            torch.cuda.set_rng_state(cuda_state, x.device)
