"""Modules: layers, a loss and a training loop of one's own that fit in with everything PyTorch offers."""

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Self

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge


class Linear(nn.Module):
    """A layer that maps the last dimension linearly: x @ weight.T + bias.

    >>> layer = Linear(2, 3, bias=False)
    >>> layer
    Linear(in_features=2, out_features=3, bias=False)
    >>> _ = layer.load_state_dict({"weight": torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])})
    >>> layer(torch.tensor([4.0, 5.0])).tolist()
    [4.0, 5.0, 9.0]

    Takes the place of torch's own: the parameters are `weight` [out_features, in_features] and `bias` [out_features],
    so each can load the other's state_dict; with bias=False the attribute `bias` is None and state_dict holds `weight`
    alone. Each element of both is drawn from the global generator, uniformly between -1/sqrt(in_features) and
    1/sqrt(in_features), in the default dtype. x may have any number of leading dimensions, also none or empty ones.
    `repr` shows the three settings.

    Raises ValueError, with the number, if in_features or out_features is less than 1: before anything is drawn.
    Raises ValueError, with both numbers, if the last dimension of x is not in_features; also if x has no dimension.
    Refused: torch.nn.Linear, torch.nn.functional.linear.
    See: torch.nn.Linear, https://docs.pytorch.org/docs/stable/generated/torch.nn.Linear.html
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True):
        super().__init__()
        if in_features < 1 or out_features < 1:
            raise ValueError(f"a layer needs at least 1 feature on each side, got {in_features} in, {out_features} out")
        self.in_features = in_features
        self.out_features = out_features
        bound = 1 / math.sqrt(in_features)
        self.weight = nn.Parameter(torch.empty(out_features, in_features).uniform_(-bound, bound))
        if bias:
            self.bias = nn.Parameter(torch.empty(out_features).uniform_(-bound, bound))
        else:
            self.register_parameter("bias", None)

    def forward(self, x: Float[Tensor, "*batch in_features"]) -> Float[Tensor, "*batch out_features"]:
        if x.shape[-1:] != (self.in_features,):
            raise ValueError(f"expected {self.in_features} features in the last dimension, got shape {tuple(x.shape)}")
        y = x @ self.weight.T
        return y if self.bias is None else y + self.bias

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


class MLP(nn.Module):
    """A chain of linear layers with an activation and dropout after every layer but the last.

    >>> sum(isinstance(module, nn.Tanh) for module in MLP([4, 8, 8, 3], activation=nn.Tanh).modules())
    2
    >>> MLP([4, 8, 3], dropout=0.1)(torch.zeros(5, 4)).shape
    torch.Size([5, 3])

    `sizes` are the widths from input to output: n sizes make n - 1 layers, each the `Linear` of this file with bias. So
    x is [*batch sizes[0]] and the result [*batch sizes[-1]]. After each layer but the last come the activation and then
    dropout with probability `dropout` (torch.nn.Dropout may be used), which is active in training mode alone.
    `activation` is called once for each hidden layer: an activation with parameters (torch.nn.PReLU) gets its own in
    each place. It may be any callable that gives a module, a lambda too, and the model can be pickled all the same.
    `repr` shows the layers, the activations and the dropout probability through the submodules.

    Raises ValueError, with the number, if there are fewer than two sizes, if one of them is less than 1, or if dropout
    is outside [0, 1]: before anything is drawn from the global generator.
    Raises ValueError, with both numbers, if the last dimension of x is not sizes[0].
    See: torch.nn.Sequential, https://docs.pytorch.org/docs/stable/generated/torch.nn.Sequential.html
    """

    def __init__(self, sizes: Sequence[int], activation: Callable[[], nn.Module] = nn.ReLU, dropout: float = 0.0):
        super().__init__()
        # The layers check their own sizes, but the first would have drawn its weights before the second complains.
        if len(sizes) < 2 or min(sizes) < 1:
            raise ValueError(f"expected two or more sizes of at least 1, got {len(sizes)}: {list(sizes)}")
        if not 0 <= dropout <= 1:
            raise ValueError(f"dropout must be a probability, got {dropout}")
        *hidden, last = (Linear(i, o) for i, o in pairwise(sizes))
        layers = [module for layer in hidden for module in (layer, activation(), nn.Dropout(dropout))]
        self.layers = nn.Sequential(*layers, last)

    def forward(self, x: Float[Tensor, "*batch first"]) -> Float[Tensor, "*batch last"]:
        return self.layers(x)


def count_parameters(model: nn.Module, trainable_only: bool = False) -> int:
    """How many numbers the parameters of a model hold.

    >>> count_parameters(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)))
    21

    Every element of every parameter counts, at any depth; a parameter that is used in several places counts once.
    Buffers are not parameters. With trainable_only, only parameters that require grad count. The result is a Python
    int, 0 for a model without parameters.

    See: torch.nn.Module.parameters, https://docs.pytorch.org/docs/stable/generated/torch.nn.Module.html
    """
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trainable_only)


class FocalLoss(nn.Module):
    """Cross-entropy that counts an example the less, the surer the model already is: (1 - p)^gamma * -log(p).

    >>> loss = FocalLoss(gamma=2.0, reduction="none")
    >>> loss
    FocalLoss(gamma=2.0, reduction='none')
    >>> loss(torch.tensor([[0.0, 0.0], [1.0, 0.0]]), torch.tensor([1, 0]))
    tensor([0.1733, 0.0227])

    p is the softmax probability of the row's target class. `reduction` says what is done with the n losses: "none"
    gives them as they are, "sum" adds them, "mean" divides the sum by n. With gamma 0 the result is cross-entropy.
    Value and gradient are finite for logits of ±1e4 and for every gamma: also for 0.5 where p is 1, as far as the dtype
    can tell. Without rows "none" gives no losses and "sum" gives 0. Targets may have any integer dtype.
    `repr` shows both settings.

    Raises ValueError, with the number, if gamma is less than 0; if reduction is none of the three.
    Raises TypeError if targets are floating or bool.
    Raises ValueError, with the shapes, if logits are not [n c] or targets are not [n].
    Raises IndexError, with the target, if one is outside [0, c): no value means "ignore", -100 neither.
    See: Lin et al. 2017, Focal Loss for Dense Object Detection, https://arxiv.org/abs/1708.02002
    """

    def __init__(self, gamma: float = 2.0, reduction: str = "mean"):
        super().__init__()
        if gamma < 0:
            raise ValueError(f"gamma must not be negative, got {gamma}")
        if reduction not in ("none", "mean", "sum"):
            raise ValueError(f"reduction must be none, mean or sum, got {reduction!r}")
        self.gamma = gamma
        self.reduction = reduction

    def forward(self, logits: Float[Tensor, "n c"], targets: Int[Tensor, " n"]) -> Float[Tensor, "..."]:
        entropy = F.cross_entropy(logits, _checked(targets, logits), reduction="none")
        miss = -torch.expm1(-entropy)  # 1 - p, without the digits that subtracting from 1 would lose
        # At 0 the slope of miss**gamma is infinite for gamma < 1. The loss is flat there, and clamp's gradient is 0.
        losses = miss.clamp(min=torch.finfo(miss.dtype).tiny) ** self.gamma * entropy
        return losses if self.reduction == "none" else getattr(losses, self.reduction)()

    def extra_repr(self) -> str:
        return f"gamma={self.gamma}, reduction={self.reduction!r}"


def train_step(
    model: nn.Module,
    loss_fn: Callable[[Tensor, Tensor], Tensor],
    optimizer: torch.optim.Optimizer,
    inputs: Shaped[Tensor, " n *features"],
    targets: Shaped[Tensor, " n *rest"],
) -> float:
    """One update of the model on one batch, and the loss before it.

    >>> model = nn.Linear(1, 1, bias=False)
    >>> _ = model.load_state_dict({"weight": torch.tensor([[2.0]])})
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    >>> train_step(model, nn.MSELoss(), optimizer, torch.tensor([[1.0]]), torch.tensor([[0.0]]))
    4.0
    >>> model.weight.item()
    0.0

    Puts the model in training mode and leaves it so. The loss is loss_fn(model(inputs), targets). Its gradients alone
    decide the update: what stood in `.grad` before the call, of any parameter that the optimizer holds, does not count,
    whether this loss reaches that parameter or not. The optimizer makes one step. The result is the loss of the
    parameters as they were before the step, as a Python float, which holds no graph.

    See: torch.optim, https://docs.pytorch.org/docs/stable/optim.html
    """
    model.train()
    optimizer.zero_grad()
    loss = loss_fn(model(inputs), targets)
    loss.backward()
    value = loss.item()  # before the step: it could write to memory that the loss looks at
    optimizer.step()
    return value


def fit(
    model: nn.Module,
    loss_fn: Callable[[Tensor, Tensor], Tensor],
    optimizer: torch.optim.Optimizer,
    batches: Iterable[tuple[Tensor, Tensor]],
    epochs: int,
) -> list[float]:
    """The mean loss per sample of each epoch of training.

    >>> model = nn.Linear(1, 1, bias=False)
    >>> _ = model.load_state_dict({"weight": torch.tensor([[2.0]])})
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    >>> x = torch.ones(3, 1)
    >>> fit(model, nn.MSELoss(), optimizer, [(x, 0 * x)], epochs=2)
    [4.0, 0.0]

    Trains in training mode, with one update for each batch (inputs, targets) as `train_step` makes it. loss_fn gives
    the mean over the rows of a batch, and every batch has rows. The mean of an epoch is over its samples: a last batch
    with fewer rows weighs less. Each loss is the one before its update.
    `batches` is iterated anew in each epoch, so that a list, or a loader that shuffles, serves all of them. An iterator
    that can be read only once serves one. No graph is kept alive: when the next batch is asked for, nothing holds the
    graph of the one before. The result holds one Python float for each epoch.

    Raises ValueError, with the number, if epochs is less than 1, before anything else happens.
    Raises ValueError if an epoch has no samples. So has the second epoch of an iterator that has been read: with more
    than one epoch it may also be refused at once.
    Raises FloatingPointError if a loss is nan or infinite, before the parameters are updated with its gradients.
    See: Optimizing Model Parameters, https://docs.pytorch.org/tutorials/beginner/basics/optimization_tutorial.html
    """
    if epochs < 1:
        raise ValueError(f"epochs must be at least 1, got {epochs}")

    def finite_loss(outputs: Tensor, targets: Tensor) -> Tensor:
        loss = loss_fn(outputs, targets)
        if not loss.isfinite():
            raise FloatingPointError(f"the loss is {loss.item()}: the parameters are left as they were")
        return loss

    history = []
    for epoch in range(1, epochs + 1):
        total, samples = 0.0, 0
        for inputs, targets in batches:
            # A function of its own holds the graph, which ends with it.
            total += train_step(model, finite_loss, optimizer, inputs, targets) * len(targets)
            samples += len(targets)
        if samples == 0:
            raise ValueError(f"epoch {epoch} of {epochs} has no samples: can batches be read only once?")
        history.append(total / samples)
    return history


def evaluate(
    model: nn.Module, loss_fn: Callable[[Tensor, Tensor], Tensor], batches: Iterable[tuple[Tensor, Tensor]]
) -> tuple[float, float]:
    """The mean loss and the accuracy per sample of a classifier on all batches.

    >>> logits = torch.tensor([[2.0, 0.0], [0.0, 2.0], [2.0, 0.0]])
    >>> targets = torch.tensor([0, 1, 1])
    >>> batches = [(logits[:2], targets[:2]), (logits[2:], targets[2:])]
    >>> loss, accuracy = evaluate(nn.Identity(), nn.CrossEntropyLoss(), batches)
    >>> round(loss, 4), round(accuracy, 4)
    (0.7936, 0.6667)

    The model gives logits [n c] for the inputs of a batch, whose targets [n] are class numbers; a row is right where
    the largest logit is the target's. loss_fn gives the mean over the rows of a batch. Both results are means over all
    samples, as Python floats: a batch with fewer rows weighs less, one without rows nothing. `batches` is read once.
    The model runs in eval mode, without gradients. Then every submodule, the model too, is back in the mode that it had
    (a frozen one may be in eval mode within a model in training mode), also when model, loss_fn or batches raise.

    Raises ValueError if there are no samples.
    See: torch.nn.Module.eval, https://docs.pytorch.org/docs/stable/generated/torch.nn.Module.html
    """
    modes = [(module, module.training) for module in model.modules()]
    total, right, samples = 0.0, 0, 0
    try:
        model.eval()
        with torch.no_grad():
            for inputs, targets in batches:
                if len(targets) == 0:  # its mean loss is nan
                    continue
                logits = model(inputs)
                total += loss_fn(logits, targets).item() * len(targets)
                right += (logits.argmax(dim=-1) == targets).sum().item()
                samples += len(targets)
    finally:
        for module, training in modes:
            module.training = training  # not module.train(training), which reaches all below it
    if samples == 0:
        raise ValueError("nothing to evaluate: batches hold 0 samples")
    return total / samples, right / samples


class GradientRecorder:
    """Notes, while its `with` block runs, how large the gradient is that each backward brings to each parameter.

    >>> model = nn.Linear(2, 1)
    >>> with GradientRecorder(model) as recorder:
    ...     for _ in range(2):
    ...         model(torch.tensor([[3.0, 4.0]])).sum().backward()
    >>> recorder.history
    {'weight': [5.0, 5.0], 'bias': [1.0, 1.0]}

    `history` has the names of model.named_parameters() as keys. In the list of each parameter that requires grad
    stands, for each backward that reaches it, the Euclidean norm of what that backward adds to its `.grad`, as a Python
    float: not the norm of the `.grad` accumulated so far. A parameter used in several places has one key, and one norm
    for each backward, that of the sum. One that was not reached has an empty list or no key; frozen parameters are not
    asked.
    `with` gives the recorder itself, and history stays readable after the block. Gradients are what they would be
    without the recorder. The model is hooked only inside the block: before and after it, also when the block raises,
    none of the recorder's hooks is there, and a backward leaves history as it is. An exception goes on to the caller.

    See: Backward Hooks execution, https://docs.pytorch.org/docs/stable/notes/autograd.html#backward-hooks-execution
    """

    history: dict[str, list[float]]

    def __init__(self, model: nn.Module):
        self.model = model
        self.history = {}
        self._hooked = []

    def __enter__(self) -> Self:
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                # The node that adds to .grad: it is given the sum over all uses, after all hooks on the tensor.
                node = get_gradient_edge(parameter).node
                handle = node.register_prehook(_appender(self.history.setdefault(name, [])))
                self._hooked.append((node, handle))  # a node that nobody holds goes, and its hooks with it
        return self

    def __exit__(self, *exc_info: object) -> None:
        for _, handle in self._hooked:
            handle.remove()
        self._hooked.clear()


def _appender(norms: list[float]) -> Callable[[tuple[Tensor | None]], None]:
    """A hook that appends the norm of the gradient that it is shown."""

    def hook(gradients: tuple[Tensor | None]) -> None:
        (gradient,) = gradients
        if gradient is not None:  # None where a custom Function has no gradient to give
            wide = torch.promote_types(gradient.dtype, torch.float32)  # float16 ends at 65504
            norms.append(gradient.detach().to(wide).norm().item())

    return hook


def _checked(targets: Tensor, logits: Tensor) -> Tensor:
    """The targets [n] as int64; raises unless they are class numbers for logits [n c]."""
    if targets.dtype == torch.bool or targets.is_floating_point() or targets.is_complex():
        raise TypeError(f"expected targets of an integer dtype, got {targets.dtype}")
    if logits.ndim != 2 or targets.shape != logits.shape[:1]:
        raise ValueError(
            f"expected logits [n c] and targets [n], got shapes {tuple(logits.shape)} and {tuple(targets.shape)}"
        )
    targets = targets.long()  # before the comparison: a number of classes may not fit int8
    outside = (targets < 0) | (targets >= logits.shape[1])
    if outside.any():
        raise IndexError(f"target {targets[outside][0].item()} is not among {logits.shape[1]} classes")
    return targets
