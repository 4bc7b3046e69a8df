"""What does the capstone attend to when it reads a digit, and what do its
positions and its schedule look like? Do digits that were moved in training help
with digits in place, and with digits that have moved?
"""

from dataclasses import dataclass

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from transformer import MultiHeadAttention, scaled_dot_product_attention, sinusoidal_positions, warmup_cosine

from capstone import digits
from dojo.lab import BLUE, ORANGE, aligned, canvas, progress

EPOCHS = 10


@dataclass(frozen=True)
class Course:
    """The share of held-out digits that are read after each epoch: in place, and moved by a pixel."""

    in_place: list[float]
    moved: list[float]


@dataclass(frozen=True)
class Measured:
    """Both courses of training, what the first model attends to, positions [time dim], and the schedule's factors."""

    cropped: Course
    plain: Course
    images: Tensor  # [n 8 8]
    attention: Tensor  # [n heads 16]: from all patches to each
    positions: Tensor
    schedule: dict[str, list[float]]


def share_read(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    with torch.no_grad():
        return (model.eval()(images).argmax(1) == labels).float().mean().item()


def received(attention: MultiHeadAttention, x: Tensor) -> Tensor:
    """How much each position of x [b t d] gets of the attention of all, in each head: [b heads t]."""

    def heads(projection: nn.Module) -> Tensor:
        return projection(x).unflatten(-1, (attention.heads, -1)).transpose(1, 2)

    q, k, v = heads(attention.q_proj), heads(attention.k_proj), heads(attention.v_proj)
    return scaled_dot_product_attention(q, k, v)[1].mean(-2)


def measure() -> Measured:
    data = digits.load(torch.Generator().manual_seed(0))  # those that train holds out
    images, labels = data.held_out_images, data.held_out_labels
    courses = {0: Course([], []), 1: Course([], [])}
    models = {}
    for padding, epoch in progress([(p, e) for p in courses for e in range(EPOCHS)], "training"):
        if epoch == 0:
            training = digits.train(seed=0, epochs=EPOCHS, padding=padding)
        now = next(training)
        models[padding] = now.model
        courses[padding].in_place.append(now.accuracy)
        moved = [images.roll(step, dims) for step, dims in ((1, 2), (-1, 2), (1, 3), (-1, 3))]
        courses[padding].moved.append(share_read(now.model, torch.cat(moved), labels.repeat(4)))
    seen = []
    layer = next(m for m in reversed(list(models[0].modules())) if isinstance(m, MultiHeadAttention))
    layer.register_forward_pre_hook(lambda layer, args: seen.append(received(layer, args[0])))
    examples = torch.stack([(labels == digit).nonzero()[0, 0] for digit in (0, 3, 7)])
    share_read(models[0], images[examples], labels[examples])
    return Measured(
        cropped=courses[1],
        plain=courses[0],
        images=images[examples, 0],
        attention=seen[0].detach(),
        positions=sinusoidal_positions(64, 32),
        schedule={
            f"warm-up {warmup}, floor {floor}": [warmup_cosine(step, warmup, 100, floor) for step in range(120)]
            for warmup, floor in ((0, 0.0), (20, 0.0), (20, 0.1))
        },
    )


def table(measured: Measured) -> list[str]:
    share = measured.attention / measured.attention.sum(-1, keepdim=True)
    widest = share.max(-1).values.mean()
    return [
        *aligned(
            (f"digits read after {EPOCHS} epochs", "in place", "moved by a pixel"),
            (
                "trained on digits as they are",
                *(f"{a:.1%}" for a in (measured.plain.in_place[-1], measured.plain.moved[-1])),
            ),
            ("trained on crops", *(f"{a:.1%}" for a in (measured.cropped.in_place[-1], measured.cropped.moved[-1]))),
        ),
        "",
        f"  a head gives {widest:.0%} of its attention to one of 16 patches (even shares: 6%)",
    ]


def draw(measured: Measured) -> Figure:
    figure, (positions, schedule, accuracy, attention) = canvas(
        "Crops teach a Transformer to read digits that have moved, and slow it down on the others",
        rows=2,
        height=8.6,
    )
    image = positions.imshow(measured.positions.T.numpy(), aspect="auto", vmin=-1, vmax=1)
    figure.colorbar(image, label="value")
    positions.set(title="Positions: slow and fast waves tell them apart", xlabel="position", ylabel="column")
    for (name, factors), style in zip(measured.schedule.items(), ("-", "--", ":"), strict=True):
        schedule.plot(factors, style, label=name)
    schedule.set(title="The schedule, for 100 steps in all", xlabel="step", ylabel="factor of the learning rate")
    schedule.legend()
    epochs = range(1, EPOCHS + 1)
    for name, course, color in (("digits", measured.plain, ORANGE), ("crops", measured.cropped, BLUE)):
        accuracy.plot(epochs, course.in_place, "-", color=color, label=f"trained on {name}: in place")
        accuracy.plot(epochs, course.moved, "--", color=color, label=f"trained on {name}: moved")
    accuracy.set(
        title="Held-out digits, in place and moved by a pixel", xlabel="epoch", ylabel="share read", ylim=(0, 1)
    )
    accuracy.legend(fontsize=11)
    attention.imshow(_side_by_side(measured).numpy(), vmin=0, vmax=1)
    attention.set(title="Where a patch's attention goes (brighter: more)", yticks=[])
    attention.set_xticks([3.5 + 9 * place for place in range(5)], ["digit", *(f"head {head}" for head in range(1, 5))])
    attention.spines[:].set_visible(False)
    return figure


def _side_by_side(measured: Measured) -> Tensor:
    """Each digit and the shares of its patches in each head, as one picture of grey values from 0 to 1."""
    rows = []
    for image, heads in zip(measured.images, measured.attention, strict=True):
        patches = heads.unflatten(-1, (4, 4)).repeat_interleave(2, -2).repeat_interleave(2, -1)
        tiles = [(tile - tile.min()) / (tile.max() - tile.min()) for tile in (image, *patches)]
        rows.append(torch.cat([nn.functional.pad(tile, (0, 1, 0, 1), value=torch.nan) for tile in tiles], 1))
    return torch.cat(rows)
