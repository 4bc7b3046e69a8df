"""Batches by split, and optimizers that update all parameters of a group at once."""

import torch


def batches(*tensors, batch_size, shuffle=False, drop_last=False, generator=None):
    """Split each tensor, and zip the pieces."""
    lengths = {tensor.shape[:1] for tensor in tensors}
    if batch_size < 1 or len(lengths) != 1 or () in lengths:
        raise ValueError(f"cannot cut batches of {batch_size} rows of shapes {[list(t.shape) for t in tensors]}")
    ((rows,),) = lengths
    if shuffle:
        order = torch.randperm(rows, generator=generator, device=tensors[0].device)
        tensors = [tensor[order] for tensor in tensors]
    if drop_last:
        rows -= rows % batch_size
    if not rows:
        return iter(())
    return zip(*(tensor[:rows].split(batch_size) for tensor in tensors))


def _losses(model, loss_fn, inputs, targets, size, drop_last):
    return ((len(x), loss_fn(model(x), y)) for x, y in batches(inputs, targets, batch_size=size, drop_last=drop_last))


def minibatch_gradients(model, loss_fn, inputs, targets, batch_size):
    """The Jacobian of the losses, row by row."""
    trained = [p for p in model.parameters() if p.requires_grad]
    size = sum(p.numel() for p in trained)
    losses = _losses(model, loss_fn, inputs, targets, batch_size, True)
    out = trained[0].detach().new_zeros(len(inputs) // batch_size, size)
    for row, (_, loss) in zip(out, losses):
        if loss.requires_grad:
            gradients = torch.autograd.grad(loss, trained, materialize_grads=True)
            torch.cat([g.reshape(-1) for g in gradients], out=row)
    return out


def accumulate_gradients(model, loss_fn, inputs, targets, micro_batch):
    """Backward on each part's share of the mean."""
    trained = [p for p in model.parameters() if p.requires_grad]
    parts = _losses(model, loss_fn, inputs, targets, micro_batch, False)
    n, shares = len(inputs), []
    if n == 0:
        raise ValueError("an empty batch has no mean")
    for rows, loss in parts:
        share = loss * rows / n
        share.backward(inputs=trained)
        shares.append(share.detach())
    return torch.stack(shares).sum().item()


def clip_grad_norm_(parameters, max_norm):
    """One vector's norm."""
    if not max_norm >= 0:
        raise ValueError(f"max_norm {max_norm} < 0")
    with torch.no_grad():
        parameters = (parameters,) if torch.is_tensor(parameters) else tuple(parameters)
        gradients = [p.grad for p in parameters if p.grad is not None]
        if not gradients:
            return parameters[0].new_zeros(()) if parameters else torch.zeros(())
        total = torch.cat([g.reshape(-1) for g in gradients]).norm()
        if total.isnan() or total.isinf():
            raise ValueError(f"gradients of norm {total.item()} cannot be clipped")
        if total > max_norm:
            torch._foreach_mul_(gradients, (max_norm / total).item())
        return total


def _check(**settings):
    for name, value in settings.items():
        if value < 0:
            raise ValueError(f"{name}={value} is negative")


class SGD(torch.optim.Optimizer):
    """Gradient descent, a group at a time."""

    def __init__(self, params, lr, momentum=0.0, weight_decay=0.0, nesterov=False):
        _check(lr=lr, momentum=momentum, weight_decay=weight_decay)
        if nesterov and not momentum:
            raise ValueError(f"nesterov=True with momentum={momentum}")
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "nesterov": nesterov})

    def step(self, closure=None):
        with torch.enable_grad():
            loss = closure() if closure else None
        with torch.no_grad():
            for group in self.param_groups:
                params = [p for p in group["params"] if p.grad is not None]
                if params:
                    self._update(params, [p.grad for p in params], group)
        return loss

    def _update(self, params, grads, group):
        momentum = group["momentum"]
        if group["weight_decay"]:
            grads = torch._foreach_add(grads, params, alpha=group["weight_decay"])
        if momentum:
            states = [self.state[p] for p in params]
            for state, grad in zip(states, grads):
                # momentum * (grad / momentum) would round; a first buffer is a copy
                if "buffer" in state:
                    state["buffer"].mul_(momentum).add_(grad)
                else:
                    state["buffer"] = torch.clone(grad)
            buffers = [state["buffer"] for state in states]
            grads = torch._foreach_add(grads, buffers, alpha=momentum) if group["nesterov"] else buffers
        torch._foreach_add_(params, grads, alpha=-group["lr"])


class Adam(torch.optim.Optimizer):
    """Adam, a group at a time."""

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0):
        _check(lr=lr, eps=eps, weight_decay=weight_decay)
        if min(betas) < 0 or max(betas) >= 1:
            raise ValueError(f"betas={betas} must lie in [0, 1)")
        super().__init__(params, {"lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay})

    def step(self, closure=None):
        with torch.enable_grad():
            loss = closure() if closure else None
        with torch.no_grad():
            for group in self.param_groups:
                params = [p for p in group["params"] if p.grad is not None]
                if params:
                    grads = self._decayed(params, [p.grad for p in params], group)
                    self._update(params, grads, group)
        return loss

    def _decayed(self, params, grads, group):
        return torch._foreach_add(grads, params, alpha=group["weight_decay"])

    def _update(self, params, grads, group):
        beta1, beta2 = group["betas"]
        for p in params:
            state = self.state[p]
            state["count"] = state.get("count", 0) + 1
            if state["count"] == 1:
                state.update(first=torch.zeros_like(p), second=torch.zeros_like(p))
        counts, first, second = zip(*((s["count"], s["first"], s["second"]) for s in map(self.state.get, params)))
        torch._foreach_lerp_(first, grads, 1 - beta1)
        torch._foreach_mul_(second, beta2)
        torch._foreach_addcmul_(second, grads, grads, value=1 - beta2)
        roots = torch._foreach_sqrt(second)
        torch._foreach_div_(roots, [(1 - beta2**t) ** 0.5 for t in counts])
        torch._foreach_add_(roots, group["eps"])
        steps = [-group["lr"] / (1 - beta1**t) for t in counts]
        torch._foreach_addcdiv_(params, first, roots, steps)


class AdamW(Adam):
    """Adam that shrinks the parameters themselves."""

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2):
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)

    def _decayed(self, params, grads, group):
        torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
        return grads
