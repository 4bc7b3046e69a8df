"""Label smoothing: targets that leave some probability to the other classes, and how sure a model should be."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def log_softmax(x: Float[Tensor, "*dims"], dim: int = -1) -> Float[Tensor, "*dims"]:
    """The logarithm of the softmax along a dimension: x - log(sum(exp(x))).

    >>> log_softmax(torch.tensor([[0.0, 0.0], [90.0, 0.0]]))
    tensor([[ -0.6931,  -0.6931],
            [  0.0000, -90.0000]])

    Stable: entries as large as ±1e4 give finite results and gradients. An entry of -inf has probability 0: the result
    is -inf there, nothing is nan, and the other entries are what they would be without it; a row of -inf alone is not
    asked. `dim` may be negative. x may have any dimensions, also none (the result is 0) or empty ones, of which `dim`
    may be one.

    Raises TypeError if x is not floating.
    Refused: torch.log_softmax, torch.softmax, torch.logsumexp, torch.nn.functional.cross_entropy and their relatives.
    See: torch.nn.functional.log_softmax,
    https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.log_softmax.html
    """
    _require_floating("x", x)
    wide = _widened(x)
    # The shift cancels, so no gradient goes through it. Of no elements there is no largest one.
    shifted = wide - (wide.detach().amax(dim, keepdim=True) if wide.numel() else 0)
    return (shifted - shifted.exp().sum(dim, keepdim=True).log()).to(x.dtype)


def smooth_labels(
    target: Int[Tensor, " n"],
    num_classes: int,
    smoothing: float,
    spread: str = "all",
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "n k"]:
    """The distribution over num_classes classes that stands for each target class.

    >>> smooth_labels(torch.tensor([2, 0]), num_classes=4, smoothing=0.4)
    tensor([[0.1000, 0.1000, 0.7000, 0.1000],
            [0.7000, 0.1000, 0.1000, 0.1000]])
    >>> smooth_labels(torch.tensor([2]), num_classes=5, smoothing=0.4, spread="others")
    tensor([[0.1000, 0.1000, 0.6000, 0.1000, 0.1000]])

    Each row sums to 1. With K = num_classes, `spread` says who shares the smoothing:
    "all": every class gets smoothing / K, the target class too, and that one gets 1 - smoothing besides. This is what
    PyTorch and the paper below do.
    "others": each class but the target gets smoothing / (K - 1), the target 1 - smoothing.
    Smoothing 0 gives one-hot rows. Smoothing 1 leaves nothing of the target: "all" gives 1 / K everywhere, "others" 0
    at the target. Targets may have any integer dtype. Without targets the result is [0 num_classes]. It has the given
    dtype, which is a floating one.

    Raises TypeError if target is floating or bool.
    Raises ValueError, with the shape, if target does not have one dimension.
    Raises IndexError, with the target, if one is outside [0, num_classes).
    Raises ValueError, with the number, if num_classes is less than 1, if smoothing is outside [0, 1], or if num_classes
    is 1 and spread is "others"; also if spread is neither of the two.
    See: Szegedy et al. 2015, Rethinking the Inception Architecture, section 7, https://arxiv.org/abs/1512.00567
    """
    target = _as_int64(target)
    if target.ndim != 1:
        raise ValueError(f"expected targets [n], got shape {tuple(target.shape)}")
    if num_classes < 1:
        raise ValueError(f"expected at least 1 class, got {num_classes}")
    share = _share(num_classes, smoothing, spread)
    _require_classes(target, num_classes)
    labels = torch.full((len(target), num_classes), share, dtype=dtype, device=target.device)
    return labels.scatter_(1, target.unsqueeze(1), 1 - smoothing + (share if spread == "all" else 0))


def soft_cross_entropy(
    logits: Float[Tensor, "n k"], target: Float[Tensor, "n k"], reduction: str = "mean"
) -> Float[Tensor, "..."]:
    """Cross-entropy with a distribution as each row's target: -sum(target * log_softmax(logits)) over the classes.

    >>> logits = torch.tensor([[2.0, 0.0, 0.0], [1.0, 1.0, -torch.inf]])
    >>> soft_cross_entropy(logits, torch.tensor([[0.5, 0.25, 0.25], [0.5, 0.5, 0.0]]), reduction="none")
    tensor([1.2395, 0.6931])

    `reduction` says what is done with the n losses: "none" gives them as they are, "sum" adds them, "mean" divides the
    sum by the number of rows n. The rows of target are taken as they are: they need not sum to 1.
    Where target is 0 and the log-probability -inf, as at a logit of -inf, the product counts as 0, with zero gradient
    for both. Everywhere else the gradient of a row's loss with respect to target is -log_softmax(logits), also where
    target is 0. Without rows "none" gives no losses and "sum" gives 0; "mean" is not asked.

    Raises TypeError if logits or target is not floating.
    Raises ValueError, with the shapes, if logits and target are not both [n k], with the same n and k.
    Raises ValueError if reduction is none of the three.
    See: torch.nn.CrossEntropyLoss, https://docs.pytorch.org/docs/stable/generated/torch.nn.CrossEntropyLoss.html
    """
    _require_floating("logits", logits)
    _require_floating("target", target)
    if logits.ndim != 2 or logits.shape != target.shape:
        raise ValueError(
            f"expected logits and target [n k], got shapes {tuple(logits.shape)} and {tuple(target.shape)}"
        )
    _require_reduction(reduction)
    log_p = log_softmax(_widened(logits))
    # Only where 0 * -inf would be nan: a zero in place of any other log_p would be target's gradient.
    log_p = log_p.masked_fill((target == 0) & (log_p == -torch.inf), 0)
    losses = -(_widened(target) * log_p).sum(dim=1)
    return _reduced(losses, reduction, len(losses)).to(torch.promote_types(logits.dtype, target.dtype))


def label_smoothing_loss(
    logits: Float[Tensor, "n k"],
    target: Int[Tensor, " n"],
    smoothing: float = 0.1,
    spread: str = "all",
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Float[Tensor, "..."]:
    """Cross-entropy with smoothed labels, straight from the class numbers.

    >>> logits = torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0], [torch.nan, 0.0, 0.0]])
    >>> label_smoothing_loss(logits, torch.tensor([0, 2, -100]), smoothing=0.3, reduction="none")
    tensor([0.6395, 1.4514, 0.0000])
    >>> label_smoothing_loss(logits, torch.tensor([0, 2, -100]), smoothing=0.3)
    tensor(1.0455)

    The loss of a row is its cross-entropy with the distribution that `smooth_labels` gives for its target, K being the
    number of columns of logits; `spread` is explained there. With "all" the result equals
    torch.nn.functional.cross_entropy with label_smoothing=smoothing, wherever that is not nan.
    Rows whose target is ignore_index are ignored: their loss is 0, and nothing in their logits, nan neither, reaches
    the result or the gradient, which is 0 in these rows. ignore_index may be any integer, a class number too; a row
    that is ignored needs no valid target.
    `reduction` says what is done with the n losses: "none" gives them as they are, "sum" adds them, "mean" divides the
    sum by the number of rows that are not ignored. Where that is 0, as all are ignored or n is 0, the mean is 0 with
    zero gradient.
    A class with probability 0 in the distribution does not count: with smoothing 0, or with spread "others" and
    smoothing 1, a logit of -inf in such a place leaves value and gradient finite. Logits of ±1e4 do so everywhere.
    The distribution of the targets is never built: in the forward pass no scatter, one_hot, full or zeros gives a
    result [n k]. A boolean mask of that shape is fine. Targets may have any integer dtype.

    Raises TypeError if logits is not floating, or target is floating or bool.
    Raises ValueError, with the shapes, if logits is not [n k] or target is not [n].
    Raises IndexError, with the target, if one is outside [0, k) and not ignore_index.
    Raises ValueError, with the number, if smoothing is outside [0, 1], or if k is 1 and spread is "others"; also if
    spread is neither "all" nor "others", or reduction none of the three.
    Refused: torch.nn.functional.cross_entropy, torch.nn.functional.nll_loss, torch.nn.functional.log_softmax (yours is
    meant to be used).
    See: torch.nn.CrossEntropyLoss, https://docs.pytorch.org/docs/stable/generated/torch.nn.CrossEntropyLoss.html
    """
    target = _checked(logits, target)
    n, k = logits.shape
    share = _share(k, smoothing, spread)
    _require_reduction(reduction)
    # Ignored rows are left out before anything is computed: nan times 0 would be nan, in backward as well.
    rows = (target != ignore_index).nonzero().squeeze(1)
    target = target[rows]
    _require_classes(target, k)
    log_p = log_softmax(_widened(logits.index_select(0, rows)))
    losses = log_p.new_zeros(len(rows))
    if smoothing < 1:  # 0 * -inf would be nan, here and below
        losses = losses - (1 - smoothing) * log_p.gather(1, target.unsqueeze(1)).squeeze(1)
    if smoothing > 0:
        if spread == "others":  # subtracting the target's from the sum of all loses digits, and everything at -inf
            log_p = log_p.masked_fill(target.unsqueeze(1) == torch.arange(k, device=target.device), 0)
        losses = losses - share * log_p.sum(dim=1)
    if reduction == "none":
        losses = losses.new_zeros(n).index_copy(0, rows, losses)
    return _reduced(losses, reduction, max(len(rows), 1)).to(logits.dtype)


def label_smoothing_gradient(
    logits: Float[Tensor, "n k"], target: Int[Tensor, " n"], smoothing: float = 0.1, spread: str = "all"
) -> Float[Tensor, "n k"]:
    """The gradient of the mean `label_smoothing_loss` with respect to the logits, worked out by hand.

    >>> label_smoothing_gradient(torch.zeros(2, 4), torch.tensor([1, 3]), smoothing=0.4)
    tensor([[ 0.0750, -0.2250,  0.0750,  0.0750],
            [ 0.0750,  0.0750,  0.0750, -0.2250]])

    The mean is over all n rows: there is no ignore_index here. Each row of the result sums to 0. Logits of ±1e4 are no
    problem. Without rows the result is [0 k]. Targets may have any integer dtype. The result need not be
    differentiable, and the `.grad` of logits is left alone.

    Raises TypeError if logits is not floating, or target is floating or bool.
    Raises ValueError, with the shapes, if logits is not [n k] or target is not [n].
    Raises IndexError, with the target, if one is outside [0, k).
    Raises ValueError, with the number, if smoothing is outside [0, 1], or if k is 1 and spread is "others"; also if
    spread is neither "all" nor "others".
    Refused: autograd (torch.autograd.grad, backward, torch.func).
    See: Müller et al. 2019, When Does Label Smoothing Help?, https://arxiv.org/abs/1906.02629
    """
    target = _checked(logits, target)
    wide = _widened(logits)
    labels = smooth_labels(target, logits.shape[1], smoothing, spread, wide.dtype)
    return ((log_softmax(wide).exp() - labels) / len(target)).to(logits.dtype)


def expected_calibration_error(probabilities: Float[Tensor, "n k"], target: Int[Tensor, " n"], bins: int = 15) -> float:
    """How far a classifier's confidence is from its accuracy, on average over the rows.

    >>> probabilities = torch.tensor([[0.75, 0.25], [0.75, 0.25], [0.0, 1.0], [0.5, 0.5]])
    >>> expected_calibration_error(probabilities, torch.tensor([0, 1, 1, 0]), bins=4)
    0.25

    The confidence of a row is its largest probability, and the row is right if that stands at the target class; where
    two are largest, either may be taken. The interval from 0 to 1 is cut into `bins` bins of equal width, each with its
    upper edge and without its lower one: (lo, hi]. So 0.5 is in the first of two bins, and 1 in the last one. The error
    of a bin is the distance between the mean confidence of its rows and the share of them that is right. The result is
    the mean of these errors, each weighted by the share of all rows that is in its bin: a bin without rows adds
    nothing. It is a Python float. In the example, bin (0.5, 0.75] has confidence 0.75 and accuracy 0.5, bin (0.25, 0.5]
    0.5 and 1, and the last one 1 and 1: 2/4 * 0.25 + 1/4 * 0.5 + 1/4 * 0.
    A confidence of 0, of a row of zeros, may be in no bin or in the first. Targets may have any integer dtype.

    Raises TypeError if probabilities is not floating, or target is floating or bool.
    Raises ValueError, with the shapes, if probabilities is not [n k] or target is not [n].
    Raises IndexError, with the target, if one is outside [0, k).
    Raises ValueError, with the number, if bins is less than 1; if n is 0.
    See: Guo et al. 2017, On Calibration of Modern Neural Networks, https://arxiv.org/abs/1706.04599
    """
    target = _checked(probabilities, target, "probabilities")
    n, k = probabilities.shape
    if n == 0:
        raise ValueError("expected probabilities of at least 1 row, got 0")
    if bins < 1:
        raise ValueError(f"expected at least 1 bin, got {bins}")
    _require_classes(target, k)
    confidence, predicted = probabilities.detach().max(dim=1)
    confidence = confidence.double()
    index = ((confidence * bins).ceil().long() - 1).clamp(0, bins - 1)
    # A bin's share times the difference of its means is the sum of its rows' differences over n: no bin is divided by.
    gaps = confidence.new_zeros(bins).index_add_(0, index, (predicted == target).double() - confidence)
    return gaps.abs().sum().item() / n


def _require_floating(name: str, x: Tensor) -> None:
    if not x.is_floating_point():
        raise TypeError(f"expected {name} of a floating dtype, got {x.dtype}")


def _as_int64(target: Tensor) -> Tensor:
    """The targets in a dtype that holds any number of classes and any ignore_index: int8 and uint8 do not."""
    if target.dtype == torch.bool or target.is_floating_point() or target.is_complex():
        raise TypeError(f"expected targets of an integer dtype, got {target.dtype}")
    return target.long()


def _checked(scores: Tensor, target: Tensor, name: str = "logits") -> Tensor:
    """The targets [n] as int64; raises unless they are integers, one for each row of floating scores [n k]."""
    _require_floating(name, scores)
    target = _as_int64(target)
    if scores.ndim != 2 or target.shape != scores.shape[:1]:
        raise ValueError(
            f"expected {name} [n k] and targets [n], got shapes {tuple(scores.shape)} and {tuple(target.shape)}"
        )
    return target


def _require_classes(target: Tensor, num_classes: int) -> None:
    outside = (target < 0) | (target >= num_classes)
    if outside.any():
        raise IndexError(f"target {target[outside][0].item()} is not among {num_classes} classes")


def _require_reduction(reduction: str) -> None:
    if reduction not in ("none", "mean", "sum"):
        raise ValueError(f"reduction must be none, mean or sum, got {reduction!r}")


def _share(num_classes: int, smoothing: float, spread: str) -> float:
    """What each class gets of the smoothing, if it gets any; raises for settings that make no distribution."""
    if spread not in ("all", "others"):
        raise ValueError(f"spread must be all or others, got {spread!r}")
    if not 0 <= smoothing <= 1:
        raise ValueError(f"smoothing must be between 0 and 1, got {smoothing}")
    if spread == "others" and num_classes == 1:
        raise ValueError("1 class leaves no others to spread the smoothing over")
    sharing = num_classes if spread == "all" else num_classes - 1
    return smoothing / max(sharing, 1)  # logits [0 0] have no class at all


def _widened(x: Tensor) -> Tensor:
    """x in float32 if its dtype is narrower: sums over many classes or rows need the range and the digits."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _reduced(losses: Tensor, reduction: str, count: int) -> Tensor:
    if reduction == "none":
        return losses
    return losses.sum() if reduction == "sum" else losses.sum() / count
