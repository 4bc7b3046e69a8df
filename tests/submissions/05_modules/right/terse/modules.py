"""Functional and terse: einsum, a subclass of Sequential, a generator of losses, an ExitStack."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import pairwise

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn


def _ok(condition: bool, *complaint: object, error: type[Exception] = ValueError) -> None:
    if not condition:
        raise error(" ".join(map(str, complaint)))


class Linear(nn.Module):
    """einsum."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True):
        super().__init__()
        _ok(min(in_features, out_features) >= 1, "sizes", in_features, out_features)
        self.settings = {"in_features": in_features, "out_features": out_features, "bias": bias}
        self.in_features, self.out_features = in_features, out_features
        draw = lambda *shape: nn.Parameter((2 * torch.rand(*shape) - 1) * in_features**-0.5)  # noqa: E731
        self.weight = draw(out_features, in_features)
        self.register_parameter("bias", draw(out_features) if bias else None)

    def forward(self, x: Float[Tensor, "*batch in_features"]) -> Float[Tensor, "*batch out_features"]:
        _ok(x.ndim > 0 and x.shape[-1] == self.in_features, *x.shape, "does not end in", self.in_features)
        y = torch.einsum("...i,oi->...o", x, self.weight)
        return y if self.bias is None else self.bias + y

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in self.settings.items())


class MLP(nn.Sequential):
    """Is a Sequential itself; no dropout module where nothing is dropped."""

    def __init__(self, sizes: Sequence[int], activation: Callable[[], nn.Module] = nn.ReLU, dropout: float = 0.0):
        _ok(len(sizes) > 1 and all(size > 0 for size in sizes), len(sizes), "sizes:", *sizes)
        _ok(0 <= dropout <= 1, "dropout", dropout)
        super().__init__()
        for i, (before, after) in enumerate(pairwise(sizes)):
            if i:
                self.append(activation())
                if dropout:
                    self.append(nn.Dropout(dropout))
            self.append(Linear(before, after))


def count_parameters(model: nn.Module, trainable_only: bool = False) -> int:
    """A sum over a set."""
    return sum(p.numel() for p in {*model.parameters()} if p.requires_grad >= trainable_only)


class FocalLoss(nn.Module):
    """exp(gamma * log(1 - p)), where log(1 - p) is the log-sum-exp of the others; computed in float32 at least."""

    def __init__(self, gamma: float = 2.0, reduction: str = "mean"):
        super().__init__()
        _ok(gamma >= 0, "gamma", gamma)
        self.reduce = {"none": "clone", "mean": "mean", "sum": "sum"}.get(reduction)
        _ok(self.reduce is not None, "reduction", reduction)
        self.gamma, self.reduction = gamma, reduction

    def forward(self, logits: Float[Tensor, "n c"], targets: Int[Tensor, " n"]) -> Float[Tensor, "..."]:
        integer = not (targets.is_floating_point() or targets.is_complex() or targets.dtype is torch.bool)
        _ok(integer, "targets are", targets.dtype, error=TypeError)
        _ok(logits.ndim == 2 and targets.shape == logits.shape[:1], *logits.shape, "against", *targets.shape)
        y = targets.long()
        bad = y[y.lt(0) | y.ge(logits.shape[1])]
        _ok(not len(bad), "no class", bad[:5].tolist(), error=IndexError)
        z = logits if logits.dtype == torch.float64 else logits.float()
        log_p = z.log_softmax(1)
        mine = torch.arange(logits.shape[1], device=y.device) == y[:, None]
        log_p_y = log_p.masked_fill(~mine, 0).sum(1)
        others = log_p.masked_fill(mine, -1e9).logsumexp(1) if logits.shape[1] else log_p_y
        losses = -(others * self.gamma).exp() * log_p_y
        return getattr(losses, self.reduce)().to(logits.dtype)

    def extra_repr(self) -> str:
        return f"{self.gamma=}, {self.reduction=}".replace("self.", "")


def train_step(
    model: nn.Module,
    loss_fn: Callable[[Tensor, Tensor], Tensor],
    optimizer: torch.optim.Optimizer,
    inputs: Shaped[Tensor, " n *features"],
    targets: Shaped[Tensor, " n *rest"],
) -> float:
    """The optimizer's own closure."""

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = loss_fn(model.train()(inputs), targets)
        values.append(loss.tolist())
        loss.backward()
        return loss

    values = []
    optimizer.step(closure)
    return values[0]


def fit(
    model: nn.Module,
    loss_fn: Callable[[Tensor, Tensor], Tensor],
    optimizer: torch.optim.Optimizer,
    batches: Iterable[tuple[Tensor, Tensor]],
    epochs: int,
) -> list[float]:
    """Refuses what can be read only once at once."""
    _ok(epochs > 0, "epochs", epochs)
    _ok(epochs == 1 or not isinstance(batches, Iterator), "read only once")

    def checked(outputs: Tensor, targets: Tensor) -> Tensor:
        loss = loss_fn(outputs, targets)
        _ok(bool(loss.abs() < torch.inf), "loss", loss.item(), error=FloatingPointError)
        return loss

    def epoch() -> float:
        pairs = [(len(x), train_step(model, checked, optimizer, x, y)) for x, y in batches]
        _ok(bool(pairs), "no samples")
        return sum(n * loss for n, loss in pairs) / sum(n for n, _ in pairs)

    return [epoch() for _ in range(epochs)]


@contextmanager
def _evaluating(model: nn.Module):
    modes = [m.training for m in model.modules()]
    try:
        yield model.eval()
    finally:
        for m, mode in zip(model.modules(), modes, strict=True):
            m.training = mode


@torch.no_grad()
def evaluate(
    model: nn.Module, loss_fn: Callable[[Tensor, Tensor], Tensor], batches: Iterable[tuple[Tensor, Tensor]]
) -> tuple[float, float]:
    """Sums of columns."""
    rows = []
    with _evaluating(model):
        for x, y in batches:
            if n := len(y):
                out = model(x)
                rows.append((n, n * loss_fn(out, y).item(), (out.argmax(1) == y).sum().item()))
    _ok(bool(rows), "no samples")
    n, loss, right = (sum(column) for column in zip(*rows, strict=True))
    return loss / n, right / n


class GradientRecorder:
    """Two hooks: the gradient is seen before it is added and written down after, so autograd.grad leaves no trace."""

    def __init__(self, model: nn.Module):
        self.model, self.history = model, defaultdict(list)

    def __enter__(self):
        self._stack = ExitStack()
        for name, p in self.model.named_parameters():
            if p.requires_grad:
                last = {}
                see = lambda g, last=last: last.update(g=g)  # noqa: E731
                self._stack.callback(p.register_hook(see).remove)
                note = lambda p, name=name, last=last: self._note(name, last.pop("g"))  # noqa: E731
                self._stack.callback(p.register_post_accumulate_grad_hook(note).remove)
        return self

    def _note(self, name: str, g: Tensor | None) -> None:
        if g is not None:
            self.history[name].append(g.detach().pow(2).sum().sqrt().item())

    def __exit__(self, *_):
        self._stack.close()
