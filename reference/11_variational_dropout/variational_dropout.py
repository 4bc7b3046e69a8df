"""Variational dropout: one mask for a whole sequence, a recurrent network that uses it, and dropout as a measure."""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd


def rnn_step(
    x: Float[Tensor, "b i"],
    h: Float[Tensor, "b h"],
    w_ih: Float[Tensor, "h i"],
    w_hh: Float[Tensor, "h h"],
    b_ih: Float[Tensor, " h"],
    b_hh: Float[Tensor, " h"],
) -> Float[Tensor, "b h"]:
    """The next state of a simple recurrent network: tanh(x @ w_ih.T + b_ih + h @ w_hh.T + b_hh).

    >>> weight, bias = torch.eye(2), torch.zeros(2)
    >>> rnn_step(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]]), weight, weight, bias, bias)
    tensor([[0.7616, 0.9640]])

    x is the input at this step and h the state before it, one row for each sequence. The weights have a row for each
    unit of the state, as those of torch.nn.RNNCell have. b and i may be 0.

    Raises ValueError, with the sizes, if the shapes do not fit together as the signature says; nothing is broadcast.
    Raises TypeError if an argument is not floating.
    Refused in this whole kata: torch.nn.RNN, torch.nn.RNNCell and dropout in all of torch's forms.
    See: torch.nn.RNNCell, https://docs.pytorch.org/docs/stable/generated/torch.nn.RNNCell.html
    """
    _check_floating(x=x, h=h, w_ih=w_ih, w_hh=w_hh, b_ih=b_ih, b_hh=b_hh)
    _check_shapes(
        x=(x, "b i"), h=(h, "b h"), w_ih=(w_ih, "h i"), w_hh=(w_hh, "h h"), b_ih=(b_ih, "h"), b_hh=(b_hh, "h")
    )
    return torch.tanh(F.linear(x, w_ih, b_ih) + F.linear(h, w_hh, b_hh))


def locked_dropout(
    x: Float[Tensor, "batch time dim"], p: float, training: bool = True, generator: torch.Generator | None = None
) -> Float[Tensor, "batch time dim"]:
    """Dropout that decides once for each sequence and feature, and keeps to it at every step.

    >>> y = locked_dropout(torch.ones(2, 5, 100), p=0.75)
    >>> y.unique().tolist(), torch.equal(y, y[:, :1].expand(2, 5, 100))
    ([0.0, 4.0], True)

    In training each feature of each sequence is dropped with probability p, independently of all others: it is 0 at
    every step. What is kept is multiplied by 1 / (1 - p). With p 0 nothing is dropped; with p 1 the result is zeros,
    and so is the gradient. A dropped place is 0 in result and gradient also where x is nan or infinite there. Without
    training the result has the values of x. Every size may be 0.
    The mask is drawn from `generator` alone, from the global generator where it is None; each call draws a new one.

    Raises ValueError, with p, if p is outside [0, 1], in training or not; if x does not have three dimensions.
    Raises TypeError if x is not floating.
    Refused: dropout in all of torch's forms.
    See: Gal and Ghahramani 2016, A Theoretically Grounded Application of Dropout in Recurrent Neural Networks,
    https://arxiv.org/abs/1512.05287
    """
    if x.ndim != 3:
        raise ValueError(f"expected x [batch time dim], got shape {tuple(x.shape)}")
    batch, _, dim = x.shape
    return _dropout(x, (batch, 1, dim), p, training, generator)


class LockedDropout(nn.Module):
    """`locked_dropout` as a module, active in training mode alone.

    >>> layer = LockedDropout(p=1.0)
    >>> layer
    LockedDropout(p=1.0)
    >>> x = torch.ones(1, 2, 3)
    >>> layer(x).sum().item(), layer.eval()(x).sum().item()
    (0.0, 6.0)

    x is [batch time dim]. Masks are drawn from the global generator, a new one at each call. torch.nn.Dropout on the
    outputs of a recurrent layer is something else: its mask changes at every step. `repr` shows p.

    Raises ValueError, with p, if p is outside [0, 1]: in the constructor.
    Raises ValueError if x does not have three dimensions.
    Refused: dropout in all of torch's forms.
    See: torch.nn.Dropout, https://docs.pytorch.org/docs/stable/generated/torch.nn.Dropout.html
    """

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        _check_probability(p=p)
        self.p = p

    def forward(self, x: Float[Tensor, "batch time dim"]) -> Float[Tensor, "batch time dim"]:
        return locked_dropout(x, self.p, self.training)

    def extra_repr(self) -> str:
        return f"p={self.p}"


class VariationalRNN(nn.Module):
    """A recurrent network of one or more tanh layers, with dropout masks that hold for the whole sequence.

    >>> rnn = VariationalRNN(3, 4, num_layers=2, hidden_dropout=0.25)
    >>> rnn
    VariationalRNN(3, 4, num_layers=2, input_dropout=0.0, hidden_dropout=0.25)
    >>> output, h_n = rnn(torch.zeros(5, 7, 3))
    >>> output.shape, h_n.shape
    (torch.Size([5, 7, 4]), torch.Size([2, 5, 4]))
    >>> torch.nn.RNN(3, 4, num_layers=2, batch_first=True).load_state_dict(rnn.state_dict())
    <All keys matched successfully>

    Called with x [b t i] and, if wanted, a first state h0 [num_layers b h]; without h0 it is zeros. Returns the states
    of the last layer at every step, output [b t h], and the states of every layer after the last step, h_n
    [num_layers b h]. At each step t a layer computes

        state[t] = tanh(input[t] @ weight_ih.T + bias_ih + state[t - 1] @ weight_hh.T + bias_hh)

    where the first layer's input is x and every other layer's is the states of the layer below, and state[-1] is the
    layer's part of h0.

    In training mode two masks come in, for each layer its own: one on input[t], [b i] in the first layer and [b h] in
    the others, that drops with probability input_dropout, and one on state[t - 1], [b h], that drops with probability
    hidden_dropout. Both are drawn once a forward, from the global generator, for each sequence and feature
    independently, and hold at every step. They drop as `locked_dropout` does: what is kept is multiplied by
    1 / (1 - p), what is dropped is 0, also where it is nan or infinite. h0 is masked like every later state. The mask
    is on what enters the products alone: output and h_n are the states themselves, without it.

    Takes the place of torch.nn.RNN(input_size, hidden_size, num_layers, batch_first=True): the parameters have the same
    names, shapes and order (weight_ih_l0, weight_hh_l0, bias_ih_l0, bias_hh_l0, weight_ih_l1, ...), and each element is
    drawn uniformly between -1/sqrt(hidden_size) and 1/sqrt(hidden_size). In eval mode, or with both probabilities 0, so
    are the results. b may be 0. `repr` shows all five settings.

    Raises ValueError, with the number, if input_size, hidden_size or num_layers is less than 1 or if one of the
    probabilities is outside [0, 1]: in the constructor, before anything is drawn.
    Raises ValueError, with the numbers, if the last dimension of x is not input_size, if t is 0, or if h0 is not
    [num_layers b h] with the b of x; also if x does not have three dimensions.
    Refused: torch.nn.RNN, torch.nn.RNNCell, dropout in all of torch's forms.
    See: torch.nn.RNN, https://docs.pytorch.org/docs/stable/generated/torch.nn.RNN.html
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        input_dropout: float = 0.0,
        hidden_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        for name, size in {"input_size": input_size, "hidden_size": hidden_size, "num_layers": num_layers}.items():
            if size < 1:
                raise ValueError(f"{name} must be at least 1, got {size}")
        _check_probability(input_dropout=input_dropout, hidden_dropout=hidden_dropout)
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.input_dropout = input_dropout
        self.hidden_dropout = hidden_dropout
        bound = 1 / math.sqrt(hidden_size)
        for layer in range(num_layers):
            below = input_size if layer == 0 else hidden_size
            shapes = {"weight_ih": (hidden_size, below), "weight_hh": (hidden_size, hidden_size)}
            shapes |= {"bias_ih": (hidden_size,), "bias_hh": (hidden_size,)}
            for name, shape in shapes.items():
                self.register_parameter(f"{name}_l{layer}", nn.Parameter(torch.empty(shape).uniform_(-bound, bound)))

    def forward(
        self, x: Float[Tensor, "b t i"], h0: Float[Tensor, "layers b h"] | None = None
    ) -> tuple[Float[Tensor, "b t h"], Float[Tensor, "layers b h"]]:
        if x.ndim != 3 or x.shape[2] != self.input_size:
            raise ValueError(f"expected x [b t {self.input_size}], got shape {tuple(x.shape)}")
        batch, time, _ = x.shape
        if time == 0:
            raise ValueError(f"a sequence has at least one step, got x of shape {tuple(x.shape)}")
        states = (self.num_layers, batch, self.hidden_size)
        if h0 is None:
            h0 = x.new_zeros(states)
        elif h0.shape != states:
            raise ValueError(f"expected h0 of shape {states}, got {tuple(h0.shape)}")

        output, last = x, []
        for layer, h in enumerate(h0.unbind()):
            output, h = self._run_layer(layer, output, h)
            last.append(h)
        return output, torch.stack(last)

    def extra_repr(self) -> str:
        return (
            f"{self.input_size}, {self.hidden_size}, num_layers={self.num_layers}, "
            f"input_dropout={self.input_dropout}, hidden_dropout={self.hidden_dropout}"
        )

    def _run_layer(
        self, layer: int, inputs: Float[Tensor, "b t i"], h: Float[Tensor, "b h"]
    ) -> tuple[Float[Tensor, "b t h"], Float[Tensor, "b h"]]:
        w_ih, w_hh, b_ih, b_hh = (
            getattr(self, f"{name}_l{layer}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        )
        # What comes from below does not wait for the state: one product for all steps. Only the rest is a loop.
        inputs = locked_dropout(inputs, self.input_dropout, self.training)
        # unbind, not indexing: the backward of each index would fill a tensor of all steps with zeros.
        from_below = F.linear(inputs, w_ih, b_ih + b_hh).unbind(1)
        dropped, scale = None, 1.0
        if self.training and self.hidden_dropout > 0:
            dropped, scale = _draw(h.shape, self.hidden_dropout, h.device), _scale(self.hidden_dropout)
        states = []
        for below in from_below:
            kept = h if dropped is None else h.masked_fill(dropped, 0)
            h = torch.addmm(below, kept, w_hh.T, alpha=scale).tanh()
            states.append(h)
        return torch.stack(states, dim=1), h


def drop_connect(
    weight: Float[Tensor, "*dims"], p: float, training: bool = True, generator: torch.Generator | None = None
) -> Float[Tensor, "*dims"]:
    """A weight of which each element is dropped with probability p: connections go, not units.

    >>> weight = torch.ones(100, 2, requires_grad=True)
    >>> used = drop_connect(weight, p=0.75)
    >>> used.unique().tolist()
    [0.0, 4.0]
    >>> (used * 10).sum().backward()
    >>> torch.equal(weight.grad, used * 10)
    True

    In training each element is decided independently: dropped it is 0, kept it is multiplied by 1 / (1 - p). The
    gradient goes to the weight that was given, with the same factor, and is 0 where the element was dropped. The weight
    itself stays as it is. With p 0 nothing is dropped; with p 1 result and gradient are zeros. A dropped element is 0
    also where the weight is nan or infinite. Without training the result has the values of the weight. The weight may
    have any shape, `()` and empty ones too.
    The mask is drawn from `generator` alone, from the global generator where it is None; each call draws a new one.

    Raises ValueError, with p, if p is outside [0, 1], in training or not.
    Raises TypeError if the weight is not floating.
    Refused: dropout in all of torch's forms.
    See: Wan et al. 2013, Regularization of Neural Networks using DropConnect,
    https://proceedings.mlr.press/v28/wan13.html
    """
    return _dropout(weight, weight.shape, p, training, generator)


def mc_dropout(
    model: nn.Module, x: Shaped[Tensor, "..."], samples: int, generator: torch.Generator | None = None
) -> tuple[Float[Tensor, "*out"], Float[Tensor, "*out"]]:
    """Mean and standard deviation of a model's predictions while dropout stays on.

    >>> model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5)).eval()
    >>> mean, std = mc_dropout(model, torch.ones(100, 100), samples=50)
    >>> mean.shape, round(mean.mean().item(), 1), round(std.mean().item(), 1)
    (torch.Size([100, 100]), 1.0, 1.0)
    >>> [module.training for module in model.modules()]
    [False, False, False]

    The model returns one tensor for x and is called `samples` times. Mean and std are over these results, element by
    element, each of the shape and dtype of one result; the std is the unbiased one, which divides by samples - 1.

    While the model runs, its dropout modules are in training mode, the model too if it is one, and all other modules
    are in eval mode, whatever mode they were in (a batch norm learns nothing). Dropout modules are those of
    torch.nn.modules.dropout (Dropout, Dropout2d, AlphaDropout, ...) and of every class that is named Dropout,
    LockedDropout or VariationalRNN, wherever it was defined. Modules inside them count as all others do, and dropout
    that is a setting of another module (of torch.nn.RNN, say) stays off. Afterwards each module is back in the mode
    that it had, also when the model raises, and the exception goes on to the caller.
    No gradients are recorded, and the results do not require grad. x may have any dtype, and stays as it is even where
    the model works in place.

    With a generator the result depends on its state alone, and two calls in a row with it differ. Modules draw from the
    global generator: that is seeded from the generator while the model runs, and then put back to the state that it
    had, also when the model raises. Without a generator, modules draw from the global generator as they always do.

    Raises ValueError, with the number, if samples is less than 2, before anything is changed or drawn.
    See: Gal and Ghahramani 2016, Dropout as a Bayesian Approximation, https://arxiv.org/abs/1506.02142
    """
    if samples < 2:
        raise ValueError(f"a standard deviation needs at least 2 samples, got {samples}")
    modes = [(module, module.training) for module in model.modules()]
    try:
        # Not train() and eval(): both reach everything below a module.
        for module, _ in modes:
            module.training = _is_dropout(module)
        with torch.no_grad(), _global_rng_from(generator, [x, *model.parameters(), *model.buffers()]):
            # A layer that works in place writes to a copy: every sample begins with the same x.
            results = torch.stack([model(x.clone()) for _ in range(samples)])
            std, mean = torch.std_mean(results, dim=0)
    finally:
        for module, training in modes:
            module.training = training
    return mean, std


def _dropout(
    x: Float[Tensor, "*dims"], shape: Sequence[int], p: float, training: bool, generator: torch.Generator | None
) -> Float[Tensor, "*dims"]:
    """Inverted dropout with one decision for each element of `shape`, which broadcasts to that of x."""
    _check_probability(p=p)
    _check_floating(x=x)
    if not training or p == 0:
        return x
    # Filled, not multiplied by 0: nan * 0 is nan.
    return x.masked_fill(_draw(shape, p, x.device, generator), 0) * _scale(p)


def _draw(
    shape: Sequence[int], p: float, device: torch.device, generator: torch.Generator | None = None
) -> Bool[Tensor, "*shape"]:
    """True with probability p: what to drop."""
    return torch.empty(shape, dtype=torch.bool, device=device).bernoulli_(p, generator=generator)


def _scale(p: float) -> float:
    """What keeps the expectation; with p 1 nothing is left to scale."""
    return 1 / (1 - p) if p < 1 else 1.0


def _is_dropout(module: nn.Module) -> bool:
    return isinstance(module, _DropoutNd) or type(module).__name__ in ("Dropout", "LockedDropout", "VariationalRNN")


@contextmanager
def _global_rng_from(generator: torch.Generator | None, tensors: Iterable[Tensor]) -> Iterator[None]:
    """Seeds the global generators of the CPU and of the tensors' devices from `generator`, and puts them back."""
    if generator is None:
        yield
        return
    seed = torch.randint(2**63 - 1, (), dtype=torch.int64, device=generator.device, generator=generator).item()
    # One by one: torch.manual_seed would seed every device, also those that nobody puts back.
    used = [torch.default_generator]
    used += [torch.cuda.default_generators[index] for index in {t.device.index for t in tensors if t.is_cuda}]
    states = [default.get_state() for default in used]
    try:
        for default in used:
            default.manual_seed(seed)
        yield
    finally:
        for default, state in zip(used, states, strict=True):
            default.set_state(state)


def _check_probability(**probabilities: float) -> None:
    for name, p in probabilities.items():
        if not 0 <= p <= 1:
            raise ValueError(f"{name} must be a probability, got {p}")


def _check_floating(**tensors: Tensor) -> None:
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise TypeError(f"{name} must be floating, it is {tensor.dtype}")


def _check_shapes(**given: tuple[Tensor, str]) -> None:
    """Raises ValueError unless each tensor has the dimensions named, and those of one name have one size."""
    sizes: dict[str, int] = {}
    for name, (tensor, dims) in given.items():
        names = dims.split()
        if len(names) != tensor.ndim or any(
            sizes.setdefault(dim, size) != size for dim, size in zip(names, tensor.shape, strict=True)
        ):
            known = ", ".join(f"{dim} = {size}" for dim, size in sizes.items())
            raise ValueError(f"{name} must be [{dims}], got shape {tuple(tensor.shape)} ({known})")
