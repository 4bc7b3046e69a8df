"""Masks: sequences of different lengths in one tensor, and arithmetic that never looks at the padding."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor
from torch.nn import functional as F


def padding_mask(tokens: Int[Tensor, "b t"], pad_id: int = 0) -> Bool[Tensor, "b t"]:
    """Which places of a padded batch hold a token: False exactly where `pad_id` stands.

    >>> padding_mask(torch.tensor([[1, 2, 0, 0], [3, 4, 5, 0]]))
    tensor([[ True,  True, False, False],
            [ True,  True,  True, False]])

    In this kata a mask is True where a value counts. Mind that `key_padding_mask` of torch.nn.MultiheadAttention
    says the opposite, True for what is to be left out: hand it `~padding_mask(tokens)`. The pad id may stand
    anywhere in a row. b and t may be 0.

    Raises TypeError if tokens is not of integers (bool is none). Raises ValueError, with the shape, if tokens does
    not have two dimensions.
    See: torch.nn.MultiheadAttention,
    https://docs.pytorch.org/docs/stable/generated/torch.nn.MultiheadAttention.html
    """
    _require_integers("tokens", tokens)
    _require_dims("tokens", tokens, "b t")
    return tokens.long() != pad_id  # a narrow dtype would wrap the pad id: 256 is 0 to uint8


def lengths_to_mask(lengths: Int[Tensor, " b"], max_len: int | None = None) -> Bool[Tensor, "b t"]:
    """The mask of sequences of these lengths: the first `lengths[i]` places of row i are True.

    >>> lengths_to_mask(torch.tensor([2, 0, 3]))
    tensor([[ True,  True, False],
            [False, False, False],
            [ True,  True,  True]])

    Each row has max_len places; without it as many as the greatest length, and none where there are no lengths at
    all: then the result is [0 0]. max_len may be 0. The lengths may have any integer dtype, also one too narrow for
    max_len. The mask is on the device of lengths.

    Raises TypeError if lengths is not of integers (bool is none). Raises ValueError, with the shape, if lengths
    does not have one dimension; with the number if a length or max_len is negative; with both numbers if a length
    is greater than max_len.
    See: torch.nn.utils.rnn.pack_padded_sequence,
    https://docs.pytorch.org/docs/stable/generated/torch.nn.utils.rnn.pack_padded_sequence.html
    """
    _require_integers("lengths", lengths)
    _require_dims("lengths", lengths, "b")
    numbers = lengths.tolist()
    if max_len is None:
        max_len = max([0, *numbers])
    elif max_len < 0:
        raise ValueError(f"max_len must not be negative, got {max_len}")
    _require_lengths(numbers, max_len)
    return torch.arange(max_len, device=lengths.device) < lengths.unsqueeze(1)


def causal_mask(time: int, device: torch.device | str | int | None = None) -> Bool[Tensor, "time time"]:
    """Which key each query may see if nobody looks ahead: [query, key] is True where key <= query.

    >>> causal_mask(3)
    tensor([[ True, False, False],
            [ True,  True, False],
            [ True,  True,  True]])

    A query sees itself. time may be 0. The mask is made on the device given, on torch's default device without one.

    Raises ValueError, with the number, if time is negative.
    See: Vaswani et al. 2017, Attention Is All You Need, section 3.2.3, https://arxiv.org/abs/1706.03762
    """
    if time < 0:
        raise ValueError(f"time must not be negative, got {time}")
    return torch.ones(time, time, dtype=torch.bool, device=device).tril()


def attention_mask(valid: Bool[Tensor, "b t"], causal: bool = False) -> Bool[Tensor, "b 1 t t"]:
    """Which key each query of a padded batch may see, for all attention heads: [b, 0, query, key].

    >>> attention_mask(torch.tensor([[True, True, False]]), causal=True)
    tensor([[[[ True, False, False],
              [ True,  True, False],
              [ True,  True, False]]]])

    A valid key is seen by every query, or by itself and the queries after it if causal. Only keys are masked: a
    query at a padded place sees what any other query there would see, so its row is no special case. The dimension
    of size 1 stands for the heads. The result may be an expanded view of valid: who wants to write to it makes a
    copy first. b and t may be 0.

    Raises TypeError if valid is not bool. Raises ValueError, with the shape, if valid does not have two dimensions.
    See: torch.nn.functional.scaled_dot_product_attention,
    https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.scaled_dot_product_attention.html
    """
    _require_mask(valid)
    _require_dims("valid", valid, "b t")
    b, t = valid.shape
    keys = valid[:, None, None, :].expand(b, 1, t, t)
    return keys & causal_mask(t, valid.device) if causal else keys


def pad_sequences(
    sequences: Sequence[Shaped[Tensor, "t_i *rest"]], pad_value: float = 0
) -> tuple[Shaped[Tensor, "b t *rest"], Int[Tensor, " b"]]:
    """Sequences of different lengths side by side in one tensor, filled up at the end, and their lengths.

    >>> padded, lengths = pad_sequences([torch.tensor([1, 2]), torch.tensor([3, 4, 5])], pad_value=-1)
    >>> padded
    tensor([[ 1,  2, -1],
            [ 3,  4,  5]])
    >>> lengths
    tensor([2, 3])

    t is the greatest length. Any member may have length 0, all of them too. The values may be of any dtype,
    integers and bool too; dtype and device are kept, and gradients reach every member. The result has memory of its
    own, also for a single sequence. The lengths are int64 and on the same device.

    Raises ValueError if there are no sequences; with the shape if one has no dimension; with both shapes if two
    differ in a dimension after the first; with both dtypes if two dtypes differ.
    Refused: torch.nn.utils.rnn.pad_sequence, torch.nested.
    See: torch.nn.utils.rnn.pad_sequence,
    https://docs.pytorch.org/docs/stable/generated/torch.nn.utils.rnn.pad_sequence.html
    """
    if not sequences:
        raise ValueError("there is no sequence to pad")
    first = sequences[0]
    for sequence in sequences:
        _require_dims("every sequence", sequence, "t *rest")
        if sequence.shape[1:] != first.shape[1:]:
            raise ValueError(f"cannot put shapes {tuple(first.shape)} and {tuple(sequence.shape)} into one batch")
        if sequence.dtype != first.dtype:
            raise ValueError(f"cannot put {first.dtype} and {sequence.dtype} into one batch")
    lengths = torch.tensor([len(sequence) for sequence in sequences], dtype=torch.int64, device=first.device)
    valid = lengths_to_mask(lengths)
    padded = first.new_full((*valid.shape, *first.shape[1:]), pad_value)
    # The valid places in row-major order are the sequences one after the other.
    padded[valid] = torch.cat(tuple(sequences))
    return padded, lengths


def unpad_sequences(
    padded: Shaped[Tensor, "b t *rest"], lengths: Int[Tensor, " b"]
) -> list[Shaped[Tensor, "t_i *rest"]]:
    """The sequences that `pad_sequences` put together, without their padding: its inverse.

    >>> unpad_sequences(torch.tensor([[1, 2, 0], [3, 4, 5]]), torch.tensor([2, 3]))
    [tensor([1, 2]), tensor([3, 4, 5])]

    Member i is the first lengths[i] steps of row i, as a view: nothing is copied, and a write to padded shows in
    it. padded may have any dtype. b, t and each length may be 0; no rows give an empty list.

    Raises TypeError if lengths is not of integers (bool is none). Raises ValueError, with the shape, if padded has
    fewer than two dimensions or lengths does not have one; with both numbers if there are more or fewer lengths
    than rows; with the number if a length is negative; with both numbers if one is greater than t.
    See: torch.nn.utils.rnn.unpad_sequence,
    https://docs.pytorch.org/docs/stable/generated/torch.nn.utils.rnn.unpad_sequence.html
    """
    _require_integers("lengths", lengths)
    _require_dims("lengths", lengths, "b")
    _require_dims("padded", padded, "b t *rest")
    if len(lengths) != len(padded):
        raise ValueError(f"{len(lengths)} lengths for {len(padded)} rows")
    numbers = lengths.tolist()
    _require_lengths(numbers, padded.shape[1])
    # One unbind: its backward stacks the rows' gradients once, where indexing row by row fills a whole batch for each.
    return [row[:length] for row, length in zip(padded.unbind(), numbers, strict=True)]


def masked_mean(x: Float[Tensor, "b t d"], valid: Bool[Tensor, "b t"]) -> Float[Tensor, "b d"]:
    """The mean over the valid steps of each sequence.

    >>> masked_mean(torch.tensor([[[1.0], [3.0], [100.0]]]), torch.tensor([[True, True, False]]))
    tensor([[2.]])

    A sequence without a valid step has the mean 0 and passes on the gradient 0, in every dtype. What lies at a
    masked place does not matter, nan and inf included: it reaches neither the value nor the gradient, and its own
    gradient is 0. In float16 and bfloat16 the result agrees with float32's, also where the sum of the steps does
    not fit the dtype. b, t and d may be 0.

    Raises TypeError if x is not floating or valid is not bool. Raises ValueError, with the shape, if x does not
    have three dimensions; with both shapes if valid is not [b t]: size 1 is not broadcast.
    See: torch.masked, https://docs.pytorch.org/docs/stable/masked.html
    """
    _require_floating("x", x)
    _require_mask(valid)
    _require_dims("x", x, "b t d")
    _require_steps("valid", valid, x)
    # Zeros in the place of padding, not times padding: nan * 0 is nan, and inf * 0 too.
    kept = torch.where(valid.unsqueeze(2), x, 0)
    total = kept.sum(1, dtype=torch.promote_types(x.dtype, torch.float32))
    return (total / valid.sum(1, keepdim=True).clamp(min=1)).to(x.dtype)


def masked_softmax(
    scores: Float[Tensor, "*batch t"], valid: Bool[Tensor, "..."], dim: int = -1
) -> Float[Tensor, "*batch t"]:
    """The softmax along `dim` over the valid places alone.

    >>> valid = torch.tensor([[True, True, False], [False, False, False]])
    >>> masked_softmax(torch.tensor([[5.0, 5.0, 9.0], [1.0, 2.0, 3.0]]), valid)
    tensor([[0.5000, 0.5000, 0.0000],
            [0.0000, 0.0000, 0.0000]])

    valid broadcasts to the shape of scores. Masked places are exactly 0, the others of each row (along dim) sum to
    1; a row without a valid place is all 0 and passes on the gradient 0. What lies at a masked place does not
    matter, however large, nan and inf included: it reaches neither the value nor the gradient. Finite wherever the
    valid scores are finite, also at ±10,000, with finite gradients. float16 and bfloat16 agree with float32. Every
    dimension may have size 0.

    Raises TypeError if scores is not floating or valid is not bool. Raises ValueError, with both shapes, if valid
    does not broadcast to scores, or would make it larger; if scores has no dimension.
    Refused: torch.softmax, torch.log_softmax, torch.logsumexp, torch.nn.functional.scaled_dot_product_attention and
    their siblings (torch.nn.functional.softmin, torch.logaddexp, torch.nn.functional.multi_head_attention_forward).
    See: torch.nn.functional.softmax,
    https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.softmax.html
    """
    _require_floating("scores", scores)
    _require_mask(valid)
    _require_dims("scores", scores, "*batch t")
    sizes = zip(reversed(valid.shape), reversed(scores.shape), strict=False)
    if valid.ndim > scores.ndim or any(size not in (1, wanted) for size, wanted in sizes):
        raise ValueError(f"valid of shape {tuple(valid.shape)} does not broadcast to {tuple(scores.shape)}")
    if scores.size(dim) == 0:
        return scores.clone()  # nothing has no largest element
    # Half precision is computed in float32: the total of a long row does not fit it.
    wide = scores.to(torch.promote_types(scores.dtype, torch.float32))
    kept = wide.masked_fill(~valid, -torch.inf)
    # Without a valid place the largest element is -inf, and -inf - -inf is nan: any finite number will do instead.
    peak = kept.detach().amax(dim, keepdim=True).clamp(min=torch.finfo(kept.dtype).min)
    weights = (kept - peak).exp()
    # The largest element alone adds exp(0) = 1 to the total, so only a row without a valid place has less.
    return (weights / weights.sum(dim, keepdim=True).clamp(min=1)).to(scores.dtype)


def masked_cross_entropy(
    logits: Float[Tensor, "b t v"], targets: Int[Tensor, "b t"], valid: Bool[Tensor, "b t"]
) -> Float[Tensor, ""]:
    """The mean cross-entropy of the valid tokens of a batch.

    >>> logits, targets = torch.zeros(1, 3, 4), torch.tensor([[2, 0, -100]])
    >>> masked_cross_entropy(logits, targets, torch.tensor([[True, True, False]]))  # log(4)
    tensor(1.3863)

    Every valid token weighs the same, in whichever sequence it stands. What lies at a masked place does not matter,
    any int in targets and nan or inf in logits included: it reaches neither the value nor the gradient, so one more
    column of padding changes nothing. Without a valid token the loss is 0 and so are the gradients. targets may
    have any integer dtype. Stable for logits at ±10,000. In float16 and bfloat16 the result agrees with float32's,
    also where the sum over the tokens does not fit the dtype. b, t and, without a valid token, v may be 0.

    Raises TypeError if logits is not floating, targets is not of integers (bool is none) or valid is not bool.
    Raises ValueError, with the shape, if logits does not have three dimensions; with both shapes if targets or
    valid is not [b t]. Raises IndexError, with the target and v, if a valid target is outside [0, v): -100 is no
    exception.
    See: torch.nn.functional.cross_entropy,
    https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.cross_entropy.html
    """
    _require_floating("logits", logits)
    _require_integers("targets", targets)
    _require_mask(valid)
    _require_dims("logits", logits, "b t v")
    _require_steps("targets", targets, logits)
    _require_steps("valid", valid, logits)
    v = logits.shape[2]
    kept = targets[valid].long()
    outside = kept[(kept < 0) | (kept >= v)]
    if len(outside):
        raise IndexError(f"target {outside[0].item()} is not one of {v} classes")
    # The padding is gone before anything is computed, so there is nothing that it could do.
    tokens = logits[valid].to(torch.promote_types(logits.dtype, torch.float32))
    total = F.cross_entropy(tokens, kept, reduction="sum")
    return (total / max(len(kept), 1)).to(logits.dtype)


def _require_integers(name: str, x: Tensor) -> None:
    if x.is_floating_point() or x.is_complex() or x.dtype == torch.bool:
        raise TypeError(f"{name} must be of integers, got {x.dtype}")


def _require_floating(name: str, x: Tensor) -> None:
    if not x.is_floating_point():
        raise TypeError(f"{name} must be of floating point, got {x.dtype}")


def _require_mask(valid: Tensor) -> None:
    if valid.dtype != torch.bool:
        raise TypeError(f"valid must be bool, got {valid.dtype}")


def _require_dims(name: str, x: Tensor, dims: str) -> None:
    """Raises ValueError unless x has the dimensions named, where one with a star stands for any number of them."""
    named = [dim for dim in dims.split() if not dim.startswith("*")]
    if x.ndim < len(named) or (x.ndim > len(named) and "*" not in dims):
        raise ValueError(f"{name} must be [{dims}], got shape {tuple(x.shape)}")


def _require_steps(name: str, mask: Tensor, x: Tensor) -> None:
    """Raises ValueError unless there is one element for each step of x [b t ...]."""
    if mask.shape != x.shape[:2]:
        raise ValueError(f"{name} of shape {tuple(mask.shape)} does not fit the steps of shape {tuple(x.shape)}")


def _require_lengths(lengths: list[int], limit: int) -> None:
    for length in lengths:
        if not 0 <= length <= limit:
            raise ValueError(f"length {length} is not between 0 and {limit}")
