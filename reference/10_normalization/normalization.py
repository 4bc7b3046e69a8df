"""Normalization: dropout and batch normalization by hand, a deep network of both, and what eval makes of them."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn


def dropout(
    x: Float[Tensor, "*dims"], p: float, training: bool = True, generator: torch.Generator | None = None
) -> Float[Tensor, "*dims"]:
    """x with elements dropped at random, and the others scaled up so that the expectation stays.

    >>> y = dropout(torch.ones(100, 100), p=0.75)
    >>> y.unique().tolist()
    [0.0, 4.0]

    In training each element is dropped with probability p, independently of all others: it becomes 0. What is kept is
    multiplied by 1 / (1 - p). With p 0 the result has exactly the values of x; with p 1 it is zeros, and so is the
    gradient. A dropped place is 0 in result and gradient also where x is nan or infinite there. Without training the
    result has the values of x. x may have any shape.
    The mask is drawn from `generator` alone, from the global generator where it is None; each call draws a new one.

    Raises ValueError, with p, if p is outside [0, 1], in training or not.
    Raises TypeError if x is not floating.
    Refused: dropout in all of torch's forms.
    See: Srivastava et al. 2014, Dropout: A Simple Way to Prevent Neural Networks from Overfitting,
    https://jmlr.org/papers/v15/srivastava14a.html
    """
    _check_probability(p)
    _check_floating(x=x)
    if not training or p == 0:
        return x
    drop = torch.empty(x.shape, dtype=torch.bool, device=x.device).bernoulli_(p, generator=generator)
    # Filled, not multiplied by 0: nan * 0 is nan. With p 1 nothing is left to scale.
    return x.masked_fill(drop, 0) * (1 / (1 - p) if p < 1 else 1)


class Dropout(nn.Module):
    """`dropout` as a module, active in training mode alone.

    >>> layer = Dropout(p=1.0)
    >>> layer
    Dropout(p=1.0)
    >>> x = torch.ones(2, 3)
    >>> layer(x).sum().item(), layer.eval()(x).sum().item()
    (0.0, 6.0)

    Masks are drawn from the global generator, a new one at each call. `repr` shows p.

    Raises ValueError, with p, if p is outside [0, 1]: in the constructor.
    Refused: dropout in all of torch's forms.
    See: torch.nn.Dropout, https://docs.pytorch.org/docs/stable/generated/torch.nn.Dropout.html
    """

    def __init__(self, p: float = 0.5):
        super().__init__()
        _check_probability(p)
        self.p = p

    def forward(self, x: Float[Tensor, "*dims"]) -> Float[Tensor, "*dims"]:
        return dropout(x, self.p, self.training)

    def extra_repr(self) -> str:
        return f"p={self.p}"


def batch_norm(
    x: Float[Tensor, "n c *rest"],
    running_mean: Float[Tensor, " c"] | None,
    running_var: Float[Tensor, " c"] | None,
    weight: Float[Tensor, " c"] | None,
    bias: Float[Tensor, " c"] | None,
    training: bool,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Float[Tensor, "n c *rest"]:
    """Each channel moved to mean 0 and scaled to variance 1, then multiplied by weight and shifted by bias.

    >>> x = torch.tensor([[0.0], [1.0], [5.0]])
    >>> mean, var = torch.zeros(1), torch.ones(1)
    >>> batch_norm(x, mean, var, None, None, training=True).flatten()
    tensor([-0.9258, -0.4629,  1.3887])
    >>> mean, var
    (tensor([0.2000]), tensor([1.6000]))
    >>> mean, var, weight, bias = (torch.tensor([value]) for value in (1.0, 4.0, 2.0, 3.0))
    >>> batch_norm(x, mean, var, weight, bias, training=False, eps=0.0).flatten()
    tensor([2., 3., 7.])

    A channel is the values x[:, i] of all rows and of all positions in `rest`, of which there may be none. The result
    is (x - mean) / sqrt(var + eps) * weight + bias, with one mean, variance, weight and bias for each channel. No
    weight is a weight of 1, no bias a bias of 0; one may be None without the other.

    In training, mean and variance are the batch's, and the gradient goes through them. The variance that normalizes is
    the biased one, divided by the number of values. With buffers, running_mean and running_var are then updated in
    their own memory: running = (1 - momentum) * running + momentum * batch. The variance that goes in there is the
    unbiased one, divided by one less than the number of values. The update is not recorded by autograd. Both buffers
    may be None: then nothing is kept.
    Without training, mean and variance are the buffers', which stay as they are.

    It is precise far from 0: float32 values around 10,000 that differ by about 1 come out right to two decimals or
    better. If x has no values at all, the result is empty and the buffers stay as they are.

    Raises ValueError if one buffer is given and the other is None, in training or not; if both are None without
    training. Raises ValueError, with the shape, if there is one value per channel in training; if x has fewer than two
    dimensions; if a buffer, weight or bias is not [c] (with both sizes). The buffers are not changed then.
    Raises TypeError if a tensor is not floating.
    Refused: batch_norm, instance_norm, layer_norm, group_norm, in all of torch's forms.
    See: Ioffe and Szegedy 2015, Batch Normalization: Accelerating Deep Network Training by Reducing Internal Covariate
    Shift, https://arxiv.org/abs/1502.03167
    """
    channelwise = {"running_mean": running_mean, "running_var": running_var, "weight": weight, "bias": bias}
    channelwise = {name: tensor for name, tensor in channelwise.items() if tensor is not None}
    _check_floating(x=x, **channelwise)
    if x.ndim < 2:
        raise ValueError(f"expected x [n c *rest], got shape {tuple(x.shape)}")
    channels, count = x.shape[1], x.shape[0] * x.shape[2:].numel()
    _check_channels(channels, **channelwise)
    if (running_mean is None) != (running_var is None):
        raise ValueError("running_mean and running_var go together: one of them is None")
    if running_mean is None and not training:
        raise ValueError("without training, running_mean and running_var are needed")
    if training and count == 1 and channels > 0:
        raise ValueError(f"one value per channel has no variance to divide by, x has shape {tuple(x.shape)}")

    wide = _widened(x)

    def column(vector: Tensor) -> Tensor:
        return vector.to(wide.dtype).reshape(-1, *[1] * (x.ndim - 2))  # lines up with dimension 1 of x

    if training:
        centred, mean, var = _centred(wide)
        if running_mean is not None and count > 0:
            with torch.no_grad():
                _move(running_mean, mean.flatten(), momentum)
                _move(running_var, var.flatten() * (count / max(count - 1, 1)), momentum)
    else:
        centred, var = wide - column(running_mean), column(running_var)

    scale = (var + eps).rsqrt()
    if weight is not None:
        scale = scale * column(weight)
    y = centred * scale if bias is None else torch.addcmul(column(bias), centred, scale)
    return y.to(x.dtype)


class BatchNorm(nn.Module):
    """`batch_norm` as a module: batch statistics in training mode, running statistics in eval mode.

    >>> norm = BatchNorm(2, momentum=None)
    >>> norm
    BatchNorm(2, eps=1e-05, momentum=None, affine=True)
    >>> for batch in (torch.tensor([[0.0, 1.0], [2.0, 5.0]]), torch.tensor([[4.0, 4.0], [6.0, 6.0]])):
    ...     _ = norm(batch)
    >>> norm.running_mean, norm.num_batches_tracked
    (tensor([3., 4.]), tensor(2))
    >>> norm.eval()(torch.tensor([[3.0, 4.0]])).tolist()
    [[0.0, 0.0]]

    Takes the place of torch.nn.BatchNorm1d and BatchNorm2d: each can load the other's state_dict, and running
    statistics follow theirs. The parameters `weight` and `bias` [num_features] begin as ones and zeros; with
    affine=False both are None and not in state_dict. The buffers are `running_mean` and `running_var` [num_features],
    which begin as zeros and ones, and `num_batches_tracked`, an int64 without dimensions, which counts the batches seen
    in training mode.
    x is [n num_features] or [n num_features *rest]. `momentum` is the share of the newest batch in the running
    statistics; with None each batch has the same share, so that they are the averages over all batches so far. A batch
    that raises is not counted and changes nothing; one without values leaves the running statistics as they are.
    Eval mode changes no buffer. `repr` shows the four settings.

    Raises ValueError, with the number, if num_features is less than 1: in the constructor.
    Raises ValueError, with both numbers, if x does not have num_features channels; with the shape if there is one value
    per channel in training mode.
    Refused: batch_norm, instance_norm, layer_norm, group_norm, in all of torch's forms.
    See: torch.nn.BatchNorm1d, https://docs.pytorch.org/docs/stable/generated/torch.nn.BatchNorm1d.html
    """

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float | None = 0.1, affine: bool = True):
        super().__init__()
        if num_features < 1:
            raise ValueError(f"expected at least 1 feature, got {num_features}")
        self.num_features = num_features
        self.eps = eps
        self.momentum = momentum
        self.affine = affine
        self.register_parameter("weight", nn.Parameter(torch.ones(num_features)) if affine else None)
        self.register_parameter("bias", nn.Parameter(torch.zeros(num_features)) if affine else None)
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    def forward(self, x: Float[Tensor, "n num_features *rest"]) -> Float[Tensor, "n num_features *rest"]:
        momentum = self.momentum
        if momentum is None:
            momentum = 1 / (self.num_batches_tracked.item() + 1)
        y = batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, self.training, momentum, self.eps
        )
        if self.training and x.numel():
            self.num_batches_tracked += 1
        return y

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.affine}"


class NormalizedMLP(nn.Module):
    """A deep network whose hidden layers are Linear, BatchNorm, ReLU and Dropout, and whose last layer is Linear.

    >>> model = NormalizedMLP([4, 8, 3], dropout=0.1)
    >>> model(torch.zeros(5, 4)).shape
    torch.Size([5, 3])
    >>> [tuple(parameter.shape) for parameter in model.parameters()]
    [(8, 4), (8,), (8,), (3, 8), (3,)]

    `sizes` are the widths from input to output: n sizes make n - 1 linear layers (torch.nn.Linear may be used). Each
    layer but the last has no bias and is followed by this file's `BatchNorm`, ReLU and this file's `Dropout` with
    probability `dropout`. The last layer has a bias and nothing after it. With two sizes there is only that one. x is
    [n sizes[0]], the result [n sizes[-1]].
    `repr` shows the layers and their settings through the submodules.

    Raises ValueError, with the number, if there are fewer than two sizes, if one of them is less than 1, or if dropout
    is outside [0, 1]: before anything is drawn from the global generator.
    Raises ValueError, with the numbers, if x is not [n sizes[0]]. In training mode a single row raises ValueError, as
    in BatchNorm, if there is a hidden layer.
    Refused: dropout, batch_norm, instance_norm, layer_norm, group_norm, in all of torch's forms.
    See: torch.nn.Sequential, https://docs.pytorch.org/docs/stable/generated/torch.nn.Sequential.html
    """

    def __init__(self, sizes: Sequence[int], dropout: float = 0.5):
        super().__init__()
        # The parts check their own settings, but by then the first layers would have drawn their weights.
        if len(sizes) < 2 or min(sizes) < 1:
            raise ValueError(f"expected two or more sizes of at least 1, got {len(sizes)}: {list(sizes)}")
        _check_probability(dropout)
        self.features = sizes[0]
        layers = [
            module
            for i, o in pairwise(sizes[:-1])
            for module in (nn.Linear(i, o, bias=False), BatchNorm(o), nn.ReLU(), Dropout(dropout))
        ]
        self.layers = nn.Sequential(*layers, nn.Linear(*sizes[-2:]))

    def forward(self, x: Float[Tensor, "n first"]) -> Float[Tensor, "n last"]:
        if x.ndim != 2 or x.shape[1] != self.features:
            raise ValueError(f"expected x [n {self.features}], got shape {tuple(x.shape)}")
        return self.layers(x)


def fold_batch_norm(linear: nn.Linear, norm: BatchNorm | nn.BatchNorm1d) -> nn.Linear:
    """One linear layer that does what `linear` and then `norm` do in eval mode.

    >>> linear, norm = nn.Linear(3, 2, bias=False), BatchNorm(2, eps=0.0)
    >>> _ = norm.running_mean.copy_(torch.tensor([1.0, -1.0])), norm.running_var.fill_(4.0)
    >>> folded = fold_batch_norm(linear, norm)
    >>> torch.equal(folded.weight, linear.weight / 2), folded.bias.tolist()
    (True, [-0.5, 0.5])

    For every x the result's output is that of norm(linear(x)), up to rounding, as the running statistics make it,
    whatever mode the two are in now. It is a torch.nn.Linear that always has a bias, also where `linear` has none. norm
    may have no weight and bias (affine=False). The parameters are new ones, in the dtype and on the device of
    linear.weight, and share no memory with the modules given, which are not modified. Nothing is drawn from the global
    generator.

    Raises ValueError, with both numbers, if norm does not have as many features as linear has outputs; if norm keeps no
    running statistics (track_running_stats=False).
    See: torch.nn.utils.fuse_linear_bn_eval,
    https://docs.pytorch.org/docs/stable/generated/torch.nn.utils.fuse_linear_bn_eval.html
    """
    if norm.num_features != linear.out_features:
        raise ValueError(f"norm has {norm.num_features} features, linear has {linear.out_features} outputs")
    if norm.running_mean is None or norm.running_var is None:
        raise ValueError("norm keeps no running statistics: in eval mode it is no fixed map")
    with torch.no_grad():
        scale = (_widened(norm.running_var) + norm.eps).rsqrt()
        if norm.weight is not None:
            scale = scale * norm.weight
        shift = -_widened(norm.running_mean)
        if linear.bias is not None:
            shift = shift + linear.bias
        bias = shift * scale
        if norm.bias is not None:
            bias = bias + norm.bias
        weight = linear.weight * scale[:, None]
    # On the meta device a layer has no values to draw.
    folded = nn.Linear(linear.in_features, linear.out_features, device="meta")
    folded.weight = nn.Parameter(weight.to(linear.weight.dtype))
    folded.bias = nn.Parameter(bias.to(linear.weight.dtype))
    return folded


def batch_norm_backward(
    grad: Float[Tensor, "n c"], x: Float[Tensor, "n c"], weight: Float[Tensor, " c"] | None, eps: float = 1e-5
) -> tuple[Float[Tensor, "n c"], Float[Tensor, " c"] | None, Float[Tensor, " c"]]:
    """The gradients of batch normalization in training, for x, weight and bias, worked out by hand.

    >>> grad, x = torch.tensor([[1.0], [0.0], [0.0]]), torch.tensor([[-1.0], [0.0], [1.0]])
    >>> dx, dweight, dbias = batch_norm_backward(grad, x, torch.tensor([4.0]))
    >>> dx.flatten(), dweight, dbias
    (tensor([ 0.8165, -1.6330,  0.8165]), tensor([-1.2247]), tensor([1.]))

    `grad` is the gradient of some loss with respect to the result of `batch_norm(x, None, None, weight, bias,
    training=True, eps=eps)`; dx, dweight and dbias are its gradients with respect to x, weight and bias, in their
    shapes. Mean and variance are those of the batch, and so functions of x. The bias has no influence on any of the
    three. Where weight is None it counts as 1, and dweight is None. The results need not be differentiable, and the
    `.grad` of no tensor is touched.

    Raises ValueError, with the number, if n is less than 2; with the shapes if grad and x are not both [n c], with the
    same n and c, or weight is not [c].
    Raises TypeError if a tensor is not floating.
    Refused: autograd (torch.autograd.grad, backward, torch.func), batch_norm in all of torch's forms.
    See: Ioffe and Szegedy 2015, section 3, https://arxiv.org/abs/1502.03167
    """
    _check_floating(grad=grad, x=x)
    if x.ndim != 2 or grad.shape != x.shape:
        raise ValueError(f"expected grad and x [n c], got shapes {tuple(grad.shape)} and {tuple(x.shape)}")
    n, channels = x.shape
    if weight is not None:
        _check_floating(weight=weight)
        _check_channels(channels, weight=weight)
    if n < 2:
        raise ValueError(f"one value has no variance to divide by: expected 2 or more rows, got {n}")

    centred, _, var = _centred(_widened(x))
    inverse_std = (var + eps).rsqrt()
    normalized = centred * inverse_std

    wide = _widened(grad)
    dbias = wide.sum(0)
    dweight = (wide * normalized).sum(0)
    # What the mean and the variance pass on is the part of grad that is constant and the part that goes with x.
    dx = (wide - dbias / n - normalized * (dweight / n)) * inverse_std
    if weight is None:
        return dx.to(x.dtype), None, dbias.to(grad.dtype)
    return (dx * weight).to(x.dtype), dweight.to(weight.dtype), dbias.to(weight.dtype)


def _widened(x: Tensor) -> Tensor:
    """x in float32 at least: in half precision squares overflow, sums lose what is small, and eps is almost 0."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _centred(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """x without the mean of each channel, that mean, and the biased variance."""
    dims = [0, *range(2, x.ndim)]
    count = max(x.shape[0] * x.shape[2:].numel(), 1)  # of no values the mean is 0: nan would get into gradients
    # A shift by any constant changes nothing, so it needs no gradient. By the mean, as near as it is known far from 0,
    # it leaves small values, whose own mean is exact enough.
    shift = x.detach().sum(dims, keepdim=True) / count
    shifted = x - shift
    remainder = shifted.sum(dims, keepdim=True) / count
    centred = shifted - remainder
    return centred, shift + remainder, centred.square().sum(dims, keepdim=True) / count


def _move(running: Tensor, batch: Tensor, momentum: float) -> None:
    """Moves running statistics towards those of a batch, in their own memory."""
    running.lerp_(batch.to(running.dtype), momentum)


def _check_probability(p: float) -> None:
    if not 0 <= p <= 1:
        raise ValueError(f"expected a probability, got {p}")


def _check_floating(**tensors: Tensor) -> None:
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise TypeError(f"{name} must be floating, it is {tensor.dtype}")


def _check_channels(channels: int, **tensors: Tensor) -> None:
    for name, tensor in tensors.items():
        if tensor.shape != (channels,):
            raise ValueError(f"{name} must be [{channels}], one for each channel, got shape {tuple(tensor.shape)}")
