"""Optimization: batches, gradients over parts of them, and the optimizers that make steps of these gradients."""

import math
from collections.abc import Callable, Iterable, Iterator
from functools import reduce
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.optim.optimizer import ParamsT


def batches(
    *tensors: Shaped[Tensor, "n ..."],
    batch_size: int,
    shuffle: bool = False,
    drop_last: bool = False,
    generator: torch.Generator | None = None,
) -> Iterator[tuple[Shaped[Tensor, "rows ..."], ...]]:
    """The rows of all tensors, batch by batch: each time a tuple with one batch of each tensor.

    >>> x, y = torch.tensor([[1], [2], [3]]), torch.tensor([10, 20, 30])
    >>> for batch in batches(x, y, batch_size=2):
    ...     print(batch)
    (tensor([[1],
            [2]]), tensor([10, 20]))
    (tensor([[3]]), tensor([30]))

    Each batch has batch_size rows, the last one those that are left over; with drop_last an incomplete last batch is
    left out. Every row comes once, and row i of one tensor always together with row i of the others. The tensors have
    any dtype and any number of dimensions but none. Without rows there are no batches. The result is an iterator, also
    for a single tensor one of tuples.

    Without shuffle the rows come in order, the batches are views of the tensors, and nothing is drawn. With shuffle
    each call draws an order of its own, from `generator` or else from the global one: the same order for the same state
    of the generator. A generator lives on the device of the tensors.

    Raises ValueError at the call, not only when the first batch is asked for, and before anything is drawn: if there
    are no tensors; with both lengths, if two tensors differ in length; if a tensor has no dimension; with the number,
    if batch_size is less than 1.
    Refused: torch.utils.data.DataLoader.
    See: torch.utils.data, https://docs.pytorch.org/docs/stable/data.html
    """
    if batch_size < 1:
        raise ValueError(f"a batch needs at least 1 row, got batch_size {batch_size}")
    if not tensors:
        raise ValueError("expected at least 1 tensor, got 0")
    if any(tensor.ndim == 0 for tensor in tensors):
        raise ValueError(f"a tensor without dimensions has no rows, got shapes {[tuple(t.shape) for t in tensors]}")
    n, *others = lengths = [len(tensor) for tensor in tensors]
    if any(other != n for other in others):
        raise ValueError(f"the tensors have different numbers of rows: {lengths}")
    order = torch.randperm(n, generator=generator, device=tensors[0].device) if shuffle else None
    end = n - n % batch_size if drop_last else n

    # A function of its own: with a yield in this one, nothing above would run before the first batch is asked for.
    def rows() -> Iterator[tuple[Tensor, ...]]:
        for start in range(0, end, batch_size):
            batch = slice(start, start + batch_size)
            yield tuple(tensor[batch if order is None else order[batch]] for tensor in tensors)

    return rows()


def minibatch_gradients(
    model: nn.Module,
    loss_fn: Callable[[Tensor, Tensor], Float[Tensor, ""]],
    inputs: Shaped[Tensor, "n ..."],
    targets: Shaped[Tensor, "n ..."],
    batch_size: int,
) -> Float[Tensor, "batches params"]:
    """The gradient of each batch's loss, flat: one row for each batch, one column for each number in the parameters.

    >>> model = nn.Linear(1, 1)
    >>> _ = model.load_state_dict({"weight": torch.tensor([[1.0]]), "bias": torch.tensor([0.0])})
    >>> inputs, targets = torch.tensor([[1.0], [2.0], [3.0]]), torch.zeros(3, 1)
    >>> minibatch_gradients(model, nn.MSELoss(), inputs, targets, batch_size=1)
    tensor([[ 2.,  2.],
            [ 8.,  4.],
            [18.,  6.]])

    How the rows differ shows what the batch size does to the gradient. The batches are batch_size rows of inputs and
    targets each, in order; an incomplete last one is left out, so fewer rows than one batch give a result of shape
    [0, params]. A batch's loss is loss_fn(model(inputs), targets), one number.

    The columns are the elements of all parameters that require grad, in the order of model.parameters(). A parameter
    that a loss does not depend on has zeros there; frozen parameters have no columns. All gradients are taken at the
    same parameters. No `.grad` is touched, of whatever tensor, and the result does not require grad.

    Raises ValueError, with the number, if batch_size is less than 1; with both, if inputs and targets differ in length.
    See: torch.autograd.grad, https://docs.pytorch.org/docs/stable/generated/torch.autograd.grad.html
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    rows = []
    for x, y in batches(inputs, targets, batch_size=batch_size, drop_last=True):
        with torch.enable_grad():
            loss = loss_fn(model(x), y)
        gradients = [torch.zeros_like(p) for p in parameters]
        if parameters and loss.requires_grad:
            gradients = torch.autograd.grad(loss, parameters, materialize_grads=True)
        rows.append(_flat(gradients, inputs.device))
    return torch.stack(rows) if rows else _flat(parameters, inputs.device)[None][:0].detach()


def accumulate_gradients(
    model: nn.Module,
    loss_fn: Callable[[Tensor, Tensor], Float[Tensor, ""]],
    inputs: Shaped[Tensor, "n ..."],
    targets: Shaped[Tensor, "n ..."],
    micro_batch: int,
) -> float:
    """The mean loss of a batch whose gradient is accumulated in `.grad`, one micro-batch at a time.

    >>> model = nn.Linear(1, 1, bias=False)
    >>> _ = model.load_state_dict({"weight": torch.tensor([[1.0]])})
    >>> inputs, targets = torch.tensor([[1.0], [2.0], [4.0]]), torch.zeros(3, 1)
    >>> accumulate_gradients(model, nn.MSELoss(), inputs, targets, micro_batch=2)
    7.0
    >>> model.weight.grad
    tensor([[14.]])

    Memory need hold no more than the graph of one micro-batch: the model sees micro_batch rows at a time, in order, and
    the rest at the end. loss_fn(model(inputs), targets) is the mean over the rows that it is given, and the model
    treats each row by itself. So the loss and the gradient of the whole batch can be put together from those of its
    parts; they are right also where the last part is smaller.

    The gradient is added to what stands in the `.grad` of the model's parameters. It is left as it was, also None,
    where the loss does not depend on a parameter or the parameter is frozen. No other tensor's `.grad` is touched: not
    that of inputs which require grad, nor of what loss_fn uses. The result is a Python float.

    Raises ValueError, before `.grad` is touched: if there are no rows; with both numbers, if inputs and targets differ
    in length; with the number, if micro_batch is less than 1.
    See: torch.Tensor.backward, https://docs.pytorch.org/docs/stable/generated/torch.Tensor.backward.html
    """
    parts = batches(inputs, targets, batch_size=micro_batch)  # raises for what does not fit
    n, total = len(inputs), 0.0
    if n == 0:
        raise ValueError("the mean loss of 0 rows is not defined")
    parameters = [p for p in model.parameters() if p.requires_grad]
    for x, y in parts:
        with torch.enable_grad():
            loss = loss_fn(model(x), y)
            part = loss * (len(x) / n)  # what these rows add to the mean of all
        if parameters and part.requires_grad:
            part.backward(inputs=parameters)  # these alone: inputs and loss_fn may hold leaves too
        total += loss.item() * len(x)
    return total / n


def clip_grad_norm_(parameters: Tensor | Iterable[Tensor], max_norm: float) -> Float[Tensor, ""]:
    """The norm of all gradients taken together, which are then scaled down to max_norm where it is larger.

    >>> w, b = torch.zeros(2, requires_grad=True), torch.zeros(1, requires_grad=True)
    >>> w.grad, b.grad = torch.tensor([2.0, 3.0]), torch.tensor([6.0])
    >>> clip_grad_norm_([w, b], max_norm=3.5)
    tensor(7.)
    >>> w.grad, b.grad
    (tensor([1.0000, 1.5000]), tensor([3.]))

    `parameters` is one tensor or any iterable of tensors, also one that can be read only once. The norm is the
    Euclidean one of all elements of all gradients, as if they were one vector; the result is the norm before clipping,
    a tensor without dimensions that does not require grad. Tensors whose `.grad` is None do not count.

    If the norm is larger than max_norm, every gradient is multiplied by max_norm / norm (by max_norm / (norm + 1e-6),
    if you like: so does torch), in its own memory: `.grad` stays the same tensor. So the direction of the whole
    stays. Otherwise the gradients are left untouched, and never scaled up. max_norm may be 0, and infinite. Without
    gradients the result is 0. The norm is right also where half precision cannot hold the sum of the squares.

    Raises ValueError, with the number, if max_norm is negative.
    Raises ValueError if the norm is nan or infinite; the gradients are then left untouched.
    Refused: torch.nn.utils.clip_grad_norm_, clip_grads_with_norm_, get_total_norm.
    See: Pascanu et al. 2013, On the difficulty of training recurrent neural networks, https://arxiv.org/abs/1211.5063
    """
    if not max_norm >= 0:
        raise ValueError(f"max_norm must not be negative, got {max_norm}")
    parameters = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    with torch.no_grad():
        gradients = [p.grad for p in parameters if p.grad is not None]
        if not gradients:
            return torch.zeros((), device=parameters[0].device if parameters else None)
        # Of the norms, in at least float32: float16 ends at 65504. The gradients may live on several devices.
        norms = [torch.linalg.vector_norm(g, dtype=torch.promote_types(g.dtype, torch.float32)) for g in gradients]
        norm = torch.linalg.vector_norm(torch.stack([each.to(norms[0].device) for each in norms]))
        value = norm.item()
        if not math.isfinite(value):
            raise ValueError(f"the norm of the gradients is {value}: they are left as they were")
        if value > max_norm:
            for gradient in gradients:
                gradient.mul_(max_norm / value)
        return norm.to(reduce(torch.promote_types, [g.dtype for g in gradients]))


class SGD(torch.optim.Optimizer):
    """Gradient descent with momentum: each step moves the parameters against the gradient.

    >>> w = torch.tensor([1.0], requires_grad=True)
    >>> optimizer = SGD([w], lr=0.5, momentum=0.5)
    >>> for _ in range(2):
    ...     w.grad = torch.tensor([1.0])
    ...     optimizer.step()
    ...     print(w.tolist())
    [0.5]
    [-0.25]

    Follows torch.optim.SGD step for step:
        g = gradient + weight_decay * parameter
        b = g the first time, momentum * b + g from then on
        d = b, or with nesterov g + momentum * b
        parameter = parameter - lr * d
    Without momentum d is g, and there is no buffer b. Each parameter has a buffer of its own; its first time is the
    first step in which it has a gradient and momentum is not 0.

    `params` is an iterable of parameters, or of dicts with "params" and settings of their own: param groups, which
    torch.optim.Optimizer looks after. Settings are read from the group at each step, so whoever changes
    `optimizer.param_groups[0]["lr"]` changes the next step. A parameter whose `.grad` is None is skipped: it does not
    change and no state is made for it. `state_dict()`, loaded into a new optimizer, goes on exactly as the first one
    would have: whatever a step needs to know of the ones before is in `self.state[parameter]`.

    `step()` returns None; `step(closure)` calls the closure first, with gradients on, and returns its loss. No step
    records a graph: parameters are updated in their own memory, and require grad as before. `.grad` stays as it is.

    Raises ValueError, with the number, if lr, momentum or weight_decay is negative (0 is allowed), or if nesterov is
    asked for while momentum is 0: in the constructor.
    Refused: torch.optim.SGD, its functional form and its fused operations; torch.optim.Optimizer is the base.
    See: torch.optim.SGD, https://docs.pytorch.org/docs/stable/generated/torch.optim.SGD.html
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ):
        _check_not_negative(lr=lr, momentum=momentum, weight_decay=weight_decay)
        if nesterov and momentum == 0:
            raise ValueError(f"nesterov looks ahead along the momentum, which is {momentum}")
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "nesterov": nesterov})

    def step(self, closure: Callable[[], Float[Tensor, ""]] | None = None) -> Float[Tensor, ""] | None:
        loss = _loss_of(closure)
        with torch.no_grad():
            for group, parameter in _with_gradient(self.param_groups):
                gradient, momentum = parameter.grad, group["momentum"]
                if group["weight_decay"] != 0:
                    gradient = gradient.add(parameter, alpha=group["weight_decay"])
                if momentum != 0:
                    state = self.state[parameter]
                    if "momentum_buffer" in state:
                        state["momentum_buffer"].mul_(momentum).add_(gradient)
                    else:
                        state["momentum_buffer"] = gradient.clone()  # .grad itself belongs to whoever calls backward
                    buffer = state["momentum_buffer"]
                    gradient = gradient.add(buffer, alpha=momentum) if group["nesterov"] else buffer
                parameter.add_(gradient, alpha=-group["lr"])
        return loss


class Adam(torch.optim.Optimizer):
    """Steps along the mean of the gradients, divided for each element by their root mean square.

    >>> w = torch.tensor([1.0, 1.0], requires_grad=True)
    >>> optimizer = Adam([w], lr=0.25)
    >>> w.grad = torch.tensor([1e-3, -1e3])
    >>> optimizer.step()
    >>> w
    tensor([0.7500, 1.2500], requires_grad=True)

    Follows torch.optim.Adam, with betas = (beta1, beta2). In a parameter's step number t, which starts at 1:
        g = gradient + weight_decay * parameter
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g * g
        parameter = parameter - lr * (m / (1 - beta1 ** t)) / (sqrt(v / (1 - beta2 ** t)) + eps)
    The running means m and v start at 0, and the two divisors make up for that. t counts the steps in which this
    parameter had a gradient. Gradients of 1e-12 and of 1e12 work as well as any, also in float32.

    Param groups have settings of their own, read at each step. A parameter whose `.grad` is None is skipped: it does
    not change and no state is made for it. `state_dict()`, loaded into a new optimizer, goes on exactly as the first
    one would have: whatever a step needs to know of the ones before, t too, is in `self.state[parameter]`.

    `step()` returns None; `step(closure)` calls the closure first, with gradients on, and returns its loss. No step
    records a graph: parameters are updated in their own memory, and require grad as before. `.grad` stays as it is.

    Raises ValueError, with the number, if lr, eps or weight_decay is negative (0 is allowed), or if one of the betas is
    outside [0, 1), 1 itself too: in the constructor.
    Refused: torch.optim's own optimizers, their functional forms and fused operations; torch.optim.Optimizer is the
    base.
    See: Kingma, Ba 2015, Adam: A Method for Stochastic Optimization, https://arxiv.org/abs/1412.6980
    """

    _decoupled = False  # of the class, not of the instance: pickling an optimizer keeps no attributes but torch's own

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ):
        _check_not_negative(lr=lr, eps=eps, weight_decay=weight_decay)
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas must be in [0, 1), got {betas}")
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    def step(self, closure: Callable[[], Float[Tensor, ""]] | None = None) -> Float[Tensor, ""] | None:
        loss = _loss_of(closure)
        with torch.no_grad():
            for group, parameter in _with_gradient(self.param_groups):
                gradient, lr, weight_decay = parameter.grad, group["lr"], group["weight_decay"]
                beta1, beta2 = group["betas"]
                state = self.state[parameter]
                if not state:
                    state["step"] = 0
                    state["exp_avg"] = torch.zeros_like(parameter)
                    state["exp_avg_sq"] = torch.zeros_like(parameter)
                state["step"] += 1

                if self._decoupled:
                    parameter.mul_(1 - lr * weight_decay)
                elif weight_decay != 0:
                    gradient = gradient.add(parameter, alpha=weight_decay)
                mean = state["exp_avg"].lerp_(gradient, 1 - beta1)
                square = state["exp_avg_sq"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
                # The corrections are numbers: on them and not on the tensors, division is free.
                correction1, correction2 = 1 - beta1 ** state["step"], 1 - beta2 ** state["step"]
                scale = square.sqrt().div_(math.sqrt(correction2)).add_(group["eps"])
                parameter.addcdiv_(mean, scale, value=-lr / correction1)
        return loss


class AdamW(Adam):
    """Adam with weight decay of its own: parameters shrink by the same factor, however large their gradients are.

    >>> w = torch.tensor([2.0, 2.0], requires_grad=True)
    >>> optimizer = AdamW([w], lr=0.25, weight_decay=0.5)
    >>> w.grad = torch.tensor([0.0, 1e3])
    >>> optimizer.step()
    >>> w
    tensor([1.7500, 1.5000], requires_grad=True)

    Follows torch.optim.AdamW: each step first multiplies the parameter by 1 - lr * weight_decay, and then makes Adam's
    step with the gradient alone. So weight_decay enters neither m nor v (see Adam), where it would be divided by the
    root of v and act least on what has the largest gradients. A parameter without gradient does not shrink either.

    Everything else is Adam's and comes from it: settings (but weight_decay is 0.01 unless given), errors, param groups,
    state, closure.

    Refused: torch.optim's own optimizers, their functional forms and fused operations.
    See: Loshchilov, Hutter 2019, Decoupled Weight Decay Regularization, https://arxiv.org/abs/1711.05101
    """

    _decoupled = True

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ):
        super().__init__(params, lr, betas, eps, weight_decay)


def _loss_of(closure: Callable[[], Tensor] | None) -> Tensor | None:
    """What the closure returns: it may be called where gradients are off, but its backward needs them."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


def _with_gradient(param_groups: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], Tensor]]:
    """Each parameter that has a gradient, with its group."""
    return ((group, p) for group in param_groups for p in group["params"] if p.grad is not None)


def _flat(tensors: Iterable[Tensor], device: torch.device) -> Tensor:
    """All elements one after the other; none on the device, where there are no tensors."""
    parts = [tensor.flatten() for tensor in tensors]
    return torch.cat(parts) if parts else torch.zeros(0, device=device)


def _check_not_negative(**settings: float) -> None:
    for name, setting in settings.items():
        if not setting >= 0:
            raise ValueError(f"{name} must not be negative, got {setting}")
