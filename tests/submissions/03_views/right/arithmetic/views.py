"""Everything by strides and counting, in as plain Python as can be."""

import torch


def same_storage(a, b):
    return a.untyped_storage()._cdata == b.untyped_storage()._cdata


def element_offset(x, index):
    index = list(index)
    if len(index) - x.dim() != 0:
        raise ValueError("got %d indices but there are %d dims" % (len(index), x.dim()))
    where = 0
    for axis in range(x.dim()):
        i = index[axis]
        if i < 0:
            i += x.size(axis)
        if i < 0 or i >= x.size(axis):
            raise IndexError("axis %d: %d not in a size of %d" % (axis, index[axis], x.size(axis)))
        where += i * x.stride(axis)
    return where + x.storage_offset()


def resolve_shape(numel, shape):
    free, known = None, 1
    for axis, size in enumerate(shape):
        if size == -1 and free is None:
            free = axis
        elif size < 0:
            raise ValueError(f"bad size {size}")
        else:
            known *= size
    result = [size for size in shape]
    if free is None:
        if known != numel:
            raise ValueError(f"{numel} != {known}")
        return tuple(result)
    if known == 0:
        raise ValueError(f"-1 could be anything: {numel} elements, product of the others {known}")
    if numel - numel // known * known:
        raise ValueError(f"{known} does not divide {numel}")
    result[free] = numel // known
    return tuple(result)


def try_view(x, shape):
    shape = resolve_shape(x.numel(), shape)
    if x.numel() == 0:
        return x.view(shape)
    # merge dimensions of x while they lie evenly, hand the runs out to the new sizes
    runs = []
    for size, stride in zip(x.shape, x.stride(), strict=True):
        if size == 1:
            continue
        if runs and runs[-1][1] == size * stride:
            runs[-1] = [runs[-1][0] * size, stride]
        else:
            runs.append([size, stride])
    strides = []
    for size in reversed(shape):
        if size == 1:
            strides.append(1)
            continue
        if not runs or runs[-1][0] % size:
            return None
        strides.append(runs[-1][1])
        runs[-1] = [runs[-1][0] // size, runs[-1][1] * size]
        if runs[-1][0] == 1:
            runs.pop()
    return x.as_strided(shape, tuple(reversed(strides)), x.storage_offset())


def center_crop(images, height, width):
    for wanted, there in ((height, images.size(-2)), (width, images.size(-1))):
        if wanted < 1 or wanted > there:
            raise ValueError(f"{wanted} of {there}")
    return images.narrow(-2, (images.size(-2) - height) // 2, height).narrow(-1, (images.size(-1) - width) // 2, width)


def sliding_windows(x, size, step=1):
    length = x.size(-1)
    if min(size, step) < 1 or size > length:
        raise ValueError(f"size={size}, step={step}, n={length}")
    count = len(range(0, length - size + 1, step))
    last = x.stride(-1)
    return torch.as_strided(x, x.shape[:-1] + (count, size), x.stride()[:-1] + (last * step, last), x.storage_offset())


def diagonal(x):
    if x.shape[-1] != x.shape[-2]:
        raise ValueError(f"not square: {tuple(x.shape)}")
    strides = x.stride()
    return x.as_strided(x.shape[:-1], strides[:-2] + (strides[-1] + strides[-2],), x.storage_offset())


def split_heads(x, heads):
    batch, time, dim = x.shape
    if heads <= 0:
        raise ValueError(f"heads must be positive, not {heads}")
    each, rest = divmod(dim, heads)
    if rest:
        raise ValueError(f"{dim} % {heads} is {rest}")
    b, t, d = x.stride()
    return x.as_strided((batch, heads, time, each), (b, each * d, t, d), x.storage_offset())


def merge_heads(x):
    batch, heads, time, each = x.shape
    return x.permute(0, 2, 1, 3).reshape((batch, time, heads * each))


def patchify(images, size):
    b, c, h, w = images.shape
    if size < 1:
        raise ValueError(size)
    if h % size != 0:
        raise ValueError(f"height {h} and patches of {size}")
    if w % size != 0:
        raise ValueError(f"width {w} and patches of {size}")
    sb, sc, sh, sw = images.stride()
    rows, columns = h // size, w // size
    grid = images.as_strided(
        (b, rows, columns, c, size, size), (sb, size * sh, size * sw, sc, sh, sw), images.storage_offset()
    )
    return grid.reshape(b, rows * columns, c * size * size)


def unpatchify(patches, size, height, width):
    b, count, values = patches.shape
    for number in (size, height, width):
        if number < 1:
            raise ValueError(number)
    if height % size or width % size or (height // size) * (width // size) != count or values % (size * size):
        raise ValueError(f"{count} patches of {values} values, size {size}, into {height} by {width}")
    c = values // (size * size)
    rows, columns = height // size, width // size
    grid = patches.unflatten(2, (c, size, size)).unflatten(1, (rows, columns))
    return torch.einsum("byxcij->bcyixj", grid).reshape(b, c, height, width)


def interleave(a, b):
    if tuple(a.shape) != tuple(b.shape):
        raise ValueError(f"{list(a.shape)} against {list(b.shape)}")
    return torch.cat([a[:, None], b[:, None]], 1).reshape(2 * a.size(0), *a.shape[1:])
