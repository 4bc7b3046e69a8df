"""Masks in few lines."""

from collections.abc import Sequence
from itertools import starmap

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor
from torch.nn.functional import nll_loss


def need(condition: bool, *what: object, error: type[Exception] = ValueError) -> None:
    """Raises the error with what is wrong unless the condition holds."""
    if not condition:
        raise error(*what)


def whole(x: Tensor) -> bool:
    """Whether the tensor is of integers."""
    return x.dtype != torch.bool and not x.dtype.is_floating_point and not x.dtype.is_complex


def padding_mask(tokens: Int[Tensor, "b t"], pad_id: int = 0) -> Bool[Tensor, "b t"]:
    """True for a token."""
    need(whole(tokens), tokens.dtype, error=TypeError)
    need(tokens.ndim == 2, tokens.shape)
    return tokens.ne(pad_id)


def lengths_to_mask(lengths: Int[Tensor, " b"], max_len: int | None = None) -> Bool[Tensor, "b t"]:
    """True for the first steps."""
    need(whole(lengths), lengths.dtype, error=TypeError)
    need(lengths.ndim == 1, lengths.shape)
    most = max([*lengths.tolist(), 0])
    size = most if max_len is None else max_len
    need(size >= most and min([*lengths.tolist(), 0]) >= 0, lengths.tolist(), size)
    return lengths[:, None] > torch.arange(size, device=lengths.device)


def causal_mask(time: int, device: torch.device | str | None = None) -> Bool[Tensor, "time time"]:
    """True where key <= query."""
    need(time >= 0, time)
    return ~torch.triu(torch.ones((time, time), device=device, dtype=torch.bool), diagonal=1)


def attention_mask(valid: Bool[Tensor, "b t"], causal: bool = False) -> Bool[Tensor, "b 1 t t"]:
    """The visible keys of each query."""
    need(valid.dtype == torch.bool, valid.dtype, error=TypeError)
    need(valid.ndim == 2, valid.shape)
    seen = valid[:, None, None].expand(-1, 1, valid.shape[1], -1)
    return seen.tril() if causal else seen


def pad_sequences(
    sequences: Sequence[Shaped[Tensor, "t_i *rest"]], pad_value: float = 0
) -> tuple[Shaped[Tensor, "b t *rest"], Int[Tensor, " b"]]:
    """Padded sequences and lengths."""
    need(len(sequences) > 0, "no sequences")
    need(all(s.ndim for s in sequences), "a number is no sequence")
    need(len({(s.shape[1:], s.dtype) for s in sequences}) == 1, [(s.shape, s.dtype) for s in sequences])
    lengths = [len(s) for s in sequences]
    out = sequences[0].new_full((len(sequences), max(lengths), *sequences[0].shape[1:]), pad_value)
    for i, s in enumerate(sequences):
        out[i, : len(s)] = s
    return out, torch.tensor(lengths, device=out.device)


def unpad_sequences(
    padded: Shaped[Tensor, "b t *rest"], lengths: Int[Tensor, " b"]
) -> list[Shaped[Tensor, "t_i *rest"]]:
    """Views of the rows."""
    need(whole(lengths), lengths.dtype, error=TypeError)
    need(padded.ndim > 1 and lengths.shape == padded.shape[:1], padded.shape, lengths.shape)
    need(all(0 <= n <= padded.shape[1] for n in lengths.tolist()), lengths.tolist(), padded.shape[1])
    return list(starmap(lambda i, n: padded[i, :n], enumerate(lengths.tolist())))


def masked_mean(x: Float[Tensor, "b t d"], valid: Bool[Tensor, "b t"]) -> Float[Tensor, "b d"]:
    """Mean over valid steps."""
    need(x.is_floating_point() and valid.dtype == torch.bool, x.dtype, valid.dtype, error=TypeError)
    need(x.ndim == 3 and valid.shape == x.shape[:2], x.shape, valid.shape)
    wide = torch.where(valid[..., None], x, 0).to(torch.promote_types(x.dtype, torch.float))
    weights = valid.to(wide.dtype) / valid.sum(1, keepdim=True).clamp_min(1).to(wide.dtype)
    return torch.einsum("btd,bt->bd", wide, weights).to(x.dtype)


def masked_softmax(
    scores: Float[Tensor, "*batch t"], valid: Bool[Tensor, "..."], dim: int = -1
) -> Float[Tensor, "*batch t"]:
    """Softmax over valid places."""
    need(scores.is_floating_point() and valid.dtype == torch.bool, scores.dtype, valid.dtype, error=TypeError)
    fits = zip(valid.shape[::-1], scores.shape[::-1], strict=False)
    need(0 < scores.ndim >= valid.ndim and all(a in (1, b) for a, b in fits), scores.shape, valid.shape)
    if not scores.numel():
        return scores.exp()
    x = scores.masked_fill(valid.logical_not(), -torch.inf).to(torch.promote_types(scores.dtype, torch.float))
    e = (x - x.amax(dim, True).nan_to_num(neginf=0).detach()).exp()
    return e.div(e.sum(dim, True) + ~valid.expand(scores.shape).any(dim, True)).to(scores.dtype)


def masked_cross_entropy(
    logits: Float[Tensor, "b t v"], targets: Int[Tensor, "b t"], valid: Bool[Tensor, "b t"]
) -> Float[Tensor, ""]:
    """Mean loss of valid tokens."""
    need(logits.is_floating_point() and whole(targets) and valid.dtype == torch.bool, "dtypes", error=TypeError)
    need(logits.ndim == 3, logits.shape)
    need(logits.shape[:2] == targets.shape == valid.shape, logits.shape, targets.shape, valid.shape)
    rows, classes = logits[valid], targets[valid].long()
    need(bool(((classes >= 0) & (classes < logits.shape[2])).all()), classes, logits.shape[2], error=IndexError)
    wide = rows.to(torch.promote_types(rows.dtype, torch.float))
    return nll_loss(wide.log_softmax(1), classes, reduction="mean" if len(rows) else "sum").to(logits.dtype)
