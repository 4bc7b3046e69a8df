"""Functional and terse: one expression where one will do."""

import copy
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest

import torch


@dataclass(frozen=True)
class TensorInfo:
    """What `describe` reports about a tensor."""

    shape: tuple[int, ...]
    ndim: int
    dtype: torch.dtype
    device: torch.device
    strides: tuple[int, ...]  # steps in elements, not in bytes
    contiguous: bool
    nbytes: int  # what the elements would fill if each were stored once
    storage_nbytes: int  # what the storage behind the tensor fills


def describe(x):
    """Attributes of x."""
    storage = x.untyped_storage()
    return TensorInfo((*x.shape,), x.dim(), x.dtype, x.device, x.stride(), x.is_contiguous(), x.nbytes, storage.size())


def nchw_to_nhwc(images):
    """Channels last, as a view."""
    _check(images.dim() == 4, ValueError, "not four dimensions:", *images.shape)
    return images.movedim(1, -1)


def outer_sum(a, b):
    """a[i] + b[j]."""
    _check(a.dim() == b.dim() == 1, ValueError, "not two vectors:", *a.shape, "and", *b.shape)
    return torch.add(a.unsqueeze(-1), b)


def strict_mse(prediction, target):
    """Mean squared error, equal shapes only."""
    _check(prediction.is_floating_point() and target.is_floating_point(), TypeError, "floats, please")
    _check(prediction.shape == target.shape, ValueError, *prediction.shape, "is not", *target.shape)
    return torch.mean((target - prediction) ** 2)


def broadcast_shape(*shapes):
    """The broadcast shape, last dimension first."""
    return tuple(map(_common_size, zip_longest(*map(reversed, shapes), fillvalue=1)))[::-1]


def _common_size(sizes):
    _check(min(sizes) >= 0, ValueError, "below zero:", min(sizes))
    distinct = set(sizes) - {1}
    _check(len(distinct) <= 1, ValueError, "these do not go together:", *sorted(distinct))
    return distinct.pop() if distinct else 1


def one_hot(index, num_classes, dtype=torch.float32):
    """Comparison with 0, 1, 2, ..."""
    _check(not index.dtype.is_floating_point and not index.dtype.is_complex and index.dtype != torch.bool, TypeError)
    _check(num_classes > 0, ValueError, "no classes:", num_classes)
    index = index.to(torch.int64)
    if index.numel():
        low, high = (limit.item() for limit in index.aminmax())
        _check(low >= 0, IndexError, low)
        _check(high < num_classes, IndexError, high, "of", num_classes)
    return index.unsqueeze(-1).eq(torch.arange(num_classes, device=index.device)).to(dtype)


def standardize(x, dim, eps=1e-5):
    """(x - mean) / sqrt(var + eps)."""
    _check(x.is_floating_point(), TypeError, x.dtype)
    if x.numel() == 0:
        return x.clone()
    wide = x if x.dtype.itemsize > 2 else x.float()
    var, mean = torch.var_mean(wide, dim, correction=0, keepdim=True)
    return ((wide - mean) * torch.rsqrt(var + eps)).to(x.dtype)


def pairwise_sq_dists(x, y):
    """Differences, then their inner product with themselves."""
    _check(x.is_floating_point() and y.is_floating_point(), TypeError, x.dtype, y.dtype)
    _check(x.dim() == y.dim() == 2 and x.size(1) == y.size(1), ValueError, *x.shape, "against", *y.shape)
    difference = x.unsqueeze(1) - y.unsqueeze(0)
    return torch.einsum("nmd,nmd->nm", difference, difference)


def batched_gather(x, index):
    """gather along dimension 1."""
    _check(index.dtype in {torch.int64, torch.int32}, TypeError, index.dtype)
    _check(x.dim() == 3 and index.dim() == 2 and x.size(0) == index.size(0), ValueError, *x.shape, "by", *index.shape)
    n = x.size(1)
    if index.numel():
        low, high = (limit.item() for limit in index.aminmax())
        _check(-n <= low, IndexError, low)
        _check(high < n, IndexError, high)
    index = torch.where(index < 0, index + n, index).long()
    return x.gather(1, index.unsqueeze(-1).expand(-1, -1, x.size(2)))


def add_scaled_(y, x, alpha=1.0):
    """y += alpha * x."""
    try:
        x = x.expand_as(y)
    except RuntimeError:
        raise ValueError(f"{list(x.shape)} is not a part of {list(y.shape)}") from None
    if not (y.dtype.is_floating_point or y.dtype.is_complex):
        _check(not x.dtype.is_floating_point and float(alpha).is_integer(), TypeError, x.dtype, alpha)
        alpha = int(alpha)
    return y.add_(x, alpha=alpha)


def move_to(batch, device):
    """Recursion over what the containers hold."""
    move = partial(move_to, device=device)
    match batch:
        case torch.Tensor():
            return batch.to(device)
        case dict():
            result = copy.copy(batch)
            dict.update(result, {key: move(value) for key, value in batch.items()})  # Counter.update adds up
            return result
        case list():
            (result := copy.copy(batch))[:] = map(move, batch)
            return result
        case tuple(_fields=_):
            return batch._make(map(move, batch))
        case tuple():
            return type(batch)([*map(move, batch)])
        case _:
            return batch


def _check(condition, error, *words):
    if not condition:
        raise error(" ".join(map(str, words)))
