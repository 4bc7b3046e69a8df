"""The guards see what they must and nothing more."""

import sys

import pytest
import torch
from torch import nn

from dojo.compare import Mismatch
from dojo.guards import Refused, count_ops, live_bytes, refuse, set_traps, shares_memory, state_kept, unchanged

X = torch.linspace(-1, 1, 12).view(3, 4)
Q = torch.linspace(-1, 1, 24).view(1, 2, 3, 4)


def inherits(optimizer):
    """A class of the learner's that lets torch's do the work."""
    return type("Mine", (optimizer,), {"__init__": lambda self, params: super(type(self), self).__init__(params)})


SPELLINGS = [
    ("softmax", lambda: torch.softmax(X, -1)),
    ("softmax", lambda: X.softmax(-1)),
    ("softmax", lambda: torch.Tensor.softmax(X, -1)),
    ("softmax", lambda: nn.functional.softmax(X, dim=-1)),
    ("softmax", lambda: nn.Softmax(-1)(X)),
    ("softmax", lambda: torch.special.softmax(X, -1)),
    ("softmax", lambda: torch.ops.aten.softmax.int(X, -1)),
    ("softmax", lambda: torch.ops.aten.softmax(X, -1)),
    ("softmax", lambda: torch.ops.aten._softmax(X, -1, False)),
    ("softmax", lambda: torch._softmax(X, -1, False)),
    ("softmax", lambda: torch._safe_softmax(X, -1)),
    ("softmax", lambda: nn.functional.softmin(X, dim=-1)),
    ("softmax", lambda: getattr(torch, "soft" + "max")(X, -1)),
    ("log_softmax", lambda: X.log_softmax(-1)),
    ("logsumexp", lambda: torch.logaddexp(X, X)),
    ("logsumexp", lambda: torch.special.logsumexp(X, -1)),
    ("gelu", lambda: torch._C._nn.gelu(X)),
    ("dropout", lambda: nn.functional.dropout(X, 0.3)),
    ("dropout", lambda: nn.Dropout2d(0.3)(X)),
    ("dropout", lambda: torch.native_dropout(X, 0.3, True)),
    ("dropout", lambda: nn.functional.alpha_dropout(X, 0.3, True)),
    ("attention", lambda: nn.functional.scaled_dot_product_attention(Q, Q, Q)),
    ("linear", lambda: nn.Linear(4, 2)(X)),
    ("layer_norm", lambda: nn.LayerNorm(4)(X)),
    ("layer_norm", lambda: torch.native_layer_norm(X, [4], None, None, 1e-5)),
    ("batch_norm", lambda: nn.BatchNorm1d(4)(X)),
    ("unfold", lambda: X.unfold(-1, 2, 1)),
    ("unfold", lambda: nn.functional.unfold(Q, 2)),
    ("unfold", lambda: torch.ops.aten.im2col(Q, [2, 2], [1, 1], [0, 0], [1, 1])),
    ("diagonal", lambda: torch.linalg.diagonal(X)),
    ("diagonal", lambda: torch.diagonal_copy(X)),
    ("one_hot", lambda: nn.functional.one_hot(torch.tensor([1]))),
    ("eye", lambda: torch.eye(3)),
    ("norms", lambda: torch.linalg.vector_norm(X)),
    ("norms", lambda: X.norm()),
    ("norms", lambda: torch.dist(X, X)),
    ("mse_loss", lambda: nn.MSELoss()(X, X)),
    ("broadcast_shapes", lambda: torch.broadcast_shapes((1,), (2,))),
    ("broadcast_shapes", lambda: torch.functional.broadcast_shapes((1,), (2,))),
    ("broadcast_tensors", lambda: torch.broadcast_tensors(X, X)),
    ("rnn", lambda: nn.RNN(4, 2)(X)),
    ("rnn", lambda: nn.RNNCell(4, 2)(X)),
    ("embedding", lambda: nn.Embedding(4, 2)(torch.tensor([1]))),
    ("embedding", lambda: torch.embedding(X, torch.tensor([1]))),
    ("embedding", lambda: nn.functional.embedding_bag(torch.tensor([[1]]), X)),
    ("attention", lambda: nn.MultiheadAttention(4, 2)(X, X, X)),
    ("DataLoader", lambda: torch.utils.data.DataLoader(X)),
    ("clip_grad_norm", lambda: nn.utils.clip_grad_norm_([X], 1.0)),
    ("clip_grad_norm", lambda: nn.utils.clip_grad.clip_grad_norm_([X], 1.0)),
    ("clip_grad_norm", lambda: nn.utils.clip_grads_with_norm_([X], 1.0, torch.tensor(2.0))),
    ("clip_grad_norm", lambda: nn.utils.get_total_norm([X])),
    ("optim", lambda: torch.optim.SGD([X.clone()], 0.1)),
    ("optim", lambda: torch.optim.AdamW([X.clone()])),
    ("optim", lambda: inherits(torch.optim.Adam)([X.clone()])),
    ("optim", lambda: sys.modules["torch.optim.sgd"].sgd([], [], [])),
    ("optim", lambda: torch.optim._functional.adam([], [], [], [], [], [])),
    ("optim", lambda: torch.ops.aten._fused_sgd_([], [], [])),
    ("backward", lambda: (X.clone().requires_grad_() * 2).sum().backward()),
    ("backward", lambda: torch.autograd.backward((X.clone().requires_grad_() * 2).sum())),
    ("backward", lambda: torch.autograd.grad((x := X.clone().requires_grad_()).sum(), x)),
    ("backward", lambda: torch.func.grad(lambda x: x.sum())(X)),
    ("backward", lambda: torch.func.vjp(lambda x: x.sum(), X)[1](torch.tensor(1.0))),
    ("backward", lambda: torch.autograd.functional.jacobian(lambda x: x * 2, X)),
    ("backward", lambda: run_engine(X.clone().requires_grad_())),
]


def run_engine(x):
    torch.autograd.Variable._execution_engine.run_backward((x.sum(),), (None,), False, False, (), True, True)


@pytest.mark.parametrize("name, call", SPELLINGS)
def test_a_refused_operation_is_refused_under_every_spelling(name, call):
    set_traps()
    with pytest.raises(Refused), refuse(name):
        call()


@pytest.mark.parametrize(
    "name, call",
    [
        ("softmax", lambda: X.log_softmax(-1)),
        ("softmax", lambda: nn.functional.cross_entropy(X, torch.tensor([0, 1, 2]))),
        ("dropout", lambda: torch.bernoulli(X.abs())),
        ("linear", lambda: torch.addmm(X[0, :2], X, X.new_ones(4, 2))),
        ("one_hot", lambda: torch.zeros(3, 4).scatter_(1, torch.tensor([[1]]), 1.0)),
        ("norms", lambda: nn.functional.layer_norm(X, [4])),
        ("unfold", lambda: X.as_strided((2, 2), (1, 1))),
        ("diagonal", lambda: X.diag_embed()),
        ("eye", lambda: torch.ones(3, 3).triu()),
        ("backward", lambda: X.sum()),
    ],
)
def test_what_is_not_named_is_allowed_also_where_torch_builds_it_from_what_is(name, call):
    with refuse(name):
        call()


def test_an_operation_inside_the_backward_of_a_custom_function_is_seen():
    class Cheat(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 1

        @staticmethod
        def backward(ctx, gradient):
            return gradient.softmax(-1)

    set_traps()
    x = X.clone().requires_grad_()
    with pytest.raises(Refused), refuse("softmax"):
        Cheat.apply(x).sum().backward()


def test_only_calls_of_the_code_that_is_watched_count():
    with refuse("softmax", by=lambda frame: False if frame.f_code.co_name.startswith("test_") else None):
        X.softmax(-1)
    with pytest.raises(Refused), refuse("softmax", by=lambda frame: True):
        X.softmax(-1)


def test_catching_the_refusal_does_not_help():
    with pytest.raises(Refused), refuse("softmax"):
        try:
            X.softmax(-1)
        except Exception:
            X.exp()


@pytest.mark.parametrize(
    "write",
    [
        lambda x: x.add_(1),
        lambda x: x.add_(1).sub_(1),
        lambda x: x.data.add_(1),
        lambda x: x.requires_grad_(),
        lambda x: setattr(x, "grad", torch.ones_like(x)),
        lambda x: x.t_(),
    ],
)
def test_every_change_of_a_tensor_is_noticed(write):
    x = X.clone()
    with pytest.raises(Mismatch), unchanged({"inside": [x]}):
        write(x)


def test_a_changed_container_is_noticed():
    batch = {"x": [X.clone()]}
    with pytest.raises(Mismatch), unchanged(batch):
        batch["x"].append(X)


def test_reading_changes_nothing():
    x = torch.tensor([float("nan"), 1.0]).requires_grad_()
    with unchanged(x):
        (x * 2).sum()


@pytest.mark.parametrize(
    "disturb, restore",
    [
        (lambda: torch.rand(1), lambda: None),
        (lambda: torch.manual_seed(1), lambda: None),
        (lambda: torch.set_default_dtype(torch.float64), lambda: torch.set_default_dtype(torch.float32)),
        (lambda: torch.set_grad_enabled(False), lambda: torch.set_grad_enabled(True)),
        (lambda: torch.set_default_device("meta"), lambda: torch.set_default_device(None)),
    ],
)
def test_every_change_of_global_state_is_noticed(disturb, restore):
    try:
        with pytest.raises(Mismatch), state_kept():
            disturb()
    finally:
        restore()


def test_a_loop_over_rows_takes_more_operations_for_more_rows():
    def count(f, rows):
        x = torch.ones(rows, 4)
        with count_ops() as ops:
            f(x)
        return ops.total()

    assert count(lambda x: torch.stack([row * 2 for row in x]), 3) < count(
        lambda x: torch.stack([row * 2 for row in x]), 8
    )
    assert count(lambda x: x * 2, 3) == count(lambda x: x * 2, 8) == 1


def test_views_share_memory_and_copies_do_not():
    assert shares_memory(X, X.t()[1:])
    assert not shares_memory(X, X.clone())


def test_live_bytes_are_those_that_are_there_at_once():
    given = torch.ones(1000)
    with live_bytes(given) as memory:
        for _ in range(5):
            given.view(10, 100).mul(2)
    assert memory.peak == 4000
    with live_bytes() as memory:
        kept = [torch.ones(1000) for _ in range(3)]
        kept.append(kept[0][10:])
    assert memory.peak == 12000
