"""Samples and hypothesis strategies: shapes, sizes and tensors whose values repeat."""

import gc
import math

import hypothesis
import torch
from hypothesis import strategies as st
from hypothesis.internal.conjecture import providers
from torch import Tensor

GENERATOR = torch.Generator().manual_seed(0)


class _TorchRandom:
    """Lets hypothesis rewind torch's generators between examples: without it they do not replay."""

    generators = (GENERATOR, torch.default_generator)

    def seed(self, seed: int) -> None:
        for generator in self.generators:
            generator.manual_seed(seed)

    def getstate(self) -> list[Tensor]:
        return [generator.get_state() for generator in self.generators]

    def setstate(self, states: list[Tensor]) -> None:
        for generator, state in zip(self.generators, states, strict=True):
            generator.set_state(state)


gc.freeze()  # hypothesis looks through all objects for a reference to the one below, which it holds weakly itself
_kept = [_TorchRandom()]
hypothesis.register_random(_kept[0])

# Hypothesis mixes the constants of every loaded module of ours into its examples, the learner's among them, and writes
# them to disk: the same seed would show other examples after each edit, in each folder, and in a run of several katas.
providers._get_local_constants = lambda: providers._local_constants


def reseed(seed: int = 0) -> None:
    """Makes the samples begin anew."""
    GENERATOR.manual_seed(seed)


def use_profile(name: str = "katas") -> None:
    """Sets how hypothesis searches: "katas", or "once", a single example for a function that is not written yet."""
    if not hypothesis.settings.get_current_profile_name().startswith(("katas", "once")):
        common = {
            "deadline": None,  # a slow machine is no failure
            "database": None,  # nothing is left on disk
            "report_multiple_bugs": False,
            "print_blob": False,
            "suppress_health_check": list(hypothesis.HealthCheck),
        }
        explicit, generate, shrink = hypothesis.Phase.explicit, hypothesis.Phase.generate, hypothesis.Phase.shrink
        hypothesis.settings.register_profile("katas", max_examples=25, phases=[explicit, generate, shrink], **common)
        hypothesis.settings.register_profile("once", max_examples=1, phases=[generate], **common)
    hypothesis.settings.load_profile(name)


def sample(
    *shape: int, dtype: torch.dtype = torch.float32, low: float = -2, high: float = 2, device: str = "cpu"
) -> Tensor:
    """A tensor of reproducible values between low and high (excluded): new ones at each call, the same in each run."""
    if dtype == torch.bool:
        return torch.randint(2, shape, generator=GENERATOR).to(device, dtype)
    if dtype.is_floating_point:
        values = torch.rand(shape, generator=GENERATOR, dtype=torch.float64) * (high - low) + low
        return values.to(device, dtype)
    return torch.randint(math.ceil(low), math.ceil(high), shape, generator=GENERATOR, dtype=dtype).to(device)


sizes = st.integers(1, 6)


def shapes(min_dims: int = 0, max_dims: int = 3, min_size: int = 1, max_size: int = 4) -> st.SearchStrategy[tuple]:
    """Shapes of few and small dimensions."""
    return st.lists(st.integers(min_size, max_size), min_size=min_dims, max_size=max_dims).map(tuple)


def tensors(
    shape: tuple[int, ...] | st.SearchStrategy, dtype: torch.dtype = torch.float32
) -> st.SearchStrategy[Tensor]:
    """Tensors of the shape (or of shapes drawn from a strategy), with values from a seed that hypothesis draws."""

    def build(shape, seed):
        generator = torch.Generator().manual_seed(seed)
        return (torch.rand(shape, generator=generator, dtype=torch.float64) * 4 - 2).to(dtype)

    drawn = shape if isinstance(shape, st.SearchStrategy) else st.just(shape)
    return st.builds(build, drawn, st.integers(0, 2**16))


def strided(x: Tensor, layout: str) -> Tensor:
    """x's values under other strides: "transposed", "sliced" (every second element, from an offset) or "expanded".

    Expanded: all rows of the first dimension are row 0, in one place; the values are therefore not x's.
    """
    if x.ndim == 0:
        return x
    if layout == "transposed":
        order = list(reversed(range(x.ndim)))
        return x.permute(order).contiguous().permute(order)
    if layout == "sliced":
        wide = x.new_ones((*x.shape[:-1], 2 * x.shape[-1] + 3))  # not 0: reading the gaps must show
        wide[..., 3::2] = x
        return wide[..., 3::2]
    if layout == "expanded":
        return x[:1].clone().expand(x.shape)
    raise ValueError(f"no such layout: {layout}")
