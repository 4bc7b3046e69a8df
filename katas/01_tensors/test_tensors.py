"""The specs of kata 01. One class a function; the house rules that all of them share are in the table at the end."""

import math
import statistics
from collections import OrderedDict, defaultdict, deque, namedtuple
from dataclasses import dataclass
from typing import NamedTuple

import pytest
import tensors
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from dojo import devices
from dojo.compare import Mismatch, assert_same, assert_same_gradients, expect, gradients_of, refuses
from dojo.guards import count_ops, shares_memory, state_kept, unchanged
from dojo.rules import rule
from dojo.strategies import sample, shapes, sizes, strided

FLOAT64 = {"rtol": 1e-12, "atol": 1e-12}
# For another number of dimensions torch's own error is as good as ours, silence is not.
LOUD = (ValueError, RuntimeError, IndexError)
INTEGERS = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]


def assert_info(x, **wanted):
    """describe(x) has these fields."""
    info = tensors.describe(x)
    expect(isinstance(info, tensors.TensorInfo), f"expected a TensorInfo, got {type(info).__name__}")
    for field, value in wanted.items():
        found = getattr(info, field)
        expect(found == value, f"expected {field} to be {value!r}, got {found!r}", f"for strides {x.stride()}")


class TestDescribe:
    def test_tells_all_of_a_contiguous_tensor(self):
        assert_info(
            torch.zeros(2, 3, 5),
            shape=(2, 3, 5),
            ndim=3,
            dtype=torch.float32,
            device=torch.device("cpu"),
            strides=(15, 5, 1),
            contiguous=True,
            nbytes=120,
            storage_nbytes=120,
        )

    def test_a_slice_shows_a_part_of_its_storage(self):
        assert_info(torch.zeros(4, 3)[1:3], strides=(3, 1), contiguous=True, nbytes=24, storage_nbytes=48)
        assert_info(torch.zeros(4, 6)[:, ::2], strides=(6, 2), contiguous=False, nbytes=48, storage_nbytes=96)

    def test_a_transpose_has_other_strides_over_the_same_storage(self):
        assert_info(torch.zeros(4, 3).T, shape=(3, 4), strides=(1, 3), contiguous=False, nbytes=48, storage_nbytes=48)

    def test_an_expanded_tensor_counts_every_element_that_it_shows(self):
        """Its elements share memory: nbytes is what they would fill if they did not."""
        x = torch.zeros(3, 1, dtype=torch.int16).expand(3, 5)
        assert_info(x, shape=(3, 5), strides=(1, 0), contiguous=False, nbytes=30, storage_nbytes=6)

    def test_a_tensor_without_dimensions_has_an_empty_shape_and_no_strides(self):
        assert_info(torch.tensor(2.5), shape=(), ndim=0, strides=(), contiguous=True, nbytes=4, storage_nbytes=4)
        assert_info(torch.arange(6)[4], shape=(), ndim=0, strides=(), contiguous=True, nbytes=8, storage_nbytes=48)

    def test_an_empty_tensor_fills_nothing_though_its_storage_may(self):
        assert_info(torch.zeros(0, 3), shape=(0, 3), contiguous=True, nbytes=0, storage_nbytes=0)
        assert_info(torch.zeros(6)[2:2], shape=(0,), nbytes=0, storage_nbytes=24)

    @pytest.mark.parametrize("dtype", [*INTEGERS, torch.bool, torch.float16, torch.float64, torch.complex64])
    def test_counts_bytes_by_the_dtype(self, dtype):
        x = torch.zeros(5, 7, dtype=dtype)[2:]
        assert_info(x, dtype=dtype, nbytes=21 * dtype.itemsize, storage_nbytes=35 * dtype.itemsize)

    def test_a_view_in_another_dtype_looks_at_the_same_bytes(self):
        assert_info(torch.zeros(6)[3:].view(torch.int8), shape=(12,), nbytes=12, storage_nbytes=24)

    def test_strides_that_no_step_uses_do_not_matter(self):
        """Nothing is ever reached by the stride of a dimension of size 1: a single row is contiguous."""
        assert_info(torch.zeros(4, 6)[:1, 2:], strides=(6, 1), contiguous=True)
        assert_info(torch.zeros(4, 6)[:1, 2:3], strides=(6, 1), contiguous=True)
        assert_info(torch.zeros(4, 6)[:, :1], strides=(6, 1), contiguous=False)

    @given(shape=shapes(max_dims=4), layout=st.sampled_from(["transposed", "sliced", "expanded"]))
    def test_agrees_with_torch_for_any_strides(self, shape, layout):
        x = strided(sample(*shape), layout)
        assert_info(x, shape=shape, ndim=len(shape), strides=x.stride(), contiguous=x.is_contiguous())
        assert_info(x, nbytes=4 * math.prod(shape), storage_nbytes=len(x.untyped_storage()))

    def test_shape_and_strides_are_plain_tuples(self):
        """A description should outlive torch: tuples print, compare and pickle as what they are."""
        info = tensors.describe(sample(3, 4).T)
        for what, found in (("shape", info.shape), ("strides", info.strides)):
            expect(type(found) is tuple, f"expected {what} to be a tuple, got {type(found).__name__}: {found!r}")

    def test_names_the_device_that_the_tensor_is_on(self):
        assert_info(torch.zeros(2, 3, device="meta"), device=torch.device("meta"), nbytes=24)

    def test_the_order_of_channels_last_is_not_contiguous(self):
        x = torch.zeros(2, 3, 4, 5).to(memory_format=torch.channels_last)
        expect(
            tensors.describe(x).contiguous is False, "expected contiguous to be False: rows do not follow each other"
        )


class TestNchwToNhwc:
    def test_rows_and_columns_keep_their_order(self):
        images = torch.arange(24).view(1, 2, 3, 4)
        found = tensors.nchw_to_nhwc(images)
        assert_same(found[0, 2, 1], images[0, :, 2, 1])

    @given(b=sizes, c=sizes, h=sizes, w=sizes)
    def test_element_b_y_x_c_was_element_b_c_y_x(self, b, c, h, w):
        images = torch.arange(b * c * h * w).view(b, c, h, w)
        wanted = torch.stack([images[:, channel] for channel in range(c)], dim=-1)
        assert_same(tensors.nchw_to_nhwc(images), wanted)

    def test_a_write_to_the_result_shows_in_the_input(self):
        images = torch.zeros(2, 3, 5, 7)
        tensors.nchw_to_nhwc(images)[1, 4, 6, 2] = 8.0
        wanted = torch.zeros(2, 3, 5, 7)
        wanted[1, 2, 4, 6] = 8.0
        assert_same(images, wanted, what="the input")

    def test_a_write_to_the_input_shows_in_the_result(self):
        images = torch.zeros(2, 3, 5, 7)
        found = tensors.nchw_to_nhwc(images)
        images[1, 2, 4, 6] = 9.0
        wanted = torch.zeros(2, 5, 7, 3)
        wanted[1, 4, 6, 2] = 9.0
        assert_same(found, wanted)

    def test_is_not_the_memory_format_channels_last(self):
        """channels_last changes strides and keeps the shape; here the shape changes and the memory stays."""
        images = sample(2, 3, 5, 7).contiguous(memory_format=torch.channels_last)
        found = tensors.nchw_to_nhwc(images)
        assert_same(found, torch.stack([images[:, k] for k in range(3)], dim=-1))
        expect(shares_memory(found, images), "expected a view of the images' memory, got a copy")

    @pytest.mark.parametrize("shape", [(0, 3, 5, 7), (2, 0, 5, 7), (2, 3, 0, 7), (2, 3, 5, 0)], ids=str)
    def test_any_size_may_be_zero(self, shape):
        b, c, h, w = shape
        assert_same(tensors.nchw_to_nhwc(torch.zeros(shape)), torch.zeros(b, h, w, c))

    @pytest.mark.parametrize("shape", [(3, 5, 7), (2, 6), (5, 2, 7, 3, 4)], ids=str)
    def test_refuses_what_is_no_batch_of_images(self, shape):
        with refuses(LOUD):
            tensors.nchw_to_nhwc(sample(*shape))


class TestOuterSum:
    def test_rows_belong_to_a_and_columns_to_b(self):
        found = tensors.outer_sum(torch.tensor([10.0, 20.0]), torch.tensor([1.0, 2.0, 3.0]))
        assert_same(found, torch.tensor([[11.0, 12.0, 13.0], [21.0, 22.0, 23.0]]))

    @given(a=st.lists(st.integers(-99, 99), max_size=5), b=st.lists(st.integers(-99, 99), max_size=5))
    def test_element_i_j_is_a_i_plus_b_j(self, a, b):
        wanted = torch.tensor([[x + y for y in b] for x in a], dtype=torch.int64).view(len(a), len(b))
        assert_same(tensors.outer_sum(torch.tensor(a, dtype=torch.int64), torch.tensor(b, dtype=torch.int64)), wanted)

    def test_large_integers_stay_exact(self):
        """A detour through floating point would round them."""
        a, b = torch.tensor([2**53, 2**60]), torch.tensor([1, 3, 5])
        assert_same(tensors.outer_sum(a, b), torch.tensor([[n + k for k in (1, 3, 5)] for n in (2**53, 2**60)]))

    def test_is_as_precise_as_float64(self):
        a, b = torch.tensor([1.0, -1.0], dtype=torch.float64), torch.tensor([1e-12, 3e-12, 0], dtype=torch.float64)
        wanted = [[1 + 1e-12, 1 + 3e-12, 1], [-1 + 1e-12, -1 + 3e-12, -1]]
        assert_same(tensors.outer_sum(a, b), torch.tensor(wanted, dtype=torch.float64), rtol=0, atol=1e-15)

    @pytest.mark.parametrize(
        "one, other",
        [
            (torch.int64, torch.float32),
            (torch.int32, torch.int64),
            (torch.uint8, torch.int8),
            (torch.int16, torch.float16),
            (torch.float32, torch.float64),
            (torch.float16, torch.bfloat16),
            (torch.bool, torch.int32),
            (torch.bool, torch.float32),
            (torch.int8, torch.int8),
        ],
        ids=str,
    )
    def test_dtypes_promote_as_in_torchs_addition(self, one, other):
        a, b = torch.tensor([1, 0]).to(one), torch.tensor([2, 5, 3]).to(other)
        wanted = torch.tensor([[3, 6, 4], [2, 5, 3]]).to(torch.promote_types(one, other))
        assert_same(tensors.outer_sum(a, b), wanted)
        assert_same(tensors.outer_sum(b, a), wanted.T.contiguous())

    def test_a_vector_may_be_added_to_itself(self):
        a = torch.tensor([1.0, 2.0, 4.0])
        assert_same(tensors.outer_sum(a, a), torch.tensor([[2.0, 3.0, 5.0], [3.0, 4.0, 6.0], [5.0, 6.0, 8.0]]))

    @pytest.mark.parametrize("n, m", [(0, 3), (4, 0), (0, 0), (1, 3), (4, 1)])
    def test_either_may_be_empty_or_single(self, n, m):
        assert_same(tensors.outer_sum(torch.ones(n), torch.ones(m)), torch.full((n, m), 2.0))

    @pytest.mark.parametrize("n, m", [(1, 3), (4, 1), (1, 1)])
    def test_a_table_as_large_as_a_vector_is_no_place_to_write(self, n, m):
        """The table of one row has room in b's memory, and b is the caller's."""
        a, b = sample(n), sample(m)
        with unchanged(a, b, names=("a", "b")):
            tensors.outer_sum(a, b)

    @pytest.mark.parametrize("shape", [(2, 5), (3, 4, 1), ()], ids=str)
    def test_refuses_what_is_no_vector(self, shape):
        """Broadcasting would go on and give a table of another shape."""
        with refuses(LOUD):
            tensors.outer_sum(sample(*shape), sample(7))
        with refuses(LOUD):
            tensors.outer_sum(sample(7), sample(*shape))


class TestStrictMse:
    def test_one_wrong_element_counts_by_its_share(self):
        assert_same(tensors.strict_mse(torch.zeros(5), torch.tensor([0.0, 0, 0, -3, 0])), torch.tensor(1.8))

    @given(shape=shapes(max_dims=3))
    def test_is_the_mean_of_the_squared_differences(self, shape):
        a, b = sample(*shape, dtype=torch.float64), sample(*shape, dtype=torch.float64)
        pairs = zip(a.flatten().tolist(), b.flatten().tolist(), strict=True)
        wanted = statistics.fmean((p - t) ** 2 for p, t in pairs)
        assert_same(tensors.strict_mse(a, b), torch.tensor(wanted, dtype=torch.float64), **FLOAT64)

    def test_two_numbers_without_dimensions_have_one_shape(self):
        assert_same(tensors.strict_mse(torch.tensor(1.0), torch.tensor(4.0)), torch.tensor(9.0))

    def test_small_differences_survive_in_float64(self):
        """float32 on the way would lose the ninth digit."""
        target = sample(3, 4, dtype=torch.float64)
        found = tensors.strict_mse(target + 1e-9, target)
        assert_same(found, torch.tensor(1e-18, dtype=torch.float64), rtol=1e-5, atol=0)

    def test_is_precise_far_from_zero(self):
        target = torch.tensor([10000.0, 10001.0, 9998.0])
        assert_same(tensors.strict_mse(target + 1, target), torch.tensor(1.0))

    def test_both_get_a_gradient(self):
        p, t = sample(3, 4).requires_grad_(), sample(3, 4).requires_grad_()
        to_p, to_t = torch.autograd.grad(tensors.strict_mse(p, t), (p, t))
        assert_same(to_p, (2 / 12) * (p - t).detach())
        assert_same(to_t, (2 / 12) * (t - p).detach())

    @pytest.mark.parametrize(
        "one, other",
        [((4,), (4, 1)), ((4,), (1, 4)), ((3, 5), (5,)), ((3, 5), (1, 5)), ((3, 5), (3, 1)), ((2, 3), (3, 2)),
         ((2, 3), (6,)), ((1,), ()), ((1, 1), (1,)), ((7,), (6,)), ((0, 3), (1, 3))],
        ids=str,
    )  # fmt: skip
    def test_refuses_different_shapes_also_where_they_broadcast(self, one, other):
        """(n,) against (n, 1) gives the mean of all n·n pairs: a plausible number, and never what was meant."""
        with refuses(ValueError, mentions=[*one, *other]):
            tensors.strict_mse(sample(*one), sample(*other))
        with refuses(ValueError, mentions=[*one, *other]):
            tensors.strict_mse(sample(*other), sample(*one))

    @pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8], ids=str)
    def test_refuses_integers_on_either_side(self, dtype):
        with refuses(TypeError):
            tensors.strict_mse(sample(4), torch.ones(4, dtype=dtype))
        with refuses(TypeError):
            tensors.strict_mse(torch.ones(4, dtype=dtype), sample(4))


# Sizes that often fit: 1 is as frequent as all others.
FITTING = st.lists(st.one_of(st.just(1), st.sampled_from([3, 3, 3, 0, 2])), max_size=4).map(tuple)


class TestBroadcastShape:
    @pytest.mark.parametrize(
        "given_shapes, wanted",
        [
            ([(5, 1, 3), (4, 1)], (5, 4, 3)),
            ([(4, 1), (5, 1, 3)], (5, 4, 3)),
            ([(3,), (2, 1), (7, 1, 1)], (7, 2, 3)),
            ([(), (6, 2)], (6, 2)),
            ([(1, 1), (1,)], (1, 1)),
            ([(8, 1, 6, 1), (7, 1, 5)], (8, 7, 6, 5)),
        ],
        ids=str,
    )
    def test_aligns_shapes_at_their_last_dimension(self, given_shapes, wanted):
        found = tensors.broadcast_shape(*given_shapes)
        expect(found == wanted, f"expected {wanted}, got {found!r}")

    @given(given_shapes=st.lists(FITTING, max_size=4))
    def test_agrees_with_what_torch_does_to_tensors(self, given_shapes):
        try:
            wanted = tuple(sum((torch.zeros(s) for s in given_shapes), torch.zeros(())).shape)
        except RuntimeError:
            with refuses(ValueError):
                tensors.broadcast_shape(*given_shapes)
        else:
            found = tensors.broadcast_shape(*given_shapes)
            expect(found == wanted, f"expected {wanted}, got {found!r}")

    def test_no_shapes_give_the_shape_of_a_number(self):
        assert tensors.broadcast_shape() == ()

    @pytest.mark.parametrize("shape", [(), (5,), (2, 0, 3), (1, 1)], ids=str)
    def test_one_shape_gives_itself(self, shape):
        assert tensors.broadcast_shape(shape) == shape

    @pytest.mark.parametrize(
        "given_shapes, wanted",
        [([(0,), (1,)], (0,)), ([(1,), (0,)], (0,)), ([(1, 3), (0, 1)], (0, 3)), ([(0,), (0,)], (0,)),
         ([(0, 4), ()], (0, 4)), ([(2, 1), (0,)], (2, 0))],
        ids=str,
    )  # fmt: skip
    def test_a_one_gives_way_to_a_zero(self, given_shapes, wanted):
        """0 is a size like any other: the largest size would be the wrong answer."""
        found = tensors.broadcast_shape(*given_shapes)
        expect(found == wanted, f"expected {wanted}, got {found!r}")

    @pytest.mark.parametrize(
        "given_shapes", [([5, 1], [3]), (torch.Size([5, 1]), torch.Size([3]))], ids=["list", "Size"]
    )
    def test_any_sequence_of_sizes_will_do_and_the_result_is_a_tuple(self, given_shapes):
        for shapes_ in (given_shapes, ([5, 3],), ([5, 1], (5, 3))):
            found = tensors.broadcast_shape(*shapes_)
            expect(isinstance(found, tuple), f"expected a tuple, got {type(found).__name__}: {found!r}")
            expect(found == (5, 3), f"expected (5, 3), got {found!r}")

    def test_lists_are_left_as_they_are(self):
        long, short = [5, 1, 3], [4, 1]
        tensors.broadcast_shape(long, short)
        assert (long, short) == ([5, 1, 3], [4, 1])

    def test_makes_no_tensors(self):
        """Shapes are numbers: a tensor of 10^15 elements could not be made to find out."""
        with count_ops() as ops:
            found = tensors.broadcast_shape((10**5, 1, 10**5), (10**5, 1))
        assert found == (10**5, 10**5, 10**5)
        expect(not ops, f"expected arithmetic on the sizes, tensors were made: {', '.join(ops)}")

    @pytest.mark.parametrize(
        "given_shapes, clash",
        [
            ([(3,), (4,)], [3, 4]),
            ([(5, 2, 3), (5, 4, 3)], [2, 4]),
            ([(6, 7, 1), (8, 5)], [7, 8]),
            ([(2, 1), (1, 1), (7, 1)], [2, 7]),
            ([(1, 5), (6,), (6,)], [5, 6]),
            ([(0,), (2,)], [0, 2]),
            ([(2,), (0,)], [2, 0]),
            ([(3, 1), (2, 0, 1)], [3, 0]),
        ],
        ids=str,
    )
    def test_names_both_sizes_that_clash(self, given_shapes, clash):
        with refuses(ValueError, mentions=clash):
            tensors.broadcast_shape(*given_shapes)

    @pytest.mark.parametrize(
        "given_shapes, wrong",
        [([(-1,)], -1), ([(2, -3)], -3), ([(1,), (-2,)], -2), ([(-2,), (1,)], -2), ([(-4,), (-4,)], -4),
         ([(3,), (-1,)], -1), ([(), (5, -7)], -7), ([(-5, 3), (3,)], -5), ([(2, 2), (-1, 1, 1)], -1)],
        ids=str,
    )  # fmt: skip
    def test_refuses_negative_sizes_wherever_they_stand(self, given_shapes, wrong):
        with refuses(ValueError, mentions=[wrong]):
            tensors.broadcast_shape(*given_shapes)


class TestOneHot:
    def test_the_first_and_the_last_class_count(self):
        assert_same(tensors.one_hot(torch.tensor([2, 0]), num_classes=3), torch.tensor([[0.0, 0, 1], [1, 0, 0]]))

    @given(shape=shapes(max_dims=3, min_size=0), num_classes=sizes)
    def test_there_is_a_one_where_the_index_points_and_zero_elsewhere(self, shape, num_classes):
        index = torch.randint(num_classes, shape)
        rows = [[float(i == k) for k in range(num_classes)] for i in index.flatten().tolist()]
        wanted = torch.tensor(rows).view(*shape, num_classes)
        assert_same(tensors.one_hot(index, num_classes), wanted)

    def test_classes_that_no_index_names_have_columns_too(self):
        assert_same(tensors.one_hot(torch.tensor([1, 1]), 5), torch.tensor([[0.0, 1, 0, 0, 0]] * 2))

    def test_a_single_number_gives_a_single_row(self):
        assert_same(tensors.one_hot(torch.tensor(2), 4), torch.tensor([0.0, 0, 1, 0]))

    @pytest.mark.parametrize("shape", [(0,), (2, 0), (0, 3)], ids=str)
    def test_no_indices_give_no_rows(self, shape):
        assert_same(tensors.one_hot(torch.zeros(shape, dtype=torch.int64), 4), torch.zeros(*shape, 4))

    @pytest.mark.parametrize(
        "dtype", [torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool], ids=str
    )
    def test_has_the_dtype_that_was_asked_for(self, dtype):
        wanted = torch.tensor([[0, 1, 0], [0, 0, 1]]).to(dtype)
        assert_same(tensors.one_hot(torch.tensor([1, 2]), 3, dtype=dtype), wanted)
        assert_same(tensors.one_hot(torch.tensor([1, 2]), 3, dtype), wanted)

    def test_is_float32_whatever_the_default_dtype_is(self):
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        try:
            found = tensors.one_hot(torch.tensor([1]), 2)
        finally:
            torch.set_default_dtype(before)
        assert_same(found, torch.tensor([[0.0, 1.0]], dtype=torch.float32))

    @pytest.mark.parametrize("dtype", INTEGERS, ids=str)
    def test_any_integer_dtype_is_an_index_also_for_more_classes_than_it_can_count(self, dtype):
        """300 does not fit in 8 bits: compared as int8 it is 44."""
        found = tensors.one_hot(torch.tensor([[100], [0], [43], [5]], dtype=dtype), 300)
        wanted = torch.zeros(4, 1, 300)
        for row, k in enumerate((100, 0, 43, 5)):
            wanted[row, 0, k] = 1.0
        assert_same(found, wanted)

    @pytest.mark.parametrize(
        "index, wrong",
        [([0, -1, 2], -1), ([0, 4, 1], 4), ([[3], [7]], 7), (-4, -4), (4, 4), ([1, 2**32 + 1], 2**32 + 1)],
        ids=str,
    )
    def test_refuses_an_index_that_is_no_class(self, index, wrong):
        """A negative index does not count from the end here: a class -1 is a mistake in the data."""
        with refuses(IndexError, mentions=[wrong]):
            tensors.one_hot(torch.tensor(index), 4)

    @pytest.mark.parametrize("dtype", [torch.int8, torch.int16, torch.int32], ids=str)
    def test_refuses_a_negative_index_in_a_small_dtype(self, dtype):
        with refuses(IndexError, mentions=[-1]):
            tensors.one_hot(torch.tensor([0, -1], dtype=dtype), 300)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bool], ids=str)
    def test_refuses_an_index_that_is_not_of_integers(self, dtype):
        for index in (torch.tensor([0, 1]).to(dtype), torch.zeros(0, dtype=dtype)):
            with refuses(TypeError):
                tensors.one_hot(index, 3)

    @pytest.mark.parametrize("num_classes", [0, -2])
    def test_refuses_less_than_one_class_also_without_indices(self, num_classes):
        with refuses(ValueError, mentions=[num_classes]):
            tensors.one_hot(torch.zeros(0, dtype=torch.int64), num_classes)


def group_by_group(x, dim, eps):
    """Each group standardized apart, one number at a time, in Python's own arithmetic."""
    dims = sorted(d % x.ndim for d in (dim if isinstance(dim, tuple) else (dim,)))
    rest = [d for d in range(x.ndim) if d not in dims]
    groups = x.double().permute(*rest, *dims).flatten(len(rest)).reshape(-1, math.prod(x.shape[d] for d in dims))
    rows = []
    for group in groups.tolist():
        mean, variance = statistics.fmean(group), statistics.pvariance(group)
        rows.append([(value - mean) / math.sqrt(variance + eps) for value in group])
    wanted = torch.tensor(rows, dtype=torch.float64).view([x.shape[d] for d in (*rest, *dims)])
    order = [*rest, *dims]
    return wanted.permute([order.index(d) for d in range(x.ndim)]).contiguous()


class TestStandardize:
    def test_the_variance_is_divided_by_the_number_of_values(self):
        x = torch.tensor([[1.0, 3.0], [10.0, 30.0]])
        assert_same(tensors.standardize(x, dim=1, eps=0.0), torch.tensor([[-1.0, 1.0], [-1.0, 1.0]]))

    @given(data=st.data(), shape=shapes(min_dims=1, max_dims=3))
    def test_each_group_is_moved_to_mean_0_and_scaled_by_its_own_deviation(self, data, shape):
        dims = data.draw(st.lists(st.integers(0, len(shape) - 1), min_size=1, unique=True))
        signed = tuple(d - len(shape) if data.draw(st.booleans()) else d for d in dims)
        dim = signed[0] if len(signed) == 1 and data.draw(st.booleans()) else signed
        x = sample(*shape, dtype=torch.float64)
        assert_same(tensors.standardize(x, dim, eps=0.3), group_by_group(x, dim, 0.3), **FLOAT64)

    def test_a_tuple_of_dimensions_is_one_group(self):
        """One dimension after the other gives other numbers."""
        x = sample(2, 3, 4, dtype=torch.float64)
        for dim in ((0, 2), (2, 0), (-1, 0), (-3, -1)):
            assert_same(tensors.standardize(x, dim, eps=0.01), group_by_group(x, (0, 2), 0.01), **FLOAT64)

    @pytest.mark.parametrize("dim", [0, 1, 2, -1, -2, -3, (1,), (-2,), (0, 1, 2)], ids=str)
    def test_any_dimension_will_do(self, dim):
        x = sample(4, 3, 5, dtype=torch.float64)
        assert_same(tensors.standardize(x, dim), group_by_group(x, dim, 1e-5), **FLOAT64)

    def test_eps_is_added_to_the_variance_under_the_root(self):
        x = torch.tensor([-1.0, 1.0, 3.0, -3.0], dtype=torch.float64)  # variance 5
        assert_same(tensors.standardize(x, 0, eps=4.0), x / 3, **FLOAT64)
        assert_same(tensors.standardize(x, 0, 11.0), x / 4, **FLOAT64)

    def test_eps_is_one_hundred_thousandth_unless_told(self):
        x = torch.tensor([-1.0, 1.0], dtype=torch.float64) * 1e-3  # variance 1e-6: without eps this gives -1 and 1
        assert_same(tensors.standardize(x, 0), x / math.sqrt(1.1e-5), **FLOAT64)

    def test_tiny_and_big_values_keep_their_form(self):
        x = sample(3, 7, dtype=torch.float64)
        for scale in (1e-6, 1e6):
            found = tensors.standardize(x * scale, 1, eps=0.0)
            assert_same(found, group_by_group(x, 1, 0.0), rtol=1e-9, atol=1e-9)

    def test_is_precise_far_from_zero(self):
        """The mean of the squares less the square of the mean cancels: at 10,000 nothing is left in float32."""
        x = sample(5, 64) + 10_000
        assert_same(tensors.standardize(x, 1), group_by_group(x, 1, 1e-5).float(), rtol=0, atol=1e-2)
        x = sample(5, 64, dtype=torch.float64) + 1e8
        assert_same(tensors.standardize(x, 1), group_by_group(x, 1, 1e-5), rtol=0, atol=1e-5)

    def test_a_group_of_equal_values_gives_zeros_and_finite_gradients(self):
        """Its deviation is 0: where a square root of it alone is taken, the gradient is nan."""
        x = torch.tensor([[3.0, 3.0, 3.0, 3.0], [1.0, 2.0, 4.0, 8.0]], dtype=torch.float64).requires_grad_()
        found = tensors.standardize(x, 1, eps=0.01)
        assert_same(found[0], torch.zeros(4, dtype=torch.float64))
        (gradient,) = gradients_of(found, [x])
        expect(bool(gradient.isfinite().all()), f"expected finite gradients, got {gradient.tolist()}")

    def test_a_group_of_one_value_gives_zero_and_finite_gradients(self):
        x = sample(3, 1).requires_grad_()
        found = tensors.standardize(x, 1)
        assert_same(found, torch.zeros(3, 1))
        assert_same(gradients_of(found, [x])[0], torch.zeros(3, 1))

    def test_mean_and_deviation_pass_gradients_on(self):
        """A mean taken as a constant gives the right values and the wrong gradient."""
        x = sample(4, 6, dtype=torch.float64).requires_grad_()
        wanted = torch.nn.functional.layer_norm(x, (6,), eps=0.5)
        assert_same_gradients(tensors.standardize(x, -1, eps=0.5), wanted, [x], rtol=1e-9, atol=1e-9)

    @pytest.mark.parametrize("shape, dim", [((0, 5), 1), ((5, 0), 0), ((3, 0, 2), (0, 2))], ids=str)
    def test_without_groups_there_is_nothing_to_do(self, shape, dim):
        assert_same(tensors.standardize(torch.zeros(shape), dim), torch.zeros(shape))

    @pytest.mark.parametrize("dtype", [torch.int64, torch.uint8], ids=str)
    def test_refuses_integers_of_any_width(self, dtype):
        with refuses(TypeError):
            tensors.standardize(torch.ones(2, 3, dtype=dtype), 0)


def pair_by_pair(x, y):
    """The squared distances of all pairs of rows, pair by pair."""
    return torch.stack([torch.stack([((a - b) ** 2).sum() for b in y]) for a in x])


class TestPairwiseSqDists:
    def test_rows_belong_to_x_and_columns_to_y(self):
        x, y = torch.tensor([[0.0, 0.0], [1.0, 1.0]]), torch.tensor([[3.0, 4.0], [1.0, 1.0], [0.0, 2.0]])
        assert_same(tensors.pairwise_sq_dists(x, y), torch.tensor([[25.0, 2.0, 4.0], [13.0, 0.0, 2.0]]))

    @given(n=st.integers(0, 4), m=st.integers(0, 4), d=st.integers(0, 4))
    def test_sums_the_squared_differences_of_every_pair(self, n, m, d):
        x, y = sample(n, d, dtype=torch.float64), sample(m, d, dtype=torch.float64)
        wanted = [[sum((p - q) ** 2 for p, q in zip(a, b, strict=True)) for b in y.tolist()] for a in x.tolist()]
        wanted = torch.tensor(wanted, dtype=torch.float64).view(n, m)
        assert_same(tensors.pairwise_sq_dists(x, y), wanted, **FLOAT64)

    @pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
    def test_equal_rows_are_at_distance_zero_exactly(self, scale):
        """|x|² - 2xy + |y|² gives something near zero, on either side of it."""
        x = sample(9, 5) * scale
        found = tensors.pairwise_sq_dists(x, x.clone())
        expect(bool((found.diagonal() == 0).all()), f"expected exactly 0, got {found.diagonal().tolist()}")
        expect(bool((found >= 0).all()), f"expected no negative distance, got {found.min().item()}")

    def test_is_precise_far_from_the_origin(self):
        x, y = sample(6, 3), sample(4, 3)
        far_x, far_y = x + 10_000, y + 10_000
        wanted = pair_by_pair(far_x.double(), far_y.double())
        assert_same(tensors.pairwise_sq_dists(far_x, far_y), wanted.float(), rtol=1e-5, atol=1e-6)
        far_x, far_y = x.double() + 1e8, y.double() + 1e8
        assert_same(tensors.pairwise_sq_dists(far_x, far_y), pair_by_pair(far_x, far_y), rtol=1e-9, atol=1e-9)

    def test_tiny_distances_do_not_vanish(self):
        x = torch.zeros(1, 2, dtype=torch.float64)
        found = tensors.pairwise_sq_dists(x, x + 1e-9)
        assert_same(found, torch.tensor([[2e-18]], dtype=torch.float64), rtol=1e-9, atol=0)

    def test_equal_rows_have_finite_gradients(self):
        """The root of a distance of 0 has no slope: squaring it again gives nan."""
        x = sample(4, 3).requires_grad_()
        y = x.detach().clone().requires_grad_()
        for gradient in gradients_of(tensors.pairwise_sq_dists(x, y), [x, y]):
            expect(bool(gradient.isfinite().all()), "expected finite gradients, got nan or inf")
        (gradient,) = gradients_of(tensors.pairwise_sq_dists(x, x).diagonal(), [x])
        assert_same(gradient, torch.zeros(4, 3))

    def test_rows_without_columns_are_nowhere_apart(self):
        assert_same(tensors.pairwise_sq_dists(torch.zeros(2, 0), torch.zeros(3, 0)), torch.zeros(2, 3))

    @pytest.mark.parametrize("n, m", [(0, 3), (4, 0), (0, 0)])
    def test_no_rows_give_an_empty_table(self, n, m):
        assert_same(tensors.pairwise_sq_dists(sample(n, 5), sample(m, 5)), torch.zeros(n, m))

    @pytest.mark.parametrize("one, other", [(3, 4), (1, 3), (3, 1), (0, 1), (2, 0)])
    def test_refuses_rows_of_different_length_also_where_they_broadcast(self, one, other):
        with refuses(ValueError, mentions=[one, other]):
            tensors.pairwise_sq_dists(sample(5, one), sample(6, other))

    @pytest.mark.parametrize("shape", [(3,), (3, 2, 3), ()], ids=str)
    def test_refuses_what_is_no_list_of_rows(self, shape):
        with refuses(LOUD):
            tensors.pairwise_sq_dists(sample(*shape), sample(2, 3))
        with refuses(LOUD):
            tensors.pairwise_sq_dists(sample(2, 3), sample(*shape))

    def test_refuses_integers_on_either_side(self):
        for dtype in (torch.int64, torch.int32, torch.uint8):
            with refuses(TypeError):
                tensors.pairwise_sq_dists(sample(2, 3), torch.ones(4, 3, dtype=dtype))
            with refuses(TypeError):
                tensors.pairwise_sq_dists(torch.ones(4, 3, dtype=dtype), sample(2, 3))

    def test_many_equal_rows_far_from_0_are_at_distance_0(self):
        """x² - 2xy + y², which is fast for many rows, loses all digits where both are large."""
        x = sample(60, 3) + 1000
        found = tensors.pairwise_sq_dists(x, x)
        expect(bool((found.diagonal() == 0).all()), "expected exactly 0 between equal rows, for 60 rows")
        assert_same(found, (x[:, None] - x).square().sum(-1), rtol=1e-4)


class _Reads(TorchDispatchMode):
    """Notes the operations that take rows out of a tensor."""

    PICKS = {"index", "_unsafe_index", "gather", "take", "index_select", "embedding", "take_along_dim"}

    def __init__(self, watched):
        super().__init__()
        self.watched, self.seen = watched, []

    @classmethod
    def _should_skip_dynamo(cls):
        return False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        given_tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, torch.Tensor)]
        if name in self.PICKS and any(shares_memory(x, self.watched) for x in given_tensors):
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


def row_by_row(x, index):
    """The rows picked one at a time."""
    b, k = index.shape
    picked = [[x[i, int(index[i, j])] for j in range(k)] for i in range(b)]
    return torch.stack([torch.stack(rows) for rows in picked])


class TestBatchedGather:
    def test_every_batch_element_has_its_own_choice(self):
        x = torch.arange(12.0).view(2, 3, 2)
        found = tensors.batched_gather(x, torch.tensor([[0, 2], [2, 1]]))
        assert_same(found, torch.tensor([[[0.0, 1.0], [4.0, 5.0]], [[10.0, 11.0], [8.0, 9.0]]]))

    @given(b=sizes, n=sizes, d=sizes, k=sizes, dtype=st.sampled_from([torch.int32, torch.int64]))
    def test_row_j_of_batch_i_is_the_row_that_index_i_j_names(self, b, n, d, k, dtype):
        x, index = sample(b, n, d), sample(b, k, low=-n, high=n, dtype=dtype)
        assert_same(tensors.batched_gather(x, index), row_by_row(x, index))

    @pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
    def test_negative_indices_count_from_the_end(self, dtype):
        x = sample(2, 3, 4)
        found = tensors.batched_gather(x, torch.tensor([[-1, -3, 2], [0, -2, -1]], dtype=dtype))
        assert_same(found, torch.stack([x[0, [2, 0, 2]], x[1, [0, 1, 2]]]))

    def test_is_exact_in_float64(self):
        x = sample(2, 3, 4, dtype=torch.float64)
        index = torch.tensor([[1, 1], [2, 0]])
        assert_same(tensors.batched_gather(x, index), row_by_row(x, index), rtol=0, atol=0)

    def test_gradients_add_up_where_an_index_repeats(self):
        """A row that was picked twice matters twice, also where -1 names it."""
        x = sample(2, 3, 4).requires_grad_()
        weight = sample(2, 4, 4)
        found = tensors.batched_gather(x, torch.tensor([[2, 2, -1, 0], [1, -2, 0, 1]]))
        (gradient,) = torch.autograd.grad((found * weight).sum(), x)
        wanted = torch.zeros(2, 3, 4)
        for i, j, row in ((0, 0, 2), (0, 1, 2), (0, 2, 2), (0, 3, 0), (1, 0, 1), (1, 1, 1), (1, 2, 0), (1, 3, 1)):
            wanted[i, row] += weight[i, j]
        assert_same(gradient, wanted)

    @pytest.mark.parametrize(
        "b, n, d, k", [(0, 3, 4, 2), (2, 3, 4, 0), (2, 3, 0, 5), (2, 0, 4, 0), (0, 0, 0, 3)], ids=str
    )
    def test_any_size_may_be_zero(self, b, n, d, k):
        found = tensors.batched_gather(torch.zeros(b, n, d), torch.zeros(b, k, dtype=torch.int64))
        assert_same(found, torch.zeros(b, k, d))

    @pytest.mark.parametrize("wrong", [3, -4, 7, -12, 2**32 + 1, -(2**32)])
    def test_refuses_an_index_outside_the_rows(self, wrong):
        index = torch.tensor([[0, 1, -3], [2, wrong, 0]])
        with refuses(IndexError, mentions=[wrong]):
            tensors.batched_gather(sample(2, 3, 5), index)

    @pytest.mark.parametrize("wrong", [3, -4])
    def test_refuses_an_index_outside_the_rows_in_int32_too(self, wrong):
        with refuses(IndexError, mentions=[wrong]):
            tensors.batched_gather(sample(2, 3, 5), torch.tensor([[0], [wrong]], dtype=torch.int32))

    def test_refuses_any_index_where_there_are_no_rows(self):
        with refuses(IndexError):
            tensors.batched_gather(torch.zeros(2, 0, 5), torch.tensor([[0], [0]]))

    @pytest.mark.parametrize("wrong", [3, -4])
    def test_looks_at_the_index_before_it_reads_a_row(self, wrong):
        """On a GPU a bad index stops the whole process, long after the call: ask before reading."""
        x = sample(2, 3, 5)
        with _Reads(x) as reads, refuses(IndexError, mentions=[wrong]):
            tensors.batched_gather(x, torch.tensor([[0, 1], [wrong, 0]]))
        expect(not reads.seen, f"expected the error before a row is read, {', '.join(reads.seen)} read x first")

    @pytest.mark.parametrize(
        "dtype", [torch.uint8, torch.int8, torch.int16, torch.bool, torch.float32, torch.float64], ids=str
    )
    def test_refuses_an_index_that_is_neither_int32_nor_int64(self, dtype):
        """torch takes a uint8 index for a mask, and a bool one is a mask."""
        for index in (torch.ones(2, 3).to(dtype), torch.ones(2, 0).to(dtype)):
            with refuses(TypeError):
                tensors.batched_gather(sample(2, 3, 5), index)

    @pytest.mark.parametrize("one, other", [(1, 4), (4, 1), (2, 3), (0, 1)])
    def test_refuses_different_batch_sizes_also_where_they_broadcast(self, one, other):
        with refuses(ValueError, mentions=[one, other]):
            tensors.batched_gather(sample(one, 5, 6), torch.zeros(other, 7, dtype=torch.int64))

    @pytest.mark.parametrize("poison", [math.inf, math.nan])
    def test_rows_that_are_not_asked_for_do_not_matter(self, poison):
        """A product with rows of 0 and 1 reads them all: 0 times inf is nan."""
        x = torch.tensor([[[1.0, 2.0], [poison, poison]]])
        assert_same(tensors.batched_gather(x, torch.tensor([[0, 0]])), torch.tensor([[[1.0, 2.0], [1.0, 2.0]]]))


class TestAddScaled:
    def test_adds_x_once_unless_told(self):
        assert_same(
            tensors.add_scaled_(torch.tensor([1.0, 2.0]), torch.tensor([10.0, 30.0])), torch.tensor([11.0, 32.0])
        )

    @given(shape=shapes(max_dims=3, min_size=0), alpha=st.floats(-3, 3))
    def test_adds_alpha_times_x(self, shape, alpha):
        y, x = sample(*shape, dtype=torch.float64), sample(*shape, dtype=torch.float64)
        pairs = zip(y.flatten().tolist(), x.flatten().tolist(), strict=True)
        wanted = torch.tensor([b + alpha * a for b, a in pairs], dtype=torch.float64).view(shape)
        assert_same(tensors.add_scaled_(y, x, alpha), wanted, **FLOAT64)

    @pytest.mark.parametrize("alpha", [0, 2, -1, 0.5, -2.0])
    def test_alpha_may_be_an_int_or_a_float(self, alpha):
        found = tensors.add_scaled_(torch.tensor([1.0, 2.0]), torch.tensor([10.0, 30.0]), alpha=alpha)
        assert_same(found, torch.tensor([1 + 10.0 * alpha, 2 + 30.0 * alpha]))

    def test_returns_the_very_object_in_the_very_memory(self):
        for y, x, alpha in (
            (sample(3, 4), sample(3, 4), 0.3),
            (sample(3, 4), sample(4), 1.0),
            (sample(3, 4), sample(3, 4, dtype=torch.float64), 0.3),
            (torch.arange(4), torch.arange(4), 2),
            (torch.zeros(0), torch.zeros(0), 0.3),
        ):
            place = y.data_ptr()
            found = tensors.add_scaled_(y, x, alpha)
            expect(found is y, "expected y itself to be returned, got another object")
            expect(y.data_ptr() == place, "expected y to stay in its own memory, it was given another one")

    @pytest.mark.parametrize(
        "see",
        [lambda b: b[1:, ::2], torch.t, lambda b: b[2], lambda b: b[1, 1], lambda b: b.view(24)],
        ids=["slice", "transpose", "row", "element", "flat"],
    )
    def test_a_view_writes_through_to_its_base(self, see):
        base = sample(4, 6)
        wanted = base.clone()
        seen = see(wanted)
        seen.copy_(seen + 0.3)
        y = see(base)
        tensors.add_scaled_(y, torch.ones(y.shape), 0.3)
        assert_same(base, wanted)

    def test_other_views_of_the_memory_see_the_write(self):
        y = torch.zeros(2, 3)
        other = y.view(-1)
        tensors.add_scaled_(y, torch.ones(2, 3), alpha=-0.5)
        assert_same(other, torch.full((6,), -0.5))

    @pytest.mark.parametrize("shape", [(4,), (3, 1), (1, 4), (), (1,), (1, 3, 4)[1:]], ids=str)
    def test_x_broadcasts_to_y(self, shape):
        y, x = sample(3, 4), sample(*shape)
        wanted = y + 0.3 * x.expand(3, 4)
        assert_same(tensors.add_scaled_(y, x, 0.3), wanted)

    def test_an_expanded_x_is_added_everywhere(self):
        y, x = torch.zeros(3, 2), torch.tensor([1.0, 2.0]).expand(3, 2)
        assert_same(tensors.add_scaled_(y, x, 3.0), torch.tensor([[3.0, 6.0]] * 3))

    @pytest.mark.parametrize("y_shape, x_shape", [((0,), (1,)), ((0, 3), (3,)), ((3, 0), ())], ids=str)
    def test_x_broadcasts_to_an_empty_y(self, y_shape, x_shape):
        assert_same(tensors.add_scaled_(torch.zeros(y_shape), torch.ones(x_shape), 0.3), torch.zeros(y_shape))

    @pytest.mark.parametrize(
        "y_shape, x_shape",
        [((4,), (3, 4)), ((1, 4), (3, 4)), ((3, 1), (3, 4)), ((4,), (1, 4)), ((), (1,)), ((1,), (5,)), ((1,), (0,)),
         ((3,), (4,)), ((3, 4), (3,)), ((2, 3), (3, 2)), ((2, 3), (6,))],
        ids=str,
    )  # fmt: skip
    def test_y_never_grows(self, y_shape, x_shape):
        for y, x in ((sample(*y_shape), sample(*x_shape)), (torch.ones(y_shape).long(), torch.ones(x_shape).long())):
            with unchanged(y, x), refuses(ValueError, mentions=[*y_shape, *x_shape]):
                tensors.add_scaled_(y, x, 2.0)

    @pytest.mark.parametrize("dtype", INTEGERS, ids=str)
    def test_integers_take_a_whole_alpha(self, dtype):
        """The default, 1.0, is a float and whole."""
        for given_alpha, wanted in (((), [12, 25]), ((2,), [14, 30]), ((3.0,), [16, 35]), ((0,), [10, 20])):
            y, x = torch.tensor([10, 20], dtype=dtype), torch.tensor([2, 5], dtype=dtype)
            with unchanged(x, names=("x",)), state_kept():
                found = tensors.add_scaled_(y, x, *given_alpha)
            assert_same(found, torch.tensor(wanted, dtype=dtype))

    def test_a_whole_alpha_may_be_negative(self):
        assert_same(tensors.add_scaled_(torch.tensor([10, 20]), torch.tensor([2, 5]), -2.0), torch.tensor([6, 10]))

    def test_large_integers_stay_exact(self):
        """A detour through floating point would round them."""
        y, x = torch.tensor([2**60 + 1, 2**53]), torch.tensor([2**53 + 1, 1])
        assert_same(tensors.add_scaled_(y, x), torch.tensor([2**60 + 2**53 + 2, 2**53 + 1]))

    def test_integers_broadcast_too(self):
        assert_same(tensors.add_scaled_(torch.zeros(2, 3).long(), torch.tensor(4), 2), torch.full((2, 3), 8))

    @pytest.mark.parametrize("alpha", [0.5, -2.5, 1e-9, 1.0000001])
    def test_refuses_a_broken_alpha_for_integers_and_changes_nothing(self, alpha):
        y, x = torch.tensor([10, 20]), torch.tensor([2, 5])
        with unchanged(y, x), refuses(TypeError):
            tensors.add_scaled_(y, x, alpha)

    @pytest.mark.parametrize("alpha", [1.0, 2, 0.5])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16], ids=str)
    def test_refuses_to_add_floats_to_integers_and_changes_nothing(self, dtype, alpha):
        for x in (torch.ones(2, dtype=dtype), torch.tensor(1, dtype=dtype), torch.zeros(1, dtype=dtype)):
            y = torch.tensor([10, 20])
            with unchanged(y, x), refuses(TypeError):
                tensors.add_scaled_(y, x, alpha)

    def test_y_keeps_its_dtype_whatever_x_has(self):
        y = torch.tensor([1.0, 2.0])
        found = tensors.add_scaled_(y, torch.tensor([1.0, 3.0], dtype=torch.float64), 0.5)
        assert_same(found, torch.tensor([1.5, 3.5]))

    def test_alpha_is_as_precise_as_float64(self):
        y, x = torch.zeros(2, dtype=torch.float64), torch.tensor([1.0, 3.0], dtype=torch.float64)
        assert_same(tensors.add_scaled_(y, x, 1 / 3), torch.tensor([1 / 3, 1.0], dtype=torch.float64), **FLOAT64)

    def test_gradients_reach_x_and_what_y_was_before(self):
        y, x = sample(3, 4).requires_grad_(), sample(4).requires_grad_()
        weight = sample(3, 4)
        found = tensors.add_scaled_(y * 1, x, 0.3)
        to_y, to_x = torch.autograd.grad((found * weight).sum(), (y, x))
        assert_same(to_y, weight)
        assert_same(to_x, 0.3 * weight.sum(0))

    def test_gradients_reach_what_only_x_requires(self):
        x = sample(3).requires_grad_()
        y = torch.zeros(2, 3)
        (gradient,) = torch.autograd.grad(tensors.add_scaled_(y[1], x, -1.7).sum() + y.sum(), x)
        assert_same(gradient, torch.full((3,), -3.4))


Pair = namedtuple("Pair", "image label")


class Sample(NamedTuple):
    """A namedtuple of the other spelling."""

    first: object
    second: object = None


class Named(Pair):
    """A subclass of a namedtuple."""


class Bag(dict):
    """A dict with a name of its own."""


class Rows(list):
    """A list with a name of its own."""


class Tup(tuple):
    """A tuple with a name of its own."""


@dataclass
class Record:
    """No container: a tensor inside stays where it is."""

    tensor: object


class Movable:
    """Something with a `to` of its own that is no tensor."""

    def to(self, *args, **kwargs):
        raise Mismatch("expected everything but tensors to be passed through, its `to` was called")


def is_moved(found, shape=(2,)):
    return isinstance(found, torch.Tensor) and found.device.type == "meta" and found.shape == shape


def assert_moved(found, shape=(2,)):
    expect(is_moved(found, shape), f"expected a tensor of shape {list(shape)} on the other device, got {found!r:.60}")


class TestMoveTo:
    @pytest.mark.parametrize("device", ["meta", torch.device("meta")], ids=repr)
    def test_moves_a_single_tensor(self, device):
        assert_moved(tensors.move_to(torch.zeros(2), device))

    @pytest.mark.parametrize("wrap, unwrap", [
        (lambda t: {"a": t}, lambda c: c["a"]),
        (lambda t: [1, t], lambda c: c[1]),
        (lambda t: (1, t), lambda c: c[1]),
        (lambda t: (t,), lambda c: c[0]),
        (lambda t: Pair(1, t), lambda c: c.label),
        (lambda t: Sample(t), lambda c: c.first),
        (lambda t: Named(t, 1), lambda c: c.image),
        (lambda t: OrderedDict(a=t), lambda c: c["a"]),
        (lambda t: defaultdict(list, {3: t}), lambda c: c[3]),
        (lambda t: Bag(a=t), lambda c: c["a"]),
        (lambda t: Rows([t]), lambda c: c[0]),
        (lambda t: Tup([t, 2]), lambda c: c[0]),
    ], ids=["dict", "list", "tuple", "tuple of one", "namedtuple", "NamedTuple", "subclass of a namedtuple",
            "OrderedDict", "defaultdict", "subclass of dict", "subclass of list", "subclass of tuple"])  # fmt: skip
    def test_looks_into_containers_and_keeps_their_type(self, wrap, unwrap):
        batch = wrap(torch.zeros(2))
        for found in (tensors.move_to(batch, "meta"), tensors.move_to([{"k": (batch,)}], "meta")[0]["k"][0]):
            expect(type(found) is type(batch), f"expected a {type(batch).__name__}, got {type(found).__name__}")
            expect(len(found) == len(batch), f"expected {len(batch)} entries, got {len(found)}")
            assert_moved(unwrap(found))

    def test_looks_into_containers_in_containers(self):
        batch = {"a": [torch.zeros(2), (torch.zeros(3), {"b": Pair(torch.zeros(4), [[torch.zeros(5)]])})]}
        found = tensors.move_to(batch, "meta")
        assert_moved(found["a"][0])
        assert_moved(found["a"][1][0], (3,))
        assert_moved(found["a"][1][1]["b"].image, (4,))
        assert_moved(found["a"][1][1]["b"].label[0][0], (5,))

    def test_fields_of_a_namedtuple_keep_their_names(self):
        found = tensors.move_to(Pair(image=torch.zeros(2), label="cat"), "meta")
        assert_moved(found.image)
        assert found.label == "cat"

    def test_a_dict_keeps_its_order_and_keys(self):
        keys = ["z", 3, "a", (1, 2), None]
        for kind in (dict, OrderedDict, Bag):
            found = tensors.move_to(kind((key, torch.zeros(2)) for key in keys), "meta")
            expect(list(found) == keys, f"expected the keys {keys}, got {list(found)}")
            for value in found.values():
                assert_moved(value)

    def test_a_defaultdict_keeps_its_factory(self):
        batch = defaultdict(list, a=torch.zeros(2))
        found = tensors.move_to(batch, "meta")
        expect(found.default_factory is list, f"expected the factory list, got {found.default_factory}")
        expect(found["missing"] == [], f"expected the factory to fill in [], got {found['missing']!r}")
        expect(list(batch) == ["a"], f"expected the input to keep its keys ['a'], it has {list(batch)}")

    @pytest.mark.parametrize("kind", [dict, OrderedDict, Bag, list, Rows, tuple, Tup], ids=lambda kind: kind.__name__)
    def test_an_empty_container_keeps_its_type(self, kind):
        found = tensors.move_to([kind()], "meta")[0]
        expect(type(found) is kind and len(found) == 0, f"expected an empty {kind.__name__}, got {found!r}")

    @pytest.mark.parametrize(
        "other",
        ["name", b"bytes", 3, 2.5, None, True, range(3), {1, 2}, frozenset({4}), deque([5]), Record(6), Movable(), str],
        ids=lambda other: type(other).__name__,
    )
    def test_everything_else_is_passed_through(self, other):
        for batch, unwrap in (([other], lambda b: b[0]), ({"a": other}, lambda b: b["a"]), (other, lambda b: b)):
            found = unwrap(tensors.move_to(batch, "meta"))
            expect(found is other, f"expected {other!r} itself, got {found!r}")

    def test_tensors_in_what_is_no_container_stay_where_they_are(self):
        """A dataclass may have promises of its own to keep: its owner moves it."""
        for other in (Record(torch.zeros(2)), torch.nn.Linear(2, 3), {torch.zeros(2)}, deque([torch.zeros(2)])):
            found = tensors.move_to({"a": other}, "meta")["a"]
            expect(found is other, f"expected the same {type(other).__name__} object, got {found!r:.60}")
        record, linear = Record(torch.zeros(2)), torch.nn.Linear(2, 3)
        tensors.move_to([record, linear], "meta")
        for what, x in (("a dataclass", record.tensor), ("a module", linear.weight)):
            expect(x.device.type == "cpu", f"expected a tensor in {what} to stay where it is, it was moved")

    @pytest.mark.parametrize("device", ["cpu", torch.device("cpu")], ids=repr)
    def test_a_tensor_already_there_is_returned_as_the_same_object(self, device):
        x = sample(2, 3).t()
        for found in (
            tensors.move_to(x, device),
            tensors.move_to([x], device)[0],
            tensors.move_to({"a": (x,)}, device)["a"][0],
            tensors.move_to(Pair(x, 1), device).image,
        ):
            expect(found is x, "expected the very tensor: it is on the device already, got another object")

    def test_a_parameter_already_there_stays_a_parameter(self):
        x = torch.nn.Parameter(torch.zeros(2))
        expect(tensors.move_to([x], "cpu")[0] is x, "expected the very parameter, got another object")

    def test_containers_of_the_input_are_left_as_they_are(self):
        """The batch may be used again, on another device or by another worker."""
        x, inner, rows = torch.zeros(2), Bag(b=torch.zeros(3)), Rows([torch.zeros(4)])
        batch = {"a": x, "rest": [inner, rows]}
        rest, b, row = batch["rest"], inner["b"], rows[0]
        found = tensors.move_to(batch, "meta")
        assert list(batch) == ["a", "rest"]
        for was, now in ((x, batch["a"]), (rest, batch["rest"]), (inner, rest[0]), (rows, rest[1])):
            expect(was is now, "expected the input to hold what it held, its containers were changed")
        expect(inner["b"] is b and rows[0] is row, "expected the input to hold its own tensors, they were replaced")
        assert_moved(found["rest"][0]["b"], (3,))
        assert_moved(found["rest"][1][0], (4,))

    @pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.float64, torch.float16], ids=str)
    def test_moves_tensors_of_any_dtype_and_keeps_it(self, dtype):
        found = tensors.move_to([torch.zeros(2, dtype=dtype)], "meta")[0]
        assert_moved(found)
        expect(found.dtype == dtype, f"expected {dtype}, got {found.dtype}")

    def test_values_arrive_and_gradients_come_back(self):
        x = sample(2, 3)
        leaf = x.clone().requires_grad_()
        with devices.on("sim"):
            found = tensors.move_to({"a": [leaf]}, "sim")["a"][0]
            expect(found.device.type == "sim", f"expected a tensor on sim, got one on {found.device.type}")
            assert_same(found, x, device=False)
            expect(found.requires_grad, "expected a result that gradients flow through, it does not require grad")
            (gradient,) = torch.autograd.grad((found * 3).sum(), leaf)
        assert_same(gradient, torch.full((2, 3), 3.0))


# The house rules, for every function: `s` makes a sample in the dtype, on the device and with the number of rows `s.n`
# that a rule asks about.
RULES = [
    # Any dtype can be described; what it reports are the very strides.
    rule("describe", lambda s: (s(s.n, 3),), integers_refused=False, any_strides=False),
    # Any dtype can be seen in another order.
    rule("nchw_to_nhwc", lambda s: (s(s.n, 3, 5, 7),), integers_refused=False, is_view=True,
         fails=lambda s: (s(3, 5, 7),)),
    # Integers are added too.
    rule("outer_sum", lambda s: (s(s.n), s(s.n + 1)), integers_refused=False,
         also={"integers": {"make": lambda s: (s.ints(s.n), s.ints(s.n + 1))}}, fails=lambda s: (s(2, 3), s(4))),
    # The mean of nothing is not defined.
    rule("strict_mse", lambda s: (s(s.n, 4), s(s.n, 4)), refused=("mse_loss",), empty=False,
         fails=lambda s: (s(3), s(3, 1))),
    rule("broadcast_shape", lambda s: ([5, 1, 3], (4, 1)), refused=("broadcast_shapes", "broadcast_tensors"),
         fails=lambda s: ([5, 2], (4, 1), (3,))),
    rule("one_hot", lambda s: (s.ints(s.n, s.n + 1, high=6), 6), refused=("one_hot", "eye"),
         fails=lambda s: (s.ints(4, low=6, high=9), 6)),
    rule("standardize", lambda s: (s(s.n, 4, 5), (1, -1)),
         also={"one dimension": {"make": lambda s: (s(s.n, 4), 1)},
               "all dimensions": {"make": lambda s: (s(s.n + 1, 4), (0, 1), 0.25)}},
         refused=("layer_norm", "rms_norm", "batch_norm", "instance_norm", "group_norm"),
         fails=lambda s: (s.ints(3, 4), 1)),
    rule("pairwise_sq_dists", lambda s: (s(s.n, 4), s(s.n + 1, 4)),
         refused=("cdist", "pdist", "pairwise_distance", "norms"), fails=lambda s: (s(3, 4), s(2, 5))),
    # Integers: R2 does not ask it here; the rows of an integer x are rows too.
    rule("batched_gather", lambda s: (s(s.n, 3, 4), s.ints(s.n, s.n + 2, low=-3, high=3)), integers_refused=False,
         also={"int32": {"make": lambda s: (s(s.n, 3, 4), s.ints(s.n, 2, low=-3, high=3, dtype=torch.int32))}},
         fails=lambda s: (s(2, 3, 4), s.ints(2, 5, low=3, high=6))),
    # Integers: y and x may both be of integers.
    rule("add_scaled_", lambda s: (s(s.n, 4), s(s.n, 4), 0.3), integers_refused=False, writes=(0,),
         also={"x broadcast": {"make": lambda s: (s(s.n, 4), s(4), 0.3)},
               "alpha left out": {"make": lambda s: (s(s.n, 4), s(s.n, 4))}},
         fails=lambda s: (s(4), s(3, 4), 0.3)),
    # Integers are moved too.
    rule("move_to", lambda s: ({"x": s(s.n, 4), "rest": [s(3), (s.ints(2), "name")]}, s.device),
         integers_refused=False),
]  # fmt: skip
