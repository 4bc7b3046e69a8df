"""Residual connections: blocks that add to what they are given, so that a gradient gets through fifty of them."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """Two linear layers whose result is added to the input: relu(x + fc2(relu(fc1(x)))).

    >>> block = ResidualBlock(2)
    >>> for layer in (block.fc1, block.fc2):
    ...     _ = layer.load_state_dict({"weight": torch.eye(2), "bias": torch.zeros(2)})
    >>> block(torch.tensor([3.0, -1.0])).tolist()
    [6.0, 0.0]

    The submodules `fc1` and `fc2` are torch.nn.Linear from features to features, with bias and torch's own initial
    values. x may have any number of leading dimensions, also none or empty ones, and is not modified. `repr`
    shows features through the submodules.

    Raises ValueError, with the number, if features is less than 1: in the constructor, before anything is drawn.
    Raises ValueError, with both numbers, if the last dimension of x is not features; also if x has no dimension.
    See: He et al. 2015, Deep Residual Learning for Image Recognition, https://arxiv.org/abs/1512.03385
    """

    def __init__(self, features: int) -> None:
        raise NotImplementedError

    def forward(self, x: Float[Tensor, "*batch features"]) -> Float[Tensor, "*batch features"]:
        raise NotImplementedError


class Residual(nn.Module):
    """A skip connection around any module: shortcut(x) + branch(x).

    >>> layer = Residual(nn.Flatten(start_dim=0))
    >>> layer(torch.tensor([1.0, 2.0])).tolist()
    [2.0, 4.0]
    >>> layer(torch.ones(3, 1))
    Traceback (most recent call last):
    ...
    ValueError: the branch gives shape (3,), the shortcut (3, 1): they must be equal to be added

    Without a shortcut, x itself takes its place: x + branch(x). Both modules are registered as submodules, so that
    `repr` shows them and their parameters are trained and saved. Both are called once, with x, and are expected to
    leave it as it is. Neither x nor what the modules return is modified here (a branch may return x itself, or keep
    its result for its backward).

    Raises ValueError, with both shapes, if branch and shortcut give different shapes, also where one would broadcast
    to the other: [3] and [3 1] would give [3 3], and nobody would notice.
    See: Broadcasting semantics, https://docs.pytorch.org/docs/stable/notes/broadcasting.html
    """

    def __init__(self, branch: nn.Module, shortcut: nn.Module | None = None) -> None:
        raise NotImplementedError

    def forward(self, x: Float[Tensor, "*dims"]) -> Float[Tensor, "*out"]:
        raise NotImplementedError


class PreActivationBlock(nn.Module):
    """A residual block with nothing after the sum, the identity at first: x + fc2(relu(fc1(relu(norm(x))))).

    >>> block = PreActivationBlock(3, hidden=5)
    >>> x = torch.tensor([[1.0, -2.0, 3.0]])
    >>> torch.equal(block(x), x)
    True
    >>> torch.equal(PreActivationBlock(3, hidden=5, zero_init=False)(x), x)
    False

    The submodules are `norm`, a torch.nn.LayerNorm over the features, `fc1`, torch.nn.Linear from features to hidden,
    and `fc2` from hidden to features, both with bias. x may have any number of leading dimensions, also none or empty
    ones, and is not modified.

    With zero_init a new block gives x exactly. And yet it learns: every parameter has a gradient other than zero within
    two steps of an optimizer, the first layers too. Without zero_init all parameters have torch's own initial values.
    `repr` shows both widths through the submodules.

    Raises ValueError, with the number, if features or hidden is less than 1: in the constructor, before anything is
    drawn.
    Raises ValueError, with both numbers, if the last dimension of x is not features; also if x has no dimension.
    See: He et al. 2016, Identity Mappings in Deep Residual Networks, https://arxiv.org/abs/1603.05027
    """

    def __init__(self, features: int, hidden: int, zero_init: bool = True) -> None:
        raise NotImplementedError

    def forward(self, x: Float[Tensor, "*batch features"]) -> Float[Tensor, "*batch features"]:
        raise NotImplementedError


class ConvResidualBlock(nn.Module):
    """The basic block of a ResNet: two 3×3 convolutions around which the image takes a short way.

    >>> block = ConvResidualBlock(3, 8, stride=2)
    >>> block(torch.zeros(2, 3, 7, 9)).shape
    torch.Size([2, 8, 4, 5])
    >>> len(list(block.shortcut.parameters())), len(list(ConvResidualBlock(8, 8).shortcut.parameters()))
    (3, 0)

    The result is relu(bn2(conv2(relu(bn1(conv1(x))))) + shortcut(x)), for images x [b in_channels h w]. The submodules
    `conv1` (in_channels to out_channels) and `conv2` (out_channels to out_channels) are 3×3 convolutions with padding
    1; the stride is conv1's, conv2 has 1. `bn1` and `bn2` are torch.nn.BatchNorm2d. `shortcut` is a module too: where
    the stride is not 1 or the channels differ, a 1×1 convolution with the same stride and then a BatchNorm2d of its
    own, so that the shapes agree; everywhere else it gives x and has no parameters. No convolution has a bias: the norm
    behind it would take it away again. What is not named here, initial values too, is torch's own. x is not modified;
    b may be 0. `repr` shows the three settings through the submodules.

    Raises ValueError, with the number, if in_channels, out_channels or stride is less than 1: in the constructor,
    before anything is drawn.
    Raises ValueError, with both numbers, if x does not have in_channels channels; also if it does not have four
    dimensions. No running statistics are changed then.
    See: He et al. 2015, Deep Residual Learning for Image Recognition, https://arxiv.org/abs/1512.03385
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        raise NotImplementedError

    def forward(self, x: Float[Tensor, "b in_channels h w"]) -> Float[Tensor, "b out_channels out_h out_w"]:
        raise NotImplementedError


class HighwayBlock(nn.Module):
    """A skip connection with a gate: t * h + (1 - t) * x, with t = sigmoid(gate(x)) and h = relu(fc(x)).

    >>> block = HighwayBlock(2, gate_bias=-100.0)
    >>> x = torch.tensor([[3.0, -1.0]])
    >>> torch.equal(block(x), x)
    True
    >>> block.gate.bias.tolist()
    [-100.0, -100.0]

    The submodules `fc` and `gate` are torch.nn.Linear from features to features with bias, so that each feature has a
    gate of its own, which depends on all of x. Every element of the gate's bias is gate_bias at the start: a negative
    one lets x through at first. All other parameters have torch's own initial values. x may have any number of leading
    dimensions, also none or empty ones, and is not modified. `repr` shows features through the submodules.

    Raises ValueError, with the number, if features is less than 1: in the constructor, before anything is drawn.
    Raises ValueError, with both numbers, if the last dimension of x is not features; also if x has no dimension.
    See: Srivastava et al. 2015, Highway Networks, https://arxiv.org/abs/1505.00387
    """

    def __init__(self, features: int, gate_bias: float = -1.0) -> None:
        raise NotImplementedError

    def forward(self, x: Float[Tensor, "*batch features"]) -> Float[Tensor, "*batch features"]:
        raise NotImplementedError


def stochastic_depth(
    x: Float[Tensor, "b *rest"],
    branch: Callable[[Float[Tensor, "kept *rest"]], Float[Tensor, "kept *rest"]],
    p: float,
    training: bool = True,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "b *rest"]:
    """x + branch(x), where in training each sample goes without the branch with probability p.

    >>> x = torch.ones(1000, 2)
    >>> stochastic_depth(x, lambda kept: 3 * kept, p=0.25).unique().tolist()
    [1.0, 5.0]
    >>> torch.equal(stochastic_depth(x, torch.exp, p=1.0), x)
    True
    >>> stochastic_depth(x, torch.neg, p=0.25, training=False).unique().tolist()
    [0.0]

    In training each sample, x[i], is decided independently and as a whole: with probability p the result is x[i], and
    otherwise x[i] + branch(x)[i] / (1 - p), so that the expectation is that of x + branch(x). Only the samples that are
    kept are passed to the branch, all of them in one call: what is dropped costs nothing, and does not enter the
    statistics of a batch norm. Where no sample is kept the branch is not called. With p 0 all are kept,
    with p 1 none, and the result has the values of x. Without training the result is x + branch(x), for every p.
    b and the sizes in rest may be 0, rest may be nothing. Neither x nor what the branch returns is modified; the branch
    is expected to leave its input as it is.
    The decisions are drawn from `generator` alone, from the global generator where it is None; each call draws new
    ones.

    Raises ValueError, with p, if p is outside [0, 1], in training or not.
    Raises ValueError, with both shapes, if the branch does not keep the shape of what it is given, in training or not,
    also where the result would broadcast; and if x has no dimension.
    Raises TypeError if x is not floating.
    See: Huang et al. 2016, Deep Networks with Stochastic Depth, https://arxiv.org/abs/1603.09382
    """
    raise NotImplementedError


def gradient_norms(model: nn.Sequential, x: Float[Tensor, "..."]) -> list[float]:
    """How large the gradient is that arrives at the input of each layer, first to last.

    >>> model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False))
    >>> for layer, weight in zip(model, (2.0, 3.0)):
    ...     _ = layer.load_state_dict({"weight": torch.tensor([[weight]])})
    >>> gradient_norms(model, torch.tensor([[1.0]]))
    [36.0, 18.0]

    The gradient is that of sum(model(x) ** 2) / 2, and its norm the Euclidean one over all elements. One Python float
    for each layer of the model in order, where a layer that stands in several places is counted in each: the first is
    for x, the last for what the last layer is given. The input of a layer is what came out of the layer before, also
    where the layer writes its result over it (torch.nn.ReLU(inplace=True)). A model
    without layers has no norms.

    Nothing of it stays behind: `.grad` of x and of every parameter is as before, no layer has a hook more, x is not
    modified, and neither are the model's modes, parameters and buffers, running statistics included. Works for an x
    that requires grad and for one that does not, with frozen parameters, and inside torch.no_grad().

    Raises TypeError if x is not floating.
    See: torch.autograd.grad, https://docs.pytorch.org/docs/stable/generated/torch.autograd.grad.html
    """
    raise NotImplementedError


def deep_stack(depth: int, features: int, residual: bool) -> nn.Sequential:
    """A deep network of equal layers, with a skip connection around each or without any.

    >>> plain, skips = deep_stack(50, 16, residual=False), deep_stack(50, 16, residual=True)
    >>> len(plain), len(skips)
    (50, 50)
    >>> x = torch.ones(4, 16)
    >>> first, *_, last = gradient_norms(skips, x)
    >>> 0.01 < first / last < 100
    True
    >>> first, *_, last = gradient_norms(plain, x)
    >>> first <= last / 100
    True

    The model has `depth` children. Each is a layer Linear - activation - Linear, where both are torch.nn.Linear from
    features to features with bias and torch's own initial values, and the activation has no parameters. With residual a
    child gives x + layer(x), without it layer(x), and nothing comes after the sum. From the same state of the global
    generator both kinds get equal parameters, in the same order in parameters(). x may have any number of leading
    dimensions. `repr` shows the layers.

    Which activation is yours to choose. By gradient_norms, for 50 layers of 8 features or more and a random batch, the
    norms of the first and the last layer are within a factor of 100 of each other with skips. Without them the first is
    at most a hundredth of the last.

    Raises ValueError, with the number, if depth or features is less than 1, before anything is drawn.
    See: He et al. 2015, Deep Residual Learning for Image Recognition, https://arxiv.org/abs/1512.03385
    """
    raise NotImplementedError
