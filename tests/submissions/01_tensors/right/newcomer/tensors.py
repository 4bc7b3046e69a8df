"""As somebody new to torch writes it: step by step, with the operations of the tutorials."""

import copy
from dataclasses import dataclass

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
    """Collects the attributes."""
    shape = tuple(x.shape)
    count = 1
    for size in shape:
        count = count * size
    return TensorInfo(
        shape=shape,
        ndim=len(shape),
        dtype=x.dtype,
        device=x.device,
        strides=tuple(x.stride()),
        contiguous=x.is_contiguous(),
        nbytes=count * x.element_size(),
        storage_nbytes=len(x.untyped_storage()),
    )


def nchw_to_nhwc(images):
    """Reorders the dimensions."""
    if images.dim() != 4:
        raise ValueError("images has shape " + str(list(images.shape)))
    return torch.permute(images, (0, 2, 3, 1))


def outer_sum(a, b):
    """Expands both to the table and adds."""
    if a.dim() != 1:
        raise ValueError("a has shape " + str(list(a.shape)))
    if b.dim() != 1:
        raise ValueError("b has shape " + str(list(b.shape)))
    n = a.shape[0]
    m = b.shape[0]
    return a.unsqueeze(1).expand(n, m) + b.unsqueeze(0).expand(n, m)


def strict_mse(prediction, target):
    """Sum of squares over their number."""
    if not torch.is_floating_point(prediction):
        raise TypeError("prediction is " + str(prediction.dtype))
    if not torch.is_floating_point(target):
        raise TypeError("target is " + str(target.dtype))
    if prediction.shape != target.shape:
        raise ValueError(f"prediction {list(prediction.shape)}, target {list(target.shape)}")
    error = prediction - target
    squares = error * error
    return squares.mean()


def broadcast_shape(*shapes):
    """Counts from the last dimension to the first."""
    result = []
    for shape in shapes:
        for i in range(1, len(shape) + 1):
            size = shape[-i]
            if size < 0:
                raise ValueError(f"negative size: {size}")
            if i > len(result):
                result.insert(0, size)
            elif result[-i] == 1:
                result[-i] = size
            elif size != 1 and size != result[-i]:
                raise ValueError(f"{size} and {result[-i]} do not match")
    return tuple(result)


def one_hot(index, num_classes, dtype=torch.float32):
    """Compares every class with every index."""
    integers = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]
    if index.dtype not in integers:
        raise TypeError(f"index is {index.dtype}")
    if num_classes < 1:
        raise ValueError(f"num_classes is {num_classes}")
    index = index.to(torch.int64)
    if index.numel() > 0:
        if index.min() < 0:
            raise IndexError(f"index {int(index.min())} is negative")
        if index.max() >= num_classes:
            raise IndexError(f"index {int(index.max())} is too large for {num_classes} classes")
    classes = torch.arange(num_classes, device=index.device)
    hits = index.unsqueeze(-1) == classes
    return torch.where(hits, 1, 0).to(dtype)


def standardize(x, dim, eps=1e-5):
    """Mean, then variance of the differences."""
    if not torch.is_floating_point(x):
        raise TypeError(f"x is {x.dtype}")
    values = x
    if x.dtype == torch.float16 or x.dtype == torch.bfloat16:
        values = x.float()
    mean = torch.mean(values, dim=dim, keepdim=True)
    difference = values - mean
    variance = torch.mean(difference**2, dim=dim, keepdim=True)
    result = difference / torch.sqrt(variance + eps)
    return result.to(x.dtype)


def pairwise_sq_dists(x, y):
    """A cube of differences."""
    if not torch.is_floating_point(x) or not torch.is_floating_point(y):
        raise TypeError(f"x is {x.dtype}, y is {y.dtype}")
    if x.dim() != 2 or y.dim() != 2:
        raise ValueError(f"x has shape {list(x.shape)}, y has shape {list(y.shape)}")
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"x has shape {list(x.shape)}, y has shape {list(y.shape)}")
    n, d = x.shape
    m = y.shape[0]
    left = x.view(n, 1, d) if x.is_contiguous() else x.reshape(n, 1, d)
    right = y.unsqueeze(0)
    return torch.sum((left.expand(n, m, d) - right.expand(n, m, d)) ** 2, dim=2)


def batched_gather(x, index):
    """A batch number and a row number for each element."""
    if index.dtype != torch.int64 and index.dtype != torch.int32:
        raise TypeError(f"index is {index.dtype}")
    if x.dim() != 3 or index.dim() != 2:
        raise ValueError(f"x has shape {list(x.shape)}, index has shape {list(index.shape)}")
    if x.shape[0] != index.shape[0]:
        raise ValueError(f"{x.shape[0]} batches in x, {index.shape[0]} in index")
    n = x.shape[1]
    if index.numel() > 0:
        smallest = int(index.min())
        largest = int(index.max())
        if smallest < -n:
            raise IndexError(f"{smallest} is below {-n}")
        if largest >= n:
            raise IndexError(f"{largest} is not below {n}")
    batch_numbers = torch.arange(x.shape[0], device=x.device).unsqueeze(1).expand_as(index)
    return x[batch_numbers, index.long()]


def add_scaled_(y, x, alpha=1.0):
    """Checks everything first, then adds."""
    try:
        shape = torch.broadcast_shapes(y.shape, x.shape)
    except RuntimeError as error:
        raise ValueError(f"y {list(y.shape)} and x {list(x.shape)} do not broadcast") from error
    if shape != y.shape:
        raise ValueError(f"y would grow from {list(y.shape)} to {list(shape)} for x {list(x.shape)}")
    if not torch.is_floating_point(y):
        if torch.is_floating_point(x):
            raise TypeError("y holds integers and x does not")
        if alpha in (float("inf"), float("-inf")) or alpha != alpha or int(alpha) != alpha:
            raise TypeError(f"alpha {alpha} is not whole")
        alpha = int(alpha)
    y.add_(alpha * x)
    return y


def move_to(batch, device):
    """One case after the other."""
    if isinstance(batch, torch.Tensor):
        return batch.to(device=device)
    if isinstance(batch, dict):
        new_dict = copy.copy(batch)
        for key in batch:
            new_dict[key] = move_to(batch[key], device)
        return new_dict
    if isinstance(batch, list):
        new_list = copy.copy(batch)
        for i in range(len(batch)):
            new_list[i] = move_to(batch[i], device)
        return new_list
    if isinstance(batch, tuple):
        items = []
        for item in batch:
            items.append(move_to(item, device))
        if hasattr(batch, "_fields"):
            return type(batch)._make(items)
        return type(batch)(items)
    return batch
