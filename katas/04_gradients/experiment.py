"""How far is the numerical gradient from the true one, by the step eps and by the
precision? And how small a mistake in a backward does it still reveal?
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from gradients import LogSumExp, Square, gradient_error, mlp_gradients, numerical_gradient
from matplotlib.figure import Figure
from torch import Tensor

from dojo.lab import BLUE, GREEN, ORANGE, RED, aligned, canvas, digits, progress

PRECISIONS = {"float64": torch.float64, "float32": torch.float32}
# The function, what its backward does wrong, and the factor by which the largest slope is wrong then.
MISTAKES = (
    ("Square", "right", 1),
    ("Square", "one factor of 2 missing", 0.5),
    ("LogSumExp", "right", 1),
    ("LogSumExp", "one sign wrong", -1),
    ("LogSumExp", "one slope 1e-3 too large", 1 + 1e-3),
    ("LogSumExp", "one slope 1e-6 too large", 1 + 1e-6),
    ("LogSumExp", "one slope 1e-11 too large", 1 + 1e-11),
)


@dataclass(frozen=True)
class Case:
    """A function of x, and its gradient by a backward written by hand."""

    f: Callable[[Tensor], Tensor]
    x: Tensor
    gradient: Tensor


@dataclass(frozen=True)
class Check:
    """The largest difference that is found, relative to the largest slope."""

    float64: float  # by gradient_error
    float32: float  # with the eps that is best there


@dataclass(frozen=True)
class Measured:
    """Relative errors of numerical gradients for each eps, and what a check finds in right and wrong gradients."""

    eps: Tensor
    errors: dict[tuple[str, str], Tensor]  # by function and precision
    checks: dict[tuple[str, str], Check]  # by function and mistake


class Mistake(torch.autograd.Function):
    """x as it is, and a gradient multiplied by factors: as if the backward of what is done with x were wrong."""

    @staticmethod
    def forward(ctx, x: Tensor, factors: Tensor) -> Tensor:
        ctx.save_for_backward(factors)
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        (factors,) = ctx.saved_tensors
        return grad * factors, None


def rounded(f: Callable[[Tensor], Tensor], precision: str) -> Callable[[Tensor], Tensor]:
    """f, computed in another precision, for an x of float64 as numerical_gradient wants it."""
    return lambda x: f(x.to(PRECISIONS[precision])).double()


def differentiated(f: Callable[[Tensor], Tensor], x: Tensor) -> Case:
    leaf = x.clone().requires_grad_()
    return Case(f, x, torch.autograd.grad(f(leaf), leaf)[0])


def cases() -> dict[str, Case]:
    x, weights = torch.randn(2, 20, dtype=torch.float64)
    data = digits()
    w1, w2 = torch.randn(8, 64).double() / 8, torch.randn(10, 8).double() / 3
    b1, b2 = torch.zeros(8).double(), torch.zeros(10).double()

    def mlp(b1: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        rows, *parameters = (tensor.to(b1.dtype) for tensor in (data.x[:100], w1, b1, w2, b2))
        return mlp_gradients(rows, data.y[:100], *parameters)

    return {
        "Square": differentiated(lambda x: (Square.apply(x) * weights.to(x.dtype)).sum(), x),
        "LogSumExp": differentiated(lambda x: LogSumExp.apply(x, 0), x),
        "mlp_gradients": Case(lambda b1: mlp(b1)[0], b1, mlp(b1)[1]["b1"]),
    }


def check(case: Case, factor: float, eps: float) -> Check:
    """What is found in a gradient with one mistake; eps is the step in float32."""
    largest = case.gradient.abs().max()
    factors = torch.where(case.gradient.abs() == largest, factor, 1.0)
    difference = numerical_gradient(rounded(case.f, "float32"), case.x, eps) - case.gradient * factors
    return Check(
        float64=gradient_error(lambda x: case.f(Mistake.apply(x, factors)), case.x) / largest.item(),
        float32=(difference.abs().max() / largest).item(),
    )


def measure() -> Measured:
    found = cases()
    steps = torch.logspace(-12, 0, 25, dtype=torch.float64)
    errors = {(name, precision): torch.zeros_like(steps) for name in found for precision in PRECISIONS}
    for i, eps in enumerate(progress(steps.tolist(), "difference quotients")):
        for (name, precision), row in errors.items():
            case = found[name]
            difference = numerical_gradient(rounded(case.f, precision), case.x, eps) - case.gradient
            row[i] = difference.abs().max() / case.gradient.abs().max()
    checks = {}
    for name, mistake, factor in MISTAKES:
        best = steps[errors[name, "float32"].argmin()].item()
        checks[name, mistake] = check(found[name], factor, best)
    return Measured(steps, errors, checks)


def table(measured: Measured) -> list[str]:
    names = dict.fromkeys(name for name, _ in measured.errors)
    best = {key: (f"{measured.eps[row.argmin()]:.0e}", f"{row.min():.0e}") for key, row in measured.errors.items()}
    checks = [
        (", ".join(key), f"{found.float64:.0e}", f"{found.float32:.0e}") for key, found in measured.checks.items()
    ]
    return [
        *aligned(
            ("numerical gradient", "best eps, float64", "error", "best eps, float32", "error"),
            *((name, *best[name, "float64"], *best[name, "float32"]) for name in names),
        ),
        "",
        *aligned(("a backward that is", "gradient_error", "difference in float32"), *checks),
    ]


def draw(measured: Measured) -> Figure:
    figure, (left, right) = canvas(
        "A slope of LogSumExp that is wrong by 1e-6 shows in float64 and hides in float32", height=6.4
    )
    colors = {"Square": BLUE, "LogSumExp": ORANGE, "mlp_gradients": GREEN}
    styles = {"float64": "-", "float32": "--"}
    for (name, precision), row in measured.errors.items():
        left.plot(measured.eps, row, styles[precision], color=colors[name], label=f"{name}, {precision}")
    left.set(title="Rounding on the left, curvature and kinks on the right", xscale="log", yscale="log")
    left.set(xlabel="eps", ylabel="largest error / largest slope")
    left.legend(fontsize=11)

    places = range(len(measured.checks))
    for which, style, size, color, label in (
        ("float64", "o", 6, BLUE, "gradient_error, in float64"),
        ("float32", "s", 12, RED, "in float32, with the eps that is best there"),
    ):
        differences = [getattr(found, which) for found in measured.checks.values()]
        right.plot(
            differences, places, style, markersize=size, markeredgewidth=2, fillstyle="none", color=color, label=label
        )
    right.set(title="A right and a wrong backward", xscale="log")
    right.set(xlabel="largest difference / largest slope", ylim=(len(places) + 0.6, -0.5))
    right.set_yticks(places, [",\n".join(key) for key in measured.checks])
    right.grid(axis="y", alpha=0.3)
    right.legend(loc="lower right")
    return figure
