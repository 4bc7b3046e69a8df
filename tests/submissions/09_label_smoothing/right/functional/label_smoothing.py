"""Label smoothing by masks and expressions: no in-place writes, no row is ever taken out."""

import torch

REDUCTIONS = {"none": lambda loss, n: loss, "sum": lambda loss, n: loss.sum(), "mean": lambda loss, n: loss.sum() / n}


def _demand(ok, error, *message):
    if not ok:
        raise error(" ".join(map(str, message)))


def _floats(*tensors):
    for t in tensors:
        _demand(t.dtype.is_floating_point, TypeError, "not floating:", t.dtype)


def _ints(target):
    whole = not (target.dtype.is_floating_point or target.dtype.is_complex or target.dtype is torch.bool)
    _demand(whole, TypeError, "not integers:", target.dtype)
    return target.to(torch.int64)


def _pair(scores, target):
    _floats(scores)
    target = _ints(target)
    fits = scores.ndim == 2 and target.ndim == 1 and len(target) == len(scores)
    _demand(fits, ValueError, "shapes do not match", [*scores.shape], [*target.shape])
    return target


def _in_range(target, k, where=True):
    bad = ((target < 0) | (target >= k)) & where
    _demand(not bad.any(), IndexError, "classes", k, "targets", target[bad].tolist())


def _weights(k, smoothing, spread):
    """(target, other) probabilities."""
    _demand(spread in {"all", "others"}, ValueError, "spread:", spread)
    _demand(0.0 <= smoothing <= 1.0, ValueError, "smoothing:", smoothing)
    _demand(spread == "all" or k != 1, ValueError, "others need more than 1 class")
    if spread == "others":
        return 1 - smoothing, smoothing / (k - 1)
    return 1 - smoothing + smoothing / max(k, 1), smoothing / max(k, 1)


def _hits(target, k):
    return target.unsqueeze(-1) == torch.arange(k, device=target.device)


def log_softmax(x, dim=-1):
    """x - max - log sum exp."""
    _floats(x)
    y = x.float() if x.element_size() < 4 else x
    top = y.detach().max(dim, keepdim=True)[0] if y.numel() else torch.zeros((), dtype=y.dtype, device=y.device)
    return (y - top - (y - top).exp().sum(dim, keepdim=True).log()).to(x.dtype)


def smooth_labels(target, num_classes, smoothing, spread="all", dtype=torch.float32):
    """Two numbers and a mask."""
    target = _ints(target)
    _demand(target.ndim == 1, ValueError, "one dimension expected", [*target.shape])
    _demand(num_classes > 0, ValueError, "num_classes", num_classes)
    on, off = _weights(num_classes, smoothing, spread)
    _in_range(target, num_classes)
    on, off = (torch.tensor(v, dtype=dtype, device=target.device) for v in (on, off))
    return torch.where(_hits(target, num_classes), on, off)


def soft_cross_entropy(logits, target, reduction="mean"):
    """Dot product of targets and safe log-probabilities."""
    _floats(logits, target)
    same = logits.ndim == 2 and logits.shape == target.shape
    _demand(same, ValueError, "shapes", [*logits.shape], [*target.shape])
    _demand(reduction in REDUCTIONS, ValueError, "reduction", reduction)
    logp = log_softmax(logits)
    zero = torch.zeros((), dtype=logp.dtype, device=logp.device)
    safe = torch.where(logp.isneginf().logical_and(target.eq(0)), zero, logp)
    losses = torch.einsum("nk,nk->n", target.to(safe.dtype), safe).neg()
    return REDUCTIONS[reduction](losses, max(len(losses), 1))


def label_smoothing_loss(logits, target, smoothing=0.1, spread="all", ignore_index=-100, reduction="mean"):
    """Weights times masked sums."""
    target = _pair(logits, target)
    k = logits.shape[1]
    on, off = _weights(k, smoothing, spread)
    _demand(reduction in REDUCTIONS, ValueError, "reduction", reduction)
    live = target.ne(ignore_index)
    _in_range(target, k, live)
    logp = log_softmax(logits.masked_fill(~live.unsqueeze(1), 0).double())
    hits = _hits(target, k)
    at_target = on * logp.masked_fill(~hits, 0).sum(1) if on else 0
    elsewhere = off * logp.masked_fill(hits, 0).sum(1) if off else 0
    losses = -(at_target + elsewhere) * live
    return REDUCTIONS[reduction](losses, live.sum().clamp(min=1)).to(logits.dtype)


def label_smoothing_gradient(logits, target, smoothing=0.1, spread="all"):
    """(p - q) / n."""
    target = _pair(logits, target)
    q = smooth_labels(target, logits.shape[1], smoothing, spread, torch.float64)
    with torch.no_grad():
        return log_softmax(logits.double()).exp().sub(q).div(max(len(target), 1)).to(logits.dtype)


def expected_calibration_error(probabilities, target, bins=15):
    """Bins by bucketize, sums by bincount."""
    target = _pair(probabilities, target)
    n, k = probabilities.shape
    _demand(n > 0, ValueError, "0 rows")
    _demand(bins > 0, ValueError, "bins", bins)
    _in_range(target, k)
    p = probabilities.detach().double()
    surest = p.amax(1)
    edges = torch.arange(1, bins, device=p.device, dtype=p.dtype) / bins
    which = torch.bucketize(surest, edges)
    right = p.argmax(1).eq(target).double()
    count = which.bincount(minlength=bins)
    mean_right = which.bincount(right, bins) / count.clamp(min=1)
    mean_sure = which.bincount(surest, bins) / count.clamp(min=1)
    return float((count / n * (mean_right - mean_sure).abs()).sum())
