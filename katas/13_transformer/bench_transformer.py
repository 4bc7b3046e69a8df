"""The benchmarks of kata 13: attention against torch's fused one, in time and memory, and crops against a loop."""

import pytest
import torch
import torch.nn.functional as F
import transformer

from dojo.compare import assert_same
from dojo.guards import live_bytes
from dojo.strategies import sample

IMAGES = sample(256, 3, 32, 32)


def loop_attention(q, k, v):
    """One query at a time."""
    rows = []
    for query in q.unbind(-2):
        weights = ((k @ query[..., None])[..., 0] / q.shape[-1] ** 0.5).softmax(-1)
        rows.append((weights[..., None, :] @ v)[..., 0, :])
    return torch.stack(rows, -2)


ATTENTION = {
    "yours": lambda *qkv: transformer.scaled_dot_product_attention(*qkv)[0],
    "loop": loop_attention,
    "torch": F.scaled_dot_product_attention,
}


@pytest.mark.parametrize("who", ATTENTION)
@pytest.mark.parametrize("time", [64, 512])
def test_attention(benchmark, time, who):
    """The weights [t s] are what a fused attention never holds."""
    benchmark.group = f"scaled_dot_product_attention, {time} steps"
    qkv = [sample(2, 4, time, 32) for _ in range(3)]
    with live_bytes(*qkv) as memory:
        found = ATTENTION[who](*qkv)
    assert_same(found, F.scaled_dot_product_attention(*qkv), rtol=1e-3, atol=1e-4)
    benchmark.name = f"{who}, {memory.peak / 2**20:.1f} MiB"
    benchmark.extra_info["peak bytes"] = memory.peak
    benchmark(ATTENTION[who], *qkv)


def loop_crop(images, padding, generator=None):
    """One image at a time."""
    h, w = images.shape[2:]
    crops = []
    for image in F.pad(images, [padding] * 4):
        row, column = torch.randint(0, 2 * padding + 1, (2,), generator=generator).tolist()
        crops.append(image[:, row : row + h, column : column + w])
    return torch.stack(crops)


@pytest.mark.benchmark(group="random_crop")
@pytest.mark.parametrize("who", ["yours", "loop"])
def test_random_crop(benchmark, who):
    run = {"yours": transformer.random_crop, "loop": loop_crop}[who]
    assert_same(run(IMAGES, 0), IMAGES)
    benchmark(run, IMAGES, 4)
