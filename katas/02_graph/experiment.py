"""How large is the graph of a loop that turns as often as its values ask for, and
how does the time of gradients grow with it? How deep is the graph of an MLP?
"""

import math
import shutil
import subprocess
import time
from dataclasses import dataclass
from io import BytesIO

import torch
from graph import depth, gradients, iterate_doubling, op_counts, to_dot, topological_order
from matplotlib import image
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from dojo.lab import BLUE, GREEN, ORANGE, aligned, canvas

LIMIT = 100.0


@dataclass(frozen=True)
class Size:
    """What a graph consists of."""

    nodes: int
    depth: int
    kinds: int


@dataclass(frozen=True)
class Pass:
    """A pass in reverse through a loop of many turns: the best seconds of gradients and of torch, and the gradient."""

    seconds: float
    torch_seconds: float
    gradient: float


@dataclass(frozen=True)
class Measured:
    """Sizes of graphs, passes by the turns of the loop, and drawings as text for dot."""

    small: dict[str, Size]
    loops: dict[float, Size]  # by the norm that x starts with
    passes: dict[int, Pass]  # by turns
    mlps: dict[int, Size]  # by layers
    drawings: dict[str, str]


def size(root: Tensor) -> Size:
    return Size(len(topological_order(root)), depth(root), len(op_counts(root)))


def mlp(layers: int, width: int = 4) -> nn.Sequential:
    """Linear layers with a relu between each two."""
    hidden = [layer for _ in range(layers - 1) for layer in (nn.Linear(width, width), nn.ReLU())]
    return nn.Sequential(*hidden, nn.Linear(width, width))


def pass_in_reverse(turns: int) -> Pass:
    # Powers of 2 have exact norms: the number of turns is the exponent.
    x = torch.tensor([2.0**-turns], dtype=torch.float64, requires_grad=True)
    root = iterate_doubling(x, limit=1.0)
    seconds = []
    for run in (lambda: gradients(root, [x]), lambda: torch.autograd.grad(root, [x], retain_graph=True)):
        best = math.inf
        for _ in range(30):
            started = time.thread_time()  # long passes are interrupted by other programs: their time does not count
            run()
            best = min(best, time.thread_time() - started)
        seconds.append(best)
    return Pass(*seconds, gradient=gradients(root, [x])[0].item())


def measure() -> Measured:
    direction = torch.randn(3)
    direction /= torch.linalg.vector_norm(direction)

    def loop(norm: float) -> Tensor:
        return iterate_doubling((norm * direction).requires_grad_(), LIMIT)

    x = torch.tensor([2.0], requires_grad=True)
    start = (10 * direction).requires_grad_()
    network = mlp(layers=2)
    small = {
        "z = (3x)²": ((3 * x) ** 2, {"x": x}),
        "a loop of 4 turns": (iterate_doubling(start, LIMIT), {"x": start}),
        "an MLP of 2 layers": (network(torch.randn(5, 4)), dict(network.named_parameters())),
    }
    return Measured(
        small={name: size(root) for name, (root, _) in small.items()},
        loops={norm: size(loop(norm)) for norm in torch.logspace(-3, 8, 133, base=2.0).tolist()},
        passes={turns: pass_in_reverse(turns) for turns in (1, 3, 10, 30, 100, 300, 1000)},
        mlps={layers: size(mlp(layers)(torch.randn(5, 4))) for layers in range(1, 13)},
        drawings={name: to_dot(root, names) for name, (root, names) in small.items()},
    )


def table(measured: Measured) -> list[str]:
    sizes = measured.small | {f"an MLP of {layers} layers": measured.mlps[layers] for layers in (4, 8, 12)}
    graphs = [(name, found.nodes, found.depth, found.kinds) for name, found in sizes.items()]
    passes = [
        (turns, f"{found.seconds * 1e6:,.0f} µs", f"{found.torch_seconds * 1e6:,.0f} µs", f"{found.gradient:.3g}")
        for turns, found in measured.passes.items()
        if turns in (1, 10, 100, 1000)
    ]
    return [
        *aligned(("graph of", "nodes", "depth", "kinds of nodes"), *graphs),
        "",
        *aligned(("turns of the loop", "gradients", "torch.autograd.grad", "the gradient"), *passes),
    ]


def picture(dot: str) -> BytesIO:
    """The graph as Graphviz draws it: a PNG."""
    # The drawings stand side by side: without the words that nearly all labels share, their letters can be larger.
    short = dot.replace("torch::autograd::", "").replace("Backward0", "")
    command = ["dot", "-Tpng", "-Granksep=0.25"]
    return BytesIO(subprocess.run(command, input=short.encode(), stdout=subprocess.PIPE, check=True).stdout)


def draw_side_by_side(axis: Axes, drawings: dict[str, str]) -> None:
    """All drawings on one scale."""
    left, gap, tallest = 0, 100, 0
    for name, dot in drawings.items():
        pixels = image.imread(picture(dot))
        height, width = pixels.shape[:2]
        axis.imshow(pixels, extent=(left, left + width, -height, 0))
        axis.text(left + width / 2, 20, name, ha="center")
        left += width + gap
        tallest = max(tallest, height)
    axis.set(xlim=(-gap, left), ylim=(-tallest, 50))


def draw(measured: Measured) -> Figure:
    title = "Each further turn of the loop adds a node; the time of gradients grows with them"
    if shutil.which("dot"):
        figure, axes = canvas(title, rows=2, columns=3, height=9.4, height_ratios=[4, 5])
        for axis in axes[3:]:
            axis.remove()
        drawing = figure.add_subplot(axes[3].get_gridspec()[1, :])
        draw_side_by_side(drawing, measured.drawings)
    else:
        figure, axes = canvas(title, rows=2, columns=2, height=8.6)
        drawing = axes[3]
        name, dot = next(iter(measured.drawings.items()))
        drawing.set_title(f"to_dot of {name}")
        drawing.text(0, 0.95, dot, family="monospace", fontsize=11, va="top")
    drawing.axis("off")

    loops, passes, mlps = axes[:3]
    for axis, sizes, style in ((loops, measured.loops, "steps-mid"), (mlps, measured.mlps, "default")):
        for which, color, line, label in (("nodes", BLUE, "-", "all"), ("depth", ORANGE, "--", "on the longest path")):
            values = [getattr(found, which) for found in sizes.values()]
            axis.plot(list(sizes), values, line, color=color, drawstyle=style, label=label)
        axis.set(ylabel="nodes in the graph", ylim=(-0.5, None))
        axis.legend()
    loops.set(title="The loop's graph is one chain", xlabel=f"starting norm of x, doubled up to {LIMIT:.0f}")
    loops.set_xscale("log", base=2)
    *_, before, last = measured.mlps.values()
    more = f"{last.nodes - before.nodes} nodes, {last.depth - before.depth} deeper for each layer"
    mlps.set(title=more, xlabel="layers of the MLP", xticks=range(2, 13, 2))

    for which, color, style, label in (
        ("seconds", BLUE, "-o", "gradients"),
        ("torch_seconds", GREEN, "--s", "torch.autograd.grad"),
    ):
        values = [getattr(found, which) * 1e6 for found in measured.passes.values()]
        passes.plot(list(measured.passes), values, style, color=color, label=label)
    passes.set(title="A pass in reverse", xscale="log", yscale="log")
    passes.set(xlabel="turns of the loop", ylabel="best time in µs")
    passes.legend()
    return figure
