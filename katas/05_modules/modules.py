"""Modules: layers, a loss and a training loop of one's own that fit in with everything PyTorch offers."""

from collections.abc import Callable, Iterable, Sequence
from typing import Self

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn


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
        raise NotImplementedError

    def forward(self, x: Float[Tensor, "*batch in_features"]) -> Float[Tensor, "*batch out_features"]:
        raise NotImplementedError

    def extra_repr(self) -> str:
        raise NotImplementedError


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
        raise NotImplementedError

    def forward(self, x: Float[Tensor, "*batch first"]) -> Float[Tensor, "*batch last"]:
        raise NotImplementedError


def count_parameters(model: nn.Module, trainable_only: bool = False) -> int:
    """How many numbers the parameters of a model hold.

    >>> count_parameters(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)))
    21

    Every element of every parameter counts, at any depth; a parameter that is used in several places counts once.
    Buffers are not parameters. With trainable_only, only parameters that require grad count. The result is a Python
    int, 0 for a model without parameters.

    See: torch.nn.Module.parameters, https://docs.pytorch.org/docs/stable/generated/torch.nn.Module.html
    """
    raise NotImplementedError


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
        raise NotImplementedError

    def forward(self, logits: Float[Tensor, "n c"], targets: Int[Tensor, " n"]) -> Float[Tensor, "..."]:
        raise NotImplementedError

    def extra_repr(self) -> str:
        raise NotImplementedError


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
    raise NotImplementedError


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
    raise NotImplementedError


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
    raise NotImplementedError


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
        raise NotImplementedError

    def __enter__(self) -> Self:
        raise NotImplementedError

    def __exit__(self, *exc_info: object) -> None:
        raise NotImplementedError
