"""The reference solutions that torch has its own operation for: what `python -m dojo speed` compares, and why."""

import math
from collections.abc import Iterator

import feed_forward
import gradients
import graph
import label_smoothing
import masks
import modules
import normalization
import optimization
import tensors
import torch
import torch.nn.functional as F
import transformer
import variational_dropout
import views
from torch import Tensor, nn
from torch.nn.utils import rnn

from dojo.speed import Pair


def pairs() -> Iterator[Pair]:
    """Every pair, with inputs of a realistic size."""
    torch.manual_seed(0)
    rows, batch, images = torch.randn(4096, 256), torch.randn(32, 128, 256), torch.randn(64, 3, 64, 64)
    logits, classes = torch.randn(2048, 1000), torch.randint(0, 1000, (2048,))
    wide, column = torch.randn(1024, 1024), torch.randn(1024)

    def leaf(x: Tensor) -> Tensor:
        return x.clone().requires_grad_()

    passes = "torch does it in one pass over the memory; each operation that it is composed of here makes one"
    twice = f"{passes}, and the mean is taken twice, which keeps the digits far from 0"
    checks = "what it is asked to check costs as much as the rest"

    # 01
    mse = (leaf(rows), torch.randn(4096, 256))
    yield Pair("01", "strict_mse", tensors.strict_mse, F.mse_loss, mse, why=passes)
    yield Pair(
        "01", "one_hot", lambda i: tensors.one_hot(i, 1000), lambda i: F.one_hot(i, 1000).float(), (classes,), False
    )
    yield Pair(
        "01", "standardize", lambda x: tensors.standardize(x, -1), lambda x: F.layer_norm(x, x.shape[-1:]),
        (leaf(rows),), why=twice,
    )  # fmt: skip
    points = (leaf(torch.randn(256, 64)), leaf(torch.randn(256, 64)))
    yield Pair(
        "01", "pairwise_sq_dists", tensors.pairwise_sq_dists,
        lambda x, y: torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").square(), points,
        why="the differences [n m d], which keep equal rows at exactly 0, are held in memory; cdist sums on the way",
    )  # fmt: skip
    yield Pair(
        "01", "batched_gather", tensors.batched_gather,
        lambda x, i: x.gather(1, i[..., None].expand(-1, -1, x.shape[-1])),
        (leaf(batch), torch.randint(0, 128, (32, 64))), why=checks,
    )  # fmt: skip
    yield Pair("01", "outer_sum", tensors.outer_sum, lambda a, b: a[:, None] + b, (leaf(column), leaf(column)))

    # 02
    weight = torch.randn(64, 64, requires_grad=True)
    deep = weight
    for _ in range(30):
        deep = (deep @ weight).tanh()
    total = deep.sum()
    yield Pair(
        "02", "gradients", lambda: graph.gradients(total, [weight])[0],
        lambda: torch.autograd.grad(total, [weight], retain_graph=True)[0], (), False,
        why="one Python call a node, where torch's engine is C++",
    )  # fmt: skip

    # 03
    signal = leaf(torch.randn(64, 4096))
    yield Pair(
        "03", "sliding_windows", lambda x: views.sliding_windows(x, 16, 4), lambda x: x.unfold(-1, 16, 4), (signal,),
        why="a view costs microseconds: the checks in Python are as long as the call",
    )  # fmt: skip
    yield Pair(
        "03", "diagonal", views.diagonal, lambda x: x.diagonal(dim1=-2, dim2=-1), (leaf(wide),),
        why="a view costs microseconds: the checks in Python are as long as the call",
    )  # fmt: skip
    yield Pair("03", "patchify", lambda x: views.patchify(x, 8), lambda x: F.unfold(x, 8, stride=8).mT, (leaf(images),))
    yield Pair(
        "03", "unpatchify", lambda x: views.unpatchify(x, 8, 64, 64), lambda x: F.fold(x.mT, (64, 64), 8, stride=8),
        (leaf(torch.randn(64, 64, 192)),),
    )  # fmt: skip

    # 04
    function = "a Function in Python is called in both directions, and backward by formula has more operations"
    yield Pair("04", "Square", gradients.Square.apply, torch.square, (leaf(rows),), why=function)
    yield Pair(
        "04", "LogSumExp", lambda x: gradients.LogSumExp.apply(x, -1), lambda x: x.logsumexp(-1), (leaf(logits),),
        why=function,
    )  # fmt: skip
    yield Pair(
        "04", "LinearFunction", gradients.LinearFunction.apply, F.linear,
        (leaf(rows), leaf(torch.randn(512, 256)), leaf(torch.randn(512))), why=function,
    )  # fmt: skip

    # 05
    torch.manual_seed(0)
    linear = modules.Linear(256, 512), nn.Linear(256, 512)
    linear[0].load_state_dict(linear[1].state_dict())
    yield Pair("05", "Linear", *linear, (leaf(rows),))
    yield Pair(
        "05", "FocalLoss", modules.FocalLoss(2.0), F.cross_entropy, (leaf(logits), classes),
        why="torch has no focal loss: this is cross-entropy, without the factor that makes it focal", same=False,
    )  # fmt: skip

    # 06
    valid = torch.rand(32, 128) > 0.3
    scores, mask = torch.randn(8, 4, 256, 256), torch.rand(8, 1, 256, 256) > 0.3
    yield Pair(
        "06", "pad_sequences", lambda s: masks.pad_sequences(s)[0], lambda s: rnn.pad_sequence(s, batch_first=True),
        ([torch.randn(n, 64) for n in range(1, 129)],), False, why=checks,
    )  # fmt: skip
    yield Pair(
        "06", "masked_softmax", masks.masked_softmax,
        lambda s, m: s.masked_fill(~m, -math.inf).softmax(-1), (leaf(scores), mask),
        why="torch's leaves rows without a valid key at nan; to give 0 there takes further passes",
    )  # fmt: skip
    yield Pair(
        "06", "masked_mean", masks.masked_mean,
        lambda x, m: (x * m[..., None]).sum(1) / m.sum(1, keepdim=True), (leaf(batch), valid),
        why="what a product with 0 lets through, nan and inf, must not get through here",
    )  # fmt: skip
    yield Pair(
        "06", "masked_cross_entropy", masks.masked_cross_entropy,
        lambda x, y, m: F.cross_entropy(x.flatten(0, 1), y.masked_fill(~m, -100).flatten()),
        (leaf(torch.randn(32, 128, 200)), torch.randint(0, 200, (32, 128)), valid),
        why="nan under the padding may reach neither value nor gradient, which takes a pass of its own",
    )  # fmt: skip

    # 07
    yield Pair("07", "gelu", feed_forward.gelu, F.gelu, (leaf(rows),),
               why="torch.erf alone takes longer than torch's gelu, whose erf is vectorised")  # fmt: skip
    own = feed_forward.PositionwiseFeedForward(256, 1024, dropout=0.0)
    theirs = nn.Sequential(nn.Linear(256, 1024), nn.ReLU(), nn.Linear(1024, 256))
    own.load_state_dict(dict(zip(own.state_dict(), theirs.state_dict().values(), strict=True)))
    yield Pair("07", "PositionwiseFeedForward", own, theirs, (leaf(batch),))

    # 08
    yield from _optimizers()
    data = torch.utils.data.TensorDataset(rows, torch.arange(4096))
    yield Pair(
        "08", "batches",
        lambda: sum(1 for _ in optimization.batches(*data.tensors, batch_size=64, shuffle=True)),
        lambda: sum(1 for _ in torch.utils.data.DataLoader(data, 64, shuffle=True)), (), False, same=False,
    )  # fmt: skip

    # 09
    yield Pair("09", "log_softmax", label_smoothing.log_softmax, lambda x: F.log_softmax(x, -1), (leaf(logits),),
               why=passes)  # fmt: skip
    yield Pair(
        "09", "label_smoothing_loss", label_smoothing.label_smoothing_loss,
        lambda x, y: F.cross_entropy(x, y, label_smoothing=0.1), (leaf(logits), classes), why=passes,
    )  # fmt: skip
    yield Pair(
        "09", "soft_cross_entropy", label_smoothing.soft_cross_entropy, F.cross_entropy,
        (leaf(logits), torch.softmax(torch.randn(2048, 1000), -1)),
        why="0 times -inf must be 0 here, in both directions: further passes",
    )  # fmt: skip

    # 10
    yield Pair("10", "dropout", lambda x: normalization.dropout(x, 0.5), F.dropout, (leaf(rows),), why=passes,
               same=False)  # fmt: skip
    for name, x in (("[4096 256]", rows), ("[32 64 32 32]", torch.randn(32, 64, 32, 32))):
        channels = x.shape[1]
        buffers = torch.zeros(channels), torch.ones(channels)
        weights = leaf(torch.ones(channels)), leaf(torch.zeros(channels))
        yield Pair(
            "10", f"batch_norm, {name}", lambda x, b, w: normalization.batch_norm(x, *b, *w, training=True),
            lambda x, b, w: F.batch_norm(x, *b, *w, training=True), (leaf(x), buffers, weights), why=twice,
        )  # fmt: skip

    # 11
    torch.manual_seed(0)
    recurrent = variational_dropout.VariationalRNN(64, 128), nn.RNN(64, 128, batch_first=True)
    recurrent[0].load_state_dict(recurrent[1].state_dict())
    yield Pair(
        "11", "VariationalRNN", lambda x: recurrent[0](x)[0], lambda x: recurrent[1](x)[0],
        (leaf(torch.randn(32, 50, 64)),),
        why="the steps of time are a loop in Python",
    )  # fmt: skip

    # 13
    ids = torch.randint(0, 1000, (64, 128))
    embedding = transformer.Embedding(1000, 128), nn.Embedding(1000, 128)
    embedding[0].load_state_dict(embedding[1].state_dict())
    yield Pair("13", "Embedding", *embedding, (ids,), why=checks)
    for time_steps in (64, 512):
        qkv = tuple(leaf(torch.randn(2, 4, time_steps, 32)) for _ in range(3))
        yield Pair(
            "13", f"scaled_dot_product_attention, {time_steps} steps",
            lambda *qkv: transformer.scaled_dot_product_attention(*qkv)[0], F.scaled_dot_product_attention, qkv,
            why="returns the weights, which a fused attention never holds in memory",
        )  # fmt: skip
    mha = nn.MultiheadAttention(256, 8, batch_first=True)
    yield Pair(
        "13", "MultiHeadAttention", transformer.MultiHeadAttention.from_torch(mha),
        lambda x: mha(x, x, x, need_weights=False)[0], (leaf(batch),),
    )  # fmt: skip


def _optimizers() -> Iterator[Pair]:
    def model() -> list[nn.Parameter]:
        own = [nn.Parameter(torch.randn(256, 256)) for _ in range(20)]
        for parameter in own:
            parameter.grad = torch.randn(256, 256)
        return own

    for name, ours, torchs, settings in (
        ("SGD", optimization.SGD, torch.optim.SGD, {"lr": 1e-3, "momentum": 0.9}),
        ("Adam", optimization.Adam, torch.optim.Adam, {}),
        ("AdamW", optimization.AdamW, torch.optim.AdamW, {}),
    ):
        steps = ours(model(), **settings).step, torchs(model(), **settings).step
        yield Pair("08", name, *steps, (), False, why="torch's updates all parameters in one call each operation",
                   same=False)  # fmt: skip
    ours, torchs = model(), model()
    yield Pair(
        "08", "clip_grad_norm_", lambda: optimization.clip_grad_norm_(ours, 1.0),
        lambda: nn.utils.clip_grad_norm_(torchs, 1.0), (), False,
        why="torch's works on all parameters in one call each operation", same=False,
    )  # fmt: skip
