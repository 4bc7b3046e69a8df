"""Private helpers and a Function of one's own: everything is written out once and named."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn


def _at_least_one(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be positive, it is {size}")


class Linear(nn.Module):
    """By matmul on the transposed weight, kaiming_uniform_ as torch does it."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True):
        super().__init__()
        _at_least_one(in_features=in_features, out_features=out_features)
        self.in_features, self.out_features, self.has_bias = in_features, out_features, bias
        self.weight = nn.Parameter(torch.zeros(out_features, in_features))
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if bias:
            self.bias = nn.Parameter(nn.init.uniform_(torch.zeros(out_features), -1, 1) / math.sqrt(in_features))
        else:
            self.bias = None

    def forward(self, x: Float[Tensor, "*batch in_features"]) -> Float[Tensor, "*batch out_features"]:
        if x.ndim < 1 or x.shape[-1] != self.in_features:
            raise ValueError(f"got {tuple(x.shape)}, wanted (..., {self.in_features})")
        product = torch.matmul(x, self.weight.transpose(0, 1))
        return product.add(self.bias) if self.has_bias else product

    def extra_repr(self) -> str:
        return f"{self.in_features} -> {self.out_features}, bias={self.has_bias}"


class _Block(nn.Module):
    """One hidden layer."""

    def __init__(self, before: int, after: int, activation: nn.Module, dropout: float):
        super().__init__()
        self.linear = Linear(before, after)
        self.activation = activation
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.activation(self.linear(x)))


class MLP(nn.Module):
    """Blocks and a head."""

    def __init__(self, sizes: Sequence[int], activation: Callable[[], nn.Module] = nn.ReLU, dropout: float = 0.0):
        super().__init__()
        if len(sizes) < 2:
            raise ValueError(f"at least 2 sizes, please, not {len(sizes)}")
        _at_least_one(**{f"size number {i}": size for i, size in enumerate(sizes)})
        if not 0 <= dropout <= 1:
            raise ValueError(f"dropout {dropout} is not in [0, 1]")
        *inner, last = sizes
        blocks = [_Block(inner[i], inner[i + 1], activation(), dropout) for i in range(len(inner) - 1)]
        self.body = nn.Sequential(*blocks)
        self.head = Linear(inner[-1], last)

    def forward(self, x: Float[Tensor, "*batch first"]) -> Float[Tensor, "*batch last"]:
        return self.head(self.body(x))


def count_parameters(model: nn.Module, trainable_only: bool = False) -> int:
    """Shapes alone."""
    parameters = filter(lambda p: p.requires_grad, model.parameters()) if trainable_only else model.parameters()
    return sum(math.prod(p.shape) for p in parameters)


class _Focal(torch.autograd.Function):
    """(1 - p)^gamma * -log p with a gradient by hand, from log p."""

    @staticmethod
    def forward(ctx, log_p: Tensor, gamma: float) -> Tensor:
        ctx.save_for_backward(log_p)
        ctx.gamma = gamma
        return (1 - log_p.exp()) ** gamma * -log_p

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        (log_p,) = ctx.saved_tensors
        p, gamma = log_p.exp(), ctx.gamma
        rest = 1 - p
        slope = -(rest**gamma)
        # gamma * rest^(gamma - 1) * p * log p: near p = 1, log p is about -rest, so that the product goes to 0.
        ratio = torch.where(rest > 0, log_p / rest, -torch.ones_like(rest))
        return grad * (slope + gamma * rest**gamma * p * ratio.masked_fill(rest == 0, 0)), None


class FocalLoss(nn.Module):
    """Checks, log p, then the Function."""

    def __init__(self, gamma: float = 2.0, reduction: str = "mean"):
        super().__init__()
        if gamma < 0:
            raise ValueError(f"a negative gamma of {gamma} would favour what is easy")
        if reduction not in ["none", "mean", "sum"]:
            raise ValueError(f"reduction cannot be {reduction}")
        self.gamma = gamma
        self.reduction = reduction

    def forward(self, logits: Float[Tensor, "n c"], targets: Int[Tensor, " n"]) -> Float[Tensor, "..."]:
        if targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool:
            raise TypeError("targets must be integers")
        if logits.ndim != 2:
            raise ValueError(f"logits must have 2 dimensions, their shape is {tuple(logits.shape)}")
        n, c = logits.shape
        if tuple(targets.shape) != (n,):
            raise ValueError(f"{n} rows of logits but targets of shape {tuple(targets.shape)}")
        targets = targets.to(torch.long)
        if n and (targets.min() < 0 or targets.max() >= c):
            raise IndexError(f"targets lie between {targets.min()} and {targets.max()}, classes are {c}")
        rows = torch.arange(n, device=logits.device)
        shifted = logits - logits.detach().amax(dim=1, keepdim=True) if n else logits
        log_p = shifted[rows, targets] - shifted.exp().sum(dim=1).log()
        losses = _Focal.apply(log_p, self.gamma)
        if self.reduction == "none":
            return losses
        return losses.sum() / n if self.reduction == "mean" else losses.sum()

    def extra_repr(self) -> str:
        return f"gamma={self.gamma}, reduction={self.reduction}"


@dataclass
class _Mean:
    """A weighted mean that grows."""

    total: float = 0.0
    weight: int = 0

    def add(self, value: float, weight: int) -> None:
        self.total += value * weight
        self.weight += weight

    def result(self) -> float:
        if not self.weight:
            raise ValueError("no samples were seen")
        return self.total / self.weight


def _gradients(model, loss_fn, optimizer, inputs, targets) -> float:
    """Puts the gradients of one batch in place; returns its loss."""
    model.train()
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = None
    loss = loss_fn(model(inputs), targets)
    loss.backward()
    return loss.item()


def train_step(
    model: nn.Module,
    loss_fn: Callable[[Tensor, Tensor], Tensor],
    optimizer: torch.optim.Optimizer,
    inputs: Shaped[Tensor, " n *features"],
    targets: Shaped[Tensor, " n *rest"],
) -> float:
    """Gradients, then a step."""
    loss = _gradients(model, loss_fn, optimizer, inputs, targets)
    optimizer.step()
    return loss


def fit(
    model: nn.Module,
    loss_fn: Callable[[Tensor, Tensor], Tensor],
    optimizer: torch.optim.Optimizer,
    batches: Iterable[tuple[Tensor, Tensor]],
    epochs: int,
) -> list[float]:
    """The loss is looked at between gradients and step."""
    if epochs < 1:
        raise ValueError(f"{epochs} epochs")
    history = []
    while len(history) < epochs:
        mean = _Mean()
        for inputs, targets in batches:
            loss = _gradients(model, loss_fn, optimizer, inputs, targets)
            if not math.isfinite(loss):
                raise FloatingPointError(f"loss {loss} in epoch {len(history)}")
            optimizer.step()
            mean.add(loss, inputs.shape[0])
        history.append(mean.result())
    return history


def evaluate(
    model: nn.Module, loss_fn: Callable[[Tensor, Tensor], Tensor], batches: Iterable[tuple[Tensor, Tensor]]
) -> tuple[float, float]:
    """Two means; the modes are put back leaf by leaf."""
    loss, accuracy = _Mean(), _Mean()
    training = [module for module in model.modules() if module.training]
    try:
        with torch.inference_mode():
            model.eval()
            for inputs, targets in batches:
                if targets.numel() > 0:
                    logits = model(inputs)
                    loss.add(loss_fn(logits, targets).item(), targets.numel())
                    accuracy.add((logits.argmax(1) == targets).double().mean().item(), targets.numel())
    finally:
        for module in model.modules():
            module.training = any(module is other for other in training)
    return loss.result(), accuracy.result()


@dataclass
class GradientRecorder:
    """A dataclass; a key appears with its first gradient."""

    model: nn.Module
    history: dict[str, list[float]] = field(default_factory=dict)
    handles: list = field(default_factory=list, repr=False)

    def __enter__(self) -> "GradientRecorder":
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                self.handles.append(parameter.register_hook(lambda grad, name=name: self.record(name, grad)))
        return self

    def record(self, name: str, grad: Tensor | None) -> None:
        """Appends a norm."""
        if grad is not None:
            self.history.setdefault(name, []).append(grad.norm(p=2).item())

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()
        self.handles = []
