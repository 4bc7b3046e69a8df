"""Views: seeing the same memory in another shape, and knowing when only a copy can do it."""

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
    raise NotImplementedError


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
    raise NotImplementedError


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
    raise NotImplementedError


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
    raise NotImplementedError


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
    raise NotImplementedError


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
    raise NotImplementedError


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
    raise NotImplementedError


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
    raise NotImplementedError


def merge_heads(x: Shaped[Tensor, "batch heads time head_dim"]) -> Shaped[Tensor, "batch time dim"]:
    """The heads' features side by side again: the inverse of `split_heads`.

    >>> merge_heads(torch.tensor([[[[0, 1], [4, 5]], [[2, 3], [6, 7]]]])).tolist()
    [[[0, 1, 2, 3], [4, 5, 6, 7]]]

    dim is heads * head_dim, the features of head 0 first. Copies only where the strides of x leave no other way: what
    `split_heads` made comes back as a view of the same memory.

    Raises ValueError, with the shape, if x does not have four dimensions.
    See: torch.reshape, https://docs.pytorch.org/docs/stable/generated/torch.reshape.html
    """
    raise NotImplementedError


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
    raise NotImplementedError


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
    raise NotImplementedError


def interleave(a: Shaped[Tensor, " n *rest"], b: Shaped[Tensor, " n *rest"]) -> Shaped[Tensor, " 2*n *rest"]:
    """The rows of two tensors in turn: a0 b0 a1 b1 ..., a copy.

    >>> interleave(torch.tensor([1, 3]), torch.tensor([2, 4]))
    tensor([1, 2, 3, 4])

    The result has memory of its own: writes to it show in neither input.

    Raises ValueError, with both shapes, if the shapes differ; with the shape if they have no dimension.
    See: torch.stack, https://docs.pytorch.org/docs/stable/generated/torch.stack.html
    """
    raise NotImplementedError
