"""Step by step, as in a textbook: addmm, gather, tensor hooks."""

from collections.abc import Callable, Iterable, Sequence

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn


class Linear(nn.Module):
    """x @ weight.T + bias, by one fused product."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True):
        super().__init__()
        for size in (in_features, out_features):
            if size < 1:
                raise ValueError(f"{size} is too few")
        self.in_features = in_features
        self.out_features = out_features
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the parameters anew."""
        bound = self.in_features**-0.5
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def forward(self, x: Float[Tensor, "*batch in_features"]) -> Float[Tensor, "*batch out_features"]:
        if x.dim() == 0:
            raise ValueError(f"a number has no features, {self.in_features} are needed")
        if x.size(-1) != self.in_features:
            raise ValueError(f"{x.size(-1)} features, not {self.in_features}")
        rows = x.reshape(-1, self.in_features)
        if self.bias is None:
            rows = torch.mm(rows, self.weight.t())
        else:
            rows = torch.addmm(self.bias, rows, self.weight.t())
        return rows.reshape((*x.shape[:-1], self.out_features))

    def extra_repr(self) -> str:
        text = f"{self.in_features}, {self.out_features}"
        return text + (", bias=True" if self.bias is not None else ", bias=False")


class MLP(nn.Module):
    """Module lists, one for each kind of thing."""

    def __init__(self, sizes: Sequence[int], activation: Callable[[], nn.Module] = nn.ReLU, dropout: float = 0.0):
        super().__init__()
        if len(sizes) < 2:
            raise ValueError(f"{len(sizes)} sizes make no layer")
        for size in sizes:
            if size < 1:
                raise ValueError(f"size {size} is below 1")
        if dropout < 0 or dropout > 1:
            raise ValueError(f"no probability: {dropout}")
        self.hidden = nn.ModuleList()
        self.activations = nn.ModuleList()
        self.drop = nn.Dropout(dropout)
        for i in range(len(sizes) - 2):
            self.hidden.append(Linear(sizes[i], sizes[i + 1]))
            self.activations.append(activation())
        self.output = Linear(sizes[-2], sizes[-1])

    def forward(self, x: Float[Tensor, "*batch first"]) -> Float[Tensor, "*batch last"]:
        for layer, activation in zip(self.hidden, self.activations, strict=True):
            x = self.drop(activation(layer(x)))
        return self.output(x)


def count_parameters(model: nn.Module, trainable_only: bool = False) -> int:
    """By identity."""
    seen = {}
    for parameter in model.parameters():
        if trainable_only and not parameter.requires_grad:
            continue
        seen[id(parameter)] = parameter.numel()
    return sum(seen.values())


class FocalLoss(nn.Module):
    """With log(1 - p) from the other classes' logits: (1 - p)^gamma = exp(gamma * log(1 - p))."""

    def __init__(self, gamma: float = 2.0, reduction: str = "mean"):
        super().__init__()
        if not gamma >= 0:
            raise ValueError(f"gamma is {gamma}")
        if reduction not in {"none", "mean", "sum"}:
            raise ValueError(f"unknown reduction {reduction}")
        self.gamma = gamma
        self.reduction = reduction

    def forward(self, logits: Float[Tensor, "n c"], targets: Int[Tensor, " n"]) -> Float[Tensor, "..."]:
        if targets.dtype not in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8):
            raise TypeError(f"class numbers are integers, not {targets.dtype}")
        if logits.dim() != 2 or targets.dim() != 1 or len(logits) != len(targets):
            raise ValueError(f"shapes {list(logits.shape)} and {list(targets.shape)} do not belong together")
        classes = logits.size(1)
        index = targets.to(torch.int64)
        for wrong in index[(index < 0) | (index >= classes)][:1].tolist():
            raise IndexError(f"class {wrong} of {classes}")
        log_p = torch.log_softmax(logits, dim=1).gather(1, index.unsqueeze(1)).squeeze(1)
        # Where p is 1 the weight is 0 whatever its gradient would be: put a harmless number there.
        rest = 1 - log_p.exp()
        sure = rest <= 0
        weight = torch.where(sure, torch.ones_like(rest), rest).pow(self.gamma)
        weight = torch.where(sure, torch.full_like(rest, 0.0**self.gamma), weight)
        loss = -weight * log_p
        if self.reduction == "mean":
            return loss.mean()
        if self.reduction == "sum":
            return loss.sum()
        return loss

    def extra_repr(self) -> str:
        return f"{self.gamma}, {self.reduction}"


def train_step(
    model: nn.Module,
    loss_fn: Callable[[Tensor, Tensor], Tensor],
    optimizer: torch.optim.Optimizer,
    inputs: Shaped[Tensor, " n *features"],
    targets: Shaped[Tensor, " n *rest"],
) -> float:
    """Forward, loss, zero, backward, step."""
    model.train()
    predictions = model(inputs)
    loss = loss_fn(predictions, targets)
    result = float(loss.detach())
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return result


def fit(
    model: nn.Module,
    loss_fn: Callable[[Tensor, Tensor], Tensor],
    optimizer: torch.optim.Optimizer,
    batches: Iterable[tuple[Tensor, Tensor]],
    epochs: int,
) -> list[float]:
    """The loop written out, the graph dropped by hand."""
    if epochs < 1:
        raise ValueError(f"cannot train for {epochs} epochs")
    means = []
    for _ in range(epochs):
        model.train()
        summed = 0.0
        count = 0
        for inputs, targets in batches:
            optimizer.zero_grad()
            predictions = model(inputs)
            loss = loss_fn(predictions, targets)
            if not torch.isfinite(loss):
                raise FloatingPointError("the loss is not finite")
            loss.backward()
            optimizer.step()
            summed += loss.item() * inputs.shape[0]
            count += inputs.shape[0]
            del predictions, loss
        if count == 0:
            raise ValueError("nothing to train on in this epoch")
        means.append(summed / count)
    return means


def evaluate(
    model: nn.Module, loss_fn: Callable[[Tensor, Tensor], Tensor], batches: Iterable[tuple[Tensor, Tensor]]
) -> tuple[float, float]:
    """With a dict of the modes."""
    before = {name: module.training for name, module in model.named_modules()}
    try:
        model.eval()
        loss_sum, correct, count = 0.0, 0, 0
        with torch.no_grad():
            for inputs, targets in batches:
                n = targets.shape[0]
                if n == 0:
                    continue
                logits = model(inputs)
                loss_sum += float(loss_fn(logits, targets)) * n
                correct += int(torch.count_nonzero(logits.max(dim=1).indices == targets))
                count += n
    finally:
        for name, module in model.named_modules():
            module.training = before[name]
    if not count:
        raise ValueError("no samples")
    return loss_sum / count, correct / count


class GradientRecorder:
    """One hook on each tensor."""

    def __init__(self, model: nn.Module):
        self.model = model
        self.history: dict[str, list[float]] = {}
        self.handles = []

    def __enter__(self):
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                self.history[name] = []
                self.handles.append(parameter.register_hook(self._hook(name)))
        return self

    def _hook(self, name: str):
        def hook(grad):
            if grad is not None:
                self.history[name].append(float(torch.linalg.vector_norm(grad.detach())))

        return hook

    def __exit__(self, kind, error, traceback):
        while self.handles:
            self.handles.pop().remove()
        return False
