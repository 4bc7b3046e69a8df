"""Feed-forward networks: the part of a Transformer that works on each position by itself."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn


def gelu(x: Float[Tensor, "*dims"]) -> Float[Tensor, "*dims"]:
    """The Gaussian error linear unit: x times the probability that a standard normal variable is below x.

    >>> gelu(torch.tensor([-2.0, 0.0, 2.0]))
    tensor([-0.0455,  0.0000,  1.9545])

    This is the exact function, x * (1 + erf(x / sqrt(2))) / 2, and not the approximation by tanh, which differs from it
    in the fourth decimal. The result has the shape and dtype of x, whose dimensions may be any, none or empty ones too.

    Raises TypeError if x is not floating.
    Refused: torch.nn.functional.gelu.
    See: Hendrycks and Gimpel 2016, Gaussian Error Linear Units, https://arxiv.org/abs/1606.08415
    """
    raise NotImplementedError


def feed_forward(
    x: Float[Tensor, "*batch d"],
    w1: Float[Tensor, "f d"],
    b1: Float[Tensor, " f"],
    w2: Float[Tensor, "d f"],
    b2: Float[Tensor, " d"],
    activation: Callable[[Float[Tensor, "*batch f"]], Float[Tensor, "*batch f"]] = torch.relu,
) -> Float[Tensor, "*batch d"]:
    """Two linear maps with an activation in between, on the last dimension: activation(x @ w1.T + b1) @ w2.T + b2.

    >>> w1, b1 = torch.tensor([[1.0], [-1.0], [2.0]]), torch.tensor([0.0, 0.0, -3.0])
    >>> w2, b2 = torch.tensor([[1.0, 10.0, 100.0]]), torch.tensor([0.5])
    >>> feed_forward(torch.tensor([[-2.0], [1.0], [2.0]]), w1, b1, w2, b2).tolist()
    [[20.5], [1.5], [102.5]]

    x may have any number of leading dimensions, also none or empty ones. The weights have one row for each output, as
    those of torch.nn.Linear. `activation` is any function that keeps the shape; it is given the hidden features
    [*batch f]. The number of tensor operations does not depend on how many rows x has.

    Raises TypeError if one of the five tensors is not floating.
    Raises ValueError, with the sizes, if the shapes do not fit together as written above: the last dimension of x too,
    and a bias of size 1 that would broadcast.
    See: Vaswani et al. 2017, Attention Is All You Need, section 3.3, https://arxiv.org/abs/1706.03762
    """
    raise NotImplementedError


class PositionwiseFeedForward(nn.Module):
    """The feed-forward network of a Transformer: linear, activation, dropout, linear, at each position by itself.

    >>> ffn = PositionwiseFeedForward(d_model=2, d_ff=3, dropout=0.2, activation="gelu")
    >>> [name for name, _ in ffn.named_parameters()]
    ['fc1.weight', 'fc1.bias', 'fc2.weight', 'fc2.bias']
    >>> ffn(torch.zeros(5, 4, 2)).shape
    torch.Size([5, 4, 2])

    `fc1` maps d_model features to d_ff and `fc2` maps them back, both a torch.nn.Linear with bias and its own initial
    values. `activation` is "relu" or "gelu", the exact one. The submodule `dropout` acts on the activated hidden
    features, before fc2, and in training mode alone. x is [*batch d_model] with any number of leading dimensions, also
    none or empty ones. Each position is computed from itself alone: where one changes, no other output changes.
    `repr` shows the widths, the dropout probability and the activation, itself or through the submodules.

    Raises ValueError if a setting is wrong, before anything is drawn from the global generator: with the number, if
    d_model or d_ff is less than 1 or dropout is outside [0, 1]; and if activation is neither of the two names.
    See: Vaswani et al. 2017, Attention Is All You Need, section 3.3, https://arxiv.org/abs/1706.03762
    """

    def __init__(self, d_model: int, d_ff: int, dropout: float = 0.1, activation: str = "relu"):
        raise NotImplementedError

    def forward(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        raise NotImplementedError

    def extra_repr(self) -> str:
        raise NotImplementedError


class GatedFeedForward(nn.Module):
    """A feed-forward network whose hidden features are multiplied by a learned gate: SwiGLU.

    >>> ffn = GatedFeedForward(d_model=1, d_ff=1)
    >>> weights = {"gate.weight": torch.ones(1, 1), "up.weight": torch.ones(1, 1) * 2, "down.weight": torch.ones(1, 1)}
    >>> ffn.load_state_dict(weights)
    <All keys matched successfully>
    >>> round(ffn(torch.tensor([3.0])).item(), 4)
    17.1463

    Computes down(silu(gate(x)) * up(x)) with silu(u) = u * sigmoid(u). `gate` and `up` map d_model features to d_ff,
    `down` maps them back; each is a torch.nn.Linear without bias, with its own initial values. x is [*batch d_model]
    with any number of leading dimensions, also none or empty ones; each position is computed from itself alone. `repr`
    shows the widths through the submodules.

    Raises ValueError, with the number, if d_model or d_ff is less than 1: before anything is drawn from the global
    generator.
    Raises ValueError, with both numbers, if the last dimension of x is not d_model; also if x has no dimension.
    See: Shazeer 2020, GLU Variants Improve Transformer, https://arxiv.org/abs/2002.05202
    """

    def __init__(self, d_model: int, d_ff: int):
        raise NotImplementedError

    def forward(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        raise NotImplementedError


class FeedForwardSublayer(nn.Module):
    """A feed-forward network as it stands in a Transformer: with normalization, dropout and a residual connection.

    >>> for norm_first in (True, False):
    ...     sublayer = FeedForwardSublayer(d_model=2, d_ff=3, norm_first=norm_first)
    ...     _ = sublayer.ffn.fc2.load_state_dict({"weight": torch.zeros(2, 3), "bias": torch.zeros(2)})
    ...     sublayer(torch.tensor([5.0, 3.0])).round(decimals=3).tolist()
    [5.0, 3.0]
    [1.0, -1.0]

    With norm_first the result is x + dropout(ffn(norm(x))), else norm(x + dropout(ffn(x))), as in the first paper. The
    submodules are `norm`, a torch.nn.LayerNorm over the d_model features; `ffn`, the PositionwiseFeedForward of this
    file with its default activation and the same dropout probability; and `dropout`, which acts on the output of ffn.
    Both dropouts act in training mode alone. x is [*batch d_model] and is not modified; each position is computed from
    itself alone. `repr` shows norm_first, and the other settings through the submodules.

    Raises ValueError, with the number, if d_model or d_ff is less than 1 or dropout is outside [0, 1]: before anything
    is drawn from the global generator.
    See: Xiong et al. 2020, On Layer Normalization in the Transformer Architecture, https://arxiv.org/abs/2002.04745
    """

    def __init__(self, d_model: int, d_ff: int, dropout: float = 0.1, norm_first: bool = True):
        raise NotImplementedError

    def forward(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        raise NotImplementedError

    def extra_repr(self) -> str:
        raise NotImplementedError


def count_parameters(d_model: int, d_ff: int, bias: bool = True) -> int:
    """How many parameters the two-layer network has: the numbers in its two weights, and in its two biases.

    >>> count_parameters(d_model=2, d_ff=3)
    17

    The network is that of `feed_forward` and PositionwiseFeedForward. Without `bias` neither layer has one. The result
    is a Python int, computed without making a tensor.

    Raises ValueError, with the number, if d_model or d_ff is less than 1.
    See: torch.nn.Linear, https://docs.pytorch.org/docs/stable/generated/torch.nn.Linear.html
    """
    raise NotImplementedError


def count_flops(tokens: int, d_model: int, d_ff: int) -> int:
    """How many floating-point operations the two-layer network takes for the forward pass on `tokens` positions.

    >>> count_flops(tokens=10, d_model=2, d_ff=3)
    240

    Counts matrix products alone, and each multiplication with its addition as two operations; biases, activation and
    dropout are left out. This is the number that torch.utils.flop_counter.FlopCounterMode gives. The result is a Python
    int, computed without running a network.

    Raises ValueError, with the number, if tokens, d_model or d_ff is less than 1.
    See: torch.utils.flop_counter.FlopCounterMode,
    https://docs.pytorch.org/docs/main/generated/torch.utils.flop_counter.FlopCounterMode.html
    """
    raise NotImplementedError


def feed_forward_chunked(ffn: nn.Module, x: Float[Tensor, "batch time d"], chunk: int) -> Float[Tensor, "batch time d"]:
    """What ffn(x) gives, computed a few time steps after the other to save memory.

    >>> ffn = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 4))
    >>> x = torch.ones(2, 7, 4)
    >>> torch.allclose(feed_forward_chunked(ffn, x, chunk=3), ffn(x))
    True

    ffn is any module that keeps the shape and computes each position from itself alone. It is given `chunk` time steps
    at a time; the last chunk may be smaller, and a chunk longer than the time is the whole. Values and gradients, of x
    and of the parameters, are those of ffn(x), up to rounding; where dropout is active they are not asked to be. When
    nothing is recorded for backward, the hidden activations of one chunk at most are alive at a time, however long the
    time is. Batches and times of size 0 work. The mode of ffn and the grad mode are used as they are.

    Raises TypeError if x is not floating.
    Raises ValueError, with the number, if chunk is less than 1.
    See: Kitaev et al. 2020, Reformer: The Efficient Transformer, section 3, https://arxiv.org/abs/2001.04451
    """
    raise NotImplementedError
