"""A transformer toolkit, straight from the contract."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler


class Embedding(nn.Module):
    """A table of learned vectors."""

    def __init__(self, num_embeddings: int, embedding_dim: int, padding_idx: int | None = None):
        super().__init__()
        if num_embeddings < 1:
            raise ValueError(f"num_embeddings is {num_embeddings}")
        if embedding_dim < 1:
            raise ValueError(f"embedding_dim is {embedding_dim}")
        if padding_idx is not None:
            if padding_idx < -num_embeddings or padding_idx >= num_embeddings:
                raise IndexError(f"padding_idx {padding_idx} out of range for {num_embeddings}")
            if padding_idx < 0:
                padding_idx += num_embeddings
        self.num_embeddings = num_embeddings
        self.embedding_dim = embedding_dim
        self.padding_idx = padding_idx
        self.weight = nn.Parameter(torch.empty(num_embeddings, embedding_dim))
        nn.init.normal_(self.weight)
        if padding_idx is not None:
            with torch.no_grad():
                self.weight[padding_idx].zero_()

    def forward(self, ids: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape embedding_dim"]:
        if ids.dtype != torch.int64 and ids.dtype != torch.int32:
            raise TypeError(f"ids are {ids.dtype}")
        if ids.numel() > 0:
            low, high = ids.min().item(), ids.max().item()
            if low < 0 or high >= self.num_embeddings:
                raise IndexError(f"ids from {low} to {high} do not fit {self.num_embeddings} embeddings")
        out = self.weight[ids.long()]
        if self.padding_idx is not None:
            pad = (ids == self.padding_idx)[..., None]
            out = torch.where(pad, out.detach(), out)
        return out

    def extra_repr(self):
        return f"{self.num_embeddings}, {self.embedding_dim}, padding_idx={self.padding_idx}"


def sinusoidal_positions(time: int, dim: int, device=None, dtype=torch.float32) -> Float[Tensor, "time dim"]:
    """Sines and cosines of the positions."""
    if time < 0:
        raise ValueError(f"time {time} is negative")
    if dim < 1 or dim % 2 == 1:
        raise ValueError(f"dim {dim} is not an even number above 0")
    positions = torch.arange(time, dtype=torch.float64, device=device).unsqueeze(1)
    i = torch.arange(dim // 2, dtype=torch.float64, device=device)
    angles = positions / 10000 ** (2 * i / dim)
    result = torch.zeros(time, dim, dtype=torch.float64, device=device)
    result[:, 0::2] = torch.sin(angles)
    result[:, 1::2] = torch.cos(angles)
    return result.to(dtype)


def _check_valid(valid, shape):
    if valid is not None:
        if valid.dtype != torch.bool:
            raise TypeError(f"valid is {valid.dtype}, not bool")
        try:
            valid.expand(shape)
        except RuntimeError as error:
            raise ValueError(f"valid has shape {list(valid.shape)}, needs {list(shape)}") from error


def scaled_dot_product_attention(
    q: Float[Tensor, "*b t d"],
    k: Float[Tensor, "*b s d"],
    v: Float[Tensor, "*b s e"],
    valid: Bool[Tensor, "..."] | None = None,
) -> tuple[Float[Tensor, "*b t e"], Float[Tensor, "*b t s"]]:
    """The weighted means of the values, and the weights."""
    for x in (q, k, v):
        if not x.is_floating_point():
            raise TypeError(f"got {x.dtype}")
    shapes = f"{list(q.shape)}, {list(k.shape)}, {list(v.shape)}"
    if q.shape[-1] != k.shape[-1]:
        raise ValueError(f"q and k have different widths: {shapes}")
    if k.shape[-2] != v.shape[-2]:
        raise ValueError(f"k and v have different lengths: {shapes}")
    if q.shape[:-2] != k.shape[:-2] or q.shape[:-2] != v.shape[:-2]:
        raise ValueError(f"different batches: {shapes}")
    _check_valid(valid, (*q.shape[:-1], k.shape[-2]))
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
    if valid is None:
        weights = F.softmax(scores, dim=-1)
    else:
        anything = valid.any(dim=-1, keepdim=True)
        scores = scores.masked_fill(~valid, float("-inf"))
        scores = torch.where(anything, scores, torch.zeros_like(scores))
        weights = F.softmax(scores, dim=-1).masked_fill(~anything, 0.0)
    return weights @ v, weights


class MultiHeadAttention(nn.Module):
    """Attention with several heads."""

    def __init__(self, d_model: int, heads: int, dropout: float = 0.0, bias: bool = True):
        if d_model < 1 or heads < 1:
            raise ValueError(f"d_model {d_model} and heads {heads} must be positive")
        if d_model % heads != 0:
            raise ValueError(f"{heads} heads do not divide d_model {d_model}")
        if dropout < 0 or dropout > 1:
            raise ValueError(f"dropout {dropout} is no probability")
        super().__init__()
        self.d_model = d_model
        self.heads = heads
        self.p = dropout
        self.bias = bias
        self.q_proj = nn.Linear(d_model, d_model, bias=bias)
        self.k_proj = nn.Linear(d_model, d_model, bias=bias)
        self.v_proj = nn.Linear(d_model, d_model, bias=bias)
        self.out_proj = nn.Linear(d_model, d_model, bias=bias)

    def forward(self, query, key=None, value=None, valid=None):
        if key is None:
            key = query
        if value is None:
            value = key
        for x in (query, key, value):
            if x.ndim != 3 or x.shape[-1] != self.d_model:
                raise ValueError(f"expected [b t {self.d_model}], got {list(x.shape)}")
        b, t, _ = query.shape
        s = key.shape[1]
        if key.shape[0] != b or value.shape[0] != b or value.shape[1] != s:
            raise ValueError(f"{list(query.shape)}, {list(key.shape)} and {list(value.shape)} do not fit")
        _check_valid(valid, (b, self.heads, t, s))
        width = self.d_model // self.heads
        q = self.q_proj(query).view(b, t, self.heads, width).transpose(1, 2)
        k = self.k_proj(key).view(b, s, self.heads, width).transpose(1, 2)
        v = self.v_proj(value).view(b, s, self.heads, width).transpose(1, 2)
        output, weights = scaled_dot_product_attention(q, k, v, valid)
        if self.training and self.p > 0:
            output = F.dropout(weights, self.p) @ v
        return self.out_proj(output.transpose(1, 2).reshape(b, t, self.d_model))

    @classmethod
    def from_torch(cls, mha: nn.MultiheadAttention) -> "MultiHeadAttention":
        """Copies torch's module."""
        if mha.kdim != mha.embed_dim or mha.vdim != mha.embed_dim:
            raise ValueError(f"kdim={mha.kdim}, vdim={mha.vdim}, but embed_dim={mha.embed_dim}")
        if mha.bias_k is not None or mha.add_zero_attn:
            raise ValueError("add_bias_kv and add_zero_attn are not supported")
        with torch.random.fork_rng(devices=[]):
            new = cls(mha.embed_dim, mha.num_heads, mha.dropout, mha.in_proj_bias is not None)
        new.to(device=mha.in_proj_weight.device, dtype=mha.in_proj_weight.dtype)
        with torch.no_grad():
            d = mha.embed_dim
            for i, layer in enumerate([new.q_proj, new.k_proj, new.v_proj]):
                layer.weight.copy_(mha.in_proj_weight[i * d : (i + 1) * d])
                if mha.in_proj_bias is not None:
                    layer.bias.copy_(mha.in_proj_bias[i * d : (i + 1) * d])
            new.out_proj.weight.copy_(mha.out_proj.weight)
            if mha.out_proj.bias is not None:
                new.out_proj.bias.copy_(mha.out_proj.bias)
        new.train(mha.training)
        return new

    def extra_repr(self):
        return f"d_model={self.d_model}, heads={self.heads}, dropout={self.p}, bias={self.bias}"


def _check_schedule(warmup, total, floor):
    if total < 1:
        raise ValueError(f"total is {total}")
    if warmup < 0 or warmup > total:
        raise ValueError(f"warmup is {warmup} of {total}")
    if floor < 0 or floor > 1:
        raise ValueError(f"floor is {floor}")


def warmup_cosine(step: int, warmup: int, total: int, floor: float = 0.0) -> float:
    """The factor of the learning rate."""
    _check_schedule(warmup, total, floor)
    if step < 0:
        raise ValueError(f"step is {step}")
    if step < warmup:
        return (step + 1) / warmup
    if step >= total:
        return float(floor)
    progress = (step - warmup) / (total - warmup)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))


class WarmupCosine(LRScheduler):
    """warmup_cosine as a scheduler."""

    def __init__(self, optimizer, warmup: int, total: int, floor: float = 0.0, last_epoch: int = -1):
        _check_schedule(warmup, total, floor)
        self.warmup = warmup
        self.total = total
        self.floor = floor
        super().__init__(optimizer, last_epoch)

    def get_lr(self):
        factor = warmup_cosine(self.last_epoch, self.warmup, self.total, self.floor)
        return [lr * factor for lr in self.base_lrs]


def _check_images(images):
    if not images.is_floating_point():
        raise TypeError(f"images are {images.dtype}")
    if images.ndim != 4:
        raise ValueError(f"images have shape {list(images.shape)}, not [b c h w]")


def random_crop(images: Float[Tensor, "b c h w"], padding: int, generator=None) -> Float[Tensor, "b c h w"]:
    """Random windows of the padded images."""
    _check_images(images)
    if padding < 0:
        raise ValueError(f"padding is {padding}")
    b, c, h, w = images.shape
    padded = F.pad(images, (padding,) * 4)
    top = torch.randint(0, 2 * padding + 1, (b,), generator=generator, device=images.device)
    left = torch.randint(0, 2 * padding + 1, (b,), generator=generator, device=images.device)
    rows = top[:, None] + torch.arange(h, device=images.device)
    columns = left[:, None] + torch.arange(w, device=images.device)
    padded = padded.gather(2, rows[:, None, :, None].expand(b, c, h, padded.shape[3]))
    return padded.gather(3, columns[:, None, None, :].expand(b, c, h, w))


def random_flip(images: Float[Tensor, "b c h w"], p: float = 0.5, generator=None) -> Float[Tensor, "b c h w"]:
    """Some of the images mirrored."""
    _check_images(images)
    if p < 0 or p > 1:
        raise ValueError(f"p is {p}")
    flip = torch.rand(images.shape[0], generator=generator, device=images.device) < p
    return torch.where(flip.view(-1, 1, 1, 1), images.flip(3), images)


def mixup(x: Float[Tensor, "b *rest"], y: Int[Tensor, " b"], num_classes: int, alpha: float = 0.2, generator=None):
    """Pairs of samples mixed."""
    if not x.is_floating_point():
        raise TypeError(f"x is {x.dtype}")
    if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
        raise TypeError(f"y is {y.dtype}")
    if num_classes < 1:
        raise ValueError(f"num_classes is {num_classes}")
    if alpha < 0:
        raise ValueError(f"alpha is {alpha}")
    if y.shape != (x.shape[0],):
        raise ValueError(f"y has shape {list(y.shape)} for {x.shape[0]} samples")
    y = y.long()
    wrong = y[(y < 0) | (y >= num_classes)]
    if len(wrong) > 0:
        raise IndexError(f"class {wrong[0].item()} of {num_classes}")
    targets = F.one_hot(y, num_classes).to(x.dtype)
    if alpha == 0:
        return x.clone(), targets
    b = x.shape[0]
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    concentration = torch.full((b,), float(alpha), dtype=dtype, device=x.device)
    first = torch._standard_gamma(concentration, generator=generator)
    second = torch._standard_gamma(concentration, generator=generator)
    lam = (first / (first + second)).to(x.dtype)
    partner = torch.randperm(b, generator=generator, device=x.device)
    lam_x = lam.reshape(b, *[1 for _ in x.shape[1:]])
    mixed = lam_x * x + (1 - lam_x) * x[partner]
    lam_y = lam.reshape(b, 1)
    return mixed, lam_y * targets + (1 - lam_y) * targets[partner]


def mask_tokens(
    tokens: Int[Tensor, "b t"],
    mask_id: int,
    vocab_size: int,
    p: float = 0.15,
    special: Bool[Tensor, "b t"] | None = None,
    generator=None,
) -> tuple[Int[Tensor, "b t"], Int[Tensor, "b t"]]:
    """BERT's masking."""
    if tokens.is_floating_point() or tokens.is_complex() or tokens.dtype == torch.bool:
        raise TypeError(f"tokens are {tokens.dtype}")
    if tokens.ndim != 2:
        raise ValueError(f"tokens have shape {list(tokens.shape)}")
    if vocab_size < 1:
        raise ValueError(f"vocab_size is {vocab_size}")
    if p < 0 or p > 1:
        raise ValueError(f"p is {p}")
    if special is not None:
        if special.dtype != torch.bool:
            raise TypeError(f"special is {special.dtype}")
        if special.shape != tokens.shape:
            raise ValueError(f"special has shape {list(special.shape)}, tokens {list(tokens.shape)}")
    device = tokens.device
    chosen = torch.rand(tokens.shape, generator=generator, device=device) < p
    if special is not None:
        chosen = chosen & ~special
    labels = tokens.to(torch.int64, copy=True)
    labels[~chosen] = -100
    dice = torch.rand(tokens.shape, generator=generator, device=device)
    inputs = tokens.clone()
    inputs[chosen & (dice < 0.8)] = mask_id
    replaced = chosen & (dice >= 0.8) & (dice < 0.9)
    words = torch.randint(0, vocab_size, tokens.shape, generator=generator, device=device).to(tokens.dtype)
    inputs[replaced] = words[replaced]
    return inputs, labels
