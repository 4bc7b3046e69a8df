"""Label smoothing, written straight from the task."""

import torch
import torch.nn.functional as F


def log_softmax(x, dim=-1):
    """Log of the softmax."""
    if not torch.is_floating_point(x):
        raise TypeError("log_softmax needs a floating point tensor")
    if x.numel() == 0:
        return x.clone()
    x = x - x.max(dim, keepdim=True).values
    return x - torch.log(torch.exp(x).sum(dim, keepdim=True))


def smooth_labels(target, num_classes, smoothing, spread="all", dtype=torch.float32):
    """Smoothed one-hot rows."""
    _check_target(target)
    target = target.long()
    if target.dim() != 1:
        raise ValueError(f"target has {target.dim()} dims: {target.shape}")
    if num_classes < 1:
        raise ValueError(f"bad num_classes: {num_classes}")
    _check_settings(num_classes, smoothing, spread)
    _check_range(target, num_classes)
    one_hot = F.one_hot(target, num_classes).to(dtype)
    if spread == "all":
        return one_hot * (1 - smoothing) + smoothing / num_classes
    return one_hot * (1 - smoothing) + (1 - one_hot) * (smoothing / (num_classes - 1))


def soft_cross_entropy(logits, target, reduction="mean"):
    """Cross-entropy with soft targets."""
    if not logits.is_floating_point() or not target.is_floating_point():
        raise TypeError("logits and target must be floating point")
    if logits.dim() != 2 or target.shape != logits.shape:
        raise ValueError(f"shapes differ: {logits.shape}, {target.shape}")
    logp = F.log_softmax(logits, dim=1)
    impossible = (target == 0) & logp.isinf()
    loss = -(target * torch.where(impossible, torch.zeros_like(logp), logp)).sum(1)
    return _reduce(loss, reduction)


def label_smoothing_loss(logits, target, smoothing=0.1, spread="all", ignore_index=-100, reduction="mean"):
    """Label smoothing loss without a target distribution."""
    _check_pair(logits, target)
    n, k = logits.shape
    _check_settings(k, smoothing, spread)
    if reduction not in ["none", "mean", "sum"]:
        raise ValueError(f"unknown reduction {reduction}")
    keep = target.long() != ignore_index
    kept = target.long()[keep]
    _check_range(kept, k)
    logp = log_softmax(logits[keep])

    nll = -logp.gather(1, kept[:, None])[:, 0]
    if smoothing == 0:
        loss = nll
    else:
        if spread == "all":
            uniform = -logp.sum(1) / max(k, 1)
        else:
            here = kept[:, None] == torch.arange(k, device=logits.device)
            uniform = -logp.masked_fill(here, 0.0).sum(1) / (k - 1)
        loss = uniform if smoothing == 1 else (1 - smoothing) * nll + smoothing * uniform

    if reduction == "none":
        out = torch.zeros(n, dtype=logits.dtype, device=logits.device)
        out[keep] = loss
        return out
    if reduction == "mean" and len(loss) > 0:
        return loss.mean()
    return loss.sum()


def label_smoothing_gradient(logits, target, smoothing=0.1, spread="all"):
    """softmax - smoothed labels, over n."""
    _check_pair(logits, target)
    labels = smooth_labels(target, logits.shape[1], smoothing, spread, logits.dtype)
    return (torch.softmax(logits, dim=1) - labels) / logits.shape[0]


def expected_calibration_error(probabilities, target, bins=15):
    """ECE."""
    _check_pair(probabilities, target)
    n, k = probabilities.shape
    if n == 0:
        raise ValueError("n is 0")
    if bins < 1:
        raise ValueError(f"bins is {bins}")
    _check_range(target.long(), k)
    confidence, prediction = probabilities.max(dim=1)
    correct = (prediction == target).double()
    confidence = confidence.double()
    ece = 0.0
    for i in range(bins):
        inside = (confidence > i / bins) & (confidence <= (i + 1) / bins)
        if inside.any():
            gap = correct[inside].mean() - confidence[inside].mean()
            ece += inside.double().mean().item() * abs(gap.item())
    return ece


def _check_target(target):
    if target.dtype not in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64):
        raise TypeError(f"target must be integer, not {target.dtype}")


def _check_range(target, num_classes):
    if target.numel() and (target.min() < 0 or target.max() >= num_classes):
        raise IndexError(f"target out of range: {target.min().item()}..{target.max().item()}, classes {num_classes}")


def _check_settings(num_classes, smoothing, spread):
    if spread not in ["all", "others"]:
        raise ValueError(f"unknown spread {spread}")
    if smoothing < 0 or smoothing > 1:
        raise ValueError(f"smoothing {smoothing} not in [0, 1]")
    if spread == "others" and num_classes == 1:
        raise ValueError("cannot spread over others with num_classes = 1")


def _check_pair(logits, target):
    if not logits.is_floating_point():
        raise TypeError(f"need floats, got {logits.dtype}")
    _check_target(target)
    if logits.dim() != 2:
        raise ValueError(f"need [n k], got {logits.shape}")
    if target.dim() != 1 or target.shape[0] != logits.shape[0]:
        raise ValueError(f"need {logits.shape[0]} targets, got {target.shape}")


def _reduce(loss, reduction):
    if reduction == "none":
        return loss
    if reduction == "mean":
        return loss.mean()
    if reduction == "sum":
        return loss.sum()
    raise ValueError(f"unknown reduction {reduction}")
