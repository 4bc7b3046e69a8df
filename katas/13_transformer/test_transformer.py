"""The specs of kata 13. One class a name; the house rules that all of them share are in the table at the end."""

import copy
import io
import math
import pickle
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
import transformer
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from dojo import devices
from dojo.compare import assert_same, assert_same_gradients, expect, expect_share, gradients_of, refuses
from dojo.guards import count_ops, shares_memory, state_kept, unchanged
from dojo.rules import FLOATS, check_slope, rule
from dojo.strategies import sample

FLOAT64 = {"rtol": 1e-11, "atol": 1e-11}
LOUD = (ValueError, RuntimeError, IndexError, TypeError)
NO_MASKS = [torch.int64, torch.uint8, torch.float32]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def tabled(num_embeddings=7, embedding_dim=3, padding_idx=None, dtype=torch.float64):
    """An embedding whose rows are no longer the ones it starts with."""
    layer = transformer.Embedding(num_embeddings, embedding_dim, padding_idx).to(dtype)
    with torch.no_grad():
        layer.weight.copy_(sample(num_embeddings, embedding_dim, dtype=dtype))
    return layer


class TestEmbedding:
    @pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
    @pytest.mark.parametrize("shape", [(), (5,), (2, 4), (2, 1, 3), (0,), (3, 0)], ids=str)
    def test_gives_the_row_of_each_id(self, shape, dtype):
        layer, ids = tabled(), sample(*shape, low=0, high=7, dtype=dtype)
        found = layer(ids)
        assert_same(found, layer.weight.detach()[ids.long()].view(*shape, 3), rtol=0, atol=0)

    def test_the_gradient_of_a_row_is_the_sum_over_its_ids(self):
        """A frequent token learns from each of its places."""
        layer, ids = tabled(), torch.tensor([[1, 4, 1], [6, 1, 0]])
        found = layer(ids)
        assert_same_gradients(found, layer.weight[ids], [layer.weight], **FLOAT64)

    @pytest.mark.parametrize("padding_idx", [0, 3, 6, -1, -7])
    def test_the_padding_row_is_zero_at_the_start_and_never_learns(self, padding_idx):
        """Padding means nothing and must go on doing so; a negative index counts from the end, as in a list."""
        row = padding_idx % 7
        layer = transformer.Embedding(7, 3, padding_idx)
        zero = (layer.weight == 0).all(1).tolist()
        expect(
            zero == [i == row for i in range(7)], f"expected row {row} alone to be zero at the start, zero are {zero}"
        )
        layer = tabled(padding_idx=padding_idx)
        ids = torch.tensor([[row, 1, row], [5, row, 2]])
        found = layer(ids)
        wanted = layer.weight[ids] * (ids != row)[..., None] + layer.weight.detach()[ids] * (ids == row)[..., None]
        assert_same(found, wanted.detach(), rtol=0, atol=0)
        (gradient,) = gradients_of(found, [layer.weight])
        assert_same(gradient[row], torch.zeros(3).double(), what=f"the gradient of padding row {row}")
        assert_same_gradients(found, wanted, [layer.weight], **FLOAT64)

    def test_a_copy_of_the_module_keeps_the_padding(self):
        """What hangs on the tensor, and not in forward, is lost where the module is copied."""
        for layer in (copy.deepcopy(tabled(padding_idx=2)), pickle.loads(pickle.dumps(tabled(padding_idx=2)))):
            (gradient,) = gradients_of(layer(torch.arange(7)), [layer.weight])
            zero = (gradient == 0).all(1).tolist()
            expect(zero == [i == 2 for i in range(7)], f"expected the gradient 0 in row 2 alone, it is 0 in {zero}")

    def test_what_stands_in_the_padding_row_is_returned_as_it_stands(self):
        """A loaded table may hold something there: to return zeros would hide it."""
        layer = tabled(padding_idx=2)
        assert_same(layer(torch.tensor([2, 2])), layer.weight.detach()[[2, 2]], rtol=0, atol=0)

    def test_without_padding_every_row_learns(self):
        layer = tabled()
        (gradient,) = gradients_of(layer(torch.arange(7)), [layer.weight])
        expect(bool((gradient != 0).all()), "expected a gradient in every row where there is no padding")

    def test_rows_start_normally_distributed(self):
        """Mean 0 and standard deviation 1, as torch's own."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            values = transformer.Embedding(200, 100).weight.detach()
            torch.manual_seed(1)
            others = transformer.Embedding(200, 100).weight.detach()
        expect_share(values < 0, 0.5, "values below 0")
        expect_share(values.abs() < 1, 0.6827, "values within one standard deviation")
        expect_share(values.abs() < 2, 0.9545, "values within two standard deviations")
        expect(not torch.equal(values, others), "expected the global generator's seed to decide")

    @pytest.mark.parametrize("wrong", [7, -1, 100, -8])
    @pytest.mark.parametrize("padding_idx", [None, 0])
    def test_refuses_an_id_that_has_no_row(self, padding_idx, wrong):
        """-1 is no last word: a negative id is a mistake in the data."""
        for ids in (torch.tensor(wrong), torch.tensor([[0, 1], [wrong, 2]]), torch.tensor([wrong], dtype=torch.int32)):
            with refuses(IndexError, mentions=[wrong]):
                tabled(padding_idx=padding_idx)(ids)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bool, torch.int16, torch.uint8], ids=str)
    def test_refuses_ids_of_another_dtype(self, dtype):
        with refuses(TypeError):
            tabled()(torch.ones(2, 3).to(dtype))

    @pytest.mark.parametrize("padding_idx", [7, -8, 100])
    def test_refuses_a_padding_index_that_has_no_row(self, padding_idx):
        with refuses(IndexError, mentions=[padding_idx]):
            transformer.Embedding(7, 3, padding_idx)

    @pytest.mark.parametrize("sizes", [(0, 3), (7, 0), (-2, 3)], ids=str)
    def test_refuses_sizes_below_one(self, sizes):
        with refuses(ValueError, mentions=[min(sizes)]):
            transformer.Embedding(*sizes)

    @pytest.mark.parametrize("dtype", FLOATS, ids=str)
    def test_keeps_the_dtype_of_its_weight(self, dtype):
        layer, ids = tabled(dtype=dtype), torch.tensor([[1, 6]])
        assert_same(layer(ids), layer.weight.detach()[ids], rtol=0, atol=0)

    @pytest.mark.parametrize("device", devices.DEVICES)
    @pytest.mark.parametrize("padding_idx", [None, 0])
    def test_works_on_another_device(self, padding_idx, device):
        layer, ids = tabled(padding_idx=padding_idx, dtype=torch.float32), torch.tensor([[1, 6, 0]])
        wanted = layer(ids).detach()
        with devices.on(device):
            layer, ids = layer.to(device), ids.to(device)
            with devices.no_strays():
                found = layer(ids)
            assert_same(found, wanted.to(device))
            torch.autograd.grad(found.sum(), layer.weight)

    def test_a_table_may_have_one_row_or_one_column(self):
        for sizes in ((1, 3), (4, 1), (1, 1)):
            layer = transformer.Embedding(*sizes)
            assert_same(layer(torch.tensor([[0]])), layer.weight.detach()[:1][None], rtol=0, atol=0)

    @pytest.mark.parametrize("training", [True, False])
    def test_padding_never_learns_in_either_mode(self, training):
        layer = tabled(padding_idx=2).train(training)
        (gradient,) = gradients_of(layer(torch.arange(7)), [layer.weight])
        expect(bool((gradient[2] == 0).all()), f"expected the gradient 0 in row 2, training={training}")

    def test_a_row_that_is_not_finite_stays_where_it_is(self):
        layer = tabled(padding_idx=2)
        with torch.no_grad():
            layer.weight[2], layer.weight[4] = math.inf, -math.inf
        ids = torch.arange(7)
        assert_same(layer(ids), layer.weight.detach()[ids], rtol=0, atol=0)


def position(t, dim):
    """Row t from the paper's formula, number by number."""
    row = []
    for i in range(dim // 2):
        angle = t / 10000 ** (2 * i / dim)
        row += [math.sin(angle), math.cos(angle)]
    return torch.tensor(row, dtype=torch.float64)


class TestSinusoidalPositions:
    @given(time=st.integers(1, 40), half=st.integers(1, 5))
    def test_sines_stand_in_even_columns_and_cosines_in_odd_ones(self, time, half):
        """Interleaved: column 2i has sin(t / 10000^(2i/dim)), column 2i + 1 the cosine of the same angle."""
        found = transformer.sinusoidal_positions(time, 2 * half)
        wanted = torch.stack([position(t, 2 * half) for t in range(time)])
        assert_same(found, wanted.float(), rtol=0, atol=1e-6)

    @pytest.mark.parametrize("dim", [2, 8, 64])
    def test_is_precise_far_out(self, dim):
        """At position 10,000 an angle in float32 is wrong in the fourth decimal, and its sine too."""
        found = transformer.sinusoidal_positions(10_001, dim)
        for t in (10_000, 9_999, 8_191, 5_000):
            assert_same(found[t], position(t, dim).float(), rtol=0, atol=1e-6, what=f"position {t}")

    @pytest.mark.parametrize("dtype", FLOATS, ids=str)
    def test_gives_the_dtype_that_is_asked_for(self, dtype):
        found = transformer.sinusoidal_positions(3000, 8, dtype=dtype)
        assert_same(found[2999], position(2999, 8).to(dtype), what="position 2999")
        if dtype == torch.float64:
            assert_same(found[2999], position(2999, 8), rtol=0, atol=1e-9, what="position 2999")

    def test_gives_float32_unless_told_otherwise(self):
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        try:
            found = transformer.sinusoidal_positions(3, 4)
        finally:
            torch.set_default_dtype(before)
        expect(found.dtype == torch.float32, f"expected float32 whatever the default dtype is, got {found.dtype}")

    def test_no_positions_are_an_empty_table(self):
        assert_same(transformer.sinusoidal_positions(0, 6), torch.zeros(0, 6))

    @pytest.mark.parametrize("device", devices.DEVICES)
    def test_is_made_on_the_device_that_is_asked_for(self, device):
        with devices.on(device):
            with devices.no_strays():
                found = transformer.sinusoidal_positions(5, 6, device=torch.device(device))
            expect(found.device.type == device, f"expected a table on {device}, got one on {found.device.type}")
            assert_same(found, torch.stack([position(t, 6) for t in range(5)]).float(), device=False, atol=1e-6)

    @pytest.mark.parametrize("dim", [1, 3, 7])
    def test_refuses_an_odd_number_of_columns(self, dim):
        """A sine without its cosine tells no direction."""
        with refuses(ValueError, mentions=[dim]):
            transformer.sinusoidal_positions(5, dim)

    @pytest.mark.parametrize("time, dim, wrong", [(-1, 4, -1), (5, 0, 0), (5, -2, -2)])
    def test_refuses_sizes_that_are_none(self, time, dim, wrong):
        with refuses(ValueError, mentions=[wrong]):
            transformer.sinusoidal_positions(time, dim)

    @pytest.mark.parametrize("dim", [6, 12, 100])
    def test_is_precise_far_out_whatever_the_width(self, dim):
        """2i / dim is exact in float32 where dim is a power of 2, and nowhere else."""
        found = transformer.sinusoidal_positions(10_001, dim)
        assert_same(found[10_000], position(10_000, dim).float(), rtol=0, atol=1e-6)

    def test_more_positions_take_no_more_operations(self):
        counts = []
        for time in (3, 40):
            with count_ops() as ops:
                transformer.sinusoidal_positions(time, 6)
            counts.append(ops.total())
        expect(counts[1] <= counts[0], f"expected no more operations for 40 positions than for 3, got {counts}")

    def test_takes_device_and_dtype_in_this_order(self):
        found = transformer.sinusoidal_positions(3, 4, "cpu", torch.float64)
        expect(found.dtype == torch.float64, "expected float64")


def attend(q, k, v, valid=None):
    """Attention row by row: a softmax over the keys that a query may see, and nothing where it may see none."""
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    if valid is None:
        valid = torch.ones((), dtype=torch.bool)
    valid = valid.expand(scores.shape)
    weights = torch.where(valid, scores, -torch.inf).masked_fill(~valid.any(-1, keepdim=True), 0).softmax(-1)
    weights = weights * valid
    return weights @ v, weights


def qkv(*batch, t=4, s=5, d=3, e=6, dtype=torch.float64):
    return [sample(*batch, *sizes, dtype=dtype).requires_grad_() for sizes in ((t, d), (s, d), (s, e))]


def masks(*batch, t=4, s=5):
    """Every shape that broadcasts to [*batch t s], each with a key for every query."""
    shapes = [(*batch, t, s), (t, s), (s,), (1, s)] + ([(*[1] * len(batch), t, s), (*batch, 1, s)] if batch else [])
    for shape in shapes:
        valid = sample(*shape, dtype=torch.bool)
        valid[..., 1] = True
        yield valid
    yield torch.ones(t, 1, dtype=torch.bool)


class TestScaledDotProductAttention:
    def test_each_query_takes_the_mean_of_values_weighted_by_its_keys(self):
        q, k = (
            torch.tensor([[2.0, 0.0, 0.0, 0.0]]),
            torch.tensor([[math.log(3.0), 1.0, 0.0, 0.0], [0.0, 5.0, 0.0, 0.0]]),
        )
        output, weights = transformer.scaled_dot_product_attention(q, k, torch.tensor([[4.0], [8.0]]))
        assert_same(weights, torch.tensor([[0.75, 0.25]]), what="the weights")
        assert_same(output, torch.tensor([[5.0]]), what="the output")

    @pytest.mark.parametrize("batch", [(), (2,), (2, 3)], ids=str)
    def test_agrees_with_the_definition(self, batch):
        """The scale is that of the queries, not of the values, whose width is another one."""
        given = qkv(*batch)
        found, wanted = transformer.scaled_dot_product_attention(*given), attend(*given)
        for name, one, other in zip(("the output", "the weights"), found, wanted, strict=True):
            assert_same(one, other, **FLOAT64, what=name)
            assert_same_gradients(one, other, given, rtol=1e-9, atol=1e-9)

    @pytest.mark.parametrize("s", [5, 4])
    @pytest.mark.parametrize("batch", [(), (2,), (2, 3)], ids=str)
    def test_a_mask_of_any_shape_that_broadcasts_hides_keys(self, batch, s):
        """Keys are the last dimension, queries the one before: where both have one length no error tells them apart."""
        for valid in masks(*batch, s=s):
            given = qkv(*batch, s=s)
            found, wanted = transformer.scaled_dot_product_attention(*given, valid), attend(*given, valid)
            for name, one, other in zip(("the output", "the weights"), found, wanted, strict=True):
                assert_same(one, other, **FLOAT64, what=f"{name} for a mask of shape {list(valid.shape)}")
                assert_same_gradients(one, other, given, rtol=1e-9, atol=1e-9)
            hidden = ~valid.expand(found[1].shape)
            expect(bool((found[1][hidden] == 0).all()), "expected weights of exactly 0 for keys that are hidden")

    def test_what_hidden_keys_and_values_are_does_not_matter(self):
        q, k, v = qkv(2)
        valid = torch.tensor([True, True, False, True, False])
        before = transformer.scaled_dot_product_attention(q, k, v, valid)[0]
        with torch.no_grad():
            k[:, ~valid] = 1e6
            v[:, ~valid] = -1e6
        after = transformer.scaled_dot_product_attention(q, k, v, valid)[0]
        assert_same(after, before.detach(), **FLOAT64)

    @pytest.mark.parametrize("dtype", FLOATS, ids=str)
    def test_a_query_without_keys_gets_nothing(self, dtype):
        """A softmax over nothing is nan, and one nan in a batch is the end of the run."""
        given = [x.detach().to(dtype).requires_grad_() for x in qkv(2)]
        valid = torch.ones(2, 4, 5, dtype=torch.bool)
        valid[0, 2], valid[1] = False, False
        output, weights = transformer.scaled_dot_product_attention(*given, valid)
        exact = [x.detach().double().requires_grad_() for x in given]
        wanted = attend(*exact, valid)
        assert_same(output, wanted[0].to(dtype), what="the output")
        assert_same(weights, wanted[1].to(dtype), what="the weights")
        empty = ~valid.any(-1)
        expect(bool((output[empty] == 0).all()), "expected an output of exactly 0 for a query without keys")
        gradients = gradients_of(output, given)
        expect(all(bool(g.isfinite().all()) for g in gradients), "expected finite gradients, got nan or inf")
        expect(bool((gradients[0][empty] == 0).all()), "expected the gradient 0 for a query without keys")

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
    def test_big_scores_stay_finite(self, dtype):
        q, k, v = (x.detach().to(dtype).requires_grad_() for x in qkv(2))
        valid = torch.tensor([True, True, False, True, True])
        output, _ = transformer.scaled_dot_product_attention(q * 100, k * 100, v, valid)
        assert_same(output, attend(q * 100, k * 100, v, valid)[0], rtol=1e-2, atol=1e-2)
        expect(all(bool(g.isfinite().all()) for g in gradients_of(output, [q, k, v])), "expected finite gradients")

    @pytest.mark.parametrize("t, s", [(0, 5), (4, 0), (0, 0)])
    def test_times_of_zero_work(self, t, s):
        """Without keys every query is one without a valid key."""
        q, k, v = qkv(2, t=t, s=s)
        for valid in (None, torch.ones(2, t, s, dtype=torch.bool)):
            output, weights = transformer.scaled_dot_product_attention(q, k, v, valid)
            assert_same(output, torch.zeros(2, t, 6).double(), what="the output")
            assert_same(weights, torch.zeros(2, t, s).double(), what="the weights")

    @pytest.mark.parametrize("dtype", NO_MASKS, ids=str)
    def test_refuses_a_mask_that_is_not_bool(self, dtype):
        """A mask of 0 and 1 could be meant to be added to the scores, or the other way round."""
        with refuses(TypeError):
            transformer.scaled_dot_product_attention(*qkv(2), torch.ones(4, 5).to(dtype))

    @pytest.mark.parametrize("shape", [(4, 6), (3, 5), (2, 4), (3, 4, 5), (5, 2, 4, 5), (5, 4)], ids=str)
    def test_refuses_a_mask_that_does_not_broadcast(self, shape):
        with refuses(ValueError):
            transformer.scaled_dot_product_attention(*qkv(2), torch.ones(shape, dtype=torch.bool))

    @pytest.mark.parametrize(
        "shapes, numbers",
        [
            (((2, 4, 3), (2, 5, 7), (2, 5, 6)), (3, 7)),
            (((2, 4, 3), (2, 5, 1), (2, 5, 6)), (3, 1)),
            (((2, 4, 3), (2, 5, 3), (2, 8, 6)), (5, 8)),
            (((2, 4, 3), (2, 5, 3), (2, 1, 6)), (5, 1)),
            (((2, 4, 3), (1, 5, 3), (2, 5, 6)), (2, 1)),
            (((2, 4, 3), (2, 5, 3), (9, 5, 6)), (2, 9)),
            (((1, 4, 3), (2, 5, 3), (2, 5, 6)), (1, 2)),
        ],
        ids=str,
    )
    def test_refuses_shapes_that_do_not_fit(self, shapes, numbers):
        """A batch of one would broadcast in silence."""
        with refuses(ValueError, mentions=numbers):
            transformer.scaled_dot_product_attention(*(sample(*shape) for shape in shapes))

    def test_hidden_keys_stay_hidden_whatever_the_scores(self):
        """No finite number but the dtype's least is below any score."""
        valid = torch.tensor([True, True, False])
        for k in ([-1e5, -1e5, 1.0], [1.0, 1.0, 1e5]):
            q, k, v = torch.tensor([[1e5]]).double(), torch.tensor(k).double()[:, None], torch.ones(3, 1).double()
            _, weights = transformer.scaled_dot_product_attention(q, k, v, valid)
            assert_same(weights, torch.tensor([[0.5, 0.5, 0.0]]).double(), rtol=1e-4, what="the weights")

    @pytest.mark.parametrize("shape", [(), (1,), (5,), (1, 5), (4, 1), (4, 5), (2, 1, 1)], ids=str)
    @pytest.mark.parametrize("value", [True, False])
    def test_a_mask_of_any_shape_may_hide_all_keys_or_none(self, value, shape):
        given = qkv(2)
        valid = torch.full(shape, value)
        found, wanted = transformer.scaled_dot_product_attention(*given, valid), attend(*given, valid)
        for one, other in zip(found, wanted, strict=True):
            assert_same(one, other, **FLOAT64)
            for gradient in gradients_of(one, given):
                expect(bool(gradient.isfinite().all()), "expected finite gradients")
                expect(value or bool((gradient == 0).all()), "expected gradients of 0 where nothing is seen")

    @pytest.mark.parametrize(
        "shapes, numbers",
        [
            (((2, 3, 4, 3), (2, 1, 5, 3), (2, 1, 5, 6)), (3, 1)),
            (((2, 3, 4, 3), (2, 3, 5, 3), (2, 1, 5, 6)), (3, 1)),
            (((2, 4, 3), (5, 3), (5, 6)), (2,)),
            (((4, 3), (2, 5, 3), (2, 5, 6)), (2,)),
        ],
        ids=str,
    )
    def test_refuses_leading_dimensions_that_would_broadcast(self, shapes, numbers):
        with refuses(ValueError, mentions=numbers):
            transformer.scaled_dot_product_attention(*(sample(*shape) for shape in shapes))

    def test_a_leading_dimension_of_one_stays(self):
        for tensors in (qkv(1), qkv(1, 1), qkv(1, t=1, s=1, d=1, e=1)):
            found, wanted = transformer.scaled_dot_product_attention(*tensors), attend(*tensors)
            for one, other in zip(found, wanted, strict=True):
                assert_same(one, other, **FLOAT64)


def mha(d_model=6, heads=2, **settings):
    """A module in float64 with parameters that are not the ones it starts with."""
    layer = transformer.MultiHeadAttention(d_model, heads, **settings).double()
    with torch.no_grad():
        for p in layer.parameters():
            p.copy_(sample(*p.shape, dtype=torch.float64))
    return layer


def by_head(layer, heads, query, key, value, valid=None):
    """The definition, one head after the other, from the layer's own projections."""

    def project(name, x):
        linear = getattr(layer, name)
        return F.linear(x, linear.weight, linear.bias)

    q, k, v = (project(name, x) for name, x in (("q_proj", query), ("k_proj", key), ("v_proj", value)))
    b, t, s, size = len(q), q.shape[1], k.shape[1], q.shape[2] // heads
    if valid is not None:
        valid = valid.expand(b, heads, t, s)
    outputs = []
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        outputs.append(attend(q[..., part], k[..., part], v[..., part], None if valid is None else valid[:, head])[0])
    return project("out_proj", torch.cat(outputs, -1))


def identities(layer, *names):
    """Makes these projections of the layer pass on what they get, without bias."""
    with torch.no_grad():
        for name in names:
            linear = getattr(layer, name)
            linear.weight.copy_(torch.eye(len(linear.weight)))
            linear.bias.zero_()
    return layer


class TestMultiHeadAttention:
    @pytest.mark.parametrize("heads", [1, 2, 3, 6])
    @pytest.mark.parametrize("bias", [True, False])
    def test_each_head_attends_in_features_of_its_own(self, bias, heads):
        """A reshape without a transpose mixes up heads and time: shapes fit, and every number is wrong."""
        layer = mha(6, heads, bias=bias)
        query, key, value = sample(2, 4, 6).double(), sample(2, 5, 6).double(), sample(2, 5, 6).double()
        for x in (query, key, value):
            x.requires_grad_()
        found, wanted = layer(query, key, value), by_head(layer, heads, query, key, value)
        assert_same(found, wanted, **FLOAT64)
        assert_same_gradients(found, wanted, [query, key, value, *layer.parameters()], rtol=1e-8, atol=1e-8)

    def test_without_a_key_it_attends_to_the_query_and_without_a_value_to_the_key(self):
        layer, query, key = mha(), sample(2, 4, 6, dtype=torch.float64), sample(2, 5, 6, dtype=torch.float64)
        assert_same(layer(query), by_head(layer, 2, query, query, query), **FLOAT64)
        assert_same(layer(query, key), by_head(layer, 2, query, key, key), **FLOAT64)

    def test_a_mask_of_any_shape_that_broadcasts_hides_keys(self):
        layer, heads, (b, t, s) = mha(6, 3), 3, (2, 4, 5)
        query, key = sample(b, t, 6, dtype=torch.float64), sample(b, s, 6, dtype=torch.float64)
        for shape in (
            (b, heads, t, s),
            (b, 1, t, s),
            (1, heads, t, s),
            (b, 1, 1, s),
            (heads, t, s),
            (t, s),
            (s,),
            (t, 1),
        ):
            valid = sample(*shape, dtype=torch.bool)
            valid[..., 0] = True
            found, wanted = layer(query, key, valid=valid), by_head(layer, heads, query, key, key, valid)
            assert_same(found, wanted, **FLOAT64, what=f"the result for a mask of shape {list(shape)}")

    @pytest.mark.parametrize("bias", [True, False])
    def test_a_query_without_keys_gives_the_bias_of_the_output(self, bias):
        layer = mha(bias=bias)
        query = sample(2, 4, 6, dtype=torch.float64).requires_grad_()
        valid = torch.ones(2, 1, 4, 4, dtype=torch.bool)
        valid[0, :, 1], valid[1] = False, False
        found = layer(query, valid=valid)
        wanted = layer.out_proj.bias.detach() if bias else torch.zeros(6).double()
        empty = ~valid.any(-1)[:, 0]
        assert_same(found[empty].detach(), wanted.expand(5, 6), **FLOAT64, what="the rows without a valid key")
        assert_same(found, by_head(layer, 2, query, query, query, valid), **FLOAT64)
        gradients = gradients_of(found, [query, *layer.parameters()])
        expect(all(bool(g.isfinite().all()) for g in gradients), "expected finite gradients, got nan or inf")

    def test_has_four_projections_by_their_names(self):
        layer = transformer.MultiHeadAttention(6, 2)
        found = {name: tuple(p.shape) for name, p in layer.named_parameters()}
        names = ("q_proj", "k_proj", "v_proj", "out_proj")
        wanted = {f"{name}.weight": (6, 6) for name in names} | {f"{name}.bias": (6,) for name in names}
        expect(found == wanted, f"expected the parameters {sorted(wanted)}, got {sorted(found)}")
        found = [name for name, _ in transformer.MultiHeadAttention(6, 2, bias=False).named_parameters()]
        expect(not [name for name in found if "bias" in name], f"expected no biases with bias=False, got {found}")

    def test_dropout_falls_on_the_weights(self):
        """With one key a head's weight is 1: dropped or doubled, for all features of the head at once."""
        layer = identities(transformer.MultiHeadAttention(8, 2, dropout=0.5), "v_proj", "out_proj")
        found = layer(sample(40, 25, 8), torch.ones(40, 1, 8)).detach()
        heads = found.view(40, 25, 2, 4)
        expect(bool((heads == heads[..., :1]).all()), "expected all features of a head to be dropped together")
        kept = heads[..., 0]
        expect(bool(((kept == 0) | ((kept - 2).abs() < 1e-5)).all()), "expected weights of 0 or 1 / (1 - 0.5)")
        expect_share(kept == 0, 0.5, "dropped weights")
        expect_share((kept[..., 0] == 0) & (kept[..., 1] == 0), 0.25, "weights that both heads drop")
        expect_share((kept[:, 1:] == 0) & (kept[:, :-1] == 0), 0.25, "weights that are dropped at two times in a row")

    def test_each_key_is_dropped_by_itself_and_no_weight_makes_up_for_another(self):
        """The weights are not normalised again after dropout: with two equal keys the sum is 0, 1 or 2."""
        layer = identities(transformer.MultiHeadAttention(4, 1, dropout=0.5), "v_proj", "out_proj")
        found = layer(sample(40, 50, 4), torch.ones(40, 2, 4)).detach()[..., 0]
        for value, share in ((0, 0.25), (1, 0.5), (2, 0.25)):
            expect_share((found - value).abs() < 1e-5, share, f"queries whose weights sum to {value}")

    def test_dropout_is_off_in_eval_and_unless_asked_for(self):
        query = sample(2, 4, 6, dtype=torch.float64)
        layer = mha(dropout=0.9).eval()
        with state_kept():
            assert_same(layer(query), by_head(layer, 2, query, query, query), **FLOAT64)
        layer = mha()
        assert_same(layer(query), by_head(layer, 2, query, query, query), **FLOAT64)
        layer = mha(dropout=1.0)
        wanted = layer.out_proj.bias.detach().expand(2, 4, 6)
        assert_same(layer(query).detach(), wanted, **FLOAT64, what="the result with dropout 1")

    @pytest.mark.parametrize("batch_first", [True, False])
    @pytest.mark.parametrize("bias", [True, False])
    def test_from_torch_gives_what_torchs_own_gives(self, bias, batch_first):
        """torch packs the three projections into one weight: query, key, value, from top to bottom."""
        theirs = nn.MultiheadAttention(6, 3, bias=bias, batch_first=batch_first).double().eval()
        with torch.no_grad():
            for p in theirs.parameters():
                p.copy_(sample(*p.shape, dtype=torch.float64))
        mine = transformer.MultiHeadAttention.from_torch(theirs)
        expect(isinstance(mine, transformer.MultiHeadAttention), f"expected this module, got {type(mine).__name__}")
        query, key, value = (sample(2, n, 6, dtype=torch.float64) for n in (4, 5, 5))
        valid = torch.tensor([True, True, False, True, True])
        given = [query, key, value] if batch_first else [x.transpose(0, 1) for x in (query, key, value)]
        wanted, _ = theirs(*given, attn_mask=~valid.expand(4, 5))
        wanted = wanted if batch_first else wanted.transpose(0, 1)
        assert_same(mine(query, key, value, valid), wanted.detach(), **FLOAT64)

    @pytest.mark.parametrize("training", [True, False])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16], ids=str)
    def test_from_torch_takes_over_settings_and_leaves_the_rest_alone(self, dtype, training):
        theirs = nn.MultiheadAttention(6, 2, dropout=1.0).to(dtype).train(training)
        state = theirs.state_dict(keep_vars=True)
        with state_kept(), unchanged(state, names=("torch's module",)):
            mine = transformer.MultiHeadAttention.from_torch(theirs)
        expect(theirs.training == training, "expected torch's module to stay in its mode")
        modes = {module.training for module in mine.modules()}
        expect(modes == {training}, f"expected training={training} as in torch's module, got {modes}")
        dtypes = {p.dtype for p in mine.parameters()}
        expect(dtypes == {dtype}, f"expected parameters in {dtype}, got {dtypes}")
        for p in mine.parameters():
            expect(p.requires_grad and p.is_leaf, "expected parameters that can be trained on")
            shared = any(shares_memory(p, x) for x in state.values())
            expect(not shared, "expected memory of its own: training one must not change the other")
        if dtype != torch.float16:
            found, bias = mine(sample(2, 4, 6, dtype=dtype)), mine.out_proj.bias.detach().expand(2, 4, 6)
            dropped = torch.allclose(found, bias)
            expect(dropped == training, f"expected dropout {theirs.dropout} to be taken over, training={training}")

    @pytest.mark.parametrize(
        "settings",
        [{"kdim": 4}, {"vdim": 4}, {"kdim": 4, "vdim": 4}, {"add_bias_kv": True}, {"add_zero_attn": True}],
        ids=str,
    )
    def test_from_torch_refuses_what_it_cannot_represent(self, settings):
        with refuses(ValueError):
            transformer.MultiHeadAttention.from_torch(nn.MultiheadAttention(6, 2, **settings))

    def test_from_torch_takes_a_kdim_that_is_the_width_itself(self):
        theirs = nn.MultiheadAttention(6, 2, kdim=6, vdim=6, batch_first=True).eval()
        x = sample(2, 4, 6)
        found = transformer.MultiHeadAttention.from_torch(theirs)(x)
        assert_same(found.detach(), theirs(x, x, x)[0].detach(), rtol=1e-4)

    @pytest.mark.parametrize("d_model, heads", [(6, 4), (7, 2), (5, 3), (2, 4)])
    def test_refuses_heads_that_do_not_divide_the_width(self, d_model, heads):
        with refuses(ValueError, mentions=[d_model, heads]):
            transformer.MultiHeadAttention(d_model, heads)

    @pytest.mark.parametrize("sizes", [(0, 1), (6, 0), (-6, 2), (6, -2)], ids=str)
    def test_refuses_sizes_below_one(self, sizes):
        with refuses(ValueError, mentions=[min(sizes)]):
            transformer.MultiHeadAttention(*sizes)

    @pytest.mark.parametrize("dtype", NO_MASKS, ids=str)
    def test_refuses_a_mask_that_is_not_bool(self, dtype):
        with refuses(TypeError):
            transformer.MultiHeadAttention(6, 2)(sample(2, 4, 6), valid=torch.ones(4, 4).to(dtype))

    @pytest.mark.parametrize("shape", [(4, 5), (5, 4), (3, 2, 4, 4), (2, 3, 4, 4), (2, 4, 4, 4)], ids=str)
    def test_refuses_a_mask_that_does_not_broadcast(self, shape):
        with refuses(ValueError):
            transformer.MultiHeadAttention(6, 2)(sample(2, 4, 6), valid=torch.ones(shape, dtype=torch.bool))

    def test_refuses_inputs_that_do_not_fit(self):
        layer = transformer.MultiHeadAttention(6, 2)
        for shapes in (((2, 4, 5),), ((2, 4, 6), (2, 5, 4)), ((2, 4, 6), (2, 5, 6), (2, 3, 6)), ((2, 4, 6), (3, 5, 6))):
            with refuses(LOUD):
                layer(*(sample(*shape) for shape in shapes))

    def test_a_value_may_come_without_a_key(self):
        layer, query, value = mha(), sample(2, 4, 6, dtype=torch.float64), sample(2, 4, 6, dtype=torch.float64)
        assert_same(layer(query, None, value), by_head(layer, 2, query, query, value), **FLOAT64)
        assert_same(layer(query, value=value), by_head(layer, 2, query, query, value), **FLOAT64)

    @pytest.mark.parametrize("b, t, s", [(2, 0, 5), (2, 4, 0), (0, 4, 5), (1, 1, 1), (1, 4, 5), (2, 1, 5)])
    def test_sizes_of_zero_and_one_work(self, b, t, s):
        layer = mha()
        query, key = sample(b, t, 6, dtype=torch.float64), sample(b, s, 6, dtype=torch.float64)
        for valid in (None, torch.ones(b, 1, t, s, dtype=torch.bool)):
            assert_same(layer(query, key, valid=valid), by_head(layer, 2, query, key, key, valid), **FLOAT64)

    def test_dropout_falls_with_a_mask_too(self):
        layer = identities(transformer.MultiHeadAttention(4, 1, dropout=0.5), "v_proj", "out_proj")
        valid = torch.tensor([True, False])
        found = layer(sample(40, 50, 4), torch.ones(40, 2, 4), valid=valid).detach()[..., 0]
        expect_share(found == 0, 0.5, "dropped weights")

    @pytest.mark.parametrize("shape", [(3, 5), (3, 4, 5), (1, 3, 2, 4, 5), (1, 1, 1, 4, 5)], ids=str)
    def test_refuses_a_mask_without_a_dimension_for_heads(self, shape):
        """[b s] and [b t s] do not broadcast to [b heads t s]: in another batch they would, and mean something else."""
        with refuses(ValueError, mentions=shape):
            transformer.MultiHeadAttention(6, 2)(sample(3, 4, 6), sample(3, 5, 6), valid=torch.ones(shape).bool())

    @pytest.mark.parametrize(
        "shapes, numbers",
        [
            (((2, 4, 5),), (5,)),
            (((2, 4, 6), (2, 5, 4)), (4,)),
            (((2, 4, 6), (2, 5, 6), (2, 5, 3)), (3,)),
            (((2, 4, 6), (2, 5, 6), (2, 3, 6)), (5, 3)),
            (((2, 4, 6), (2, 5, 6), (2, 1, 6)), (5, 1)),
            (((2, 4, 6), (3, 5, 6)), (2, 3)),
            (((2, 4, 6), (1, 5, 6)), (2, 1)),
            (((1, 4, 6), (2, 5, 6)), (1, 2)),
            (((2, 4, 6), (2, 5, 6), (1, 5, 6)), (2, 1)),
        ],
        ids=str,
    )
    def test_refuses_shapes_that_do_not_fit(self, shapes, numbers):
        with refuses(ValueError, mentions=numbers):
            transformer.MultiHeadAttention(6, 2)(*(sample(*shape) for shape in shapes))

    @pytest.mark.parametrize("device", devices.DEVICES)
    def test_from_torch_stays_on_the_device(self, device):
        with devices.on(device):
            theirs = nn.MultiheadAttention(6, 2).to(device)
            mine = transformer.MultiHeadAttention.from_torch(theirs)
            found = {p.device.type for p in mine.parameters()}
            expect(found == {device}, f"expected parameters on {device}, got {found}")

    def test_can_be_copied_after_a_call(self):
        """What a forward leaves in the module goes along with every copy."""
        layer = mha()
        layer(sample(2, 4, 6, dtype=torch.float64))
        copy.deepcopy(layer), pickle.dumps(layer)


def factor(step, warmup, total, floor=0.0):
    """The schedule, as the contract writes it."""
    if step < warmup:
        return (step + 1) / warmup
    if step >= total:
        return floor
    return floor + (1 - floor) * (1 + math.cos(math.pi * (step - warmup) / (total - warmup))) / 2


SCHEDULES = [(4, 10, 0.0), (0, 10, 0.0), (10, 10, 0.25), (1, 7, 0.1), (0, 1, 0.5), (1, 1, 0.0), (3, 11, 1.0)]


class TestWarmupCosine:
    def test_rises_in_a_line_and_falls_as_a_cosine(self):
        found = [transformer.warmup_cosine(step, warmup=4, total=8) for step in range(10)]
        half = math.sqrt(0.5) / 2
        wanted = [0.25, 0.5, 0.75, 1.0, 1.0, 0.5 + half, 0.5, 0.5 - half, 0.0, 0.0]
        for step, (value, exact) in enumerate(zip(found, wanted, strict=True)):
            expect(math.isclose(value, exact, abs_tol=1e-9), f"expected {exact:.6g} at step {step}, got {value}")

    @pytest.mark.parametrize("warmup, total, floor", SCHEDULES)
    def test_agrees_with_the_formula_at_every_step(self, warmup, total, floor):
        """Off by one at the end of the warm-up the rate jumps; off by one at the end it never reaches the floor."""
        for step in [*range(total + 3), 10 * total]:
            found, wanted = transformer.warmup_cosine(step, warmup, total, floor), factor(step, warmup, total, floor)
            expect(isinstance(found, float), f"expected a float, got {type(found).__name__}", f"at step {step}")
            close = math.isclose(found, wanted, abs_tol=1e-9)
            expect(close, f"expected {wanted:.6g}, got {found:.6g}", f"at step {step}, warmup {warmup} of {total}")

    def test_the_floor_is_zero_unless_told_otherwise(self):
        found = transformer.warmup_cosine(10, 2, 10)
        expect(found == 0, f"expected 0 at the end, got {found}")

    @given(warmup=st.integers(0, 20), rest=st.integers(1, 30), floor=st.floats(0, 1))
    def test_goes_up_then_down_and_stays_between_floor_and_one(self, warmup, rest, floor):
        values = [transformer.warmup_cosine(step, warmup, warmup + rest, floor) for step in range(warmup + rest + 2)]
        rising, falling = values[:warmup], values[warmup:]
        expect(all(a < b for a, b in pairwise(rising)), f"expected the warm-up to rise, got {rising}")
        expect(all(a >= b - 1e-12 for a, b in pairwise(falling)), f"expected no rise after it, got {falling}")
        expect(
            all(floor - 1e-12 <= v <= 1 + 1e-12 for v in falling), f"expected values from {floor} to 1, got {falling}"
        )

    @pytest.mark.parametrize(
        "step, warmup, total, floor, wrong",
        [(-1, 2, 10, 0.0, -1), (0, 0, 0, 0.0, 0), (0, 0, -3, 0.0, -3), (0, -1, 10, 0.0, -1), (0, 11, 10, 0.0, 11),
         (0, 2, 10, -0.1, -0.1), (0, 2, 10, 1.5, 1.5), (20, 11, 10, 0.0, 11), (20, 2, 10, 1.5, 1.5)],
    )  # fmt: skip
    def test_refuses_what_makes_no_schedule(self, step, warmup, total, floor, wrong):
        with refuses(ValueError, mentions=[wrong]):
            transformer.warmup_cosine(step, warmup, total, floor)


def optimizer_of(*rates):
    """torch's own SGD with one parameter for each rate, and the parameters."""
    groups = [{"params": [torch.zeros(1, requires_grad=True)], "lr": rate} for rate in rates]
    return torch.optim.SGD(groups, lr=1.0)


def rates_of(optimizer):
    return [group["lr"] for group in optimizer.param_groups]


def expect_rates(found, wanted, step):
    close = all(math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-12) for a, b in zip(found, wanted, strict=True))
    expect(close, f"expected the learning rates {wanted} at step {step}, got {found}")


def advance(optimizer, schedule):
    """A step of the schedule; torch warns where the optimizer, whose step would import torch._dynamo, made none."""
    optimizer._opt_called = True
    schedule.step()


class TestWarmupCosineClass:
    @pytest.mark.parametrize("warmup, total, floor", SCHEDULES)
    def test_each_group_follows_the_schedule_from_its_own_rate(self, warmup, total, floor):
        """A group that is trained at a tenth stays at a tenth of the others."""
        bases = [0.5, 0.05, 2.0]
        optimizer = optimizer_of(*bases)
        schedule = transformer.WarmupCosine(optimizer, warmup, total, floor)
        expect(isinstance(schedule, torch.optim.lr_scheduler.LRScheduler), "expected a torch LRScheduler")
        for step in range(total + 4):
            wanted = [base * factor(step, warmup, total, floor) for base in bases]
            expect_rates(rates_of(optimizer), wanted, step)
            expect_rates(schedule.get_last_lr(), wanted, step)
            advance(optimizer, schedule)

    def test_the_floor_is_zero_unless_told_otherwise(self):
        optimizer = optimizer_of(0.5)
        schedule = transformer.WarmupCosine(optimizer, 1, 3)
        for _ in range(3):
            advance(optimizer, schedule)
        expect_rates(rates_of(optimizer), [0.0], 3)

    @pytest.mark.parametrize("done", [1, 3, 6, 12])
    @pytest.mark.parametrize("saved", [True, False])
    def test_a_state_dict_resumes_exactly(self, saved, done):
        """What was lost would show as a jump of the rate in the middle of a run."""
        bases, settings = [0.5, 0.05], (4, 10, 0.1)
        straight, first = optimizer_of(*bases), optimizer_of(*bases)
        unbroken, schedule = (transformer.WarmupCosine(o, *settings) for o in (straight, first))
        for _ in range(done):
            advance(straight, unbroken)
            advance(first, schedule)
        state = {"optimizer": copy.deepcopy(first.state_dict()), "schedule": copy.deepcopy(schedule.state_dict())}
        if saved:
            file = io.BytesIO()
            torch.save(state, file)
            file.seek(0)
            state = torch.load(file)
        second = optimizer_of(*bases)
        resumed = transformer.WarmupCosine(second, *settings)
        second.load_state_dict(state["optimizer"])
        resumed.load_state_dict(state["schedule"])
        for step in range(done, 14):
            found, wanted = rates_of(second), rates_of(straight)
            expect(found == wanted, f"expected the rates {wanted} of the unbroken run at step {step}, got {found}")
            advance(straight, unbroken)
            advance(second, resumed)

    @pytest.mark.parametrize("last_epoch", [0, 2, 7])
    def test_starts_in_mid_run_where_it_is_told(self, last_epoch):
        """As every schedule of torch: the groups know their first rate, last_epoch how many steps were done."""
        optimizer = optimizer_of(0.5, 0.05)
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
        optimizer._opt_called = True
        schedule = transformer.WarmupCosine(optimizer, 4, 10, 0.1, last_epoch=last_epoch)
        for step in range(last_epoch + 1, 13):
            expect_rates(rates_of(optimizer), [base * factor(step, 4, 10, 0.1) for base in (0.5, 0.05)], step)
            advance(optimizer, schedule)

    @pytest.mark.parametrize(
        "warmup, total, floor, wrong",
        [
            (0, 0, 0.0, 0),
            (-1, 10, 0.0, -1),
            (11, 10, 0.0, 11),
            (2, 10, -0.1, -0.1),
            (2, 10, 1.5, 1.5),
            (0, -2, 0.0, -2),
        ],
    )
    def test_refuses_what_makes_no_schedule_when_it_is_made(self, warmup, total, floor, wrong):
        optimizer = optimizer_of(0.5)
        with refuses(ValueError, mentions=[wrong]):
            transformer.WarmupCosine(optimizer, warmup, total, floor)
        expect_rates(rates_of(optimizer), [0.5], "0, after an error")

    def test_a_state_dict_resumes_over_an_optimizer_of_other_rates(self):
        first = optimizer_of(0.5, 0.05)
        schedule = transformer.WarmupCosine(first, 4, 10, 0.1)
        for _ in range(5):
            advance(first, schedule)
        second = optimizer_of(9.0, 9.0)
        resumed = transformer.WarmupCosine(second, 4, 10, 0.1)
        second.load_state_dict(first.state_dict())
        resumed.load_state_dict(schedule.state_dict())
        for _ in range(6):
            expect(rates_of(second) == rates_of(first), f"expected {rates_of(first)}, got {rates_of(second)}")
            expect(resumed.get_last_lr() == schedule.get_last_lr(), f"expected the last rates {schedule.get_last_lr()}")
            advance(first, schedule)
            advance(second, resumed)


def pictures(b, c=2, h=4, w=5):
    """Images of positive numbers, no two of them equal."""
    return torch.arange(1, b * c * h * w + 1, dtype=torch.float64).view(b, c, h, w)


def offsets_of(found, images, padding):
    """Where each image was cut out of its padded one; fails where it was not."""
    h, w = images.shape[2:]
    windows = F.pad(images, [padding] * 4).unfold(2, h, 1).unfold(3, w, 1)  # [b c rows columns h w]
    matches = (windows == found[:, :, None, None]).all((1, 4, 5))  # [b rows columns]
    whole = matches.flatten(1).any(1)
    expect(bool(whole.all()), f"expected each image to be cut out of the padded one, {int((~whole).sum())} are not")
    return matches


class TestRandomCrop:
    @pytest.mark.parametrize("padding", [1, 2])
    def test_each_image_is_cut_out_at_an_offset_of_its_own(self, padding):
        """Any of the offsets, as often as any other, and rows independently of columns."""
        images = pictures(2000, 1, 4, 5)
        matches = offsets_of(transformer.random_crop(images, padding, seeded()), images, padding)
        size = 2 * padding + 1
        expect(matches.shape[1:] == (size, size), "expected offsets from 0 to twice the padding")
        for row in range(size):
            for column in range(size):
                expect_share(matches[:, row, column], 1 / size**2, f"images cut out at ({row}, {column})")
        again = matches[1:] & matches[:-1]
        expect_share(again.flatten(1).any(1), 1 / size**2, "images cut out where the one before was")

    @pytest.mark.parametrize("shape", [(3, 2, 4, 5), (3, 1, 5, 2), (2, 3, 1, 1)], ids=str)
    def test_channels_move_together_and_the_size_stays(self, shape):
        images = pictures(*shape)
        found = transformer.random_crop(images, 2, seeded())
        expect(found.shape == images.shape, f"expected shape {list(images.shape)}, got {list(found.shape)}")
        offsets_of(found, images, 2)

    def test_what_comes_from_outside_is_zero(self):
        found = transformer.random_crop(torch.ones(200, 1, 3, 3), 2, seeded())
        expect(set(found.unique().tolist()) == {0.0, 1.0}, "expected zeros around the images and nothing else")

    def test_without_padding_images_stay_as_they_are(self):
        images = pictures(3)
        assert_same(transformer.random_crop(images, 0), images, rtol=0, atol=0)

    @pytest.mark.parametrize("padding", [-1, -3])
    def test_refuses_a_negative_padding(self, padding):
        with refuses(ValueError, mentions=[padding]):
            transformer.random_crop(pictures(3), padding)

    @pytest.mark.parametrize("shape", [(0, 3, 4, 5), (2, 0, 4, 5), (2, 3, 0, 5), (2, 3, 4, 0)], ids=str)
    @pytest.mark.parametrize("padding", [0, 2])
    def test_any_dimension_may_be_empty(self, shape, padding):
        assert_same(transformer.random_crop(torch.zeros(shape), padding), torch.zeros(shape))

    def test_a_single_image_is_moved_too(self):
        images, generator = pictures(1), seeded(1)
        found = torch.cat([transformer.random_crop(images, 1, generator) for _ in range(900)])
        matches = offsets_of(found, images.expand(900, -1, -1, -1), 1)
        expect_share(matches[:, 1, 1], 1 / 9, "images that stay where they were")


class TestRandomFlip:
    @pytest.mark.parametrize("p", [0.25, 0.5])
    def test_each_image_is_flipped_from_left_to_right_or_not(self, p):
        images = pictures(2000, 2, 2, 3)
        found = transformer.random_flip(images, p, seeded())
        flipped, same = ((found == other).flatten(1).all(1) for other in (images.flip(3), images))
        expect(bool((flipped ^ same).all()), "expected each image to be as it was or flipped as a whole, left to right")
        expect_share(flipped, p, "flipped images")
        expect_share(flipped[1:] & flipped[:-1], p * p, "neighbours that are both flipped")

    def test_with_probability_zero_none_is_flipped_and_with_one_all_are(self):
        images = pictures(5)
        for p in (0, 0.0):
            assert_same(transformer.random_flip(images, p), images, rtol=0, atol=0)
        for p in (1, 1.0):
            assert_same(transformer.random_flip(images, p), images.flip(3), rtol=0, atol=0)

    def test_half_of_them_is_the_default(self):
        images = pictures(2000, 1, 1, 2)
        found = transformer.random_flip(images, generator=seeded())
        expect_share((found != images).flatten(1).any(1), 0.5, "flipped images")

    @pytest.mark.parametrize("p", [-0.1, 1.5])
    def test_refuses_what_is_no_probability(self, p):
        with refuses(ValueError, mentions=[p]):
            transformer.random_flip(pictures(3), p)

    @pytest.mark.parametrize("shape", [(0, 3, 4, 5), (2, 0, 4, 5), (2, 3, 0, 5), (2, 3, 4, 0)], ids=str)
    def test_any_dimension_may_be_empty(self, shape):
        assert_same(transformer.random_flip(torch.zeros(shape)), torch.zeros(shape))

    @pytest.mark.parametrize("b", [1, 2])
    def test_the_number_of_flipped_images_is_random_too(self, b):
        """Each on its own: of two images often both or none is flipped."""
        generator, images = seeded(1), pictures(b, 1, 1, 2)
        flipped = torch.stack([transformer.random_flip(images, 0.5, generator) != images for _ in range(600)])
        expect_share(flipped.all(-1).flatten(1).all(1), 0.5**b, "batches that are flipped as a whole")

    def test_an_infinite_pixel_stays_one(self):
        images = torch.tensor([[[[1.0, math.inf]]]])
        for p in (0.0, 1.0):
            assert_same(transformer.random_flip(images, p), images.flip(3) if p else images)

    def test_small_probabilities_are_exact_in_half_precision(self):
        images = torch.tensor([1.0, 2.0]).bfloat16().expand(50_000, 1, 1, 2)
        found = transformer.random_flip(images, 0.001, seeded(1))
        expect_share((found != images).flatten(1).any(1), 0.001, "flipped images")


def mixed(n, alpha, seed=0):
    """Mixes the n unit vectors with n classes: result i has λ at i and 1 - λ at its partner."""
    x, y = torch.eye(n, dtype=torch.float64), torch.arange(n)
    return transformer.mixup(x, y, n, alpha, seeded(seed))


class TestMixup:
    def test_each_sample_is_mixed_with_one_partner(self):
        found, _ = mixed(60, 0.5)
        assert_same(found.sum(1), torch.ones(60).double(), what="the sum of both shares")
        expect(bool((found >= -1e-12).all()), "expected no negative shares")
        others = (found - torch.diag(found.diag())).abs() > 1e-9
        expect(int(others.sum(1).max()) <= 1, "expected each sample to have one partner at most")

    def test_partners_are_a_permutation(self):
        """Each sample is a partner once: drawn with repetition some would count twice and others never."""
        found, _ = mixed(200, 1.0)
        others = (found - torch.diag(found.diag())).abs() > 1e-9
        most = int(others.sum(0).max())
        expect(most <= 1, f"expected each sample to be a partner once, one is {most} times")
        expect(int(others.sum()) > 150, "expected nearly every sample to have another one as its partner")
        again, _ = mixed(200, 1.0, seed=1)
        partners = [(f - torch.diag(f.diag())).argmax(1) for f in (found, again)]
        expect(not torch.equal(*partners), "expected another permutation for another seed")
        steps = ((partners[0] - torch.arange(200)) % 200).unique()
        expect(len(steps) > 20, "expected a random permutation, all partners are the same distance away")

    @pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
    def test_each_sample_has_a_share_of_its_own_from_a_beta_distribution(self, alpha):
        """Beta(α, α) has mean 1/2 and variance 1 / (4 (2α + 1)): small α mix little, large ones by halves."""
        shares = torch.cat([mixed(200, alpha, seed)[0].diag() for seed in range(8)])
        shares = shares[(shares - 1).abs() > 1e-9] if alpha >= 1 else shares  # who is its own partner tells nothing
        expect(len(shares.unique()) > 500, "expected a share of its own for each sample, many are equal")
        variance = 1 / (4 * (2 * alpha + 1))
        bound = 6 * math.sqrt(variance / len(shares)) + 0.01
        mean, found = shares.mean().item(), shares.var().item()
        expect(abs(mean - 0.5) < bound, f"expected shares of mean 0.5 ± {bound:.3f}, got {mean:.3f}")
        expect(abs(found - variance) < 0.15 * variance, f"expected a variance of {variance:.4f}, got {found:.4f}")

    @pytest.mark.parametrize("alpha", [0.2, 1.0])
    def test_targets_are_mixed_by_the_same_share_with_the_same_partner(self, alpha):
        x, targets = mixed(60, alpha)
        assert_same(targets, x, what="the targets of classes that are numbered as the samples")

    def test_classes_that_meet_add_up(self):
        x, y = torch.eye(40, dtype=torch.float64), torch.arange(40) % 3
        found, targets = transformer.mixup(x, y, 5, 1.0, seeded())
        wanted = torch.stack([found[:, y == c].sum(1) for c in range(5)], 1)
        assert_same(targets, wanted, what="the targets")
        assert_same(targets.sum(1), torch.ones(40).double(), what="the sum of each target")

    def test_samples_of_any_dimensions_are_mixed_as_a_whole(self):
        x = torch.eye(30, dtype=torch.float64).view(30, 5, 2, 3)
        found, targets = transformer.mixup(x, torch.arange(30), 30, 0.5, seeded())
        assert_same(found.flatten(1), targets, what="the samples")
        flat = torch.arange(30).double()
        found, targets = transformer.mixup(flat, torch.arange(30), 30, 0.5, seeded())
        assert_same(found, targets @ flat, what="samples that are numbers")

    def test_with_alpha_zero_everything_stays(self):
        x, y = sample(5, 3), torch.tensor([2, 0, 1, 3, 3])
        for alpha in (0, 0.0):
            found, targets = transformer.mixup(x, y, 4, alpha)
            assert_same(found, x)
            assert_same(targets, torch.eye(4)[y], what="the targets")

    def test_two_tenths_is_the_default(self):
        x = torch.eye(200, dtype=torch.float64)
        shares = torch.cat(
            [transformer.mixup(x, torch.arange(200), 200, generator=seeded(i))[0].diag() for i in range(8)]
        )
        found = shares.var().item()
        expect(abs(found - 1 / 5.6) < 0.15 / 5.6, f"expected a variance of {1 / 5.6:.4f}, got {found:.4f}")

    @pytest.mark.parametrize("dtype", FLOATS, ids=str)
    def test_targets_have_the_dtype_of_x_and_are_finite(self, dtype):
        """In half precision a gamma variable for a small α is often exactly 0, and 0 / 0 is nan."""
        x, y = sample(300, 3, dtype=dtype), torch.arange(300) % 4
        found, targets = transformer.mixup(x, y, 4, 0.2, seeded())
        for what, tensor in (("x", found), ("targets", targets)):
            expect(tensor.dtype == dtype, f"expected {what} in {dtype}, got {tensor.dtype}")
            expect(bool(tensor.isfinite().all()), f"expected finite {what}, got nan or inf")
        assert_same(targets.float().sum(1), torch.ones(300), rtol=1e-2, atol=1e-2, what="the sum of each target")

    def test_gradients_are_mixed_by_the_same_shares(self):
        x, y = sample(6, 3, dtype=torch.float64).requires_grad_(), torch.arange(6) % 4
        check_slope(lambda: transformer.mixup(x, y, 4, 0.5, seeded())[0], [x])

    def test_no_samples_are_mixed_to_none(self):
        found, targets = transformer.mixup(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64), 4, 0.5)
        assert_same(found, torch.zeros(0, 3))
        assert_same(targets, torch.zeros(0, 4), what="the targets")

    @pytest.mark.parametrize("alpha", [-0.1, -2])
    def test_refuses_a_negative_alpha(self, alpha):
        with refuses(ValueError, mentions=[alpha]):
            transformer.mixup(sample(3, 2), torch.arange(3), 4, alpha)

    @pytest.mark.parametrize("wrong", [4, -1, 9, -100])
    @pytest.mark.parametrize("alpha", [0.0, 0.2])
    def test_refuses_a_class_out_of_range(self, alpha, wrong):
        with refuses(IndexError, mentions=[wrong]):
            transformer.mixup(sample(3, 2), torch.tensor([0, wrong, 2]), 4, alpha)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bool], ids=str)
    def test_refuses_classes_that_are_no_integers(self, dtype):
        with refuses(TypeError):
            transformer.mixup(sample(3, 2), torch.ones(3).to(dtype), 4)

    @pytest.mark.parametrize("n", [1, 2, 4])
    def test_refuses_another_number_of_classes_than_of_samples(self, n):
        with refuses(ValueError, mentions=[n, 3]):
            transformer.mixup(sample(3, 2), torch.zeros(n, dtype=torch.int64), 4)

    def test_with_alpha_zero_what_is_not_finite_stays(self):
        x = torch.tensor([[1.0, math.inf], [math.nan, 2.0], [-math.inf, 0.0]])
        found, targets = transformer.mixup(x, torch.tensor([0, 1, 1]), 2, 0.0)
        assert_same(found, x)
        assert_same(targets, torch.eye(2)[[0, 1, 1]], what="the targets")

    def test_one_sample_and_one_class_are_enough(self):
        for b in (1, 3):
            x = sample(b, 2)
            found, targets = transformer.mixup(x, torch.zeros(b).long(), 1, 0.5, seeded())
            expect(found.shape == (b, 2), f"expected shape {[b, 2]}, got {list(found.shape)}")
            assert_same(targets, torch.ones(b, 1), what="the targets")
        x = sample(1, 2)
        found, targets = transformer.mixup(x, torch.tensor([2]), 4, 0.5, seeded())
        assert_same(found, x)
        assert_same(targets, torch.tensor([[0.0, 0, 1, 0]]), what="the targets")


MANY = (200, 100)


def chosen_of(inputs, labels, tokens):
    """Where a token was chosen; elsewhere the input is the token, and where it was the label is."""
    chosen = labels != -100
    expect(bool((labels[chosen] == tokens[chosen]).all()), "expected the label of a chosen token to be the token")
    expect(bool((inputs[~chosen] == tokens[~chosen]).all()), "expected tokens that were not chosen to stay")
    return chosen


class TestMaskTokens:
    @pytest.mark.parametrize("p", [0.15, 0.5])
    def test_each_token_is_chosen_by_itself(self, p):
        tokens = sample(*MANY, low=0, high=1000, dtype=torch.int64)
        inputs, labels = transformer.mask_tokens(tokens, 1000, 1000, p, generator=seeded())
        chosen = chosen_of(inputs, labels, tokens)
        expect_share(chosen, p, "chosen tokens")
        expect_share(chosen[:, 1:] & chosen[:, :-1], p * p, "neighbours that are both chosen")
        expect_share(chosen[1:] & chosen[:-1], p * p, "tokens chosen in two sequences")

    def test_of_the_chosen_eighty_percent_are_masked_and_ten_replaced(self):
        """BERT's 80/10/10: with all of them masked the model would learn nothing about tokens that it sees."""
        tokens = sample(*MANY, low=0, high=1000, dtype=torch.int64)
        inputs, labels = transformer.mask_tokens(tokens, 5000, 1000, 0.5, generator=seeded())
        chosen = chosen_of(inputs, labels, tokens)
        now, before = inputs[chosen], tokens[chosen]
        expect_share(now == 5000, 0.8, "chosen tokens that are masked")
        expect_share(now == before, 0.1001, "chosen tokens that stay")
        expect_share((now != before) & (now != 5000), 0.0999, "chosen tokens that are replaced")

    def test_any_token_may_come_in_the_place_of_another(self):
        """From the whole vocabulary, first and last included, each as often as any other."""
        tokens = torch.full(MANY, 2)
        inputs, labels = transformer.mask_tokens(tokens, 99, 5, 1.0, generator=seeded())
        expect(bool((labels == 2).all()), "expected every token to be chosen with probability 1")
        for token, share in ((0, 0.02), (1, 0.02), (2, 0.12), (3, 0.02), (4, 0.02), (99, 0.8)):
            expect_share(inputs == token, share, f"inputs that are {token}")

    @pytest.mark.parametrize("mask_id", [0, 3, -1, 10**6])
    def test_the_mask_may_be_any_id(self, mask_id):
        tokens = torch.full((50, 40), 2)
        inputs, labels = transformer.mask_tokens(tokens, mask_id, 4, 1.0, generator=seeded())
        share = 0.8 + (0.025 if 0 <= mask_id < 4 else 0)
        expect_share(inputs == mask_id, share, f"inputs that are the mask, {mask_id}")
        expect(bool((labels == 2).all()), "expected the tokens themselves as labels")

    @pytest.mark.parametrize("p", [0.5, 1.0])
    def test_special_tokens_are_never_chosen(self, p):
        """A masked start token or padding is no word to be guessed."""
        tokens = sample(*MANY, low=0, high=50, dtype=torch.int64)
        special = tokens < 10
        inputs, labels = transformer.mask_tokens(tokens, 60, 50, p, special, seeded())
        chosen = chosen_of(inputs, labels, tokens)
        expect(not bool((chosen & special).any()), "expected no special token to be chosen")
        expect_share(chosen[~special], p, "chosen tokens among those that are not special")

    def test_three_in_twenty_is_the_default(self):
        tokens = sample(*MANY, low=0, high=50, dtype=torch.int64)
        _, labels = transformer.mask_tokens(tokens, 60, 50, generator=seeded())
        expect_share(labels != -100, 0.15, "chosen tokens")

    @pytest.mark.parametrize("special", [True, False])
    def test_with_probability_zero_nothing_happens(self, special):
        tokens = sample(5, 7, low=0, high=9, dtype=torch.int64)
        given = torch.zeros(5, 7, dtype=torch.bool) if special else None
        for p in (0, 0.0):
            inputs, labels = transformer.mask_tokens(tokens, 3, 9, p, given)
            assert_same(inputs, tokens, what="the inputs")
            assert_same(labels, torch.full((5, 7), -100), what="the labels")

    @pytest.mark.parametrize("dtype", [torch.int16, torch.int32, torch.int64], ids=str)
    def test_labels_are_int64_whatever_the_tokens_are(self, dtype):
        """cross_entropy takes no others."""
        tokens = torch.full((50, 40), 2, dtype=dtype)
        inputs, labels = transformer.mask_tokens(tokens, 3, 5, 0.5, generator=seeded())
        expect(labels.dtype == torch.int64, f"expected labels in int64, got {labels.dtype}")
        chosen_of(inputs.long(), labels, tokens.long())

    def test_more_sequences_take_no_more_operations(self):
        counts = []
        for n in (50, 400):
            with count_ops() as ops:
                transformer.mask_tokens(torch.ones(n, 20, dtype=torch.int64), 3, 9, 0.5, generator=seeded())
            counts.append(ops.total())
        expect(counts[1] <= counts[0], f"expected no more operations for 400 sequences than for 50, got {counts}")

    @pytest.mark.parametrize("shape", [(0, 5), (3, 0)], ids=str)
    def test_no_tokens_give_none(self, shape):
        inputs, labels = transformer.mask_tokens(torch.zeros(shape, dtype=torch.int64), 3, 9, 0.5)
        expect(inputs.shape == labels.shape == shape, f"expected shape {list(shape)}, got {list(inputs.shape)}")

    @pytest.mark.parametrize("p", [-0.1, 1.5])
    def test_refuses_what_is_no_probability(self, p):
        with refuses(ValueError, mentions=[p]):
            transformer.mask_tokens(torch.ones(2, 3, dtype=torch.int64), 3, 9, p)

    @pytest.mark.parametrize("vocab_size", [0, -2])
    def test_refuses_an_empty_vocabulary(self, vocab_size):
        with refuses(ValueError, mentions=[vocab_size]):
            transformer.mask_tokens(torch.ones(2, 3, dtype=torch.int64), 3, vocab_size)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bool], ids=str)
    def test_refuses_tokens_that_are_no_integers(self, dtype):
        with refuses(TypeError):
            transformer.mask_tokens(torch.ones(2, 3).to(dtype), 3, 9)

    @pytest.mark.parametrize("shape", [(3,), (2, 1), (2, 4), (1, 3)], ids=str)
    def test_refuses_special_of_another_shape(self, shape):
        with refuses(ValueError):
            transformer.mask_tokens(
                torch.ones(2, 3, dtype=torch.int64), 3, 9, 0.5, torch.zeros(shape, dtype=torch.bool)
            )

    def test_each_chosen_token_has_a_fate_of_its_own(self):
        tokens = torch.full(MANY, 2)
        inputs, _ = transformer.mask_tokens(tokens, 99, 5, 1.0, generator=seeded(1))
        masked = inputs == 99
        expect_share(masked[1:] & masked[:-1], 0.64, "neighbours in a column that are both masked")
        expect_share(masked[:, 1:] & masked[:, :-1], 0.64, "neighbours in a sequence that are both masked")

    def test_each_random_token_is_drawn_by_itself(self):
        inputs, _ = transformer.mask_tokens(torch.full(MANY, 2), 5000, 1000, 1.0, generator=seeded(1))
        words = (inputs != 5000) & (inputs != 2)
        found = len(inputs[words].unique())
        expect(found > 700, f"expected about {int(words.sum())} draws to give some 860 ids of 1000, got {found}")

    def test_the_number_of_chosen_tokens_is_random_too(self):
        """Independently: of two tokens often both or none is chosen."""
        generator, tokens = seeded(1), torch.tensor([[1, 2]])
        chosen = torch.cat([transformer.mask_tokens(tokens, 3, 9, 0.5, None, generator)[1] for _ in range(600)]) != -100
        expect_share(chosen.all(1), 0.25, "sequences of which both tokens are chosen")
        expect_share(~chosen.any(1), 0.25, "sequences of which none is")

    def test_special_is_only_read_and_draws_come_from_the_generator(self):
        tokens, special = torch.full((20, 30), 2), sample(20, 30, dtype=torch.bool)
        with unchanged(tokens, special), state_kept():
            found = [transformer.mask_tokens(tokens, 3, 5, 0.5, special, seeded(1)) for _ in range(2)]
        expect(all(map(torch.equal, *found)), "expected equal results for generators in equal states")


def scheduled(learner):
    """The learning rates of a whole schedule."""

    def run(warmup, total, floor):
        optimizer = optimizer_of(0.5)
        schedule = learner.WarmupCosine(optimizer, warmup, total, floor)
        rates = []
        for _ in range(total):
            rates += rates_of(optimizer)
            advance(optimizer, schedule)
        return rates

    return run


RULES = [
    # Ids go in, so that nothing tells the rules which dtype and device to move it to: specs of its own do.
    rule("Embedding", lambda s: (s.ints(s.n, 4, high=7),), build=lambda m: m.Embedding(7, 3, 2), any_device=False,
         refused=("embedding",), module={"shows": (7, 3, 2), "state": ("weight",)},
         fails=lambda s: (s.ints(3, low=7, high=9),)),
    # No tensor goes in.
    rule("sinusoidal_positions", lambda s: (4, 6), fails=lambda s: (4, 5)),
    rule("scaled_dot_product_attention",
         lambda s: (s(s.n, 2, 4, 3), s(s.n, 2, 5, 3), s(s.n, 2, 5, 6), s.bools(s.n, 1, 4, 5)), refused=("attention",),
         also={"no mask": {"make": lambda s: (s(s.n, 4, 3), s(s.n, 5, 3), s(s.n, 5, 6))},
               "one sequence": {"make": lambda s: (s(s.n, 3), s(5, 3), s(5, 6), s.bools(5))}},
         fails=lambda s: (s(2, 4, 3), s(2, 5, 4), s(2, 5, 6))),
    rule("MultiHeadAttention", lambda s: (s(s.n, 4, 6), s(s.n, 5, 6), s(s.n, 5, 6), s.bools(s.n, 1, 4, 5)),
         also={"itself": {"make": lambda s: (s(s.n, 4, 6),)},
               "no bias": {"build": lambda m: m.MultiHeadAttention(6, 2, bias=False)}},
         build=lambda m: m.MultiHeadAttention(6, 3, dropout=0.25).eval(), refused=("attention",),
         integers_refused=False, module={"shows": (6, 3, 0.25)}),
    rule("warmup_cosine", lambda s: (3, 4, 10, 0.1), fails=lambda s: (-1, 4, 10, 0.1)),
    rule("WarmupCosine", lambda s: (4, 10, 0.1), build=scheduled, fails=lambda s: (11, 10, 0.1)),
    # Images may be of any dtype.
    rule("random_crop", lambda s: (s(s.n, 2, 4, 5), 2), random=True, integers_refused=False,
         also={"padding 0": {"make": lambda s: (s(s.n, 2, 4, 5), 0)}},
         fails=lambda s: (s(2, 2, 4, 5), -1)),
    rule("random_flip", lambda s: (s(s.n, 2, 4, 5), 0.5), random=True, integers_refused=False,
         also={"p 0": {"make": lambda s: (s(s.n, 2, 4, 5), 0.0)}, "p 1": {"make": lambda s: (s(s.n, 2, 4, 5), 1.0)}},
         fails=lambda s: (s(2, 2, 4, 5), 1.5)),
    # The targets do not depend on x, so that gradients have a spec of their own.
    rule("mixup", lambda s: (s(s.n, 3), s.ints(s.n, high=4), 4, 0.5), random=True, differentiable=False,
         also={"alpha 0": {"make": lambda s: (s(s.n, 3), s.ints(s.n, high=4), 4, 0.0)}},
         fails=lambda s: (s(3, 2), s.ints(3, low=4, high=9), 4, 0.5)),
    # Of a few tokens none may be chosen, which can save operations: their number has a spec of its own.
    rule("mask_tokens", lambda s: (s.ints(s.n, 6, high=9), 3, 9, 0.4), random=True, vectorised=False,
         fails=lambda s: (s.ints(2, 3), 3, 9, 1.5)),
]  # fmt: skip
