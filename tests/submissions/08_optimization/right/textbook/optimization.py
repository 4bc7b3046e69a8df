"""Batches, gradients over parts of them, and optimizers: straight from the contract."""

import torch
from torch import Tensor


def batches(*tensors, batch_size, shuffle=False, drop_last=False, generator=None):
    """The rows of all tensors, batch by batch."""
    if batch_size < 1:
        raise ValueError(f"batch_size should be positive but is {batch_size}")
    if len(tensors) == 0:
        raise ValueError("no tensors")
    for tensor in tensors:
        if tensor.dim() == 0:
            raise ValueError("0-dim tensor")
        if tensor.shape[0] != tensors[0].shape[0]:
            raise ValueError(f"length mismatch: {tensor.shape[0]} and {tensors[0].shape[0]}")
    return _iterate(tensors, batch_size, shuffle, drop_last, generator)


def _iterate(tensors, batch_size, shuffle, drop_last, generator):
    n = tensors[0].shape[0]
    if shuffle:
        permutation = torch.randperm(n, generator=generator, device=tensors[0].device)
    for i in range(0, n, batch_size):
        if drop_last and i + batch_size > n:
            break
        if shuffle:
            rows = permutation[i : i + batch_size]
            yield tuple(t.index_select(0, rows) for t in tensors)
        else:
            yield tuple(t[i : i + batch_size] for t in tensors)


def minibatch_gradients(model, loss_fn, inputs, targets, batch_size):
    """One flat gradient for each batch."""
    params = [p for p in model.parameters() if p.requires_grad]
    result = []
    for x, y in batches(inputs, targets, batch_size=batch_size, drop_last=True):
        loss = loss_fn(model(x), y)
        if loss.requires_grad:
            grads = torch.autograd.grad(loss, params, allow_unused=True)
        else:
            grads = [None] * len(params)
        flat = [torch.zeros_like(p).reshape(-1) if g is None else g.reshape(-1) for p, g in zip(params, grads)]
        result.append(torch.cat(flat))
    if not result:
        number = sum(p.numel() for p in params)
        return torch.zeros(0, number, dtype=params[0].dtype, device=params[0].device)
    return torch.stack(result)


def accumulate_gradients(model, loss_fn, inputs, targets, micro_batch):
    """The gradient of a batch from parts of it."""
    iterator = batches(inputs, targets, batch_size=micro_batch)
    n = inputs.shape[0]
    if n == 0:
        raise ValueError("no rows")
    params = [p for p in model.parameters() if p.requires_grad]
    mean = 0.0
    for x, y in iterator:
        weight = x.shape[0] / n
        loss = loss_fn(model(x), y)
        grads = torch.autograd.grad(loss, params, allow_unused=True)
        for p, g in zip(params, grads):
            if g is None:
                continue
            if p.grad is None:
                p.grad = g * weight
            else:
                p.grad += g * weight
        mean += loss.item() * weight
    return mean


@torch.no_grad()
def clip_grad_norm_(parameters, max_norm):
    """Scale all gradients so that their common norm is at most max_norm."""
    if max_norm < 0:
        raise ValueError(f"negative max_norm: {max_norm}")
    if isinstance(parameters, Tensor):
        parameters = [parameters]
    parameters = list(parameters)
    grads = [p.grad for p in parameters if p.grad is not None]
    if len(grads) == 0:
        return torch.zeros((), device=parameters[0].device if parameters else "cpu")
    total = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in grads]))
    if not torch.isfinite(total):
        raise ValueError(f"total norm is {total}")
    if total > max_norm:
        for g in grads:
            g.mul_(max_norm / (total + 1e-6))
    return total


class SGD(torch.optim.Optimizer):
    """Gradient descent."""

    def __init__(self, params, lr, momentum=0.0, weight_decay=0.0, nesterov=False):
        if lr < 0:
            raise ValueError(f"Invalid learning rate: {lr}")
        if momentum < 0:
            raise ValueError(f"Invalid momentum value: {momentum}")
        if weight_decay < 0:
            raise ValueError(f"Invalid weight_decay value: {weight_decay}")
        if nesterov and momentum == 0:
            raise ValueError(f"Nesterov momentum requires a momentum, not {momentum}")
        defaults = dict(lr=lr, momentum=momentum, weight_decay=weight_decay, nesterov=nesterov)
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                grad = p.grad + group["weight_decay"] * p
                if group["momentum"] != 0:
                    state = self.state[p]
                    if len(state) == 0:
                        state["velocity"] = grad.clone()
                    else:
                        state["velocity"].mul_(group["momentum"]).add_(grad)
                    if group["nesterov"]:
                        grad = grad + group["momentum"] * state["velocity"]
                    else:
                        grad = state["velocity"]
                p.sub_(group["lr"] * grad)
        return loss


class Adam(torch.optim.Optimizer):
    """Adam."""

    decoupled = False

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0):
        if lr < 0:
            raise ValueError(f"Invalid learning rate: {lr}")
        if eps < 0:
            raise ValueError(f"Invalid epsilon value: {eps}")
        if weight_decay < 0:
            raise ValueError(f"Invalid weight_decay value: {weight_decay}")
        for beta in betas:
            if not 0 <= beta < 1:
                raise ValueError(f"Invalid beta: {beta}")
        super().__init__(params, dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                grad = p.grad
                state = self.state[p]
                if len(state) == 0:
                    state["t"] = 0
                    state["m"] = torch.zeros_like(p)
                    state["v"] = torch.zeros_like(p)
                if self.decoupled:
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                else:
                    grad = grad + group["weight_decay"] * p
                state["t"] += 1
                state["m"].mul_(beta1).add_(grad, alpha=1 - beta1)
                state["v"].mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
                m_hat = state["m"] / (1 - beta1 ** state["t"])
                v_hat = state["v"] / (1 - beta2 ** state["t"])
                p.sub_(group["lr"] * m_hat / (v_hat.sqrt() + group["eps"]))
        return loss


class AdamW(Adam):
    """Adam with decoupled weight decay."""

    decoupled = True

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2):
        super().__init__(params, lr, betas, eps, weight_decay)
