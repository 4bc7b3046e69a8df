"""A transformer toolkit in few words."""

import math
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR


def _need(ok, error, *told):
    if not ok:
        raise error(" ".join(map(str, told)))


def _floats(*xs):
    _need(all(x.is_floating_point() for x in xs), TypeError, "floats needed", *(x.dtype for x in xs))


def _ints(x):
    _need(not (x.is_floating_point() or x.is_complex() or x.dtype == torch.bool), TypeError, "ints needed", x.dtype)


def _mask(valid, *shape):
    if valid is None:
        return
    _need(valid.dtype == torch.bool, TypeError, "bool needed", valid.dtype)
    padded = (1,) * (len(shape) - valid.ndim) + tuple(valid.shape)
    fits = len(padded) == len(shape) and all(a == b or a == 1 for a, b in zip(padded, shape, strict=True))
    _need(fits, ValueError, "mask", tuple(valid.shape), "scores", shape)


class Embedding(nn.Module):
    """Lookup; the padding's gradient is stopped on its way back."""

    def __init__(self, num_embeddings: int, embedding_dim: int, padding_idx: int | None = None):
        super().__init__()
        n, d = num_embeddings, embedding_dim
        _need(n > 0 and d > 0, ValueError, "sizes", n, d)
        _need(padding_idx is None or -n <= padding_idx < n, IndexError, "padding", padding_idx, "of", n)
        self.n, self.d = n, d
        self.padding_idx = padding_idx if padding_idx is None else (padding_idx + n) % n
        self.weight = nn.Parameter(torch.randn(n, d))
        if padding_idx is not None:
            self.weight.data[self.padding_idx] = 0

    def forward(self, ids: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape embedding_dim"]:
        _need(ids.dtype in (torch.int32, torch.int64), TypeError, "ids", ids.dtype)
        bad = ids[(ids < 0) | (ids >= self.n)]
        _need(bad.numel() == 0, IndexError, "ids", bad[:3].tolist(), "of", self.n)
        out = self.weight[ids.flatten().long()].unflatten(0, ids.shape) if ids.ndim else self.weight[ids.long()].clone()
        if self.padding_idx is not None and out.requires_grad:
            pad = (ids == self.padding_idx).unsqueeze(-1)
            out.register_hook(lambda g: g if g is None else g.masked_fill(pad, 0))
        return out

    def extra_repr(self):
        return f"{self.n}, {self.d}, padding_idx={self.padding_idx}"


def sinusoidal_positions(time: int, dim: int, device=None, dtype=torch.float32) -> Float[Tensor, "time dim"]:
    """A cosine is a sine a quarter turn on."""
    _need(time >= 0, ValueError, "time", time)
    _need(dim > 0 and dim % 2 == 0, ValueError, "dim", dim)
    column = torch.arange(dim, device=device)
    rate = 1e4 ** -((column - column % 2).double() / dim)
    turn = (column % 2).double() * (math.pi / 2)
    return torch.sin(torch.arange(time, device=device).double()[:, None] * rate + turn).to(dtype)


def _weights(q, k, valid):
    scores = (q * q.shape[-1] ** -0.5) @ k.mT
    if valid is None:
        return scores.softmax(-1)
    seen = valid.any(-1, keepdim=True)
    return scores.masked_fill(~valid & seen, -math.inf).softmax(-1) * seen


def scaled_dot_product_attention(
    q: Float[Tensor, "*b t d"],
    k: Float[Tensor, "*b s d"],
    v: Float[Tensor, "*b s e"],
    valid: Bool[Tensor, "..."] | None = None,
) -> tuple[Float[Tensor, "*b t e"], Float[Tensor, "*b t s"]]:
    """softmax(q k^T / sqrt(d)) v"""
    _floats(q, k, v)
    shapes = (tuple(q.shape), tuple(k.shape), tuple(v.shape))
    _need(q.shape[:-2] == k.shape[:-2] and q.shape[-1] == k.shape[-1], ValueError, "q, k, v", *shapes)
    _need(k.shape[:-1] == v.shape[:-1], ValueError, "q, k, v", *shapes)
    _mask(valid, *q.shape[:-1], k.shape[-2])
    weights = _weights(q, k, valid)
    return weights @ v, weights


class MultiHeadAttention(nn.Module):
    """Heads are folded into the batch."""

    def __init__(self, d_model: int, heads: int, dropout: float = 0.0, bias: bool = True):
        super().__init__()
        _need(d_model > 0 and heads > 0 and d_model % heads == 0, ValueError, d_model, "features", heads, "heads")
        self.d_model, self.heads, self.drop = d_model, heads, nn.Dropout(dropout)
        make = partial(nn.Linear, d_model, d_model, bias)
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = make(), make(), make(), make()

    def forward(self, query, key=None, value=None, valid=None):
        key = query if key is None else key
        value = key if value is None else value
        (b, t, _), s, h = query.shape, key.shape[1], self.heads
        for x, n in ((query, t), (key, s), (value, s)):
            _need(tuple(x.shape) == (b, n, self.d_model), ValueError, tuple(x.shape), "expected", (b, n, self.d_model))
        _mask(valid, b, h, t, s)
        pairs = zip((self.q_proj, self.k_proj, self.v_proj), (query, key, value), strict=True)
        q, k, v = (torch.stack(f(x).chunk(h, dim=-1), dim=1) for f, x in pairs)
        out = self.drop(_weights(q, k, valid)) @ v
        return self.out_proj(torch.cat(out.unbind(1), dim=-1))

    @classmethod
    def from_torch(cls, mha: nn.MultiheadAttention):
        """Unpacks in_proj."""
        d = mha.embed_dim
        _need(mha.kdim == mha.vdim == d, ValueError, mha.kdim, mha.vdim, d)
        _need(mha.bias_k is None and mha.bias_v is None and not mha.add_zero_attn, ValueError, "unknown extras")
        with torch.random.fork_rng(devices=[]):
            new = cls(d, mha.num_heads, mha.dropout, mha.in_proj_bias is not None).to(mha.out_proj.weight)
        theirs = {f"out_proj.{key}": x for key, x in mha.out_proj.state_dict().items()}
        for key, packed in (("weight", mha.in_proj_weight), ("bias", mha.in_proj_bias)):
            if packed is not None:
                theirs |= {f"{n}_proj.{key}": x for n, x in zip("qkv", packed.data.split(d), strict=True)}
        new.load_state_dict(theirs)
        return new.train(mha.training)

    def extra_repr(self):
        return f"{self.d_model}, heads={self.heads}"


def warmup_cosine(step: int, warmup: int, total: int, floor: float = 0.0) -> float:
    """Up, then down."""
    _need(step >= 0 and total > 0 and 0 <= warmup <= total and 0 <= floor <= 1, ValueError, step, warmup, total, floor)
    if step < warmup:
        return (1 + step) / warmup
    done = min(1.0, (step - warmup) / max(1, total - warmup)) if step < total else 1.0
    return floor + (1 - floor) * (1 + math.cos(math.pi * done)) / 2


class WarmupCosine(LambdaLR):
    """warmup_cosine, as torch's LambdaLR applies it."""

    def __init__(self, optimizer, warmup: int, total: int, floor: float = 0.0, last_epoch: int = -1):
        curve = partial(warmup_cosine, warmup=warmup, total=total, floor=floor)
        curve(0)
        super().__init__(optimizer, curve, last_epoch)


def _images(images):
    _floats(images)
    _need(images.ndim == 4, ValueError, "images", tuple(images.shape))


def random_crop(images: Float[Tensor, "b c h w"], padding: int, generator=None) -> Float[Tensor, "b c h w"]:
    """Picks one of all windows."""
    _images(images)
    _need(padding >= 0, ValueError, "padding", padding)
    b, _, h, w = images.shape
    side = 2 * padding + 1
    padded = images.new_zeros(*images.shape[:2], h + side - 1, w + side - 1)
    padded[..., padding : padding + h, padding : padding + w] = images
    spot = torch.randint(side * side, (b,), generator=generator, device=images.device)
    windows = padded.unfold(2, h, 1).unfold(3, w, 1)
    return windows[torch.arange(b, device=images.device), :, spot // side, spot % side]


def random_flip(images: Float[Tensor, "b c h w"], p: float = 0.5, generator=None) -> Float[Tensor, "b c h w"]:
    """Flips the chosen ones."""
    _images(images)
    _need(0 <= p <= 1, ValueError, "p", p)
    keep = torch.rand(len(images), generator=generator, device=images.device) >= p
    return images.flip(3).where(~keep[:, None, None, None], images)


def mixup(x: Float[Tensor, "b *rest"], y: Int[Tensor, " b"], num_classes: int, alpha: float = 0.2, generator=None):
    """lerp between each sample and its partner."""
    _floats(x)
    _ints(y)
    _need(num_classes > 0 and alpha >= 0, ValueError, "classes", num_classes, "alpha", alpha)
    _need(y.shape == x.shape[:1], ValueError, tuple(x.shape), tuple(y.shape))
    bad = y[(y < 0) | (y >= num_classes)]
    _need(not len(bad), IndexError, bad[:3].tolist(), "of", num_classes)
    hard = torch.eye(num_classes, dtype=x.dtype, device=x.device)[y.long()]
    if not alpha:
        return x, hard
    order = torch.randperm(len(x), generator=generator, device=x.device)
    gamma = torch._standard_gamma(torch.full((len(x), 2), alpha, device=x.device).double(), generator=generator)
    share = (gamma[:, 0] / gamma.sum(1)).to(x.dtype)
    shape = (-1,) + (1,) * (x.ndim - 1)
    return torch.lerp(x[order], x, share.view(shape)), torch.lerp(hard[order], hard, share[:, None])


def mask_tokens(
    tokens: Int[Tensor, "b t"],
    mask_id: int,
    vocab_size: int,
    p: float = 0.15,
    special: Bool[Tensor, "b t"] | None = None,
    generator=None,
) -> tuple[Int[Tensor, "b t"], Int[Tensor, "b t"]]:
    """One uniform number decides all: below 0.8 p masked, below 0.9 p random, below p kept."""
    _ints(tokens)
    _need(tokens.ndim == 2, ValueError, "tokens", tuple(tokens.shape))
    _need(vocab_size > 0 and 0 <= p <= 1, ValueError, "vocab_size", vocab_size, "p", p)
    if special is not None:
        _need(special.dtype == torch.bool, TypeError, "special", special.dtype)
        _need(special.shape == tokens.shape, ValueError, tuple(special.shape), tuple(tokens.shape))
    u = torch.rand(tokens.shape, generator=generator, device=tokens.device, dtype=torch.float64)
    if special is not None:
        u = u.masked_fill(special, 2)
    word = torch.randint(vocab_size, tokens.shape, generator=generator, device=tokens.device).type_as(tokens)
    inputs = tokens.where(u >= 0.9 * p, word).masked_fill(u < 0.8 * p, mask_id)
    return inputs, tokens.long().where(u < p, -100)
