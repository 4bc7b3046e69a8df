"""As little arithmetic of one's own as possible: torch's operations do the counting."""

import torch
from torch import Tensor


def same_storage(a: Tensor, b: Tensor) -> bool:
    starts = [t.untyped_storage().data_ptr() for t in (a, b)]
    return len(set(starts)) == 1


def element_offset(x: Tensor, index) -> int:
    if len(index) != x.ndim:
        raise ValueError(f"x has {x.ndim} dimensions, the index {tuple(index)} has {len(index)}")
    part = x.detach()
    for i in index:
        if i not in range(-len(part), len(part)):
            raise IndexError(f"{i} is not within {len(part)}")
        part = part.select(0, i)
    return part.storage_offset()


def resolve_shape(numel: int, shape) -> tuple:
    negative = [size for size in shape if size < 0]
    if negative not in ([], [-1]):
        raise ValueError(f"sizes below zero: {negative}")
    product = 1
    for size in shape:
        product *= abs(size)
    try:
        return tuple(torch.empty(numel, device="meta").view(tuple(shape)).shape)
    except RuntimeError:
        raise ValueError(f"{numel} elements, {product} places") from None


def try_view(x: Tensor, shape):
    full = resolve_shape(x.numel(), shape)
    try:
        return torch.Tensor.view(x, full)
    except RuntimeError as error:
        if "stride" in str(error) or "view" in str(error):
            return None
        raise


def center_crop(images: Tensor, height: int, width: int) -> Tensor:
    rows, columns = images.shape[-2:]
    if height > rows or width > columns:
        raise ValueError(f"the image has {rows} rows and {columns} columns, not {height} and {width}")
    if height < 1 or width < 1:
        raise ValueError(f"at least one row and column, not {height} and {width}")
    before = [(rows - height) // 2, (columns - width) // 2]
    after = [rows - height - before[0], columns - width - before[1]]
    return images[..., before[0] : rows - after[0], before[1] : columns - after[1]]


def sliding_windows(x: Tensor, size: int, step: int = 1) -> Tensor:
    if size < 1 or step < 1:
        raise ValueError(f"size {size} and step {step} must be positive")
    if size > x.shape[-1]:
        raise ValueError(f"size {size} is more than {x.shape[-1]}")
    starts = x[..., : x.shape[-1] - size + 1 : step]
    return x.as_strided((*starts.shape, size), (*starts.stride(), x.stride(-1)), x.storage_offset())


def diagonal(x: Tensor) -> Tensor:
    if x.shape[-2] != x.shape[-1]:
        raise ValueError(f"{x.shape[-2]} rows, {x.shape[-1]} columns")
    n = x.shape[-1]
    return torch.as_strided(x, (*x.shape[:-2], n), (*x.stride()[:-2], sum(x.stride()[-2:])))


def split_heads(x: Tensor, heads: int) -> Tensor:
    if heads < 1:
        raise ValueError(f"{heads} heads")
    if x.shape[2] % heads > 0:
        raise ValueError(f"{x.shape[2]} features for {heads} heads")
    return x.view(*x.shape[:2], heads, x.shape[2] // heads).movedim(2, 1)


def merge_heads(x: Tensor) -> Tensor:
    return x.swapaxes(1, 2).flatten(start_dim=2, end_dim=3)


def patchify(images: Tensor, size: int) -> Tensor:
    b, c, h, w = images.shape
    if size < 1 or h % size or w % size:
        raise ValueError(f"{h} by {w} pixels in patches of {size}")
    split = images.unflatten(3, (w // size, size)).unflatten(2, (h // size, size))
    out = images.new_empty(b, h // size, w // size, c, size, size)
    moved = split.movedim((2, 4), (1, 2))
    if images.requires_grad:
        return moved.reshape(b, (h // size) * (w // size), c * size * size)
    out.copy_(moved)
    return out.flatten(1, 2).flatten(2)


def unpatchify(patches: Tensor, size: int, height: int, width: int) -> Tensor:
    if size < 1 or height < 1 or width < 1 or height % size or width % size:
        raise ValueError(f"patches of {size} do not fill {height} by {width}")
    down, across = height // size, width // size
    if patches.shape[1] != down * across:
        raise ValueError(f"{patches.shape[1]} patches where {down * across} are needed")
    if patches.shape[2] % size**2:
        raise ValueError(f"{patches.shape[2]} values in patches of {size} by {size}")
    channels = patches.shape[2] // size**2
    blocks = patches.reshape(len(patches), down, across, channels, size, size)
    return blocks.movedim(3, 1).transpose(3, 4).reshape(len(patches), channels, height, width)


def interleave(a: Tensor, b: Tensor) -> Tensor:
    if a.shape != b.shape:
        raise ValueError(f"shapes {tuple(a.shape)} and {tuple(b.shape)}")
    order = torch.arange(2 * len(a), device=a.device)
    return torch.cat([a, b])[order // 2 + order % 2 * len(a)]
