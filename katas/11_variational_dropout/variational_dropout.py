"""Variational dropout: one mask for a whole sequence, a recurrent network that uses it, and dropout as a measure."""

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
    raise NotImplementedError


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
    raise NotImplementedError


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
        raise NotImplementedError

    def forward(self, x: Float[Tensor, "batch time dim"]) -> Float[Tensor, "batch time dim"]:
        raise NotImplementedError

    def extra_repr(self) -> str:
        raise NotImplementedError


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
        raise NotImplementedError

    def forward(
        self, x: Float[Tensor, "b t i"], h0: Float[Tensor, "layers b h"] | None = None
    ) -> tuple[Float[Tensor, "b t h"], Float[Tensor, "layers b h"]]:
        raise NotImplementedError

    def extra_repr(self) -> str:
        raise NotImplementedError


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
    raise NotImplementedError


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
    raise NotImplementedError
