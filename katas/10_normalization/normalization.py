"""Normalization: dropout and batch normalization by hand, a deep network of both, and what eval makes of them."""

from collections.abc import Sequence

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
    raise NotImplementedError


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
        raise NotImplementedError

    def forward(self, x: Float[Tensor, "*dims"]) -> Float[Tensor, "*dims"]:
        raise NotImplementedError

    def extra_repr(self) -> str:
        raise NotImplementedError


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
    raise NotImplementedError


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
        raise NotImplementedError

    def forward(self, x: Float[Tensor, "n num_features *rest"]) -> Float[Tensor, "n num_features *rest"]:
        raise NotImplementedError

    def extra_repr(self) -> str:
        raise NotImplementedError


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
        raise NotImplementedError

    def forward(self, x: Float[Tensor, "n first"]) -> Float[Tensor, "n last"]:
        raise NotImplementedError


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
    raise NotImplementedError


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
    raise NotImplementedError
