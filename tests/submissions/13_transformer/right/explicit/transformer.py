"""A transformer toolkit: named axes, every step on a line of its own."""

import copy
import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


class Embedding(nn.Module):
    """Vectors for ids: the table is read through a copy whose padding row is cut from the graph."""

    def __init__(self, num_embeddings: int, embedding_dim: int, padding_idx: int | None = None) -> None:
        super().__init__()
        for size in (num_embeddings, embedding_dim):
            if size <= 0:
                raise ValueError(f"a table of {num_embeddings} rows and {embedding_dim} columns")
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        self.padding_idx = None
        if padding_idx is not None:
            try:
                self.padding_idx = range(num_embeddings)[padding_idx]
            except IndexError:
                raise IndexError(f"no row {padding_idx} in a table of {num_embeddings}") from None
        table = torch.empty(num_embeddings, embedding_dim).normal_(mean=0.0, std=1.0)
        if self.padding_idx is not None:
            table[self.padding_idx].fill_(0)
        self.weight = nn.Parameter(table)

    def extra_repr(self) -> str:
        return f"rows={self.num_embeddings}, width={self.embedding_dim}, padding={self.padding_idx}"

    def forward(self, ids: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape embedding_dim"]:
        if ids.dtype not in {torch.int32, torch.int64}:
            raise TypeError(f"int32 or int64 ids, please, not {ids.dtype}")
        bad = ids[torch.logical_or(ids.lt(0), ids.ge(self.num_embeddings))]
        if bad.numel():
            raise IndexError(f"ids {bad.tolist()[:5]} outside 0..{self.num_embeddings - 1}")
        table = self.weight
        if self.padding_idx is not None:
            row = torch.arange(self.num_embeddings, device=table.device).unsqueeze(1)
            table = torch.where(row == self.padding_idx, table.detach(), table)
        flat = ids.reshape(-1).to(torch.int64)
        index = flat.unsqueeze(1).expand(flat.shape[0], self.embedding_dim)
        return torch.gather(table, 0, index).reshape(tuple(ids.shape) + (self.embedding_dim,))


def sinusoidal_positions(time: int, dim: int, device=None, dtype=torch.float32) -> Float[Tensor, "time dim"]:
    """Waves of falling frequency."""
    if time < 0:
        raise ValueError(f"cannot make {time} positions")
    if dim <= 0 or dim % 2 != 0:
        raise ValueError(f"sines and cosines come in pairs: {dim} columns")
    pairs = dim // 2
    frequency = torch.exp(torch.arange(pairs, device=device, dtype=torch.float64) * (-2 * math.log(10000.0) / dim))
    position = torch.arange(time, device=device, dtype=torch.float64)
    angle = position.unsqueeze(1).mul(frequency.unsqueeze(0))
    both = torch.cat([angle.sin().unsqueeze(2), angle.cos().unsqueeze(2)], dim=2)
    return both.reshape(time, dim).to(dtype=dtype)


def _broadcasts(valid: Tensor, wanted: tuple[int, ...]) -> bool:
    try:
        return tuple(torch.broadcast_shapes(valid.shape, wanted)) == tuple(wanted)
    except RuntimeError:
        return False


def _require_mask(valid: Tensor | None, wanted: tuple[int, ...]) -> None:
    if valid is None:
        return
    if valid.dtype is not torch.bool:
        raise TypeError("the mask must be bool")
    if not _broadcasts(valid, wanted):
        raise ValueError(f"a mask of {tuple(valid.shape)} for scores of {wanted}")


def _softmax_where(scores: Tensor, valid: Tensor | None) -> Tensor:
    if valid is None:
        return torch.softmax(scores, dim=-1)
    lowest = torch.finfo(scores.dtype).min
    visible = torch.where(valid, scores, lowest)
    weights = torch.softmax(visible, dim=-1)
    return torch.where(valid, weights, 0.0)


def scaled_dot_product_attention(
    q: Float[Tensor, "*b t d"],
    k: Float[Tensor, "*b s d"],
    v: Float[Tensor, "*b s e"],
    valid: Bool[Tensor, "..."] | None = None,
) -> tuple[Float[Tensor, "*b t e"], Float[Tensor, "*b t s"]]:
    """Attention with einsum, in at least float32."""
    if not (q.is_floating_point() and k.is_floating_point() and v.is_floating_point()):
        raise TypeError(f"floating tensors wanted: {q.dtype}, {k.dtype}, {v.dtype}")
    *batch, t, d = q.shape
    *k_batch, s, k_width = k.shape
    *v_batch, v_length, _ = v.shape
    if k_width != d:
        raise ValueError(f"queries have {d} features, keys {k_width}")
    if v_length != s:
        raise ValueError(f"{s} keys and {v_length} values")
    if not batch == k_batch == v_batch:
        raise ValueError(f"batches differ: {batch}, {k_batch}, {v_batch}")
    _require_mask(valid, (*batch, t, s))
    dtype = q.dtype
    if dtype in (torch.float16, torch.bfloat16):
        q, k, v = q.float(), k.float(), v.float()
    scores = torch.einsum("...td,...sd->...ts", q, k).mul(1 / math.sqrt(d))
    weights = _softmax_where(scores, valid)
    output = torch.einsum("...ts,...se->...te", weights, v)
    return output.to(dtype), weights.to(dtype)


class MultiHeadAttention(nn.Module):
    """Several attentions side by side."""

    def __init__(self, d_model: int, heads: int, dropout: float = 0.0, bias: bool = True) -> None:
        super().__init__()
        if d_model < 1:
            raise ValueError(f"{d_model} features")
        if heads < 1:
            raise ValueError(f"{heads} heads")
        head_dim, rest = divmod(d_model, heads)
        if rest:
            raise ValueError(f"{d_model} features for {heads} heads leave {rest} over")
        self.attention_dropout = nn.Dropout(dropout)
        self.d_model, self.heads, self.head_dim = d_model, heads, head_dim
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            self.add_module(name, nn.Linear(d_model, d_model, bias=bias))

    def extra_repr(self) -> str:
        return f"heads={self.heads}"

    def _split(self, x: Float[Tensor, "b t d_model"]) -> Float[Tensor, "b heads t head_dim"]:
        b, t, _ = x.shape
        return x.reshape(b, t, self.heads, self.head_dim).permute(0, 2, 1, 3)

    def forward(
        self,
        query: Float[Tensor, "b t d_model"],
        key: Float[Tensor, "b s d_model"] | None = None,
        value: Float[Tensor, "b s d_model"] | None = None,
        valid: Bool[Tensor, "..."] | None = None,
    ) -> Float[Tensor, "b t d_model"]:
        if key is None:
            key = query
        if value is None:
            value = key
        for x in (query, key, value):
            if x.shape[-1] != self.d_model:
                raise ValueError(f"{x.shape[-1]} features where {self.d_model} are expected")
            if x.shape[0] != query.shape[0]:
                raise ValueError(f"a batch of {x.shape[0]} for {query.shape[0]} queries")
        if key.shape[1] != value.shape[1]:
            raise ValueError(f"{key.shape[1]} keys, {value.shape[1]} values")
        b, t, s = query.shape[0], query.shape[1], key.shape[1]
        _require_mask(valid, (b, self.heads, t, s))
        q, k, v = self._split(self.q_proj(query)), self._split(self.k_proj(key)), self._split(self.v_proj(value))
        _, weights = scaled_dot_product_attention(q, k, v, valid)
        weights = self.attention_dropout(weights)
        together = torch.einsum("bhts,bhse->bthe", weights, v).reshape(b, t, self.d_model)
        return self.out_proj(together)

    @classmethod
    def from_torch(cls, mha: nn.MultiheadAttention) -> "MultiHeadAttention":
        """The same weights, unpacked."""
        if (mha.kdim, mha.vdim) != (mha.embed_dim, mha.embed_dim):
            raise ValueError(f"widths {mha.kdim} and {mha.vdim} differ from {mha.embed_dim}")
        if mha.bias_k is not None:
            raise ValueError("made with add_bias_kv")
        if mha.add_zero_attn:
            raise ValueError("made with add_zero_attn")
        state = torch.get_rng_state()
        try:
            with torch.device("cpu"):
                module = cls(mha.embed_dim, mha.num_heads, dropout=mha.dropout, bias=mha.in_proj_bias is not None)
        finally:
            torch.set_rng_state(state)
        packed = mha.in_proj_weight.detach().reshape(3, mha.embed_dim, mha.embed_dim)
        projections = [module.q_proj, module.k_proj, module.v_proj]
        for number, projection in enumerate(projections):
            projection.weight = nn.Parameter(packed[number].clone())
            if mha.in_proj_bias is not None:
                biases = mha.in_proj_bias.detach().reshape(3, mha.embed_dim)
                projection.bias = nn.Parameter(biases[number].clone())
        module.out_proj.weight = nn.Parameter(mha.out_proj.weight.detach().clone())
        if mha.out_proj.bias is not None:
            module.out_proj.bias = nn.Parameter(copy.deepcopy(mha.out_proj.bias.detach()))
        module.train(mode=mha.training)
        return module


def warmup_cosine(step: int, warmup: int, total: int, floor: float = 0.0) -> float:
    """The factor at a step."""
    problems = []
    if step < 0:
        problems.append(f"step = {step}")
    if total < 1:
        problems.append(f"total = {total}")
    if warmup < 0 or warmup > total:
        problems.append(f"warmup = {warmup}, total = {total}")
    if not 0.0 <= floor <= 1.0:
        problems.append(f"floor = {floor}")
    if problems:
        raise ValueError("bad settings: " + "; ".join(problems))
    if step < warmup:
        factor = (step + 1.0) / warmup
    elif step < total:
        quarter_turn = 0.5 * math.pi * (step - warmup) / (total - warmup)
        factor = floor + (1.0 - floor) * math.cos(quarter_turn) ** 2
    else:
        factor = floor
    return float(factor)


class WarmupCosine(LRScheduler):
    """Applies the factor to every group."""

    def __init__(self, optimizer: Optimizer, warmup: int, total: int, floor: float = 0.0, last_epoch: int = -1) -> None:
        warmup_cosine(0, warmup, total, floor)  # checks the settings
        self.settings = {"warmup": warmup, "total": total, "floor": floor}
        super().__init__(optimizer, last_epoch=last_epoch)

    def get_lr(self) -> list[float]:
        factor = warmup_cosine(self.last_epoch, **self.settings)
        return [group["initial_lr"] * factor for group in self.optimizer.param_groups]


def _require_images(images: Tensor) -> None:
    if not images.is_floating_point():
        raise TypeError(f"images must be floating, not {images.dtype}")
    if images.dim() != 4:
        raise ValueError(f"images must be [b c h w], not {tuple(images.shape)}")


def random_crop(images: Float[Tensor, "b c h w"], padding: int, generator=None) -> Float[Tensor, "b c h w"]:
    """Looks every pixel of the result up in the image, and takes 0 where there is none."""
    _require_images(images)
    if padding < 0:
        raise ValueError(f"a padding of {padding}")
    b, c, h, w = images.shape
    device = images.device
    down = torch.randint(-padding, padding + 1, (b, 1), generator=generator, device=device)
    right = torch.randint(-padding, padding + 1, (b, 1), generator=generator, device=device)
    row = torch.arange(h, device=device).unsqueeze(0) + down
    column = torch.arange(w, device=device).unsqueeze(0) + right
    inside = ((row >= 0) & (row < h)).unsqueeze(2) & ((column >= 0) & (column < w)).unsqueeze(1)
    flat = row.clamp(0, max(h - 1, 0)).unsqueeze(2) * w + column.clamp(0, max(w - 1, 0)).unsqueeze(1)
    index = flat.reshape(b, 1, h * w).expand(b, c, h * w)
    pixels = images.reshape(b, c, h * w).gather(2, index).reshape(b, c, h, w)
    return pixels.masked_fill(~inside.unsqueeze(1), 0)


def random_flip(images: Float[Tensor, "b c h w"], p: float = 0.5, generator=None) -> Float[Tensor, "b c h w"]:
    """Reads the columns of some images backwards."""
    _require_images(images)
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"a probability of {p}")
    b, c, h, w = images.shape
    chance = torch.full((b,), p, dtype=torch.float64, device=images.device)
    flipped = torch.bernoulli(chance, generator=generator).bool()
    forwards = torch.arange(w, device=images.device)
    columns = torch.where(flipped.unsqueeze(1), w - 1 - forwards, forwards)
    return images.gather(3, columns.reshape(b, 1, 1, w).expand(b, c, h, w))


def mixup(x: Float[Tensor, "b *rest"], y: Int[Tensor, " b"], num_classes: int, alpha: float = 0.2, generator=None):
    """Mixes each sample with the one that a permutation puts in its place."""
    if not x.is_floating_point():
        raise TypeError(f"x must be floating, not {x.dtype}")
    if y.dtype not in INTEGERS:
        raise TypeError(f"y must be of integers, not {y.dtype}")
    if num_classes < 1:
        raise ValueError(f"{num_classes} classes")
    if not alpha >= 0:
        raise ValueError(f"alpha = {alpha}")
    if y.dim() != 1 or y.shape[0] != x.shape[0]:
        raise ValueError(f"{tuple(y.shape)} classes for {tuple(x.shape)}")
    for number in (y.min().item(), y.max().item()) if y.numel() else ():
        if number not in range(num_classes):
            raise IndexError(f"class {number} of {num_classes}")
    b = x.shape[0]
    sharp = torch.zeros(b, num_classes, dtype=x.dtype, device=x.device)
    sharp.scatter_(1, y.long().unsqueeze(1), 1.0)
    if alpha == 0:
        return x.clone(), sharp
    concentration = torch.full((b, 2), float(alpha), dtype=torch.float64, device=x.device)
    own = torch._sample_dirichlet(concentration, generator=generator)[:, 0]
    other = torch.randperm(b, generator=generator, device=x.device)

    def mixed(values: Tensor) -> Tensor:
        share = own.reshape([b] + [1] * (values.dim() - 1))
        return (values * share + values.index_select(0, other) * (1 - share)).to(x.dtype)

    return mixed(x), mixed(sharp)


def mask_tokens(
    tokens: Int[Tensor, "b t"],
    mask_id: int,
    vocab_size: int,
    p: float = 0.15,
    special: Bool[Tensor, "b t"] | None = None,
    generator=None,
) -> tuple[Int[Tensor, "b t"], Int[Tensor, "b t"]]:
    """Hides tokens; a die with ten sides decides how."""
    if tokens.dtype not in INTEGERS:
        raise TypeError(f"tokens must be of integers, not {tokens.dtype}")
    if special is None:
        special = torch.zeros_like(tokens, dtype=torch.bool)
    if special.dtype is not torch.bool:
        raise TypeError(f"special must be bool, not {special.dtype}")
    if tokens.dim() != 2 or special.shape != tokens.shape:
        raise ValueError(f"tokens {tuple(tokens.shape)}, special {tuple(special.shape)}")
    if vocab_size < 1:
        raise ValueError(f"a vocabulary of {vocab_size}")
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"a probability of {p}")
    chance = torch.where(special, 0.0, torch.full(tokens.shape, p, dtype=torch.float64, device=tokens.device))
    chosen = torch.bernoulli(chance, generator=generator) == 1
    die = torch.randint(10, tokens.shape, generator=generator, device=tokens.device)
    word = torch.randint(vocab_size, tokens.shape, generator=generator, device=tokens.device)
    changed = torch.where(die < 8, mask_id, torch.where(die == 8, word, tokens.long()))
    inputs = torch.where(chosen, changed, tokens.long()).to(tokens.dtype)
    labels = torch.where(chosen, tokens.long(), torch.full_like(tokens, -100, dtype=torch.int64))
    return inputs, labels
