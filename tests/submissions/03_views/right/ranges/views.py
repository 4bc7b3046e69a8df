"""Views, told through ranges, index arithmetic and torch's shape-only meta device."""

from functools import reduce
from operator import mul

import torch
from torch import Tensor


def _need(ok, *said):
    if not ok:
        raise ValueError(" / ".join(map(str, said)))


def same_storage(a: Tensor, b: Tensor) -> bool:
    mine, yours = a.untyped_storage(), b.untyped_storage()
    return mine.nbytes() == yours.nbytes() and mine.data_ptr() == yours.data_ptr()


def element_offset(x: Tensor, index) -> int:
    index = [*index]
    _need(len(index) == x.dim(), len(index), x.dim())
    try:
        places = [range(n)[i] for n, i in zip(x.shape, index, strict=True)]
    except IndexError:
        raise IndexError(f"{index} in {list(x.shape)}") from None
    return x.storage_offset() + sum(map(mul, places, x.stride()))


def resolve_shape(numel: int, shape) -> tuple[int, ...]:
    shape = [*shape]
    known = reduce(mul, (n for n in shape if n != -1), 1)
    said = (numel, known, shape)
    _need(numel >= 0 and all(n >= -1 for n in shape) and shape.count(-1) < 2, *said)
    if -1 in shape:
        _need(known != 0, *said)
        q, rest = divmod(numel, known)
        _need(rest == 0, *said)
        shape[shape.index(-1)] = q
        return (*shape,)
    _need(known == numel, *said)
    return (*shape,)


def try_view(x: Tensor, shape) -> Tensor | None:
    shape = resolve_shape(x.numel(), shape)
    ghost = torch.empty_strided(x.shape, x.stride(), device="meta")
    try:
        strides = ghost.view(shape).stride()
    except RuntimeError:
        return None
    return x.as_strided(shape, strides)


def center_crop(images: Tensor, height: int, width: int) -> Tensor:
    _need(images.dim() > 1, tuple(images.shape))
    for dim, want in ((-2, height), (-1, width)):
        have = images.size(dim)
        _need(1 <= want <= have, want, have)
        images = images.narrow(dim, (have - want) // 2, want)
    return images


def sliding_windows(x: Tensor, size: int, step: int = 1) -> Tensor:
    _need(x.dim() > 0, tuple(x.shape))
    _need(size >= 1 and step >= 1 and size <= x.size(-1), size, step, x.size(-1))
    first = x.narrow(-1, 0, x.size(-1) - size + 1)[..., ::step]
    return x.as_strided([*first.shape, size], [*first.stride(), x.stride(-1)])


def diagonal(x: Tensor) -> Tensor:
    _need(x.dim() > 1, tuple(x.shape))
    _need(x.size(-1) == x.size(-2), tuple(x.shape))
    return x.as_strided([*x.shape[:-1]], [*x.stride()[:-2], x.stride(-1) + x.stride(-2)])


def split_heads(x: Tensor, heads: int) -> Tensor:
    _need(x.dim() == 3, tuple(x.shape))
    _need(heads > 0 and x.size(2) % heads == 0, x.size(2), heads)
    return x.unflatten(2, (heads, x.size(2) // heads)).permute(0, 2, 1, 3)


def merge_heads(x: Tensor) -> Tensor:
    _need(x.dim() == 4, tuple(x.shape))
    moved = x.movedim(2, 1)
    shape = (*moved.shape[:2], moved.size(2) * moved.size(3))
    seen = try_view(moved, shape)
    return moved.contiguous().view(shape) if seen is None else seen


def patchify(images: Tensor, size: int) -> Tensor:
    _need(images.dim() == 4, tuple(images.shape))
    b, c, h, w = images.shape
    _need(size > 0 and h % size == 0 and w % size == 0, h, w, size)
    down, across = h // size, w // size
    grid = images.as_strided(
        (b, down, across, c, size, size),
        [images.stride(0), *(size * n for n in images.stride()[2:]), *images.stride()[1:]],
    )
    return grid.reshape(b, down * across, c * size * size)


def unpatchify(patches: Tensor, size: int, height: int, width: int) -> Tensor:
    _need(patches.dim() == 3, tuple(patches.shape))
    said = (tuple(patches.shape), size, height, width)
    _need(min(size, height, width) > 0, *said)
    (down, r), (across, s) = divmod(height, size), divmod(width, size)
    c, t = divmod(patches.size(2), size * size)
    _need(r == s == t == 0 and patches.size(1) == down * across, *said, down * across)
    out = patches.unflatten(2, (c, size, size)).unflatten(1, (down, across)).permute(0, 3, 1, 4, 2, 5)
    return out.reshape(patches.size(0), c, height, width)


def interleave(a: Tensor, b: Tensor) -> Tensor:
    _need(a.shape == b.shape, tuple(a.shape), tuple(b.shape))
    _need(a.dim() > 0, tuple(a.shape))
    out = a.new_empty((2 * a.size(0), *a.shape[1:]))
    out[0::2] = a
    out[1::2] = b
    return out
