"""Label smoothing with the loss as one autograd Function: forward and backward both on paper."""

import torch
from torch import Tensor

WIDE = {torch.float16: torch.float32, torch.bfloat16: torch.float32}


class Spread:
    """How the probability is shared out among `classes` classes."""

    def __init__(self, classes: int, smoothing: float, spread: str):
        if not (smoothing >= 0 and smoothing <= 1):
            raise ValueError(f"smoothing has to lie in [0, 1], not {smoothing}")
        if spread == "all":
            self.other = smoothing / classes if classes else 0.0
            self.target = 1.0 - smoothing + self.other
        elif spread == "others":
            if classes < 2:
                raise ValueError(f"'others' has to have two classes or more, not {classes}")
            self.other = smoothing / (classes - 1)
            self.target = 1.0 - smoothing
        else:
            raise ValueError(f"no such spread: {spread}")


class SmoothedCrossEntropy(torch.autograd.Function):
    """Losses of rows that all count."""

    @staticmethod
    def forward(ctx, logits: Tensor, target: Tensor, rule: Spread) -> Tensor:
        shift = logits.amax(1, keepdim=True) if logits.numel() else logits.sum(1, keepdim=True)
        log_p = logits - shift
        log_p -= log_p.exp().sum(1, keepdim=True).log()
        ctx.rule = rule
        ctx.save_for_backward(log_p.exp(), target)
        column = target[:, None]
        own = log_p.gather(1, column)[:, 0]
        rest = log_p.masked_fill_(column == torch.arange(logits.size(1), device=logits.device), 0.0)
        losses = torch.zeros_like(own)
        if rule.target != 0:
            losses -= rule.target * own
        if rule.other != 0:
            losses -= rule.other * rest.sum(1)
        return losses

    @staticmethod
    def backward(ctx, grad: Tensor):
        p, target = ctx.saved_tensors
        q = torch.full_like(p, ctx.rule.other)
        q[torch.arange(len(target), device=target.device), target] = ctx.rule.target
        return (p - q) * grad[:, None], None, None


def log_softmax(x: Tensor, dim: int = -1) -> Tensor:
    """Shift, exponentiate, add up, take the log."""
    if not x.is_floating_point():
        raise TypeError(f"{x.dtype} is not a floating dtype")
    if x.dim() > 0 and x.size(dim) == 0:
        return x * 1
    wide = x.to(WIDE.get(x.dtype, x.dtype))
    largest = torch.amax(wide, dim, keepdim=True)
    wide = wide - largest
    normalizer = torch.log(torch.sum(torch.exp(wide), dim, keepdim=True))
    return (wide - normalizer).to(x.dtype)


def smooth_labels(
    target: Tensor, num_classes: int, smoothing: float, spread: str = "all", dtype: torch.dtype = torch.float32
) -> Tensor:
    """Fills, then writes the targets' places."""
    target = _whole(target)
    if target.dim() != 1:
        raise ValueError(f"targets have to be a vector, not {list(target.shape)}")
    if num_classes < 1:
        raise ValueError(f"num_classes has to be positive, not {num_classes}")
    rule = Spread(num_classes, smoothing, spread)
    _within(target, num_classes)
    labels = torch.empty(target.shape[0], num_classes, dtype=dtype, device=target.device)
    labels[:] = rule.other
    labels[torch.arange(target.shape[0], device=target.device), target] = rule.target
    return labels


def soft_cross_entropy(logits: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """The sum over classes where there is something to add."""
    for name, tensor in {"logits": logits, "target": target}.items():
        if not tensor.is_floating_point():
            raise TypeError(f"{name}: {tensor.dtype} is not a floating dtype")
    if logits.dim() != 2 or target.dim() != 2 or logits.shape != target.shape:
        raise ValueError(f"{list(logits.shape)} and {list(target.shape)} are not two equal [n k]")
    log_p = log_softmax(logits, 1)
    skip = torch.logical_and(log_p == float("-inf"), target == 0)
    log_p = log_p.masked_fill(skip, 0.0)
    return _reduced((-target * log_p).sum(1), reduction, logits.shape[0])


def label_smoothing_loss(
    logits: Tensor,
    target: Tensor,
    smoothing: float = 0.1,
    spread: str = "all",
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """Takes the rows that count, and the Function above."""
    target = _matching(logits, target)
    rule = Spread(logits.shape[1], smoothing, spread)
    counted = torch.nonzero(target != ignore_index)[:, 0]
    _within(target[counted], logits.shape[1])
    wide = logits[counted].to(WIDE.get(logits.dtype, logits.dtype))
    losses = SmoothedCrossEntropy.apply(wide, target[counted], rule)
    if reduction == "none":
        everywhere = torch.zeros(len(target), dtype=losses.dtype, device=losses.device)
        losses = everywhere.index_add(0, counted, losses)
    return _reduced(losses, reduction, max(1, counted.numel())).to(logits.dtype)


def label_smoothing_gradient(logits: Tensor, target: Tensor, smoothing: float = 0.1, spread: str = "all") -> Tensor:
    """Softmax, less the labels, over the rows."""
    target = _matching(logits, target)
    rule = Spread(logits.shape[1], smoothing, spread)
    _within(target, logits.shape[1])
    gradient = torch.exp(log_softmax(logits.detach(), 1))
    is_target = target.view(-1, 1) == torch.arange(logits.shape[1], device=logits.device).view(1, -1)
    gradient = torch.where(is_target, gradient - rule.target, gradient - rule.other)
    return gradient / gradient.shape[0]


def expected_calibration_error(probabilities: Tensor, target: Tensor, bins: int = 15) -> float:
    """One pass over the rows into three histograms."""
    target = _matching(probabilities, target)
    rows, classes = probabilities.shape
    if rows < 1:
        raise ValueError(f"{rows} rows have no calibration")
    if bins < 1:
        raise ValueError(f"{bins} bins are too few")
    _within(target, classes)
    confidence, guess = probabilities.detach().to(torch.float64).max(1)
    place = torch.ceil(confidence * bins).to(torch.int64).sub(1).clamp(0, bins - 1)
    histogram = torch.zeros(3, bins, dtype=torch.float64, device=probabilities.device)
    hits = (guess == target).to(torch.float64)
    histogram = histogram.index_add(1, place, torch.stack([torch.ones_like(hits), hits, confidence]))
    total = 0.0
    for count, right, sure in histogram.T.tolist():
        if count > 0:
            total += count / rows * abs(right / count - sure / count)
    return total


def _whole(target: Tensor) -> Tensor:
    if target.dtype == torch.bool or target.is_floating_point():
        raise TypeError(f"class numbers have an integer dtype, not {target.dtype}")
    return target.long()


def _within(target: Tensor, classes: int) -> None:
    wrong = target[(target < 0).logical_or(target > classes - 1)]
    if wrong.numel() > 0:
        raise IndexError(f"no class {wrong[0].item()} in {classes}")


def _matching(scores: Tensor, target: Tensor) -> Tensor:
    if not scores.is_floating_point():
        raise TypeError(f"{scores.dtype} is not a floating dtype")
    target = _whole(target)
    if scores.dim() != 2 or list(target.shape) != [scores.shape[0]]:
        raise ValueError(f"{list(scores.shape)} and {list(target.shape)} are not [n k] and [n]")
    return target


def _reduced(losses: Tensor, reduction: str, count: int) -> Tensor:
    if reduction == "none":
        return losses
    if reduction == "sum":
        return losses.sum()
    if reduction == "mean":
        return losses.sum() / count
    raise ValueError(f"no such reduction: {reduction}")
