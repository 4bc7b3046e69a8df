"""Flattens, works in two dimensions, and folds back; spells its errors out."""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


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


def describe(x: Tensor) -> TensorInfo:
    """Everything about x that is not its values."""
    storage = x.untyped_storage()
    return TensorInfo(
        shape=tuple(int(size) for size in x.size()),
        ndim=len(x.size()),
        dtype=x.dtype,
        device=x.device,
        strides=tuple(x.stride(dim) for dim in range(x.dim())),
        contiguous=x.is_contiguous(),
        nbytes=math.prod(x.size()) * x.dtype.itemsize,
        storage_nbytes=storage.nbytes(),
    )


def nchw_to_nhwc(images: Tensor) -> Tensor:
    """Two swaps of neighbours carry the channels to the end."""
    if len(images.shape) != 4:
        raise ValueError(f"expected a batch of images, not {list(images.shape)}")
    return images.transpose(1, 2).transpose(2, 3)


def outer_sum(a: Tensor, b: Tensor) -> Tensor:
    """A column plus a row."""
    for vector in (a, b):
        if vector.dim() != 1:
            raise ValueError(f"expected a vector, not {list(vector.shape)}")
    return a.reshape(-1, 1) + b.reshape(1, -1)


def strict_mse(prediction: Tensor, target: Tensor) -> Tensor:
    """Inner product of the flat error with itself, over its length."""
    if not (prediction.is_floating_point() and target.is_floating_point()):
        raise TypeError("strict_mse is for floating point")
    if list(prediction.shape) != list(target.shape):
        raise ValueError(f"{list(prediction.shape)} and {list(target.shape)} are not the same shape")
    error = (prediction - target).reshape(-1)
    if error.dtype.itemsize < 4:
        return (error.float().dot(error.float()) / len(error)).to(error.dtype)
    return error.dot(error) / len(error)


def broadcast_shape(*shapes: Sequence[int]) -> tuple[int, ...]:
    """Pads with ones on the left, then goes through the columns."""
    longest = max([len(shape) for shape in shapes] + [0])
    padded = [[1] * (longest - len(shape)) + list(shape) for shape in shapes]
    for row in padded:
        for size in row:
            if size < 0:
                raise ValueError(f"a size cannot be {size}")
    result: list[int] = []
    for column in range(longest):
        best = 1
        for row in padded:
            if best != 1 and row[column] != 1 and row[column] != best:
                raise ValueError(f"{best} against {row[column]} in place {column - longest}")
            best = row[column] if best == 1 else best
        result.append(best)
    return tuple(result)


def one_hot(index: Tensor, num_classes: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Writes ones into flat zeros at row * num_classes + index."""
    if index.is_floating_point() or index.is_complex() or index.dtype is torch.bool:
        raise TypeError(f"{index.dtype} is no index")
    if num_classes <= 0:
        raise ValueError(f"cannot make {num_classes} classes")
    flat = index.reshape(-1).to(torch.int64)
    wrong = torch.logical_or(flat.lt(0), flat.ge(num_classes))
    if wrong.any():
        raise IndexError(f"class {flat[wrong].tolist()} of {num_classes}")
    rows = torch.arange(flat.numel(), device=flat.device)
    result = torch.zeros(flat.numel() * num_classes, dtype=dtype, device=flat.device)
    result[rows * num_classes + flat] = 1
    return result.reshape((*index.shape, num_classes))


def standardize(x: Tensor, dim: int | tuple[int, ...], eps: float = 1e-5) -> Tensor:
    """In float64 throughout, the dimensions of a group flattened into one."""
    if not x.is_floating_point():
        raise TypeError(f"cannot standardize {x.dtype}")
    dims = (dim,) if isinstance(dim, int) else tuple(dim)
    for d in dims:
        if not -x.dim() <= d < x.dim():
            raise IndexError(f"dimension {d} of {x.dim()}")
    group = [d % x.dim() for d in dims]
    rest = [d for d in range(x.dim()) if d not in group]
    moved = x.double().permute(rest + group)
    flat = moved.reshape(math.prod(moved.shape[: len(rest)]), math.prod(moved.shape[len(rest) :]))
    flat = flat - flat.mean(1, keepdim=True)
    flat = flat / torch.sqrt(flat.pow(2).mean(1, keepdim=True) + eps)
    order = rest + group
    back = [order.index(d) for d in range(x.dim())]
    return flat.reshape(moved.shape).permute(back).to(x.dtype)


def pairwise_sq_dists(x: Tensor, y: Tensor) -> Tensor:
    """One row of differences for each pair."""
    if not (torch.is_floating_point(x) and torch.is_floating_point(y)):
        raise TypeError("pairwise_sq_dists is for floating point")
    if x.dim() != 2 or y.dim() != 2:
        raise ValueError(f"expected two matrices, not {list(x.shape)} and {list(y.shape)}")
    (n, d), (m, e) = x.shape, y.shape
    if d != e:
        raise ValueError(f"points in {d} and in {e} dimensions")
    pairs = x.repeat_interleave(m, dim=0) - y.repeat(n, 1)
    return (pairs * pairs).sum(dim=1).reshape(n, m)


def batched_gather(x: Tensor, index: Tensor) -> Tensor:
    """Stacks the batches to one long table and shifts the indices."""
    if index.dtype != torch.int32 and index.dtype != torch.int64:
        raise TypeError(f"{index.dtype} is no row index")
    if x.dim() != 3 or index.dim() != 2 or x.shape[0] != index.shape[0]:
        raise ValueError(f"{list(index.shape)} does not index {list(x.shape)}")
    b, n, d = x.shape
    wrong = torch.logical_or(index < -n, index >= n)
    if bool(wrong.any()):
        raise IndexError(f"rows {index[wrong].tolist()} of {n}")
    start = torch.arange(b, device=index.device).reshape(b, 1) * n
    rows = (start + index + (index < 0) * n).reshape(-1)
    return x.reshape(b * n, d).index_select(0, rows).reshape(b, index.shape[1], d)


def add_scaled_(y: Tensor, x: Tensor, alpha: float = 1.0) -> Tensor:
    """Scales a copy of x, then adds it in place."""
    missing = y.dim() - x.dim()
    if missing < 0 or any(have not in (1, want) for have, want in zip(x.shape, y.shape[missing:], strict=True)):
        raise ValueError(f"cannot add {list(x.shape)} into {list(y.shape)}")
    if not y.is_floating_point() and not y.is_complex():
        if x.is_floating_point() or x.is_complex() or x.dtype == torch.bool:
            raise TypeError(f"cannot add {x.dtype} into {y.dtype}")
        if isinstance(alpha, float):
            if not alpha.is_integer():
                raise TypeError(f"cannot add {alpha} times an integer into {y.dtype}")
            alpha = int(alpha)
    y += x * alpha
    return y


def move_to(batch, device):
    """Each kind of container rebuilt by its own helper."""
    if isinstance(batch, Tensor):
        return batch if batch.device == torch.device(device) else batch.to(device)
    if isinstance(batch, (dict, list)):
        result = copy.copy(batch)
        for key in list(batch) if isinstance(batch, dict) else range(len(batch)):
            result[key] = move_to(batch[key], device)
        return result
    if isinstance(batch, tuple):
        values = [move_to(value, device) for value in batch]
        if hasattr(batch, "_fields"):
            return batch._replace(**dict(zip(batch._fields, values, strict=True)))
        return batch.__class__(values)
    return batch
