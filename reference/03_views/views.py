"""Views: seeing the same memory in another shape, and knowing when only a copy can do it."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Shaped
from torch import Tensor


def same_storage(a: Shaped[Tensor, "..."], b: Shaped[Tensor, "..."]) -> bool:
    """Whether two tensors look at one storage.

    >>> x = torch.arange(6)
    >>> same_storage(x[:2], x[4:]), same_storage(x, x.clone())
    (True, False)

    One storage is one block of memory, however each tensor looks at it: also where the two have no element in common,
    where their shapes, strides or dtypes differ (`x.view(torch.int32)`), and where one is the other's `.data` or
    `.detach()`. Equal values in two blocks are not one storage. Tensors whose storage has no bytes are not asked about.

    See: torch.Tensor.untyped_storage, https://docs.pytorch.org/docs/stable/storage.html
    """
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()


def element_offset(x: Shaped[Tensor, "..."], index: Sequence[int]) -> int:
    """Where in its storage the element `x[index]` lies, counted in elements from the storage's start.

    >>> element_offset(torch.arange(12).view(3, 4).t()[1:], (0, -1))
    9

    Right for every tensor with strides: slices, transposes, expanded tensors, and 0-dim ones, whose index is `()`.
    A negative index counts from the end of its dimension, as in Python. The tensor's values are not read.

    Raises ValueError, with both numbers, if there are more or fewer indices than dimensions.
    Raises IndexError, with the index and the size, if an index is outside [-size, size) of its dimension.
    See: torch.Tensor.stride, https://docs.pytorch.org/docs/stable/generated/torch.Tensor.stride.html
    """
    if len(index) != x.ndim:
        raise ValueError(f"{len(index)} indices for a tensor of {x.ndim} dimensions")
    offset = x.storage_offset()
    for dim, (i, size, stride) in enumerate(zip(index, x.shape, x.stride(), strict=True)):
        if not -size <= i < size:
            raise IndexError(f"index {i} is out of range for dimension {dim} of size {size}")
        offset += i % size * stride
    return offset


def resolve_shape(numel: int, shape: Sequence[int]) -> tuple[int, ...]:
    """The shape that `numel` elements take, with a size of -1 replaced by the one that fits.

    >>> resolve_shape(12, (2, -1, 3))
    (2, 2, 3)

    A shape without -1 comes back as a tuple if its sizes multiply to numel; `()` is the shape of one element. Sizes and
    numel may be 0: no elements in the shape (-1, 3) are (0, 3).

    Raises ValueError if -1 occurs twice or another negative size occurs, with that size, or if numel is negative.
    Raises ValueError, with numel and the product of the known sizes, if the sizes do not multiply to numel or, where
    there is a -1, if numel is not divisible by them; also if -1 stands beside a size 0, where any number would fit.
    See: torch.Tensor.view, https://docs.pytorch.org/docs/stable/generated/torch.Tensor.view.html
    """
    shape = tuple(shape)
    if numel < 0 or shape.count(-1) > 1 or any(size < -1 for size in shape):
        raise ValueError(f"{numel} elements in the shape {shape}: only one size may be negative, and that must be -1")
    known = math.prod(size for size in shape if size != -1)
    if -1 not in shape:
        fits = known == numel
    else:
        fits = known > 0 and numel % known == 0
    if not fits:
        raise ValueError(f"{numel} elements do not fit the shape {shape}, whose known sizes multiply to {known}")
    return tuple(numel // known if size == -1 else size for size in shape)


def try_view(x: Shaped[Tensor, "..."], shape: Sequence[int]) -> Shaped[Tensor, "..."] | None:
    """The tensor seen in another shape without a copy, or None where only a copy could do it.

    >>> x = torch.arange(6).view(2, 3)
    >>> try_view(x, (3, -1)).tolist(), try_view(x.t(), (6,))
    ([[0, 1], [2, 3], [4, 5]], None)

    The elements keep their row-major order, as in `reshape`; one size may be -1. A write to the result shows in x.
    Whether it can be done depends on x's strides: a transposed or cropped tensor has some shapes and not others, and a
    tensor without elements has every shape that fits.

    Raises ValueError, as `resolve_shape` does and with the same numbers, if the sizes do not fit: never None for that.
    See: torch.Tensor.view, https://docs.pytorch.org/docs/stable/generated/torch.Tensor.view.html
    """
    shape = resolve_shape(x.numel(), shape)
    try:
        return x.view(shape)
    except RuntimeError:  # the sizes fit, so it can only be the strides
        return None


def center_crop(images: Shaped[Tensor, "*batch h w"], height: int, width: int) -> Shaped[Tensor, "*batch height width"]:
    """The middle window of each image, as a view.

    >>> center_crop(torch.arange(12).view(3, 4), height=1, width=2)
    tensor([[5, 6]])

    The same margin is left on both sides; an odd row or column left over is left at the end.
    Nothing is copied: a write to the window shows in the image.

    Raises ValueError, with both numbers, if the window is larger than the image or smaller than 1.
    Raises ValueError, with the shape, if images has fewer than two dimensions.
    See: torch.Tensor.narrow, https://docs.pytorch.org/docs/stable/tensor_view.html
    """
    _check_dims(images, "*batch h w")
    h, w = images.shape[-2:]
    if not (1 <= height <= h and 1 <= width <= w):
        raise ValueError(f"a {height}×{width} window does not fit an image of {h}×{w}")
    top, left = (h - height) // 2, (w - width) // 2
    return images[..., top : top + height, left : left + width]


def sliding_windows(x: Shaped[Tensor, "*batch n"], size: int, step: int = 1) -> Shaped[Tensor, "*batch windows size"]:
    """Every window of `size` neighbours along the last dimension, `step` apart, as a view.

    >>> sliding_windows(torch.arange(6), size=3, step=2)
    tensor([[0, 1, 2],
            [2, 3, 4]])

    Only whole windows count: what is left at the end is in none. Nothing is copied, though windows may overlap: a write
    to x shows in every window over it. x may have any strides and begin anywhere in its storage.

    Raises ValueError, with both numbers, if size is greater than n; with the number if size or step is less than 1.
    Raises ValueError, with the shape, if x has no dimension.
    Refused: torch.Tensor.unfold, torch.nn.functional.unfold.
    See: torch.as_strided, https://docs.pytorch.org/docs/stable/generated/torch.as_strided.html
    """
    _check_dims(x, "*batch n")
    n = x.shape[-1]
    if not 1 <= size <= n:
        raise ValueError(f"windows of {size} do not fit {n} elements")
    if step < 1:
        raise ValueError(f"step must be at least 1, got {step}")
    *batch, stride = x.stride()
    # as_strided counts from the storage's start, yet keeps x's own offset unless it is given another.
    return x.as_strided((*x.shape[:-1], (n - size) // step + 1, size), (*batch, step * stride, stride))


def diagonal(x: Shaped[Tensor, "*batch n n"]) -> Shaped[Tensor, "*batch n"]:
    """The main diagonal of each matrix, as a view that can be written to.

    >>> x = torch.zeros(2, 2)
    >>> diagonal(x).fill_(1.0)
    tensor([1., 1.])
    >>> x
    tensor([[1., 0.],
            [0., 1.]])

    x may have any strides and begin anywhere in its storage; n may be 0.

    Raises ValueError, with both numbers, if the matrices are not square; with the shape if x has fewer than two
    dimensions.
    Refused: torch.diagonal and its siblings (torch.diag, torch.linalg.diagonal), torch.einsum.
    See: torch.as_strided, https://docs.pytorch.org/docs/stable/generated/torch.as_strided.html
    """
    _check_dims(x, "*batch n n")
    n, columns = x.shape[-2:]
    if n != columns:
        raise ValueError(f"a matrix of {n}×{columns} is not square")
    *batch, down, right = x.stride()
    # One step along the diagonal is one down and one to the right.
    return x.as_strided((*x.shape[:-2], n), (*batch, down + right))


def split_heads(x: Shaped[Tensor, "batch time dim"], heads: int) -> Shaped[Tensor, "batch heads time head_dim"]:
    """The features of each step dealt out to `heads` attention heads, as a view.

    >>> split_heads(torch.arange(8).view(1, 2, 4), heads=2).tolist()
    [[[[0, 1], [4, 5]], [[2, 3], [6, 7]]]]

    Head 0 gets the first dim / heads features of every step, head 1 the next ones, and so on. Nothing is copied,
    whatever the strides of x.

    Raises ValueError, with both numbers, if dim is not divisible by heads; with the number if heads is less than 1.
    Raises ValueError, with the shape, if x does not have three dimensions.
    See: Vaswani et al. 2017, Attention Is All You Need, section 3.2.2, https://arxiv.org/abs/1706.03762
    """
    _check_dims(x, "batch time dim")
    dim = x.shape[-1]
    if heads < 1 or dim % heads:
        raise ValueError(f"{dim} features cannot be dealt out evenly to {heads} heads")
    return x.unflatten(-1, (heads, dim // heads)).transpose(1, 2)


def merge_heads(x: Shaped[Tensor, "batch heads time head_dim"]) -> Shaped[Tensor, "batch time dim"]:
    """The heads' features side by side again: the inverse of `split_heads`.

    >>> merge_heads(torch.tensor([[[[0, 1], [4, 5]], [[2, 3], [6, 7]]]])).tolist()
    [[[0, 1, 2, 3], [4, 5, 6, 7]]]

    dim is heads * head_dim, the features of head 0 first. Copies only where the strides of x leave no other way: what
    `split_heads` made comes back as a view of the same memory.

    Raises ValueError, with the shape, if x does not have four dimensions.
    See: torch.reshape, https://docs.pytorch.org/docs/stable/generated/torch.reshape.html
    """
    _check_dims(x, "batch heads time head_dim")
    return x.transpose(1, 2).flatten(2)


def patchify(images: Shaped[Tensor, "b c h w"], size: int) -> Shaped[Tensor, "b patches values"]:
    """Each image cut into square patches, each patch one row of c*size*size values.

    >>> patchify(torch.arange(8).view(1, 1, 2, 4), size=2).tolist()
    [[[0, 1, 4, 5], [2, 3, 6, 7]]]

    Patches come row by row, as one reads: the top left one, its right neighbour, ... In a patch come all values of
    channel 0, row by row, then those of channel 1, ... At most one copy is made, whatever the strides of images.

    Raises ValueError, with the numbers, if h or w is not divisible by size; with the number if size is less than 1.
    Raises ValueError, with the shape, if images does not have four dimensions.
    Refused: torch.Tensor.unfold, torch.nn.functional.unfold.
    See: Dosovitskiy et al. 2021, An Image is Worth 16x16 Words, section 3.1, https://arxiv.org/abs/2010.11929
    """
    _check_dims(images, "b c h w")
    b, c, h, w = images.shape
    if size < 1 or h % size or w % size:
        raise ValueError(f"an image of {h}×{w} cannot be cut into patches of {size}×{size}")
    # Splitting dimensions never copies; only the last step, which joins strangers, has to.
    grid = images.view(b, c, h // size, size, w // size, size)
    return grid.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def unpatchify(
    patches: Shaped[Tensor, "b patches values"], size: int, height: int, width: int
) -> Shaped[Tensor, "b c height width"]:
    """The images that `patchify` cut up: its inverse.

    >>> unpatchify(torch.tensor([[[0, 1, 4, 5], [2, 3, 6, 7]]]), size=2, height=2, width=4).tolist()
    [[[[0, 1, 2, 3], [4, 5, 6, 7]]]]

    The number of channels c follows from the values in a patch, which are c*size*size; c may be 0. At most one copy is
    made, whatever the strides of patches.

    Raises ValueError, with the numbers, if size, height or width is less than 1, if height or width is not divisible
    by size, if height and width need another number of patches, or if the values in a patch are not divisible by
    size*size.
    Raises ValueError, with the shape, if patches does not have three dimensions.
    See: torch.Tensor.permute, https://docs.pytorch.org/docs/stable/generated/torch.permute.html
    """
    _check_dims(patches, "b patches values")
    b, count, values = patches.shape
    if min(size, height, width) < 1 or height % size or width % size:
        raise ValueError(f"patches of {size}×{size} cannot fill an image of {height}×{width}")
    rows, columns = height // size, width // size
    if count != rows * columns:
        raise ValueError(f"an image of {height}×{width} has {rows * columns} patches of {size}×{size}, got {count}")
    if values % size**2:
        raise ValueError(f"{values} values are no whole number of channels of {size}×{size}")
    grid = patches.view(b, rows, columns, values // size**2, size, size)
    return grid.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)


def interleave(a: Shaped[Tensor, " n *rest"], b: Shaped[Tensor, " n *rest"]) -> Shaped[Tensor, " 2*n *rest"]:
    """The rows of two tensors in turn: a0 b0 a1 b1 ..., a copy.

    >>> interleave(torch.tensor([1, 3]), torch.tensor([2, 4]))
    tensor([1, 2, 3, 4])

    The result has memory of its own: writes to it show in neither input.

    Raises ValueError, with both shapes, if the shapes differ; with the shape if they have no dimension.
    See: torch.stack, https://docs.pytorch.org/docs/stable/generated/torch.stack.html
    """
    _check_dims(a, "n *rest")
    if a.shape != b.shape:
        raise ValueError(f"cannot interleave shapes {tuple(a.shape)} and {tuple(b.shape)}")
    return torch.stack((a, b), dim=1).flatten(0, 1)


def _check_dims(x: Tensor, dims: str) -> None:
    """Raises ValueError unless x has the dimensions named, where one with a star stands for any number of them."""
    named = [dim for dim in dims.split() if not dim.startswith("*")]
    if x.ndim < len(named) or (x.ndim > len(named) and "*" not in dims):
        raise ValueError(f"expected a tensor [{dims}], got shape {tuple(x.shape)}")
