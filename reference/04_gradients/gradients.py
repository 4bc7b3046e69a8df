"""Gradients of your own: custom autograd Functions, the difference quotients that check them, and backprop by hand."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor


class Square(torch.autograd.Function):
    """x squared, element by element, with a backward of its own.

    >>> x = torch.tensor([1.0, -3.0], requires_grad=True)
    >>> y = Square.apply(x)
    >>> y.backward(torch.tensor([1.0, 10.0]))
    >>> y.tolist(), x.grad.tolist()
    ([1.0, 9.0], [2.0, -60.0])

    Called as `Square.apply(x)`; the result has the shape and dtype of x. The gradient is right for every incoming
    gradient, not only for ones, and can be differentiated again (`create_graph=True`). Neither x nor the incoming
    gradient is modified.

    backward needs x as forward saw it: where x was changed in place in between, backward raises RuntimeError, as it
    does for torch's own operations, and never gives a gradient at the wrong point.

    See: torch.autograd.Function, https://docs.pytorch.org/docs/stable/notes/extending.html
    """

    @staticmethod
    def forward(ctx, x: Float[Tensor, "*dims"]) -> Float[Tensor, "*dims"]:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, grad: Float[Tensor, "*dims"]) -> Float[Tensor, "*dims"]:
        (x,) = ctx.saved_tensors
        return grad * 2 * x


class RoundSTE(torch.autograd.Function):
    """x rounded to whole numbers, with a gradient as if it had not been: a straight-through estimator.

    >>> x = torch.tensor([-1.2, 0.5, 2.7], requires_grad=True)
    >>> y = RoundSTE.apply(x)
    >>> y.backward(torch.tensor([1.0, 2.0, 3.0]))
    >>> y.tolist(), x.grad.tolist()
    ([-1.0, 0.0, 3.0], [1.0, 2.0, 3.0])

    Called as `RoundSTE.apply(x)`. Values are those of torch.round: the nearest whole number, halves to the even one.
    The slope of rounding is 0 almost everywhere and would stop all learning; here the incoming gradient goes back to
    x unchanged, whatever the values of x, and the graph goes on through it where the gradient is differentiated
    again. x is not modified.

    See: Bengio et al. 2013, Estimating or Propagating Gradients Through Stochastic Neurons,
    https://arxiv.org/abs/1308.3432
    """

    @staticmethod
    def forward(ctx, x: Float[Tensor, "*dims"]) -> Float[Tensor, "*dims"]:
        return x.round()

    @staticmethod
    def backward(ctx, grad: Float[Tensor, "*dims"]) -> Float[Tensor, "*dims"]:
        return grad


def numerical_gradient(
    f: Callable[[Float64[Tensor, "*dims"]], Float[Tensor, ""] | float], x: Float64[Tensor, "*dims"], eps: float = 1e-6
) -> Float64[Tensor, "*dims"]:
    """The gradient of f at x by central differences: for each element how f changes from eps below to eps above it.

    >>> x = torch.tensor([1.0, 3.0], dtype=torch.float64)
    >>> numerical_gradient(lambda x: (x**3).sum(), x).round(decimals=6)
    tensor([ 3., 27.], dtype=torch.float64)

    f takes a tensor like x and returns a tensor without dimensions or a Python float; it may be any function,
    autograd need not know it. Each element is the difference of f at x moved by +eps and by -eps in that element
    alone, divided by 2 * eps, in float64 throughout. x may have any shape, `()` and empty ones too, and any strides;
    the elements of an expanded x count one by one.

    x is never changed, not even for a moment: f is called with other tensors. The result does not require grad, also
    where x does or f has parameters that do.

    Raises TypeError, before f is called, unless x is float64.
    See: Gradcheck mechanics, https://docs.pytorch.org/docs/stable/notes/gradcheck.html
    """
    _check_float64(x)
    slopes = [(_value_at(f, x, i, eps) - _value_at(f, x, i, -eps)) / (2 * eps) for i in range(x.numel())]
    return torch.tensor(slopes, dtype=x.dtype, device=x.device).view(x.shape)


def gradient_error(
    f: Callable[[Float64[Tensor, "*dims"]], Float[Tensor, ""] | float], x: Float64[Tensor, "*dims"]
) -> float:
    """How far autograd's gradient of f at x is from the numerical one: the largest absolute difference.

    >>> x = torch.tensor([1.0, -2.0], dtype=torch.float64)
    >>> gradient_error(lambda x: (x * x).sum(), x) < 1e-6
    True
    >>> round(gradient_error(lambda x: (x * x.detach()).sum(), x), 6)  # autograd sees half of it
    2.0

    Returns a Python float: near 0 where backward is right, nan where either gradient is nan, 0.0 where x is empty. f is
    as for `numerical_gradient`. Where autograd finds no way from f's value to x, its gradient there is 0: f may be
    constant, may return a Python float, or may depend on tensors other than x that require grad.

    x is not modified and `.grad` of no tensor is touched: neither of x, nor of what f uses besides. It works for an x
    that requires grad and for one that does not, and also inside torch.no_grad().

    Raises TypeError, before f is called, unless x is float64.
    See: torch.autograd.gradcheck,
    https://docs.pytorch.org/docs/stable/generated/torch.autograd.gradcheck.gradcheck.html
    """
    _check_float64(x)
    if x.numel() == 0:
        return 0.0
    leaf = x.detach().clone().requires_grad_()
    gradient = torch.zeros_like(leaf)
    with torch.enable_grad():
        value = f(leaf)
    if isinstance(value, Tensor) and value.requires_grad:
        (gradient,) = torch.autograd.grad(value, leaf, materialize_grads=True)
    return (gradient - numerical_gradient(f, x)).abs().max().item()


def unbroadcast(grad: Float[Tensor, "..."], shape: Sequence[int]) -> Float[Tensor, "..."]:
    """The gradient of a tensor of `shape` that was broadcast, from the gradient of what it was broadcast to.

    >>> unbroadcast(torch.ones(2, 3), (3,)), unbroadcast(torch.ones(2, 3), (2, 1))
    (tensor([2., 2., 2.]), tensor([[3.],
            [3.]]))

    Broadcasting uses one element several times; its gradient is the sum of the gradients of all these uses. The result
    has exactly the shape asked for, sizes of 1 included; where that is the shape of grad, the values are those of grad.
    A size of 1 may have been broadcast to 0, and then its gradient is 0. `()` is the shape of one element.

    Raises ValueError, with both shapes, if a tensor of that shape does not broadcast to the shape of grad.
    Raises TypeError if grad is not floating.
    See: Broadcasting semantics, https://docs.pytorch.org/docs/stable/notes/broadcasting.html
    """
    _check_floating(grad=grad)
    shape = tuple(shape)
    added = grad.ndim - len(shape)  # dimensions that broadcasting put in front
    if added < 0 or any(size not in (1, to) for size, to in zip(shape, grad.shape[added:], strict=True)):
        raise ValueError(f"the shape {shape} does not broadcast to {tuple(grad.shape)}")
    before = (1,) * added + shape
    used_often = [dim for dim in range(grad.ndim) if before[dim] != grad.shape[dim]]
    if used_often:  # torch takes a sum over no dimensions as one over all
        grad = grad.sum(used_often, keepdim=True)
    return grad.reshape(shape)


class LinearFunction(torch.autograd.Function):
    """The linear map x @ weight.T + bias, with a backward of its own.

    >>> x = torch.tensor([[1.0, 2.0]])
    >>> weight = torch.tensor([[3.0, 4.0], [5.0, 6.0]], requires_grad=True)
    >>> y = LinearFunction.apply(x, weight, None)
    >>> y.backward(torch.tensor([[1.0, 10.0]]))
    >>> y.tolist(), weight.grad.tolist()
    ([[11.0, 17.0]], [[1.0, 2.0], [10.0, 20.0]])

    Called as `LinearFunction.apply(x, weight, bias)`, always with three arguments; bias may be None. x has any number
    of batch dimensions, also none (a vector [i] gives a vector [o]); every size may be 0. The gradients of weight and
    bias are sums over all batch dimensions and have the shapes of weight and bias.

    Only gradients that are asked for are computed (`ctx.needs_input_grad`): a frozen weight costs no product in
    backward. All gradients can be differentiated again. No input and no incoming gradient is modified.

    Raises ValueError, with both shapes, if x does not end in weight's i, or if bias is not [o]; with the shape if
    weight does not have two dimensions or x has none.
    Refused: torch.nn.functional.linear.
    See: torch.nn.functional.linear, https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.linear.html
    """

    @staticmethod
    def forward(
        ctx, x: Float[Tensor, "*batch i"], weight: Float[Tensor, "o i"], bias: Float[Tensor, " o"] | None
    ) -> Float[Tensor, "*batch o"]:
        if x.ndim < 1 or weight.ndim != 2 or x.shape[-1] != weight.shape[1]:
            raise ValueError(f"x of shape {tuple(x.shape)} does not fit a weight of shape {tuple(weight.shape)}")
        if bias is not None and bias.shape != weight.shape[:1]:
            raise ValueError(f"bias of shape {tuple(bias.shape)} does not fit a weight of shape {tuple(weight.shape)}")
        ctx.save_for_backward(x, weight)
        out = x @ weight.T
        return out if bias is None else out + bias

    @staticmethod
    def backward(
        ctx, grad: Float[Tensor, "*batch o"]
    ) -> tuple[Float[Tensor, "*batch i"] | None, Float[Tensor, "o i"] | None, Float[Tensor, " o"] | None]:
        x, weight = ctx.saved_tensors
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_x = grad @ weight
        if ctx.needs_input_grad[1]:
            batch = list(range(x.ndim - 1))
            grad_weight = torch.tensordot(grad, x, dims=(batch, batch))
        if ctx.needs_input_grad[2]:
            grad_bias = unbroadcast(grad, weight.shape[:1])
        return grad_x, grad_weight, grad_bias


class LogSumExp(torch.autograd.Function):
    """log(sum(exp(x))) over one dimension, without overflow, with a backward of its own.

    >>> x = torch.tensor([[1e4, 1e4], [0.0, -torch.inf]], requires_grad=True)
    >>> y = LogSumExp.apply(x, 1)
    >>> y.backward(torch.tensor([1.0, 3.0]))
    >>> (y - torch.tensor([1e4, 0.0])).tolist(), x.grad.tolist()
    ([0.693359375, 0.0], [[0.5, 0.5], [3.0, 0.0]])

    Called as `LogSumExp.apply(x, dim)`. dim may be negative and does not appear in the result. Values of ±1e4, which
    exp cannot take, give finite results and gradients. An entry of -inf adds nothing and has gradient 0; a row of
    nothing but -inf gives -inf and gradients of 0; an empty row (dim has size 0) gives -inf. There is never a nan, in
    the result, in the gradient or in its gradient, unless x holds one or +inf. The gradient can be differentiated
    again. x and the incoming gradient are not modified.

    Raises IndexError if x has no dimension dim.
    Refused: torch.logsumexp and its siblings (torch.logcumsumexp, torch.logaddexp), torch.softmax, torch.log_softmax.
    See: torch.logsumexp, https://docs.pytorch.org/docs/stable/generated/torch.logsumexp.html
    """

    @staticmethod
    def forward(ctx, x: Float[Tensor, "*dims"], dim: int) -> Float[Tensor, "*rest"]:
        ctx.save_for_backward(x)
        ctx.dim = dim
        exp, peak = _shifted_exp(x, dim)
        return exp.sum(dim).log() + peak.squeeze(dim)

    @staticmethod
    def backward(ctx, grad: Float[Tensor, "*rest"]) -> tuple[Float[Tensor, "*dims"], None]:
        (x,) = ctx.saved_tensors
        # From x and not from the result: near 1e4 float32 has rounded the result to a thousandth. And not saved by
        # forward: what is neither input nor output has no history, and the second derivative would miss it.
        exp, _ = _shifted_exp(x, ctx.dim)
        total = exp.sum(ctx.dim, keepdim=True).clamp(min=1)  # below 1 only where all is -inf: 0
        return exp * (grad.view_as(total) / total), None


def mlp_gradients(
    x: Float[Tensor, "n i"],
    target: Int[Tensor, " n"],
    w1: Float[Tensor, "h i"],
    b1: Float[Tensor, " h"],
    w2: Float[Tensor, "c h"],
    b2: Float[Tensor, " c"],
) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, "..."]]]:
    """The loss of a network of two layers and its gradients for all parameters, by the chain rule, by hand.

    >>> x, target = torch.tensor([[1.0], [2.0]]), torch.tensor([0, 1])
    >>> w1, b1, w2, b2 = torch.ones(1, 1), torch.zeros(1), torch.zeros(2, 1), torch.zeros(2)
    >>> loss, gradients = mlp_gradients(x, target, w1, b1, w2, b2)
    >>> loss
    tensor(0.6931)
    >>> {name: gradient.tolist() for name, gradient in gradients.items()}
    {'w1': [[0.0]], 'b1': [0.0], 'w2': [[0.25], [-0.25]], 'b2': [0.0, 0.0]}

    The network: hidden = relu(x @ w1.T + b1), logits = hidden @ w2.T + b2. The loss is the mean over the n rows of
    the cross-entropy of logits and target, target[k] being the number of row k's class, in [0, c). The slope of relu
    at 0 is 0, as in torch. Logits of any size (±1e4) give a finite loss and gradients.

    Returns the loss, without dimensions, and a dict with exactly the keys "w1", "b1", "w2" and "b2": the gradients of
    the loss, each of its parameter's shape. Nothing is recorded by autograd, also where the inputs require grad: no
    result requires grad, and `.grad` of no tensor is touched. i and h may be 0. target may have any integer dtype.

    Raises ValueError, with the numbers, if n is 0, or if the shapes do not fit together as the signature says.
    Raises IndexError, with the number, if a target is not in [0, c); negative ones do not count from the end.
    Raises TypeError if target is not of integers (bool is not), or if another argument is not floating.
    Refused: torch.autograd in any form (backward, torch.func too), torch.nn.functional.cross_entropy, nll_loss,
    softmax, log_softmax, torch.logsumexp.
    See: Rumelhart, Hinton, Williams 1986, Learning representations by back-propagating errors,
    https://doi.org/10.1038/323533a0
    """
    _check_floating(x=x, w1=w1, b1=b1, w2=w2, b2=b2)
    if target.is_floating_point() or target.is_complex() or target.dtype == torch.bool:
        raise TypeError(f"target must hold integers, it is {target.dtype}")
    _check_shapes(x=(x, "n i"), target=(target, "n"), w1=(w1, "h i"), b1=(b1, "h"), w2=(w2, "c h"), b2=(b2, "c"))
    n, classes = len(x), len(w2)
    if n == 0:
        raise ValueError("the mean over n = 0 rows is not defined")
    target = target.long()  # int8 holds no 130 classes to compare with, and uint8 would index as a mask
    strays = target[(target < 0) | (target >= classes)]
    if len(strays):
        raise IndexError(f"target {strays[0].item()} is out of range for {classes} classes")

    x, w1, b1, w2, b2 = (tensor.detach() for tensor in (x, w1, b1, w2, b2))
    rows = torch.arange(n, device=x.device)

    hidden = (x @ w1.T + b1).relu()  # [n h]
    logits = hidden @ w2.T + b2  # [n c]
    shifted = logits - logits.amax(1, keepdim=True)
    exp = shifted.exp()
    total = exp.sum(1, keepdim=True)
    loss = (total.log().squeeze(1) - shifted[rows, target]).mean()

    # The mean's 1/n enters once, here, and goes down to all parameters with d_logits.
    d_logits = exp / total
    d_logits[rows, target] -= 1
    d_logits /= n
    d_hidden = (d_logits @ w2) * (hidden > 0)
    return loss, {"w1": d_hidden.T @ x, "b1": d_hidden.sum(0), "w2": d_logits.T @ hidden, "b2": d_logits.sum(0)}


def _value_at(f: Callable[[Tensor], Tensor | float], x: Tensor, i: int, step: float) -> float:
    """f where x has element i moved by step. f gets a copy of its own, and may do with it what it likes."""
    point = x.detach().clone(memory_format=torch.contiguous_format)
    point.view(-1)[i] += step
    value = f(point)
    return value.item() if isinstance(value, Tensor) else value


def _shifted_exp(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """exp(x - peak), which is at most 1, and the peak of each row along dim (kept as a dimension of 1)."""
    # The shift cancels wherever exp is used, so it needs no gradient. amax refuses an empty row, which sum does not.
    peak = x.detach().amax(dim, keepdim=True) if x.numel() else x.detach().sum(dim, keepdim=True)
    peak = peak.masked_fill(peak.isinf(), 0)  # -inf minus -inf would be nan
    return (x - peak).exp(), peak


def _check_float64(x: Tensor) -> None:
    if x.dtype != torch.float64:
        raise TypeError(f"differences need float64's precision, x is {x.dtype}")


def _check_floating(**tensors: Tensor) -> None:
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise TypeError(f"{name} must be floating, it is {tensor.dtype}")


def _check_shapes(**given: tuple[Tensor, str]) -> None:
    """Raises ValueError unless each tensor has the dimensions named, and those of one name have one size."""
    sizes: dict[str, int] = {}
    for name, (tensor, dims) in given.items():
        names = dims.split()
        if len(names) != tensor.ndim or any(
            sizes.setdefault(dim, size) != size for dim, size in zip(names, tensor.shape, strict=True)
        ):
            known = ", ".join(f"{dim} = {size}" for dim, size in sizes.items())
            raise ValueError(f"{name} must be [{dims}], got shape {tuple(tensor.shape)} ({known})")
