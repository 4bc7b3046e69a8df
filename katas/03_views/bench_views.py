"""The benchmarks of kata 03: yours against a plain loop and against torch's own, on the size of a small real batch."""

import pytest
import torch
import views

from dojo.compare import assert_same
from dojo.strategies import sample

IMAGES = sample(32, 3, 128, 128)
SERIES = sample(64, 4096)


def loop_patchify(images, size):
    """One patch at a time."""
    _, _, h, w = images.shape
    patches = []
    for top in range(0, h, size):
        for left in range(0, w, size):
            patches.append(images[:, :, top : top + size, left : left + size].flatten(1))
    return torch.stack(patches, dim=1)


def torch_patchify(images, size):
    return torch.nn.functional.unfold(images, size, stride=size).mT


def loop_windows(x, size, step):
    """One window at a time, each copied."""
    return torch.stack([x[..., i : i + size] for i in range(0, x.shape[-1] - size + 1, step)], dim=-2)


def loop_interleave(a, b):
    """One row at a time."""
    return torch.stack([row for pair in zip(a, b, strict=True) for row in pair])


@pytest.mark.benchmark(group="patchify")
@pytest.mark.parametrize("who", ["yours", "loop", "torch"])
def test_patchify(benchmark, who):
    run = {"yours": views.patchify, "loop": loop_patchify, "torch": torch_patchify}[who]
    assert_same(benchmark(run, IMAGES, 16), loop_patchify(IMAGES, 16))


@pytest.mark.benchmark(group="sliding_windows")
@pytest.mark.parametrize("who", ["yours", "loop", "torch"])
def test_sliding_windows(benchmark, who):
    own = {"yours": views.sliding_windows, "loop": loop_windows, "torch": lambda x, *how: x.unfold(-1, *how)}[who]
    assert_same(benchmark(own, SERIES, 64, 16), loop_windows(SERIES, 64, 16))


@pytest.mark.benchmark(group="interleave")
@pytest.mark.parametrize("who", ["yours", "loop"])
def test_interleave(benchmark, who):
    run = {"yours": views.interleave, "loop": loop_interleave}[who]
    assert_same(benchmark(run, SERIES, -SERIES), loop_interleave(SERIES, -SERIES))
