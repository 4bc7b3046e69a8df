"""What a tensor is made of, and how shape, broadcasting, indexing, memory and device behave."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
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


def describe(x: Shaped[Tensor, "*dims"]) -> TensorInfo:
    """The properties of a tensor, and how much memory it shows and how much stands behind it.

    >>> info = describe(torch.zeros(4, 3)[:2].T)
    >>> info.shape, info.strides, info.contiguous, info.nbytes, info.storage_nbytes
    ((3, 2), (1, 3), False, 24, 48)

    `shape` and `strides` are plain tuples; strides count elements. `contiguous` says whether the elements lie in
    memory in row-major order without gaps, as torch means it. `nbytes` is the number of elements times the bytes of
    one, whatever they share: an expanded tensor counts every element that it shows. `storage_nbytes` is the size of
    the whole storage that the tensor looks at, so it is larger than `nbytes` for a slice and smaller for an expanded
    tensor. Tensors of any dtype and any number of dimensions are described, 0-dim ones and empty ones too.

    See: tensor attributes, https://docs.pytorch.org/docs/stable/tensor_attributes.html
    """
    return TensorInfo(
        shape=tuple(x.shape),
        ndim=x.ndim,
        dtype=x.dtype,
        device=x.device,
        strides=x.stride(),
        contiguous=x.is_contiguous(),
        nbytes=x.numel() * x.element_size(),
        storage_nbytes=x.untyped_storage().nbytes(),
    )


def nchw_to_nhwc(images: Shaped[Tensor, "b c h w"]) -> Shaped[Tensor, "b h w c"]:
    """A batch of images with the channels last, as a view.

    >>> nchw_to_nhwc(torch.arange(6).view(1, 2, 1, 3))
    tensor([[[[0, 3],
              [1, 4],
              [2, 5]]]])

    Element [i, y, x, k] of the result is element [i, k, y, x] of `images`. Nothing is copied: a write to the result
    shows in `images`. The dtype may be any, integers too. (torch's memory format `channels_last` is another thing: it
    changes the strides and keeps the shape.)

    Raises ValueError, with the shape, if `images` does not have four dimensions.
    See: tensor views, https://docs.pytorch.org/docs/stable/tensor_view.html
    """
    if images.ndim != 4:
        raise ValueError(f"images must be [b c h w], got shape {tuple(images.shape)}")
    return images.permute(0, 2, 3, 1)


def outer_sum(a: Shaped[Tensor, " n"], b: Shaped[Tensor, " m"]) -> Shaped[Tensor, "n m"]:
    """Every element of `a` plus every element of `b`, as a table.

    >>> outer_sum(torch.tensor([10, 20]), torch.tensor([1, 2, 3]))
    tensor([[11, 12, 13],
            [21, 22, 23]])

    Element [i, j] is a[i] + b[j]. The work is done by broadcasting, in one addition. Integers are added too, and two
    different dtypes promote as torch's addition does (int64 and float32 give float32). Either may be empty.

    Raises ValueError, with the shape, if `a` or `b` does not have exactly one dimension.
    See: broadcasting semantics, https://docs.pytorch.org/docs/stable/notes/broadcasting.html
    """
    if a.ndim != 1 or b.ndim != 1:
        raise ValueError(f"a and b must be vectors, got shapes {tuple(a.shape)} and {tuple(b.shape)}")
    return a[:, None] + b


def strict_mse(prediction: Float[Tensor, "*dims"], target: Float[Tensor, "*dims"]) -> Float[Tensor, ""]:
    """The mean squared error of two tensors of one shape, as a 0-dim tensor.

    >>> strict_mse(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 4.0]))
    tensor(2.)

    The mean is over all elements. The two shapes must be equal: shapes that would only broadcast, as (n,) and (n, 1)
    do, are an error here, because the mean over all n·n pairs is a plausible number and almost never what was meant.

    Raises ValueError, with both shapes, if they are not equal. Raises TypeError if either tensor holds integers.
    Refused: torch.nn.functional.mse_loss, torch.nn.MSELoss.
    See: torch.nn.MSELoss, https://docs.pytorch.org/docs/stable/generated/torch.nn.MSELoss.html
    """
    _require_floating(prediction=prediction, target=target)
    if prediction.shape != target.shape:
        raise ValueError(f"prediction and target differ in shape: {tuple(prediction.shape)}, {tuple(target.shape)}")
    return (prediction - target).square().mean()


def broadcast_shape(*shapes: Sequence[int]) -> tuple[int, ...]:
    """The shape that tensors of the given shapes broadcast to.

    >>> broadcast_shape((5, 1, 3), (4, 1))
    (5, 4, 3)

    Shapes are aligned at their last dimension, and a missing dimension counts as size 1. In each place the sizes must
    be equal or 1; a 1 gives way to any other size, 0 included, so 0 against 1 gives 0. There may be any number of
    shapes: none at all gives `()`, a single one gives itself. A shape may be a tuple, a list or a torch.Size; the
    result is a plain tuple. This is arithmetic on shapes: no tensor is made.

    Raises ValueError if two sizes clash (0 against 2 does), with both of these sizes, and ValueError with the size if
    any size is negative, also where only one shape is given.
    Refused: torch.broadcast_shapes, torch.broadcast_tensors.
    See: torch.broadcast_shapes, https://docs.pytorch.org/docs/stable/generated/torch.broadcast_shapes.html
    """
    ndim = max(map(len, shapes), default=0)
    result = [1] * ndim
    for shape in shapes:
        for dim, size in enumerate(shape, start=ndim - len(shape)):
            if size < 0:
                raise ValueError(f"size {size} in shape {tuple(shape)} is negative")
            if result[dim] == 1:
                result[dim] = size
            elif size not in (1, result[dim]):
                raise ValueError(f"sizes {result[dim]} and {size} clash in shapes {[*map(tuple, shapes)]}")
    return tuple(result)


def one_hot(
    index: Int[Tensor, "*batch"], num_classes: int, dtype: torch.dtype = torch.float32
) -> Shaped[Tensor, "*batch num_classes"]:
    """A row for each index, with a one where the index points and zeros elsewhere.

    >>> one_hot(torch.tensor([2, 0]), num_classes=3)
    tensor([[0., 0., 1.],
            [1., 0., 0.]])

    `index` may have any number of dimensions: a 0-dim one gives a single row, an empty one gives no rows. It may have
    any integer dtype, int8 and uint8 too, also where `num_classes` is larger than that dtype can hold. The result has
    the dtype asked for.

    Raises IndexError, with the offending index, if one is negative or not below `num_classes`. Raises TypeError if
    `index` is not of integers; booleans are not. Raises ValueError, with the number, if `num_classes` is below 1.
    Refused: torch.nn.functional.one_hot, torch.eye.
    See: one_hot, https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.one_hot.html
    """
    if not _is_integer(index):
        raise TypeError(f"index must be of integers, got {index.dtype}")
    if num_classes < 1:
        raise ValueError(f"num_classes must be at least 1, got {num_classes}")
    index = index.long()  # in int8, num_classes = 300 would wrap around to 44
    _require_within(index, 0, num_classes)
    rows = torch.zeros(*index.shape, num_classes, dtype=dtype, device=index.device)
    return rows.scatter_(-1, index[..., None], 1)


def standardize(x: Float[Tensor, "*dims"], dim: int | tuple[int, ...], eps: float = 1e-5) -> Float[Tensor, "*dims"]:
    """The values of each group moved to mean 0 and scaled to variance 1.

    >>> standardize(torch.tensor([[1.0, 3.0], [10.0, 30.0]]), dim=1, eps=0.0)
    tensor([[-1.,  1.],
            [-1.,  1.]])

    The result is (x - mean) / sqrt(var + eps), where mean and the biased variance (divided by the number of values,
    not by one less) are taken over `dim`: one dimension, or a tuple of dimensions that together form one group.
    Negative dimensions count from the end. Shape and dtype are those of `x`.

    It is precise far from 0: float32 values around 10,000 that differ by about 1 come out right to two decimals or
    better.

    Raises TypeError if `x` holds integers.
    Refused: layer_norm, rms_norm, batch_norm, instance_norm, group_norm, and their modules.
    See: torch.nn.LayerNorm, https://docs.pytorch.org/docs/stable/generated/torch.nn.LayerNorm.html
    """
    _require_floating(x=x)
    # In half precision squares overflow and a small eps is 0, so that is computed in float32.
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    # A shift by any constant changes nothing, so it needs no gradient. Far from 0 the mean is itself rounded; what it
    # leaves is small, and that mean is exact enough.
    centred = wide - wide.detach().mean(dim, keepdim=True)
    centred = centred - centred.mean(dim, keepdim=True)
    variance = centred.square().mean(dim, keepdim=True)
    return (centred / (variance + eps).sqrt()).to(x.dtype)


def pairwise_sq_dists(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
    """The squared Euclidean distance from every row of `x` to every row of `y`.

    >>> pairwise_sq_dists(torch.tensor([[0.0, 0.0], [1.0, 1.0]]), torch.tensor([[3.0, 4.0], [1.0, 1.0], [0.0, 2.0]]))
    tensor([[25.,  2.,  4.],
            [13.,  0.,  2.]])

    Element [i, j] is the sum of (x[i] - y[j])². It is computed from the differences, so that it is exactly 0 for equal
    rows and never negative, however far the rows are from the origin. No rows give an empty table, rows without
    columns give zeros.

    Raises ValueError, with both shapes, if the rows of `x` and `y` differ in length or if either tensor does not have
    two dimensions. Raises TypeError if either holds integers.
    Refused: cdist, pdist, pairwise_distance, and every norm (torch.norm, torch.linalg.norm, vector_norm).
    See: torch.cdist, https://docs.pytorch.org/docs/stable/generated/torch.cdist.html
    """
    _require_floating(x=x, y=y)
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise ValueError(f"x and y must be [n d] and [m d], got shapes {tuple(x.shape)} and {tuple(y.shape)}")
    return (x[:, None] - y).square().sum(-1)  # |x|² - 2xy + |y|² is faster, and cancels for rows far from 0


def batched_gather(x: Shaped[Tensor, "b n d"], index: Int[Tensor, "b k"]) -> Shaped[Tensor, "b k d"]:
    """For each batch element its own choice of rows.

    >>> x = torch.arange(12).view(2, 3, 2)
    >>> batched_gather(x, torch.tensor([[0, 0], [-1, 1]]))
    tensor([[[ 0,  1],
             [ 0,  1]],
    <BLANKLINE>
            [[10, 11],
             [ 8,  9]]])

    Element [i, j] of the result is row index[i, j] of x[i], a copy. A negative index counts from the end. `index` is
    int32 or int64; `x` may have any dtype. Where an index repeats, the gradients of all its copies add up in the row.

    Raises TypeError if `index` has another dtype. Raises ValueError, with both shapes, if the batch sizes differ (1
    against b too), if `x` does not have three dimensions or `index` two. Raises IndexError, with the offending index,
    if one is outside [-n, n); this is found out before a row is read.
    See: torch.gather, https://docs.pytorch.org/docs/stable/generated/torch.gather.html
    """
    if index.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"index must be int32 or int64, got {index.dtype}")
    if x.ndim != 3 or index.ndim != 2 or len(x) != len(index):
        raise ValueError(f"x and index must be [b n d] and [b k], got {tuple(x.shape)} and {tuple(index.shape)}")
    # On a GPU a bad index is an assertion in the kernel, reported later and for good: look before reading.
    _require_within(index, -x.shape[1], x.shape[1])
    batch = torch.arange(len(x), device=x.device)
    return x[batch[:, None], index]


def add_scaled_(y: Shaped[Tensor, "*dims"], x: Shaped[Tensor, "..."], alpha: float = 1.0) -> Shaped[Tensor, "*dims"]:
    """Adds `alpha` times `x` to `y` in `y`'s own memory, and returns `y`.

    >>> y = torch.tensor([1.0, 2.0])
    >>> add_scaled_(y, torch.tensor(10.0), alpha=0.5) is y
    True
    >>> y
    tensor([6., 7.])

    The object returned is `y` itself. Where `y` is a view, the tensor behind it changes too. `x` may broadcast to the
    shape of `y`, and is left as it is; `y` never grows. The operation is recorded by autograd: gradients reach `x` and
    what `y` was before. An integer `y` takes an integer `x` and a whole `alpha`, such as 2, -1.0 or the default 1.0.

    Raises ValueError, with both shapes, if `x` does not broadcast to the shape of `y`. Raises TypeError if `y` is of
    integers and `x` is not, or `alpha` is not whole. In each of these cases `y` is unchanged.
    See: torch.Tensor.add_, https://docs.pytorch.org/docs/stable/generated/torch.Tensor.add_.html
    """
    if broadcast_shape(y.shape, x.shape) != y.shape:
        raise ValueError(f"x of shape {tuple(x.shape)} does not broadcast to y of shape {tuple(y.shape)}")
    if _is_integer(y):
        if not _is_integer(x) or alpha % 1 != 0:
            raise TypeError(f"y of {y.dtype} takes integers and a whole alpha, got {x.dtype} and {alpha}")
        alpha = int(alpha)  # torch takes no float here, not even 1.0
    return y.add_(x, alpha=alpha)


def move_to(batch: Any, device: torch.device | str) -> Any:
    """The same nest of containers with every tensor in it on `device`.

    >>> move_to({"x": torch.zeros(2), "rest": [torch.zeros(1), "name"]}, "meta")
    {'x': tensor(..., device='meta', size=(2,)), 'rest': [tensor(..., device='meta', size=(1,)), 'name']}

    Looks into dicts, lists, tuples and namedtuples, nested in any way. Everything else (numbers, strings, None, sets,
    dataclasses) is passed through as the same object, and so is a tensor that is on `device` already. Containers keep
    their type, subclasses included: an OrderedDict stays one, a dict keeps its order, a defaultdict its factory. The
    containers of the input are not modified. `batch` may also be a single tensor. Gradients flow back through the
    move.

    See: torch.Tensor.to, https://docs.pytorch.org/docs/stable/generated/torch.Tensor.to.html
    """
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, dict):
        moved = copy.copy(batch)  # also keeps what a subclass carries, such as a default_factory
        for key, value in batch.items():
            moved[key] = move_to(value, device)
        return moved
    if isinstance(batch, list):
        moved = copy.copy(batch)
        moved[:] = [move_to(value, device) for value in batch]
        return moved
    if isinstance(batch, tuple):
        # A namedtuple's constructor takes its fields one by one, every other tuple's takes one iterable.
        build = getattr(batch, "_make", type(batch))
        return build([move_to(value, device) for value in batch])
    return batch


def _is_integer(x: Tensor) -> bool:
    return not (x.is_floating_point() or x.is_complex() or x.dtype == torch.bool)


def _require_floating(**tensors: Tensor) -> None:
    for name, x in tensors.items():
        if not x.is_floating_point():
            raise TypeError(f"{name} must be of floating point, got {x.dtype}")


def _require_within(index: Tensor, low: int, high: int) -> None:
    outside = index[(index < low) | (index >= high)]
    if outside.numel() > 0:
        raise IndexError(f"index {outside[0].item()} is outside [{low}, {high})")
