"""A transformer toolkit: embeddings, attention, a learning rate schedule and ways to make more of the data."""

import math
from collections.abc import Sequence
from typing import Self

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler


class Embedding(nn.Module):
    """A table with a learned vector for each id.

    >>> embedding = Embedding(3, 2, padding_idx=-1)
    >>> embedding
    Embedding(num_embeddings=3, embedding_dim=2, padding_idx=2)
    >>> _ = embedding.load_state_dict({"weight": torch.tensor([[1.0, 2.0], [3.0, 4.0], [0.0, 0.0]])})
    >>> embedding(torch.tensor([1, 1, 2])).tolist()
    [[3.0, 4.0], [3.0, 4.0], [0.0, 0.0]]

    The one parameter is `weight` [num_embeddings, embedding_dim]. Each element is drawn from the global generator, with
    mean 0 and standard deviation 1, in the default dtype. ids may have any shape, also none or empty dimensions, and
    the result has one dimension more. The gradient of a row is the sum over all places where its id stands.

    padding_idx is the id of the padding; a negative one counts from the end. Its row is zero at the start, and its
    gradient is zero whatever happens: also after `.to()`, copy.deepcopy and pickling. It is no constant, though: what
    stands in the row (another state_dict may have been loaded) is what the lookup returns. `repr` shows the three
    settings.

    Raises ValueError, with the number, if num_embeddings or embedding_dim is less than 1; IndexError, with the number,
    if padding_idx is outside [-num_embeddings, num_embeddings): before anything is drawn.
    Raises TypeError if ids is neither int32 nor int64. Raises IndexError, with the id, if one is outside
    [0, num_embeddings): negative ids do not count from the end.
    Refused: torch.nn.Embedding, torch.nn.functional.embedding.
    See: torch.nn.Embedding, https://docs.pytorch.org/docs/stable/generated/torch.nn.Embedding.html
    """

    def __init__(self, num_embeddings: int, embedding_dim: int, padding_idx: int | None = None) -> None:
        super().__init__()
        _check_sizes(num_embeddings=num_embeddings, embedding_dim=embedding_dim)
        if padding_idx is not None and not -num_embeddings <= padding_idx < num_embeddings:
            raise IndexError(f"padding_idx {padding_idx} is not among {num_embeddings} embeddings")
        self.num_embeddings = num_embeddings
        self.embedding_dim = embedding_dim
        self.padding_idx = None if padding_idx is None else padding_idx % num_embeddings
        weight = torch.randn(num_embeddings, embedding_dim)
        if self.padding_idx is not None:
            weight[self.padding_idx] = 0
        self.weight = nn.Parameter(weight)

    def forward(self, ids: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape embedding_dim"]:
        if ids.dtype not in (torch.int32, torch.int64):
            raise TypeError(f"expected ids of int32 or int64, got {ids.dtype}")
        _check_range("id", ids, self.num_embeddings)
        rows = self.weight.index_select(0, ids.flatten()).view(*ids.shape, self.embedding_dim)
        if self.padding_idx is None:
            return rows
        # Not a hook on the parameter: copies of the module would lose it.
        return torch.where((ids == self.padding_idx).unsqueeze(-1), rows.detach(), rows)

    def extra_repr(self) -> str:
        sizes = f"num_embeddings={self.num_embeddings}, embedding_dim={self.embedding_dim}"
        return f"{sizes}, padding_idx={self.padding_idx}"


def sinusoidal_positions(
    time: int, dim: int, device: torch.device | str | int | None = None, dtype: torch.dtype = torch.float32
) -> Float[Tensor, "time dim"]:
    """The fixed vector of each position: waves from fast to slow, a sine and a cosine of each.

    >>> sinusoidal_positions(2, 4)
    tensor([[0.0000, 1.0000, 0.0000, 1.0000],
            [0.8415, 0.5403, 0.0100, 0.9999]])

    Column 2i of row t is sin(t / 10000^(2i / dim)), column 2i + 1 is cos of the same. time may be 0. Every value is
    precise to 1e-6 in float32, also at position 10,000; float64 has float64's precision. The result is made on the
    device given, on torch's default device without one.

    Raises ValueError, with the number, if time is negative, if dim is less than 1 or odd.
    See: Vaswani et al. 2017, Attention Is All You Need, section 3.5, https://arxiv.org/abs/1706.03762
    """
    if time < 0:
        raise ValueError(f"time must not be negative, got {time}")
    if dim < 1 or dim % 2:
        raise ValueError(f"dim must be even and at least 2, got {dim}")
    # An angle of 10,000 has three digits left behind the point in float32.
    position = torch.arange(time, device=device, dtype=torch.float64)
    exponent = torch.arange(0, dim, 2, device=device, dtype=torch.float64) / dim
    angle = position[:, None] * 10000.0**-exponent  # [time dim/2]
    return torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(1).to(dtype)


def scaled_dot_product_attention(
    q: Float[Tensor, "*b t d"],
    k: Float[Tensor, "*b s d"],
    v: Float[Tensor, "*b s e"],
    valid: Bool[Tensor, "..."] | None = None,
) -> tuple[Float[Tensor, "*b t e"], Float[Tensor, "*b t s"]]:
    """For each query a weighted mean of the values, and the weights: softmax(q k^T / sqrt(d)).

    >>> q, k = torch.tensor([[0.0], [99.0]]), torch.tensor([[0.0], [99.0], [99.0]])
    >>> v = torch.tensor([[3.0], [6.0], [0.0]])
    >>> output, weights = scaled_dot_product_attention(q, k, v)
    >>> output
    tensor([[3.],
            [3.]])
    >>> weights
    tensor([[0.3333, 0.3333, 0.3333],
            [0.0000, 0.5000, 0.5000]])
    >>> scaled_dot_product_attention(q, k, v, valid=torch.tensor([True, True, False]))[0]
    tensor([[4.5000],
            [6.0000]])

    There may be any number of leading dimensions, the same in all three. t, s and the leading dimensions may be 0.
    `valid` is True where a query may see a key, and may have any shape that broadcasts to [*b t s]. The weights of a
    query add up to 1 and are exactly 0 at keys that it may not see. A query without any valid key has weights 0 and
    output 0; for finite inputs there is no nan, neither in the values nor in the gradients, and such a row brings
    gradient 0 to everything. The result has q's dtype.

    Raises TypeError if q, k or v is not floating, or valid not bool.
    Raises ValueError, with the shapes, if the leading dimensions differ, the d of q and k, or the s of k and v; if
    valid does not broadcast to [*b t s] (it may not make the result larger either).
    Refused: torch.nn.functional.scaled_dot_product_attention, multi_head_attention_forward. softmax is allowed.
    See: torch.nn.functional.scaled_dot_product_attention,
    https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.scaled_dot_product_attention.html
    """
    _check_floating(q=q, k=k, v=v)
    if q.ndim < 2 or q.shape[:-2] != k.shape[:-2] or q.shape[-1:] != k.shape[-1:] or k.shape[:-1] != v.shape[:-1]:
        raise ValueError(
            f"expected q [*b t d], k [*b s d] and v [*b s e], got shapes {tuple(q.shape)}, {tuple(k.shape)} and "
            f"{tuple(v.shape)}"
        )
    _check_mask(valid, (*q.shape[:-1], k.shape[-2]))
    weights = _attention_weights(q, k, valid)
    return weights @ v, weights


class MultiHeadAttention(nn.Module):
    """Attention in several heads, each with its own projection of queries, keys and values.

    >>> attention = MultiHeadAttention(d_model=6, heads=2, dropout=0.1)
    >>> attention(torch.zeros(3, 5, 6)).shape
    torch.Size([3, 5, 6])
    >>> attention.out_proj
    Linear(in_features=6, out_features=6, bias=True)

    The submodules `q_proj`, `k_proj`, `v_proj` and `out_proj` are torch.nn.Linear from d_model to d_model, all with a
    bias or all without; initial values are torch's own for a Linear. Head i is features i * d_model / heads up to
    (i + 1) * d_model / heads of what q_proj, k_proj and v_proj give, and attends as `scaled_dot_product_attention` of
    this file does: the width of one head scales. In training mode the attention weights then go through dropout with
    probability `dropout` (torch's may be used). The heads side by side, in their order, go through out_proj. With the
    same weights the result is that of torch.nn.MultiheadAttention.

    query is [b t d_model], key and value are [b s d_model]. Without a key, query is the key too; without a value, key
    is the value. b, t and s may be 0. `valid` is True where a query may see a key, and broadcasts to [b heads t s]: a
    mask per head is possible. Where a query has no valid key in any head the result is out_proj's bias, or 0 without
    one; gradients are finite. `repr` shows d_model, heads, dropout and bias, itself or through the submodules.

    Raises ValueError, with the number, if d_model or heads is less than 1, or dropout is outside [0, 1]; with both
    numbers if d_model cannot be divided by heads: in the constructor, before anything is drawn.
    Raises ValueError, with the shapes, if the last dimension of query, key or value is not d_model, if b differs or s;
    if valid does not broadcast to [b heads t s]. Raises TypeError if valid is not bool.
    Refused: torch.nn.functional.scaled_dot_product_attention, multi_head_attention_forward, and the forward of
    torch.nn.MultiheadAttention.
    See: torch.nn.MultiheadAttention,
    https://docs.pytorch.org/docs/stable/generated/torch.nn.MultiheadAttention.html
    """

    def __init__(self, d_model: int, heads: int, dropout: float = 0.0, bias: bool = True) -> None:
        super().__init__()
        _check_sizes(d_model=d_model, heads=heads)
        if d_model % heads:
            raise ValueError(f"d_model {d_model} cannot be divided into {heads} heads")
        _check_probability("dropout", dropout)
        self.heads = heads
        self.q_proj = nn.Linear(d_model, d_model, bias=bias)
        self.k_proj = nn.Linear(d_model, d_model, bias=bias)
        self.v_proj = nn.Linear(d_model, d_model, bias=bias)
        self.out_proj = nn.Linear(d_model, d_model, bias=bias)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        query: Float[Tensor, "b t d_model"],
        key: Float[Tensor, "b s d_model"] | None = None,
        value: Float[Tensor, "b s d_model"] | None = None,
        valid: Bool[Tensor, "..."] | None = None,
    ) -> Float[Tensor, "b t d_model"]:
        key = query if key is None else key
        value = key if value is None else value
        self._check_shapes(query, key, value)
        _check_mask(valid, (query.shape[0], self.heads, query.shape[1], key.shape[1]))
        q, k, v = (
            projection(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [b heads time head_dim]
            for projection, x in ((self.q_proj, query), (self.k_proj, key), (self.v_proj, value))
        )
        heads = self.dropout(_attention_weights(q, k, valid)) @ v
        return self.out_proj(heads.transpose(1, 2).flatten(2))

    @classmethod
    def from_torch(cls, mha: nn.MultiheadAttention) -> Self:
        """A module that computes what torch's own does, with copies of its weights.

        >>> theirs = nn.MultiheadAttention(6, 2, batch_first=True)
        >>> ours, x = MultiHeadAttention.from_torch(theirs), torch.randn(3, 5, 6)
        >>> torch.allclose(ours(x), theirs(x, x, x)[0], atol=1e-6)
        True

        torch packs the three projections into one `in_proj_weight` [3 * d_model, d_model] (queries, keys, values) and
        one `in_proj_bias`; without bias there is none, and out_proj has none either. The number of heads, the dropout
        probability, dtype, device and training flag are taken over. Nothing is shared: training one leaves the other as
        it is. The global generator is left as found. batch_first only says how torch's module wants its inputs; the
        new one has the batch first in any case.

        Raises ValueError, with both numbers, if kdim or vdim is not embed_dim. Raises ValueError if mha was made with
        add_bias_kv or add_zero_attn.
        """
        if mha.kdim != mha.embed_dim or mha.vdim != mha.embed_dim:
            raise ValueError(f"kdim {mha.kdim} and vdim {mha.vdim} must be embed_dim {mha.embed_dim}")
        if mha.bias_k is not None or mha.bias_v is not None or mha.add_zero_attn:
            raise ValueError("add_bias_kv and add_zero_attn have no counterpart here")
        bias = mha.in_proj_bias is not None
        with torch.device("meta"):  # initial values without drawing any
            attention = cls(mha.embed_dim, mha.num_heads, mha.dropout, bias)
        state = {"out_proj.weight": mha.out_proj.weight}
        names = ("q_proj", "k_proj", "v_proj")
        state |= {f"{name}.weight": part for name, part in zip(names, mha.in_proj_weight.chunk(3), strict=True)}
        if bias:
            state["out_proj.bias"] = mha.out_proj.bias
            state |= {f"{name}.bias": part for name, part in zip(names, mha.in_proj_bias.chunk(3), strict=True)}
        attention.load_state_dict({name: part.detach().clone() for name, part in state.items()}, assign=True)
        return attention.train(mha.training)

    def _check_shapes(self, query: Tensor, key: Tensor, value: Tensor) -> None:
        width = self.q_proj.in_features
        for name, x in (("query", query), ("key", key), ("value", value)):
            if x.ndim != 3 or x.shape[2] != width or x.shape[0] != query.shape[0]:
                raise ValueError(
                    f"expected {name} [batch time {width}] for a query of shape {tuple(query.shape)}, "
                    f"got {tuple(x.shape)}"
                )
        if key.shape[1] != value.shape[1]:
            raise ValueError(f"{key.shape[1]} keys and {value.shape[1]} values do not make pairs")

    def extra_repr(self) -> str:
        return f"d_model={self.q_proj.in_features}, heads={self.heads}"


def warmup_cosine(step: int, warmup: int, total: int, floor: float = 0.0) -> float:
    """The share of the full learning rate at a step: up in a line, down in half a cosine.

    >>> [round(warmup_cosine(step, warmup=2, total=6, floor=0.1), 3) for step in range(8)]
    [0.5, 1.0, 1.0, 0.868, 0.55, 0.232, 0.1, 0.1]

    Steps count from 0. The first `warmup` of them rise in a line from 1 / warmup at step 0 to 1 at step warmup - 1.
    From step warmup on, let c be (1 + cos(pi * (step - warmup) / (total - warmup))) / 2, which falls from 1 to 0; the
    share is floor + (1 - floor) * c. From step total on it is floor. floor does not change the warm-up. warmup may be
    0, and may be equal to total: then floor comes right after the warm-up. The result is a Python float.

    Raises ValueError, with the numbers, if total is less than 1, step negative, warmup outside [0, total] or floor
    outside [0, 1].
    See: Loshchilov and Hutter 2016, SGDR: Stochastic Gradient Descent with Warm Restarts,
    https://arxiv.org/abs/1608.03983
    """
    _check_schedule(warmup, total, floor)
    if step < 0:
        raise ValueError(f"step must not be negative, got {step}")
    if step >= total:
        return float(floor)
    if step < warmup:
        return (step + 1) / warmup
    share = (1 + math.cos(math.pi * (step - warmup) / (total - warmup))) / 2
    return floor + (1 - floor) * share


class WarmupCosine(LRScheduler):
    """A scheduler that multiplies the learning rate of each param group by `warmup_cosine`.

    >>> optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.5)
    >>> scheduler = WarmupCosine(optimizer, warmup=2, total=4)
    >>> rates = []
    >>> for _ in range(5):
    ...     rates.append(optimizer.param_groups[0]["lr"])
    ...     optimizer.step()
    ...     scheduler.step()
    >>> rates
    [0.25, 0.5, 0.5, 0.25, 0.0]

    From the moment it is made the optimizer has the rates of step 0; each `scheduler.step()` goes one step further.
    Every param group has a base rate of its own: the `lr` that it has when the scheduler is made, which torch keeps as
    its `initial_lr`. last_epoch is torch's: with last_epoch = n, for groups that have an `initial_lr`, the scheduler
    starts at step n + 1.

    state_dict() can be written by torch.save and read by torch.load as it is by default (weights_only). A new
    scheduler that loads it, over an optimizer that loads the state of the old one, goes on exactly where the old one
    was.

    Raises ValueError, with the numbers, if total is less than 1, warmup outside [0, total] or floor outside [0, 1]: in
    the constructor, before the optimizer is changed.
    See: torch.optim.lr_scheduler, https://docs.pytorch.org/docs/stable/optim.html#how-to-adjust-learning-rate
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, warmup: int, total: int, floor: float = 0.0, last_epoch: int = -1
    ) -> None:
        _check_schedule(warmup, total, floor)
        self.warmup = warmup
        self.total = total
        self.floor = floor
        super().__init__(optimizer, last_epoch)  # which takes the first step: the settings must be there

    def get_lr(self) -> list[float | Tensor]:
        share = warmup_cosine(self.last_epoch, self.warmup, self.total, self.floor)
        return [base * share for base in self.base_lrs]


def random_crop(
    images: Float[Tensor, "b c h w"], padding: int, generator: torch.Generator | None = None
) -> Float[Tensor, "b c h w"]:
    """Each image moved by a random number of rows and columns: framed by zeros, then cut to its size.

    >>> random_crop(torch.ones(2, 3, 8, 8), padding=2).shape
    torch.Size([2, 3, 8, 8])
    >>> random_crop(torch.tensor([[[[1.0, 2.0]]]]), padding=0)
    tensor([[[[1., 2.]]]])

    The frame has `padding` rows or columns of zeros on each side. The window is as large as the image was; its first
    row is drawn from 0 up to and including 2 * padding, its first column too, each of them with the same probability,
    independently of each other and for every image anew. All channels of an image move together. padding may be 0, and
    may be larger than the image. Any dimension may be 0.

    Raises TypeError if images are not floating: convert bytes first. Raises ValueError, with the number, if padding is
    negative; with the shape, if images do not have four dimensions.
    See: torchvision's RandomCrop,
    https://docs.pytorch.org/vision/stable/generated/torchvision.transforms.RandomCrop.html
    """
    _check_images(images)
    if padding < 0:
        raise ValueError(f"padding must not be negative, got {padding}")
    b, _, h, w = images.shape
    top, left = torch.randint(2 * padding + 1, (2, b), generator=generator, device=images.device)
    padded = F.pad(images, (padding, padding, padding, padding))
    windows = padded.unfold(2, h, 1).unfold(3, w, 1)  # [b c top left h w], a view
    return windows[torch.arange(b, device=images.device), :, top, left]


def random_flip(
    images: Float[Tensor, "b c h w"], p: float = 0.5, generator: torch.Generator | None = None
) -> Float[Tensor, "b c h w"]:
    """Each image as it is or, with probability p, with left and right exchanged.

    >>> random_flip(torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]), p=1.0)
    tensor([[[[2., 1.],
              [4., 3.]]]])

    Every image of the batch is decided on its own; all its channels go together. p 0 flips none and 1 flips all. Any
    dimension may be 0.

    Raises TypeError if images are not floating: convert bytes first. Raises ValueError, with the number, if p is
    outside [0, 1]; with the shape, if images do not have four dimensions.
    See: torchvision's RandomHorizontalFlip,
    https://docs.pytorch.org/vision/stable/generated/torchvision.transforms.RandomHorizontalFlip.html
    """
    _check_images(images)
    _check_probability("p", p)
    flipped = _uniform((len(images), 1, 1, 1), images.device, generator) < p
    return torch.where(flipped, images.flip(-1), images)


def mixup(
    x: Float[Tensor, "b *rest"],
    y: Int[Tensor, " b"],
    num_classes: int,
    alpha: float = 0.2,
    generator: torch.Generator | None = None,
) -> tuple[Float[Tensor, "b *rest"], Float[Tensor, "b num_classes"]]:
    """Each sample mixed with another one of its batch, and targets that say in which proportion.

    >>> x, y = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([2, 0])
    >>> _, targets = mixup(x, y, num_classes=3)
    >>> targets.shape, torch.allclose(targets.sum(1), torch.ones(2))
    (torch.Size([2, 3]), True)
    >>> mixup(x, y, num_classes=3, alpha=0.0)
    (tensor([[1., 2.],
            [3., 4.]]), tensor([[0., 0., 1.],
            [1., 0., 0.]]))

    The partners are one random permutation of the batch: each sample is partner once, maybe its own. Each sample has a
    share of its own, drawn from the distribution Beta(alpha, alpha) in float32 or a wider dtype (torch._standard_gamma
    may be used, which takes a generator). The result is share * x + (1 - share) * x[partner], and the target is mixed
    of the one-hot rows of y with the same share and partner. The targets have x's dtype. With alpha 0 x comes back as
    it is, nan and inf in it too, with one-hot targets. y may have any integer dtype. b may be 0, and dimensions of rest
    too.

    Raises TypeError if x is not floating or y not of integers (bool is none).
    Raises ValueError, with the number, if num_classes is less than 1 or alpha less than 0; with the shapes, if y is not
    [b].
    Raises IndexError, with the class, if one is outside [0, num_classes).
    See: Zhang et al. 2017, mixup: Beyond Empirical Risk Minimization, https://arxiv.org/abs/1710.09412
    """
    _check_floating(x=x)
    _check_integers("y", y)
    _check_sizes(num_classes=num_classes)
    if not 0 <= alpha < math.inf:
        raise ValueError(f"alpha must be 0 or more, got {alpha}")
    if x.ndim < 1 or y.shape != x.shape[:1]:
        raise ValueError(f"expected x [b *rest] and y [b], got shapes {tuple(x.shape)} and {tuple(y.shape)}")
    _check_range("class", y, num_classes)
    targets = (y[:, None] == torch.arange(num_classes, device=x.device)).to(x.dtype)
    if alpha == 0:
        return x, targets
    wide = torch.promote_types(x.dtype, torch.float32)
    gammas = torch._standard_gamma(torch.full((2, len(x)), alpha, dtype=wide, device=x.device), generator=generator)
    shares = gammas[0] / gammas.sum(0)
    partners = torch.randperm(len(x), generator=generator, device=x.device)
    return _mix(x, shares, partners), _mix(targets, shares, partners)


def mask_tokens(
    tokens: Int[Tensor, "b t"],
    mask_id: int,
    vocab_size: int,
    p: float = 0.15,
    special: Bool[Tensor, "b t"] | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Int[Tensor, "b t"], Int[Tensor, "b t"]]:
    """Tokens of which some are hidden, and labels that ask for exactly those: BERT's masked language model.

    >>> tokens = torch.tensor([[5, 6, 7]])
    >>> special = torch.tensor([[True, True, True]])
    >>> mask_tokens(tokens, mask_id=9, vocab_size=10, p=1.0, special=special)
    (tensor([[5, 6, 7]]), tensor([[-100, -100, -100]]))
    >>> mask_tokens(tokens, mask_id=9, vocab_size=10, p=1.0)[1]
    tensor([[5, 6, 7]])

    Each token that is not special is chosen with probability p, independently of all others. Of the chosen ones, each
    independently again, 80 % become mask_id, 10 % an id drawn from all of 0 to vocab_size - 1 with equal probability
    (which may be the token itself, or mask_id) and 10 % stay. `special` is True for what may not be chosen, as padding.
    The inputs have the dtype of tokens. The labels are int64: the token at each chosen place, also where it stays, and
    -100 everywhere else. mask_id may be any number that fits the dtype of tokens, also outside the vocabulary. b and t
    may be 0.

    Raises TypeError if tokens is not of integers (bool is none) or special not bool.
    Raises ValueError, with the number, if vocab_size is less than 1 or p outside [0, 1]; with the shapes, if tokens
    does not have two dimensions or special has another shape than tokens.
    See: Devlin et al. 2018, BERT, section 3.1 and appendix A.1, https://arxiv.org/abs/1810.04805
    """
    _check_integers("tokens", tokens)
    _check_sizes(vocab_size=vocab_size)
    _check_probability("p", p)
    if tokens.ndim != 2:
        raise ValueError(f"expected tokens [b t], got shape {tuple(tokens.shape)}")
    if special is not None and special.dtype != torch.bool:
        raise TypeError(f"expected special to be bool, got {special.dtype}")
    if special is not None and special.shape != tokens.shape:
        raise ValueError(f"special {tuple(special.shape)} does not fit tokens {tuple(tokens.shape)}")
    chosen = _uniform(tokens.shape, tokens.device, generator) < p
    if special is not None:
        chosen &= ~special
    fate = _uniform(tokens.shape, tokens.device, generator)
    words = torch.randint(vocab_size, tokens.shape, generator=generator, dtype=tokens.dtype, device=tokens.device)
    inputs = torch.where(chosen & (fate >= 0.9), words, tokens).masked_fill(chosen & (fate < 0.8), mask_id)
    return inputs, tokens.long().masked_fill(~chosen, -100)


def _attention_weights(q: Tensor, k: Tensor, valid: Tensor | None) -> Tensor:
    """softmax(q k^T / sqrt(d)) over the valid keys; zeros for a query without any."""
    wide = torch.promote_types(q.dtype, torch.float32)  # a score in bfloat16 has only two or three digits
    scores = (q.to(wide) / math.sqrt(q.shape[-1])) @ k.to(wide).mT
    if valid is None:
        return scores.softmax(-1).to(q.dtype)
    # A row of -inf alone would be nan. The finite number vanishes beside any valid score; where there is none, the
    # second masking takes away the weights and their gradients.
    hidden = ~valid
    weights = scores.masked_fill(hidden, torch.finfo(wide).min).softmax(-1).masked_fill(hidden, 0)
    return weights.to(q.dtype)


def _mix(x: Tensor, shares: Tensor, partners: Tensor) -> Tensor:
    shares = shares.view(-1, *[1] * (x.ndim - 1))
    return (shares * x + (1 - shares) * x[partners]).to(x.dtype)


def _uniform(shape: Sequence[int], device: torch.device, generator: torch.Generator | None) -> Tensor:
    """Numbers in [0, 1), with float32's resolution whatever the default dtype is."""
    return torch.rand(shape, generator=generator, dtype=torch.float32, device=device)


def _check_sizes(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")


def _check_probability(name: str, p: float) -> None:
    if not 0 <= p <= 1:
        raise ValueError(f"{name} must be a probability, got {p}")


def _check_schedule(warmup: int, total: int, floor: float) -> None:
    if total < 1:
        raise ValueError(f"total must be at least 1, got {total}")
    if not 0 <= warmup <= total:
        raise ValueError(f"warmup must be between 0 and total = {total}, got {warmup}")
    if not 0 <= floor <= 1:
        raise ValueError(f"floor must be between 0 and 1, got {floor}")


def _check_floating(**tensors: Tensor) -> None:
    for name, x in tensors.items():
        if not x.is_floating_point():
            raise TypeError(f"expected {name} of a floating dtype, got {x.dtype}")


def _check_integers(name: str, x: Tensor) -> None:
    if x.dtype == torch.bool or x.is_floating_point() or x.is_complex():
        raise TypeError(f"expected {name} of an integer dtype, got {x.dtype}")


def _check_range(name: str, ids: Tensor, count: int) -> None:
    ids = ids.long()  # before the comparison: count may not fit int8
    outside = (ids < 0) | (ids >= count)
    if outside.any():
        raise IndexError(f"{name} {ids[outside][0].item()} is not among {count}")


def _check_images(images: Tensor) -> None:
    _check_floating(images=images)
    if images.ndim != 4:
        raise ValueError(f"expected images [b c h w], got shape {tuple(images.shape)}")


def _check_mask(valid: Tensor | None, shape: Sequence[int]) -> None:
    """Raises unless valid is bool and can be expanded to the shape."""
    if valid is None:
        return
    if valid.dtype != torch.bool:
        raise TypeError(f"expected valid to be bool, got {valid.dtype}")
    sizes = zip(reversed(valid.shape), reversed(shape), strict=False)
    if valid.ndim > len(shape) or any(have not in (1, want) for have, want in sizes):
        raise ValueError(f"valid {tuple(valid.shape)} does not broadcast to {tuple(shape)}")
