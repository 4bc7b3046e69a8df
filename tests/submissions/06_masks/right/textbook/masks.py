"""Masks, step by step: comparisons with a range of places, torch.where in place of arithmetic on padding."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def padding_mask(tokens: Int[Tensor, "b t"], pad_id: int = 0) -> Bool[Tensor, "b t"]:
    """True for a token."""
    if tokens.dtype not in INTEGERS:
        raise TypeError("token ids are integers")
    if tokens.dim() != 2:
        raise ValueError(f"need a batch of token ids, not {list(tokens.shape)}")
    return torch.logical_not(torch.eq(tokens, pad_id))


def lengths_to_mask(lengths: Int[Tensor, " b"], max_len: int | None = None) -> Bool[Tensor, "b t"]:
    """True for the first steps of each row."""
    if lengths.dtype not in INTEGERS:
        raise TypeError("lengths are integers")
    if lengths.dim() != 1:
        raise ValueError(f"need one length a row, not {list(lengths.shape)}")
    shortest = int(lengths.min()) if lengths.numel() > 0 else 0
    longest = int(lengths.max()) if lengths.numel() > 0 else 0
    if shortest < 0:
        raise ValueError(f"{shortest} is no length")
    if max_len is None:
        max_len = longest
    if max_len < 0:
        raise ValueError(f"{max_len} is no length")
    if longest > max_len:
        raise ValueError(f"{longest} steps do not fit {max_len} places")
    places = torch.arange(max_len, device=lengths.device)[None, :]
    return places.expand(lengths.numel(), max_len) < lengths[:, None]


def causal_mask(time: int, device: torch.device | str | None = None) -> Bool[Tensor, "time time"]:
    """[query, key], True where key <= query."""
    if time < 0:
        raise ValueError(f"{time} steps?")
    place = torch.arange(time, device=device)
    query, key = place[:, None], place[None, :]
    return key <= query


def attention_mask(valid: Bool[Tensor, "b t"], causal: bool = False) -> Bool[Tensor, "b 1 t t"]:
    """The keys that each query may see."""
    if valid.dtype is not torch.bool:
        raise TypeError("a mask is boolean")
    if valid.dim() != 2:
        raise ValueError(f"need a mask [b t], not {list(valid.shape)}")
    b, t = valid.shape
    seen = valid.reshape(b, 1, 1, t)
    seen = seen.repeat(1, 1, t, 1)
    if causal:
        place = torch.arange(t, device=valid.device)
        seen = seen.logical_and(place <= place.unsqueeze(-1))
    return seen


def pad_sequences(
    sequences: Sequence[Shaped[Tensor, "t_i *rest"]], pad_value: float = 0
) -> tuple[Shaped[Tensor, "b t *rest"], Int[Tensor, " b"]]:
    """One tensor of all sequences, and their lengths."""
    if len(sequences) == 0:
        raise ValueError("an empty list has no shape")
    for x in sequences:
        if x.dim() == 0:
            raise ValueError("a sequence has at least one dimension")
    rests = {tuple(x.shape[1:]) for x in sequences}
    if len(rests) > 1:
        raise ValueError(f"different features: {rests}")
    if len({x.dtype for x in sequences}) > 1:
        raise ValueError(f"different dtypes: {[x.dtype for x in sequences]}")
    longest = max(x.shape[0] for x in sequences)
    rows = []
    for x in sequences:
        filling = torch.full((longest - x.shape[0], *x.shape[1:]), pad_value, dtype=x.dtype, device=x.device)
        rows.append(torch.cat([x, filling], dim=0))
    lengths = torch.tensor([x.shape[0] for x in sequences], dtype=torch.long, device=sequences[0].device)
    return torch.stack(rows, dim=0), lengths


def unpad_sequences(
    padded: Shaped[Tensor, "b t *rest"], lengths: Int[Tensor, " b"]
) -> list[Shaped[Tensor, "t_i *rest"]]:
    """The sequences without their padding."""
    if lengths.dtype not in INTEGERS:
        raise TypeError("lengths are integers")
    if lengths.dim() != 1 or padded.dim() < 2:
        raise ValueError(f"need [b t ...] and [b], not {list(padded.shape)} and {list(lengths.shape)}")
    b, t = padded.shape[:2]
    if lengths.shape[0] != b:
        raise ValueError(f"rows: {b}, lengths: {lengths.shape[0]}")
    for n in lengths.tolist():
        if n < 0 or n > t:
            raise ValueError(f"no row of {t} steps has {n}")
    return [padded[i].narrow(0, 0, n) for i, n in enumerate(lengths.tolist())]


def masked_mean(x: Float[Tensor, "b t d"], valid: Bool[Tensor, "b t"]) -> Float[Tensor, "b d"]:
    """The mean over valid steps."""
    if not x.is_floating_point():
        raise TypeError("x is not of floats")
    if valid.dtype is not torch.bool:
        raise TypeError("a mask is boolean")
    if x.dim() != 3 or list(valid.shape) != list(x.shape[:2]):
        raise ValueError(f"x {list(x.shape)} and its mask {list(valid.shape)} do not belong together")
    precise = x.double()
    kept = torch.where(valid[:, :, None], precise, torch.zeros_like(precise))
    count = valid.sum(dim=1).to(precise.dtype)
    has_any = count > 0
    share = torch.where(has_any, 1 / torch.where(has_any, count, torch.ones_like(count)), torch.zeros_like(count))
    return (kept.sum(dim=1) * share[:, None]).to(x.dtype)


def masked_softmax(
    scores: Float[Tensor, "*batch t"], valid: Bool[Tensor, "..."], dim: int = -1
) -> Float[Tensor, "*batch t"]:
    """The softmax over valid places."""
    if not scores.is_floating_point():
        raise TypeError("scores are floats")
    if valid.dtype is not torch.bool:
        raise TypeError("a mask is boolean")
    if scores.dim() == 0:
        raise ValueError("a single number has no softmax")
    try:
        valid = valid.expand(scores.shape)
    except RuntimeError as error:
        raise ValueError(f"mask {list(valid.shape)} on scores {list(scores.shape)}") from error
    if scores.numel() == 0:
        return scores * 1
    precise = scores.double()
    lowest = torch.finfo(precise.dtype).min
    safe = torch.where(valid, precise, torch.full_like(precise, lowest))
    largest = safe.max(dim=dim, keepdim=True).values
    shifted = torch.where(valid, safe - largest, torch.zeros_like(safe))
    e = torch.where(valid, torch.exp(shifted), torch.zeros_like(shifted))
    total = e.sum(dim=dim, keepdim=True)
    empty = ~valid.any(dim=dim, keepdim=True)
    return (e / torch.where(empty, torch.ones_like(total), total)).to(scores.dtype)


def masked_cross_entropy(
    logits: Float[Tensor, "b t v"], targets: Int[Tensor, "b t"], valid: Bool[Tensor, "b t"]
) -> Float[Tensor, ""]:
    """The mean loss of the valid tokens."""
    if not logits.is_floating_point():
        raise TypeError("logits are floats")
    if targets.dtype not in INTEGERS:
        raise TypeError("targets are integers")
    if valid.dtype is not torch.bool:
        raise TypeError("a mask is boolean")
    if logits.dim() != 3 or targets.shape != logits.shape[:2] or valid.shape != logits.shape[:2]:
        raise ValueError(f"shapes {list(logits.shape)}, {list(targets.shape)}, {list(valid.shape)}")
    classes = logits.shape[-1]
    wrong = valid & ((targets < 0) | (targets >= classes))
    if wrong.any():
        raise IndexError(f"classes are 0 to {classes} (excluded), got {targets[wrong].tolist()}")
    if logits.numel() == 0:
        return logits.sum()
    targets = torch.where(valid, targets.long(), torch.zeros_like(targets, dtype=torch.long))
    clean = torch.where(valid[..., None], logits.double(), torch.zeros((), dtype=torch.double, device=logits.device))
    log_p = clean.log_softmax(dim=-1).gather(-1, targets[..., None]).squeeze(-1)
    # A valid target may have the probability 0: what is left out must not be a product.
    losses = torch.where(valid, -log_p, torch.zeros_like(log_p))
    return (losses.sum() / valid.sum().clamp(min=1)).to(logits.dtype)
