"""The same in many small steps, with new tensors where others update in place."""

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


class _Batches:
    """An iterator that remembers where it is."""

    def __init__(self, tensors: tuple[Tensor, ...], starts: Iterator[int], size: int, order: Tensor | None):
        self.tensors = tensors
        self.starts = starts
        self.size = size
        self.order = order

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        return self

    def __next__(self) -> tuple[Tensor, ...]:
        start = next(self.starts)
        size = min(self.size, len(self.tensors[0]) - start)
        if self.order is None:
            return tuple(tensor.narrow(0, start, size) for tensor in self.tensors)
        rows = self.order.narrow(0, start, size)
        return tuple(tensor[rows] for tensor in self.tensors)


def batches(
    *tensors: Tensor,
    batch_size: int,
    shuffle: bool = False,
    drop_last: bool = False,
    generator: torch.Generator | None = None,
) -> Iterator[tuple[Tensor, ...]]:
    """Batches of rows, as an iterator object."""
    if not tensors:
        raise ValueError("batches() needs one tensor or more")
    for position, tensor in enumerate(tensors):
        if tensor.ndim < 1:
            raise ValueError(f"tensor {position} has no rows: it is a scalar")
    lengths = [tensor.size(0) for tensor in tensors]
    if min(lengths) != max(lengths):
        raise ValueError(f"rows do not match: {lengths}")
    if batch_size <= 0:
        raise ValueError(f"batch_size={batch_size}")
    n = lengths[0]
    order = None
    if shuffle:
        # sorting random numbers gives every order the same chance (but for ties)
        keys = torch.rand(n, generator=generator, device=tensors[0].device, dtype=torch.float64)
        order = torch.argsort(keys)
    whole = n // batch_size
    count = whole if drop_last or n % batch_size == 0 else whole + 1
    return _Batches(tensors, iter([i * batch_size for i in range(count)]), batch_size, order)


def minibatch_gradients(
    model: nn.Module, loss_fn: Callable, inputs: Tensor, targets: Tensor, batch_size: int
) -> Tensor:
    """Gradients by hooks-free backward on detached twins of the parameters."""
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}")
    if inputs.ndim == 0 or targets.ndim == 0 or inputs.shape[0] != targets.shape[0]:
        raise ValueError(f"rows do not match: {tuple(inputs.shape)} and {tuple(targets.shape)}")
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    originals = [p for p in model.parameters() if p.requires_grad]
    count = inputs.shape[0] // batch_size
    columns = [p.detach().new_zeros(count, p.numel()) for p in originals]
    for i in range(count):
        part = slice(i * batch_size, (i + 1) * batch_size)
        twins = [p.detach().clone().requires_grad_() for p in originals]
        with torch.enable_grad():
            outputs = torch.func.functional_call(model, dict(zip(names, twins)), (inputs[part],))
            loss = loss_fn(outputs, targets[part])
        if loss.requires_grad:
            loss.backward(inputs=twins)
        for column, twin in zip(columns, twins):
            if twin.grad is not None:
                column[i] = twin.grad.reshape(-1)
    return torch.cat(columns, dim=1)


def accumulate_gradients(
    model: nn.Module, loss_fn: Callable, inputs: Tensor, targets: Tensor, micro_batch: int
) -> float:
    """Sums over rows, divided by the number of rows at the end."""
    if micro_batch < 1:
        raise ValueError(f"micro_batch={micro_batch}")
    if inputs.ndim == 0 or targets.ndim == 0 or inputs.shape[0] != targets.shape[0]:
        raise ValueError(f"rows do not match: {tuple(inputs.shape)} and {tuple(targets.shape)}")
    rows = inputs.shape[0]
    if rows == 0:
        raise ValueError("0 rows")
    parameters = [p for p in model.parameters() if p.requires_grad]
    sums = [None] * len(parameters)
    total = 0.0
    for start in range(0, rows, micro_batch):
        x, y = inputs[start : start + micro_batch], targets[start : start + micro_batch]
        with torch.enable_grad():
            loss = loss_fn(model(x), y)
        total += float(loss) * x.shape[0]
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        for k, gradient in enumerate(gradients):
            if gradient is not None:
                scaled = gradient * x.shape[0]
                sums[k] = scaled if sums[k] is None else sums[k] + scaled
    for parameter, gradient in zip(parameters, sums):
        if gradient is not None:
            mean = gradient / rows
            parameter.grad = mean if parameter.grad is None else parameter.grad + mean
    return total / rows


def clip_grad_norm_(parameters: Tensor | Iterable[Tensor], max_norm: float) -> Tensor:
    """The root of the sum of all squares, relative to the largest element."""
    if max_norm < 0:
        raise ValueError(f"max_norm={max_norm}")
    if isinstance(parameters, Tensor):
        parameters = [parameters]
    gradients = []
    zero = torch.tensor(0.0)
    for parameter in parameters:
        zero = parameter.detach().new_zeros(())
        if parameter.grad is not None:
            gradients.append(parameter.grad.detach())
    nonempty = [g for g in gradients if g.numel()]
    if not nonempty:
        return zero
    dtype = nonempty[0].dtype
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    nonempty = [g.to(wide) for g in nonempty]
    peak = torch.stack([g.abs().max() for g in nonempty]).max()
    if not torch.isfinite(peak):
        raise ValueError(f"an element of the gradients is {peak.item()}")
    if peak == 0:
        return zero
    squares = torch.stack([(g / peak).square().sum() for g in nonempty])
    norm = peak * squares.sum().sqrt()
    if not torch.isfinite(norm):
        raise ValueError(f"the norm of the gradients is {norm.item()}")
    if norm > max_norm:
        scale = max_norm / (norm + 1e-6)
        for gradient in gradients:
            gradient *= scale
    return norm.to(dtype)


class SGD(Optimizer):
    """SGD, with the velocity as a new tensor at each step."""

    def __init__(
        self,
        params: Iterable,
        lr: float,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ):
        if min(lr, momentum, weight_decay) < 0:
            raise ValueError(f"negative setting among lr={lr}, momentum={momentum}, weight_decay={weight_decay}")
        if nesterov and momentum == 0.0:
            raise ValueError(f"nesterov needs momentum, not {momentum}")
        super().__init__(params, dict(lr=lr, momentum=momentum, weight_decay=weight_decay, nesterov=nesterov))

    def step(self, closure: Callable | None = None) -> Tensor | None:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            lr, mu, decay = group["lr"], group["momentum"], group["weight_decay"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                d = p.grad.detach() + decay * p.detach()
                if mu > 0:
                    old = self.state[p].get("velocity")
                    velocity = d if old is None else mu * old + d
                    self.state[p]["velocity"] = velocity
                    d = d + mu * velocity if group["nesterov"] else velocity
                p.data.copy_(p.data - lr * d)
        return loss


class Adam(Optimizer):
    """Adam by the formulas of the paper."""

    def __init__(
        self,
        params: Iterable,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ):
        if not lr >= 0.0:
            raise ValueError(f"lr={lr}")
        if not eps >= 0.0:
            raise ValueError(f"eps={eps}")
        if not weight_decay >= 0.0:
            raise ValueError(f"weight_decay={weight_decay}")
        b1, b2 = betas
        if b1 < 0 or b1 >= 1 or b2 < 0 or b2 >= 1:
            raise ValueError(f"betas={b1}, {b2}")
        super().__init__(params, dict(lr=lr, betas=(b1, b2), eps=eps, weight_decay=weight_decay))

    def step(self, closure: Callable | None = None) -> Tensor | None:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    gradient = p.grad.detach() + group["weight_decay"] * p.detach()
                    p.data.sub_(self.direction(p, gradient, group))
        return loss

    def direction(self, p: Tensor, gradient: Tensor, group: dict) -> Tensor:
        """lr times the corrected mean, divided by the root of the corrected mean square."""
        b1, b2 = group["betas"]
        state = self.state[p]
        t = state.setdefault("t", torch.tensor(0, dtype=torch.int64)).item() + 1
        m = b1 * state.get("m", torch.zeros_like(gradient)) + (1 - b1) * gradient
        v = b2 * state.get("v", torch.zeros_like(gradient)) + (1 - b2) * gradient.square()
        state["t"], state["m"], state["v"] = torch.tensor(t), m, v
        m_hat = m / (1 - b1**t)
        v_hat = v / (1 - b2**t)
        return group["lr"] * m_hat / (v_hat.sqrt() + group["eps"])


class AdamW(Adam):
    """A step of its own, with Adam's direction."""

    def __init__(
        self,
        params: Iterable,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ):
        super().__init__(params, lr, betas, eps, weight_decay)

    def step(self, closure: Callable | None = None) -> Tensor | None:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    change = self.direction(p, p.grad.detach(), group)
                    p.data.sub_(group["lr"] * group["weight_decay"] * p.data + change)
        return loss
