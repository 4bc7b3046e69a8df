"""The specs of kata 06. One class a function; the house rules that all of them share are in the table at the end."""

import math

import masks
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dojo import devices
from dojo.compare import assert_same, assert_same_gradients, expect, gradients_of, refuses
from dojo.guards import count_ops, shares_memory, state_kept, unchanged
from dojo.rules import FLOATS, rule
from dojo.strategies import sample, shapes, sizes, strided

FLOAT64 = {"rtol": 1e-12, "atol": 1e-12}
HALVES = [torch.float16, torch.bfloat16]
INTEGERS = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]
NO_MASKS = [torch.int64, torch.uint8, torch.float32]
NO_INTEGERS = [torch.float32, torch.float64, torch.bool]
POISON = [math.nan, math.inf, -math.inf, 3e38]
T, F = True, False


def bools(rows, *shape):
    """A mask of this shape from nested lists: torch.tensor alone takes an empty one for floats."""
    return torch.tensor(rows, dtype=torch.bool).reshape(shape)


def on_each_device(test):
    """Runs the spec on the simulated accelerator, and on CUDA where there is one."""
    return pytest.mark.parametrize("device", devices.DEVICES)(test)


def poisoned(x, valid, poison):
    """x as a leaf, with `poison` wherever valid is False; valid lacks the last dimensions of x."""
    if math.isfinite(poison):
        limits = torch.finfo(x.dtype)
        poison = min(max(poison, limits.min), limits.max)
    hidden = ~valid.reshape(*valid.shape, *[1] * (x.ndim - valid.ndim))
    return x.masked_fill(hidden, poison).requires_grad_()


def expect_zero(gradient, where, what):
    """The gradient is exactly 0 at these places."""
    found = gradient[where]
    expect(bool((found == 0).all()), f"expected the gradient 0 {what}, got {found[found != 0][:1].tolist()}")


class TestPaddingMask:
    def test_is_true_where_a_token_stands_and_false_where_padding_stands(self):
        """torch.nn.MultiheadAttention's key_padding_mask says the opposite; in this kata True counts."""
        tokens = torch.tensor([[7, 3, 0, 0], [2, 9, 4, 0], [0, 0, 0, 0]])
        wanted = torch.tensor([[T, T, F, F], [T, T, T, F], [F, F, F, F]])
        assert_same(masks.padding_mask(tokens), wanted)

    @given(b=sizes, t=sizes, pad_id=st.integers(-2, 3), data=st.data())
    def test_only_the_pad_id_is_padding_wherever_it_stands(self, b, t, pad_id, data):
        rows = data.draw(st.lists(st.lists(st.integers(-3, 4), min_size=t, max_size=t), min_size=b, max_size=b))
        wanted = bools([[token != pad_id for token in row] for row in rows], b, t)
        assert_same(masks.padding_mask(torch.tensor(rows), pad_id=pad_id), wanted)

    def test_padding_may_stand_in_front_of_tokens_and_between_them(self):
        tokens = torch.tensor([[0, 0, 5, 6], [3, 0, 4, 0]])
        assert_same(masks.padding_mask(tokens), torch.tensor([[F, F, T, T], [T, F, T, F]]))

    def test_zero_is_a_token_like_any_other_where_the_pad_id_is_another(self):
        tokens = torch.tensor([[0, 9, 1], [9, 9, 0]])
        assert_same(masks.padding_mask(tokens, 9), torch.tensor([[T, F, T], [F, F, T]]))
        assert_same(masks.padding_mask(-tokens, -9), torch.tensor([[T, F, T], [F, F, T]]))

    def test_negative_ids_are_tokens(self):
        assert_same(masks.padding_mask(torch.tensor([[-1, 0, 2]])), torch.tensor([[T, F, T]]))

    def test_large_ids_are_told_apart(self):
        tokens = torch.tensor([[2**53, 2**53 + 1, -(2**53) - 1]])
        assert_same(masks.padding_mask(tokens, 2**53 + 1), torch.tensor([[T, F, T]]))

    @pytest.mark.parametrize("dtype", INTEGERS, ids=str)
    def test_takes_integers_of_any_width(self, dtype):
        tokens = torch.tensor([[5, 0, 100], [0, 1, 0]], dtype=dtype)
        assert_same(masks.padding_mask(tokens), torch.tensor([[T, F, T], [F, T, F]]))
        assert_same(masks.padding_mask(tokens, 100), torch.tensor([[T, T, F], [T, T, T]]))

    @pytest.mark.parametrize("dtype", [*NO_INTEGERS, torch.float16], ids=str)
    def test_refuses_tokens_that_are_no_integers(self, dtype):
        with refuses(TypeError):
            masks.padding_mask(torch.ones(2, 3, dtype=dtype))

    @pytest.mark.parametrize("shape", [(3,), (), (2, 3, 4)], ids=str)
    def test_refuses_what_is_no_batch_of_sequences(self, shape):
        with refuses(ValueError):
            masks.padding_mask(torch.ones(shape, dtype=torch.int64))

    @pytest.mark.parametrize("shape", [(0, 3), (2, 0), (0, 0)], ids=str)
    def test_rows_and_places_may_be_missing(self, shape):
        assert_same(masks.padding_mask(torch.ones(shape, dtype=torch.int64)), torch.ones(shape, dtype=torch.bool))


def first_places(lengths, t):
    """The mask, place by place."""
    return bools([[place < length for place in range(t)] for length in lengths], len(lengths), t)


class TestLengthsToMask:
    def test_the_first_places_of_each_row_are_valid(self):
        found = masks.lengths_to_mask(torch.tensor([2, 0, 3, 1]))
        assert_same(found, torch.tensor([[T, T, F], [F, F, F], [T, T, T], [T, F, F]]))

    @given(lengths=st.lists(st.integers(0, 7), max_size=5), more=st.integers(0, 3))
    def test_row_i_has_lengths_i_valid_places_and_max_len_in_all(self, lengths, more):
        longest = max(lengths, default=0)
        x = torch.tensor(lengths, dtype=torch.int64)
        assert_same(masks.lengths_to_mask(x), first_places(lengths, longest))
        assert_same(masks.lengths_to_mask(x, longest + more), first_places(lengths, longest + more))

    def test_max_len_is_taken_by_name_too(self):
        found = masks.lengths_to_mask(lengths=torch.tensor([1, 4]), max_len=5)
        assert_same(found, first_places([1, 4], 5))

    def test_without_lengths_the_mask_has_no_rows(self):
        nothing = torch.zeros(0, dtype=torch.int64)
        assert_same(masks.lengths_to_mask(nothing), torch.zeros(0, 0, dtype=torch.bool))
        assert_same(masks.lengths_to_mask(nothing, 4), torch.zeros(0, 4, dtype=torch.bool))
        assert_same(masks.lengths_to_mask(nothing, 0), torch.zeros(0, 0, dtype=torch.bool))

    def test_lengths_of_zero_without_a_max_len_leave_no_places(self):
        assert_same(masks.lengths_to_mask(torch.tensor([0, 0, 0])), torch.zeros(3, 0, dtype=torch.bool))

    def test_a_max_len_of_zero_is_not_the_same_as_none(self):
        """0 is false to Python: `if not max_len` takes it for left out."""
        assert_same(masks.lengths_to_mask(torch.tensor([0, 0]), 0), torch.zeros(2, 0, dtype=torch.bool))
        with refuses(ValueError, mentions=[3, 0]):
            masks.lengths_to_mask(torch.tensor([0, 3]), 0)

    @pytest.mark.parametrize("dtype", INTEGERS, ids=str)
    def test_takes_integers_of_any_width(self, dtype):
        assert_same(masks.lengths_to_mask(torch.tensor([3, 1, 5], dtype=dtype)), first_places([3, 1, 5], 5))

    @pytest.mark.parametrize("dtype", [torch.int8, torch.uint8], ids=str)
    def test_the_places_may_be_too_many_for_the_dtype_of_the_lengths(self, dtype):
        """A range of 300 places made as int8 starts anew at -128."""
        found = masks.lengths_to_mask(torch.tensor([100, 2, 0], dtype=dtype), 300)
        assert_same(found, first_places([100, 2, 0], 300))

    @pytest.mark.parametrize("dtype", [*NO_INTEGERS, torch.float16], ids=str)
    def test_refuses_lengths_that_are_no_integers(self, dtype):
        for max_len in (None, 4):
            with refuses(TypeError):
                masks.lengths_to_mask(torch.ones(3, dtype=dtype), max_len)

    @pytest.mark.parametrize("shape", [(), (2, 3), (3, 1)], ids=str)
    def test_refuses_lengths_that_are_not_one_a_row(self, shape):
        for max_len in (None, 4):
            with refuses(ValueError):
                masks.lengths_to_mask(torch.ones(shape, dtype=torch.int64), max_len)

    @pytest.mark.parametrize("max_len", [None, 7])
    @pytest.mark.parametrize("lengths", [[-3, 4], [4, 2, -3], [-3]], ids=str)
    def test_refuses_a_negative_length(self, lengths, max_len):
        with refuses(ValueError, mentions=[-3]):
            masks.lengths_to_mask(torch.tensor(lengths), max_len)

    @pytest.mark.parametrize("lengths", [[2, 6, 1], [6, 2], [1, 2, 6]], ids=str)
    def test_refuses_a_length_greater_than_max_len(self, lengths):
        """Cutting it silently would hide tokens."""
        with refuses(ValueError, mentions=[6, 5]):
            masks.lengths_to_mask(torch.tensor(lengths), 5)

    @pytest.mark.parametrize("lengths", [[], [0], [2]], ids=str)
    def test_refuses_a_negative_max_len(self, lengths):
        with refuses(ValueError, mentions=[-4]):
            masks.lengths_to_mask(torch.tensor(lengths, dtype=torch.int64), -4)

    @on_each_device
    def test_without_a_max_len_too_the_mask_is_made_where_the_lengths_are(self, device):
        with devices.on(device):
            lengths = torch.tensor([2, 0, 3], device=device)
            with devices.no_strays():
                found = masks.lengths_to_mask(lengths)
            expect(found.device.type == device, f"expected a mask on {device}, got one on {found.device.type}")
            assert_same(found, first_places([2, 0, 3], 3), device=False)


def lower_triangle(time):
    return bools([[key <= query for key in range(time)] for query in range(time)], time, time)


class TestCausalMask:
    def test_a_query_sees_itself_and_the_keys_before_it(self):
        """The row is the query, the column the key: transposed, every query would see the future alone."""
        assert_same(masks.causal_mask(3), torch.tensor([[T, F, F], [T, T, F], [T, T, T]]))

    @pytest.mark.parametrize("time", [1, 2, 5, 9])
    def test_query_i_sees_i_plus_1_keys(self, time):
        assert_same(masks.causal_mask(time), lower_triangle(time))

    def test_no_steps_give_an_empty_mask(self):
        assert_same(masks.causal_mask(0), torch.zeros(0, 0, dtype=torch.bool))

    @pytest.mark.parametrize("time", [-1, -5])
    def test_refuses_a_negative_number_of_steps(self, time):
        with refuses(ValueError, mentions=[time]):
            masks.causal_mask(time)

    @on_each_device
    def test_is_made_on_the_device_that_is_asked_for(self, device):
        with devices.on(device):
            for spelling in (device, torch.device(device)):
                with devices.no_strays():
                    found = masks.causal_mask(4, device=spelling)
                expect(found.device.type == device, f"expected a mask on {device}, got one on {found.device.type}")
                assert_same(found, lower_triangle(4), device=False)

    def test_is_made_on_the_default_device_when_none_is_asked_for(self):
        expect(masks.causal_mask(2).device.type == "cpu", "expected a mask on the CPU")
        with devices.on("sim"), torch.device("sim"):
            found = masks.causal_mask(4)
        expect(found.device.type == "sim", f"expected a mask on the default device, got one on {found.device.type}")

    def test_takes_no_more_operations_for_more_steps(self):
        """A loop over queries runs one small operation after another where one large one would do."""
        counts = []
        for time in (3, 8):
            with count_ops() as ops:
                masks.causal_mask(time)
            counts.append(ops.total())
        expect(counts[1] <= counts[0], f"expected as many operations for 8 steps as for 3, got {counts[1]}")


def seen_keys(valid, causal):
    """[b 1 query key], place by place."""
    b, t = valid.shape
    rows = valid.tolist()
    seen = [[[row[key] and (key <= query or not causal) for key in range(t)] for query in range(t)] for row in rows]
    return bools(seen, b, 1, t, t)


class TestAttentionMask:
    def test_every_query_sees_the_valid_keys(self):
        found = masks.attention_mask(torch.tensor([[T, T, F], [T, F, F]]))
        wanted = torch.tensor([[[[T, T, F]] * 3], [[[T, F, F]] * 3]])
        assert_same(found, wanted)

    def test_causal_queries_see_the_valid_keys_up_to_themselves(self):
        found = masks.attention_mask(torch.tensor([[T, T, F], [T, F, T]]), causal=True)
        first = [[T, F, F], [T, T, F], [T, T, F]]
        second = [[T, F, F], [T, F, F], [T, F, T]]
        assert_same(found, torch.tensor([[first], [second]]))

    @given(b=sizes, t=sizes, causal=st.booleans(), data=st.data())
    def test_key_k_is_seen_where_it_is_valid_and_not_ahead(self, b, t, causal, data):
        rows = data.draw(st.lists(st.lists(st.booleans(), min_size=t, max_size=t), min_size=b, max_size=b))
        valid = torch.tensor(rows)
        assert_same(masks.attention_mask(valid, causal), seen_keys(valid, causal))

    def test_is_not_causal_unless_asked(self):
        assert_same(masks.attention_mask(torch.ones(2, 3, dtype=torch.bool)), torch.ones(2, 1, 3, 3, dtype=torch.bool))

    def test_padded_queries_see_what_others_see(self):
        """Only keys are masked: a row without a key would give nan in most attention code."""
        valid = torch.tensor([[T, F, T, F]])
        found = masks.attention_mask(valid)
        for query in range(4):
            assert_same(found[:, 0, query], valid, what=f"the row of query {query}")

    def test_a_key_at_padding_is_not_even_seen_by_itself(self):
        for causal in (False, True):
            found = masks.attention_mask(torch.zeros(2, 3, dtype=torch.bool), causal)
            assert_same(found, torch.zeros(2, 1, 3, 3, dtype=torch.bool))

    @pytest.mark.parametrize("causal", [False, True])
    @pytest.mark.parametrize("shape", [(0, 3), (2, 0), (0, 0)], ids=str)
    def test_rows_and_places_may_be_missing(self, shape, causal):
        b, t = shape
        found = masks.attention_mask(torch.ones(shape, dtype=torch.bool), causal)
        assert_same(found, torch.ones(b, 1, t, t, dtype=torch.bool))

    @pytest.mark.parametrize("causal", [False, True])
    @pytest.mark.parametrize("dtype", NO_MASKS, ids=str)
    def test_refuses_a_mask_that_is_not_bool(self, dtype, causal):
        """Integers of 0 and 1 look like a mask, until `~` makes -1 and -2 of them."""
        with refuses(TypeError):
            masks.attention_mask(torch.ones(2, 3, dtype=dtype), causal)

    @pytest.mark.parametrize("causal", [False, True])
    @pytest.mark.parametrize("shape", [(3,), (2, 1, 3), ()], ids=str)
    def test_refuses_a_mask_that_is_not_of_two_dimensions(self, shape, causal):
        with refuses(ValueError):
            masks.attention_mask(torch.ones(shape, dtype=torch.bool), causal)

    def test_takes_no_more_operations_for_more_rows_when_not_causal(self):
        counts = []
        for b, t in ((3, 4), (8, 9)):
            with count_ops() as ops:
                masks.attention_mask(torch.ones(b, t, dtype=torch.bool))
            counts.append(ops.total())
        expect(counts[1] <= counts[0], f"expected as many operations for 8 rows as for 3, got {counts[1]}")

    @on_each_device
    def test_works_on_another_device_when_not_causal(self, device):
        with devices.on(device):
            valid = torch.tensor([[T, T, F], [T, F, F]], device=device)
            with devices.no_strays():
                found = masks.attention_mask(valid)
            assert_same(found, seen_keys(torch.tensor([[T, T, F], [T, F, F]]), False), device=False)


def pad_by_hand(sequences, pad_value):
    """The padded batch, written step by step."""
    longest, rest = max(len(x) for x in sequences), sequences[0].shape[1:]
    padded = torch.full((len(sequences), longest, *rest), pad_value, dtype=sequences[0].dtype)
    for row, x in zip(padded, sequences, strict=True):
        for step, value in enumerate(x.detach()):
            row[step] = value
    return padded


class TestPadSequences:
    def test_short_sequences_are_filled_up_at_the_end(self):
        padded, lengths = masks.pad_sequences([torch.tensor([4, 5]), torch.tensor([6, 7, 8]), torch.tensor([9])])
        assert_same(padded, torch.tensor([[4, 5, 0], [6, 7, 8], [9, 0, 0]]))
        assert_same(lengths, torch.tensor([2, 3, 1]), what="lengths")

    @given(lengths=st.lists(st.integers(0, 5), min_size=1, max_size=5), rest=shapes(max_dims=2, max_size=3))
    def test_row_i_is_sequence_i_and_then_padding(self, lengths, rest):
        sequences = [sample(length, *rest) for length in lengths]
        padded, found = masks.pad_sequences(sequences, pad_value=-1.5)
        assert_same(padded, pad_by_hand(sequences, -1.5))
        assert_same(found, torch.tensor(lengths), what="lengths")

    def test_the_first_sequence_need_not_be_the_longest(self):
        for lengths in ([1, 4, 2], [4, 1, 2], [2, 1, 4]):
            sequences = [sample(length, 2) for length in lengths]
            assert_same(masks.pad_sequences(sequences)[0], pad_by_hand(sequences, 0))

    def test_lengths_count_steps_and_not_values(self):
        _, lengths = masks.pad_sequences([sample(4, 3, 2), sample(1, 3, 2)])
        assert_same(lengths, torch.tensor([4, 1]), what="lengths")

    def test_padding_is_zero_unless_asked(self):
        padded, _ = masks.pad_sequences([sample(2, 3), sample(0, 3)])
        assert_same(padded[1], torch.zeros(2, 3))

    @pytest.mark.parametrize("pad_value", [math.nan, -math.inf, 0.1])
    def test_any_number_can_be_the_padding(self, pad_value):
        for dtype in (torch.float64, torch.float32):
            sequences = [sample(1, 2, dtype=dtype), sample(3, 2, dtype=dtype)]
            padded, _ = masks.pad_sequences(sequences, pad_value)
            tolerance = {"rtol": 0, "atol": 0}
            assert_same(padded, pad_by_hand(sequences, pad_value), **tolerance)

    @pytest.mark.parametrize("dtype", [*INTEGERS, *FLOATS], ids=str)
    def test_numbers_of_every_dtype_keep_it(self, dtype):
        sequences = [torch.tensor([1, 2], dtype=dtype), torch.tensor([3, 100, 5], dtype=dtype)]
        padded, lengths = masks.pad_sequences(sequences, 7)
        assert_same(padded, torch.tensor([[1, 2, 7], [3, 100, 5]], dtype=dtype))
        assert_same(lengths, torch.tensor([2, 3]), what="lengths")

    def test_large_integers_stay_exact(self):
        x = torch.tensor([2**53 + 1, -(2**53) - 1, 2**62 + 1])
        assert_same(masks.pad_sequences([x, x[:1]])[0], torch.stack([x, torch.tensor([2**53 + 1, 0, 0])]))

    def test_masks_can_be_padded_too(self):
        sequences = [torch.tensor([T, F]), torch.tensor([F, T, T])]
        assert_same(masks.pad_sequences(sequences)[0], torch.tensor([[T, F, F], [F, T, T]]))
        assert_same(masks.pad_sequences(sequences, True)[0], torch.tensor([[T, F, T], [F, T, T]]))

    def test_sequences_without_steps_have_a_row_of_padding(self):
        padded, lengths = masks.pad_sequences([sample(0, 3), torch.ones(2, 3), sample(0, 3)], 5)
        assert_same(padded, torch.tensor([5.0, 1.0, 5.0]).view(3, 1, 1).expand(3, 2, 3))
        assert_same(lengths, torch.tensor([0, 2, 0]), what="lengths")

    @pytest.mark.parametrize("shape", [(0,), (0, 3), (4, 0), (0, 0, 2)], ids=str)
    def test_all_may_be_empty(self, shape):
        padded, lengths = masks.pad_sequences([torch.zeros(shape), torch.zeros(shape)])
        assert_same(padded, torch.zeros(2, *shape))
        assert_same(lengths, torch.tensor([shape[0]] * 2), what="lengths")

    def test_a_single_sequence_is_a_batch_of_one_with_memory_of_its_own(self):
        """A view here would let writes to the batch reach the caller's sequence."""
        x = sample(4, 3)
        padded, lengths = masks.pad_sequences([x])
        assert_same(padded, x[None])
        assert_same(lengths, torch.tensor([4]), what="lengths")
        expect(not shares_memory(padded, x), "expected memory of its own, the result shares memory with the sequence")

    def test_sequences_may_stand_in_a_tuple(self):
        sequences = (sample(2, 3), sample(4, 3))
        assert_same(masks.pad_sequences(sequences)[0], pad_by_hand(sequences, 0))

    def test_gradients_reach_every_member_and_only_its_own_places(self):
        sequences = [sample(length, 2, dtype=torch.float64).requires_grad_() for length in (2, 0, 5, 1)]
        padded, _ = masks.pad_sequences(sequences, 3)
        weight = sample(4, 5, 2, dtype=torch.float64)
        expect(padded.requires_grad, "expected a result that gradients flow through, it does not require grad")
        gradients = torch.autograd.grad((padded * weight).sum(), sequences)
        for i, (x, gradient) in enumerate(zip(sequences, gradients, strict=True)):
            assert_same(gradient, weight[i, : len(x)].contiguous(), what=f"the gradient of sequence {i}")

    def test_one_member_that_requires_grad_is_enough(self):
        first, second = sample(2), sample(3).requires_grad_()
        padded, _ = masks.pad_sequences([first, second])
        expect(padded.requires_grad, "expected a result that gradients flow through, it does not require grad")
        (gradient,) = torch.autograd.grad((padded * torch.arange(6.0).view(2, 3)).sum(), second)
        assert_same(gradient, torch.tensor([3.0, 4.0, 5.0]))

    @pytest.mark.parametrize("nothing", [[], ()], ids=str)
    def test_refuses_a_batch_of_no_sequences(self, nothing):
        with refuses(ValueError):
            masks.pad_sequences(nothing)

    @pytest.mark.parametrize("where", [0, 1, 2])
    @pytest.mark.parametrize("odd, numbers", [((4, 7), [7, 3]), ((4, 1), [1, 3]), ((0, 5), [5, 3])], ids=str)
    def test_refuses_steps_of_different_shapes(self, where, odd, numbers):
        sequences = [sample(2, 3), sample(2, 3), sample(6, 3)]
        sequences[where] = sample(*odd)
        with refuses(ValueError, mentions=numbers):
            masks.pad_sequences(sequences)

    @pytest.mark.parametrize("where", [0, 2])
    @pytest.mark.parametrize("odd", [(4,), (4, 3, 3), (4, 1, 3), (3,)], ids=str)
    def test_refuses_steps_of_different_numbers_of_dimensions(self, where, odd):
        sequences = [sample(2, 3), sample(2, 3), sample(6, 3)]
        sequences[where] = sample(*odd)
        with refuses(ValueError):
            masks.pad_sequences(sequences)

    def test_refuses_steps_of_equal_size_but_different_shape(self):
        with refuses(ValueError, mentions=[2, 5]):
            masks.pad_sequences([sample(3, 2, 5), sample(3, 5, 2)])
        with refuses(ValueError, mentions=[4, 6, 5]):
            masks.pad_sequences([sample(3, 4, 5), sample(3, 6, 5)])

    @pytest.mark.parametrize("where", [0, 1, 2])
    @pytest.mark.parametrize("odd", [torch.float64, torch.float16, torch.int64, torch.bool], ids=str)
    def test_refuses_different_dtypes(self, where, odd):
        """Promoting would make one batch larger because of one odd member in it."""
        sequences = [sample(2, 3), sample(4, 3), sample(1, 3)]
        sequences[where] = torch.ones(2, 3, dtype=odd)
        with refuses(ValueError):
            masks.pad_sequences(sequences)

    @pytest.mark.parametrize("sequences", [[()], [(3,), ()], [(), (2,)]], ids=str)
    def test_refuses_a_number_in_the_place_of_a_sequence(self, sequences):
        with refuses(ValueError):
            masks.pad_sequences([sample(*shape) for shape in sequences])


class TestUnpadSequences:
    def test_gives_the_sequences_without_their_padding(self):
        padded = torch.tensor([[4, 5, 0], [6, 7, 8], [9, 0, 0]])
        found = masks.unpad_sequences(padded, torch.tensor([2, 3, 1]))
        expect(isinstance(found, list), f"expected a list, got {type(found).__name__}")
        expect(len(found) == 3, f"expected 3 sequences, got {len(found)}")
        for i, values in enumerate([[4, 5], [6, 7, 8], [9]]):
            assert_same(found[i], torch.tensor(values), what=f"sequence {i}")

    @given(lengths=st.lists(st.integers(0, 5), min_size=1, max_size=5), rest=shapes(max_dims=2, max_size=3))
    def test_what_was_padded_comes_back(self, lengths, rest):
        sequences = [sample(length, *rest) for length in lengths]
        found = masks.unpad_sequences(pad_by_hand(sequences, 9), torch.tensor(lengths))
        expect(len(found) == len(lengths), f"expected {len(lengths)} sequences, got {len(found)}")
        for i, (x, wanted) in enumerate(zip(found, sequences, strict=True)):
            assert_same(x, wanted, what=f"sequence {i}")

    def test_there_may_be_more_padding_than_the_longest_needs(self):
        padded = sample(2, 9, 3)
        first, second = masks.unpad_sequences(padded, torch.tensor([4, 2]))
        assert_same(first, padded[0, :4])
        assert_same(second, padded[1, :2])

    def test_there_may_be_more_rows_than_steps_and_fewer(self):
        for b, t in ((5, 2), (2, 5)):
            padded = sample(b, t)
            for row, x in zip(padded, masks.unpad_sequences(padded, torch.full((b,), t)), strict=True):
                assert_same(x, row)

    @pytest.mark.parametrize("layout", ["contiguous", "transposed", "sliced"])
    def test_copies_nothing(self, layout):
        """The sequences are windows on the batch: memory is spent once, and writes show in both."""
        padded = sample(3, 4, 2) if layout == "contiguous" else strided(sample(3, 4, 2), layout)
        for i, x in enumerate(masks.unpad_sequences(padded, torch.tensor([2, 1, 4]))):
            expect(shares_memory(x, padded), f"expected a view of the batch's memory, sequence {i} is a copy")

    def test_a_write_to_a_sequence_shows_in_the_batch_and_the_other_way_round(self):
        padded = torch.zeros(3, 4, 2)
        found = masks.unpad_sequences(padded, torch.tensor([2, 1, 4]))
        found[0][1, 1] = 7.0
        padded[2, 3, 0] = 8.0
        expect(padded[0, 1, 1] == 7.0, "expected a write to a sequence to show in the batch, it does not")
        expect(found[2][3, 0] == 8.0, "expected a write to the batch to show in its sequence, it does not")
        assert padded.sum() == 15.0

    @pytest.mark.parametrize("dtype", [*INTEGERS, torch.bool, *FLOATS], ids=str)
    def test_values_of_every_dtype_keep_it(self, dtype):
        padded = torch.tensor([[1, 0, 1], [0, 1, 1]], dtype=dtype)
        first, second = masks.unpad_sequences(padded, torch.tensor([3, 1]))
        assert_same(first, torch.tensor([1, 0, 1], dtype=dtype))
        assert_same(second, torch.tensor([0], dtype=dtype))

    @pytest.mark.parametrize("dtype", INTEGERS, ids=str)
    def test_takes_lengths_of_any_integer_dtype(self, dtype):
        padded = sample(3, 5)
        found = masks.unpad_sequences(padded, torch.tensor([2, 5, 0], dtype=dtype))
        for i, length in enumerate([2, 5, 0]):
            assert_same(found[i], padded[i, :length], what=f"sequence {i}")

    def test_a_length_of_zero_keeps_the_shape_of_a_step(self):
        found = masks.unpad_sequences(sample(2, 3, 4, 5), torch.tensor([0, 1]))
        assert_same(found[0], torch.zeros(0, 4, 5))
        expect(found[1].shape == (1, 4, 5), f"expected shape [1, 4, 5] for one step, got {list(found[1].shape)}")

    def test_a_batch_without_rows_gives_an_empty_list(self):
        found = masks.unpad_sequences(torch.zeros(0, 3, 2), torch.zeros(0, dtype=torch.int64))
        expect(isinstance(found, list) and not found, f"expected an empty list, got {found!r}")

    def test_a_batch_without_steps_or_features_gives_empty_sequences(self):
        for x in masks.unpad_sequences(torch.zeros(2, 0, 3), torch.tensor([0, 0])):
            assert_same(x, torch.zeros(0, 3))
        first, second = masks.unpad_sequences(torch.zeros(2, 3, 0), torch.tensor([2, 3]))
        assert_same(first, torch.zeros(2, 0))
        assert_same(second, torch.zeros(3, 0))

    def test_gradients_reach_what_was_kept_and_nothing_else(self):
        padded = sample(3, 4, 2, dtype=torch.float64).requires_grad_()
        weight = sample(3, 4, 2, dtype=torch.float64)
        lengths = [2, 0, 4]
        found = masks.unpad_sequences(padded, torch.tensor(lengths))
        expect(found[0].requires_grad, "expected results that gradients flow through, they do not require grad")
        total = sum((x * weight[i, : len(x)]).sum() for i, x in enumerate(found))
        (gradient,) = torch.autograd.grad(total, padded)
        wanted = weight * first_places(lengths, 4)[..., None]
        assert_same(gradient, wanted)

    @pytest.mark.parametrize("layout", ["transposed", "sliced", "expanded"])
    def test_works_for_any_strides(self, layout):
        """A transposed, sliced or expanded tensor is as good as its contiguous copy."""
        leaf = sample(3, 4, 2).requires_grad_()
        lengths = strided(torch.tensor([3, 1, 4]), layout)
        found = masks.unpad_sequences(strided(leaf, layout), lengths)
        dense = strided(leaf, layout).contiguous()
        wanted = [dense[i, :length] for i, length in enumerate(lengths.tolist())]
        for i, (x, y) in enumerate(zip(found, wanted, strict=True)):
            assert_same(x, y, what=f"sequence {i}")
        assert_same_gradients(torch.cat(found), torch.cat(wanted), [leaf])

    @pytest.mark.parametrize("lengths", [[-2, 3], [3, -2]], ids=str)
    def test_refuses_a_negative_length(self, lengths):
        """A slice to -2 would silently leave out the last two steps."""
        with refuses(ValueError, mentions=[-2]):
            masks.unpad_sequences(sample(2, 5, 3), torch.tensor(lengths))

    @pytest.mark.parametrize("lengths, wrong", [([6, 3], 6), ([3, 6], 6), ([5, 9], 9)], ids=str)
    def test_refuses_a_length_greater_than_the_number_of_steps(self, lengths, wrong):
        """A slice to 6 of 5 steps would silently give 5."""
        with refuses(ValueError, mentions=[wrong, 5]):
            masks.unpad_sequences(sample(2, 5, 3), torch.tensor(lengths))

    @pytest.mark.parametrize("count", [2, 4, 1])
    def test_refuses_more_or_fewer_lengths_than_rows(self, count):
        with refuses(ValueError, mentions=[count, 3]):
            masks.unpad_sequences(sample(3, 6, 7), torch.full((count,), 5))

    def test_refuses_no_lengths_for_some_rows_and_some_lengths_for_no_rows(self):
        with refuses(ValueError, mentions=[0, 3]):
            masks.unpad_sequences(sample(3, 6, 7), torch.zeros(0, dtype=torch.int64))
        with refuses(ValueError, mentions=[2, 0]):
            masks.unpad_sequences(torch.zeros(0, 6, 7), torch.tensor([1, 1]))

    @pytest.mark.parametrize("dtype", NO_INTEGERS, ids=str)
    def test_refuses_lengths_that_are_no_integers(self, dtype):
        with refuses(TypeError):
            masks.unpad_sequences(sample(2, 5), torch.ones(2, dtype=dtype))

    @pytest.mark.parametrize("shape", [(), (2, 1), (1, 2)], ids=str)
    def test_refuses_lengths_that_are_not_one_a_row(self, shape):
        with refuses(ValueError):
            masks.unpad_sequences(sample(2, 5), torch.ones(shape, dtype=torch.int64))

    def test_refuses_what_has_no_rows_of_steps(self):
        with refuses(ValueError):
            masks.unpad_sequences(sample(3), torch.ones(3, dtype=torch.int64))


def mean_by_hand(x, valid):
    """The mean over the valid steps, row by row, and 0 without one."""
    rows = [row[keep].sum(0) / max(int(keep.sum()), 1) for row, keep in zip(x, valid, strict=True)]
    return torch.stack(rows)


STEPS = torch.tensor([[T, T, F, F, F], [T, T, T, T, T], [F, F, F, F, F], [F, T, F, T, T]])


class TestMaskedMean:
    def test_only_valid_steps_count(self):
        x = torch.tensor([[[1.0, 5.0], [3.0, 9.0], [100.0, 200.0]]])
        assert_same(masks.masked_mean(x, torch.tensor([[T, T, F]])), torch.tensor([[2.0, 7.0]]))

    @given(b=sizes, t=sizes, d=sizes, data=st.data())
    def test_is_the_mean_over_the_valid_steps_of_each_sequence(self, b, t, d, data):
        rows = data.draw(st.lists(st.lists(st.booleans(), min_size=t, max_size=t), min_size=b, max_size=b))
        x, valid = sample(b, t, d, dtype=torch.float64), torch.tensor(rows)
        assert_same(masks.masked_mean(x, valid), mean_by_hand(x, valid), **FLOAT64)

    def test_valid_steps_need_not_come_first(self):
        x = torch.tensor([[[1.0], [10.0], [100.0], [1000.0]]])
        assert_same(masks.masked_mean(x, torch.tensor([[F, T, F, T]])), torch.tensor([[505.0]]))

    def test_steps_that_are_valid_and_zero_count(self):
        x = torch.tensor([[[0.0, 0.0], [6.0, 3.0], [0.0, 0.0]]])
        assert_same(masks.masked_mean(x, torch.tensor([[T, T, T]])), torch.tensor([[2.0, 1.0]]))

    @pytest.mark.parametrize("dtype", FLOATS, ids=str)
    def test_a_sequence_without_a_valid_step_has_the_mean_zero_and_no_gradient(self, dtype):
        """0 / 0 is nan, and a small eps that should prevent it is 0 in float16."""
        x = sample(4, 5, 3, dtype=dtype).requires_grad_()
        found = masks.masked_mean(x, STEPS)
        assert_same(found[2], torch.zeros(3, dtype=dtype))
        (gradient,) = gradients_of(found, [x])
        expect_zero(gradient, 2, "for a sequence without a valid step")
        expect(bool(gradient.isfinite().all()), "expected finite gradients, got nan or inf")

    @pytest.mark.parametrize("poison", POISON)
    def test_what_lies_at_masked_places_does_not_matter(self, poison):
        """Multiplying by 0 does not help: 0 * nan is nan."""
        clean = sample(4, 5, 3, dtype=torch.float64)
        x = poisoned(clean, STEPS, poison)
        found = masks.masked_mean(x, STEPS)
        assert_same(found, mean_by_hand(clean, STEPS), **FLOAT64)

    @pytest.mark.parametrize("poison", POISON)
    @pytest.mark.parametrize("dtype", FLOATS, ids=str)
    def test_what_lies_at_masked_places_does_not_reach_the_gradient(self, dtype, poison):
        x = poisoned(sample(4, 5, 3, dtype=dtype), STEPS, poison)
        found = masks.masked_mean(x, STEPS)
        assert_same(found, mean_by_hand(x.detach().float(), STEPS).to(dtype))
        (gradient,) = gradients_of(found, [x])
        expect_zero(gradient, ~STEPS, "at masked places")
        expect(bool(gradient.isfinite().all()), "expected finite gradients, got nan or inf")

    def test_each_valid_step_gets_its_share_of_the_gradient(self):
        x = poisoned(sample(4, 5, 3, dtype=torch.float64), STEPS, math.nan)
        assert_same_gradients(masks.masked_mean(x, STEPS), mean_by_hand(x, STEPS), [x], **FLOAT64)

    def test_float64_stays_precise(self):
        x = 1 + sample(4, 5, 3, dtype=torch.float64) * 1e-9
        assert_same(masks.masked_mean(x, STEPS), mean_by_hand(x, STEPS), rtol=1e-14, atol=1e-14)

    def test_tiny_values_stay_precise(self):
        x = sample(4, 5, 3, dtype=torch.float64) * 1e-30
        assert_same(masks.masked_mean(x, STEPS), mean_by_hand(x, STEPS), rtol=1e-12, atol=0)

    @pytest.mark.parametrize("shape", [(0, 3, 2), (2, 0, 3), (2, 3, 0), (0, 0, 2)], ids=str)
    def test_any_size_may_be_zero(self, shape):
        b, t, d = shape
        x = torch.zeros(shape, requires_grad=True)
        found = masks.masked_mean(x, torch.ones(b, t, dtype=torch.bool))
        assert_same(found, torch.zeros(b, d))
        gradients_of(found, [x])

    @pytest.mark.parametrize("dtype", NO_MASKS, ids=str)
    def test_refuses_a_mask_that_is_not_bool(self, dtype):
        with refuses(TypeError):
            masks.masked_mean(sample(2, 4, 3), torch.ones(2, 4, dtype=dtype))

    @pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.bool], ids=str)
    def test_refuses_values_that_are_not_floating(self, dtype):
        with refuses(TypeError):
            masks.masked_mean(torch.ones(2, 4, 3, dtype=dtype), torch.ones(2, 4, dtype=torch.bool))

    @pytest.mark.parametrize("shape", [(2, 1), (1, 4), (1, 1), (4, 2), (2, 5), (6, 4), (2, 3)], ids=str)
    def test_refuses_a_mask_of_another_shape_and_broadcasts_nothing(self, shape):
        """A mask [1 t] would silently give every sequence the length of the first."""
        with refuses(ValueError, mentions=[*shape, 2, 4]):
            masks.masked_mean(sample(2, 4, 3), torch.ones(shape, dtype=torch.bool))

    @pytest.mark.parametrize("shape", [(4,), (2, 4, 1), (2, 4, 3), ()], ids=str)
    def test_refuses_a_mask_that_is_not_of_two_dimensions(self, shape):
        with refuses(ValueError):
            masks.masked_mean(sample(2, 4, 3), torch.ones(shape, dtype=torch.bool))

    @pytest.mark.parametrize("shape", [(2, 4), (2, 4, 3, 5)], ids=str)
    def test_refuses_values_that_are_not_of_three_dimensions(self, shape):
        with refuses(ValueError):
            masks.masked_mean(sample(*shape), torch.ones(2, 4, dtype=torch.bool))


def softmax_by_rows(scores, valid, dim=-1):
    """The softmax of the valid scores of each row, one row at a time, and 0 elsewhere."""
    valid = valid.expand(scores.shape).movedim(dim, -1)
    lined_up = scores.movedim(dim, -1)
    t = lined_up.shape[-1]
    rows = [
        torch.zeros(t, dtype=row.dtype).masked_scatter(keep, torch.softmax(row[keep], 0))
        for row, keep in zip(lined_up.reshape(-1, t), valid.reshape(-1, t), strict=True)
    ]
    return torch.stack(rows).reshape(lined_up.shape).movedim(-1, dim)


class TestMaskedSoftmax:
    def test_valid_places_share_one_and_masked_places_are_zero(self):
        scores = torch.tensor([[math.log(1.0), math.log(3.0), 9.0], [2.0, 2.0, 2.0]])
        found = masks.masked_softmax(scores, torch.tensor([[T, T, F], [T, F, T]]))
        assert_same(found, torch.tensor([[0.25, 0.75, 0.0], [0.5, 0.0, 0.5]]))

    @given(shape=shapes(min_dims=1, max_dims=3, max_size=4), data=st.data())
    def test_is_the_softmax_of_the_valid_scores_along_any_dim(self, shape, data):
        dim = data.draw(st.integers(-len(shape), len(shape) - 1))
        mask = data.draw(st.lists(st.booleans(), min_size=math.prod(shape), max_size=math.prod(shape)))
        scores, valid = sample(*shape, dtype=torch.float64), bools(mask, *shape)
        assert_same(masks.masked_softmax(scores, valid, dim), softmax_by_rows(scores, valid, dim), **FLOAT64)

    @pytest.mark.parametrize("dim", [0, 1, 2, -1, -2, -3])
    def test_dim_says_which_places_compete(self, dim):
        scores, valid = sample(3, 5, 4, dtype=torch.float64), sample(3, 5, 4, dtype=torch.bool)
        found = masks.masked_softmax(scores, valid, dim=dim)
        assert_same(found, softmax_by_rows(scores, valid, dim), **FLOAT64)

    @pytest.mark.parametrize("dim", [0, 1, -1, -2])
    def test_rows_far_apart_do_not_disturb_each_other(self, dim):
        """The largest score is taken away row by row: one for all would leave other rows with nothing but 0."""
        scores = (sample(3, 4) + torch.tensor([0.0, 3000.0, -3000.0]).view(3, 1)).double()
        if dim in (0, -2):
            scores = scores.T.contiguous()
        dim_of = {0: 0, 1: 1, -1: 1, -2: 0}[dim]
        valid = torch.ones(scores.shape, dtype=torch.bool)
        assert_same(masks.masked_softmax(scores, valid, dim), softmax_by_rows(scores, valid, dim_of), **FLOAT64)

    @pytest.mark.parametrize(
        "shape", [(4,), (1, 4), (5, 4), (3, 1, 4), (3, 5, 1), (5, 1), (1,), (1, 1, 1), ()], ids=str
    )
    @pytest.mark.parametrize("dim", [-1, 1])
    def test_valid_is_broadcast_to_the_scores(self, shape, dim):
        scores = sample(3, 5, 4, dtype=torch.float64).requires_grad_()
        valid = sample(*shape, dtype=torch.bool)
        for mask in (valid, ~valid):
            found = masks.masked_softmax(scores, mask, dim)
            wanted = softmax_by_rows(scores, mask, dim)
            assert_same(found, wanted, **FLOAT64)
            assert_same_gradients(found, wanted, [scores], **FLOAT64)

    @pytest.mark.parametrize("dtype", FLOATS, ids=str)
    def test_a_row_without_a_valid_place_is_zero_and_passes_no_gradient(self, dtype):
        """torch's softmax over nothing but -inf is nan, and the nan spreads to every parameter."""
        scores = sample(4, 5, dtype=dtype).requires_grad_()
        found = masks.masked_softmax(scores, STEPS)
        expect(bool((found[2] == 0).all()), f"expected a row of 0 without a valid place, got {found[2].tolist()}")
        (gradient,) = gradients_of(found, [scores])
        expect_zero(gradient, 2, "for a row without a valid place")
        expect(bool(gradient.isfinite().all()), "expected finite gradients, got nan or inf")

    @pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf, 3e38, 1e4, -3e38])
    def test_what_lies_at_masked_places_does_not_matter(self, poison):
        """The largest VALID score must be taken away: beside a large masked one the others vanish."""
        clean = sample(4, 5, dtype=torch.float64)
        found = masks.masked_softmax(poisoned(clean, STEPS, poison), STEPS)
        assert_same(found, softmax_by_rows(clean, STEPS), **FLOAT64)
        expect(bool((found[~STEPS] == 0).all()), "expected masked places to be exactly 0")

    @pytest.mark.parametrize("poison", POISON)
    @pytest.mark.parametrize("dtype", FLOATS, ids=str)
    def test_what_lies_at_masked_places_does_not_reach_the_gradient(self, dtype, poison):
        """`torch.where` after exp hides nan from the value alone: its gradient is 0 * nan."""
        scores = poisoned(sample(4, 5, dtype=dtype), STEPS, poison)
        found = masks.masked_softmax(scores, STEPS)
        exact = scores.detach().float().requires_grad_()
        wanted = softmax_by_rows(exact, STEPS)
        assert_same(found, wanted.to(dtype))
        expect(bool((found[~STEPS] == 0).all()), "expected masked places to be exactly 0")
        (gradient,), (slope,) = gradients_of(found, [scores]), gradients_of(wanted, [exact])
        expect_zero(gradient, ~STEPS, "at masked places")
        assert_same(gradient, slope.to(dtype), what="the gradient")

    def test_gradients_flow_among_the_valid_places(self):
        scores = poisoned(sample(4, 5, dtype=torch.float64), STEPS, math.nan)
        assert_same_gradients(masks.masked_softmax(scores, STEPS), softmax_by_rows(scores, STEPS), [scores], **FLOAT64)

    @pytest.mark.parametrize("dtype", FLOATS, ids=str)
    def test_large_scores_of_either_sign_overflow_nothing(self, dtype):
        scores = torch.tensor(
            [[1e4, 1e4, -1e4, 5.0], [-1e4, -1e4, 1e4, -1e4], [1e4, 9e3, 1e4, 1e4], [-1e4, -1e4, -1e4, -1e4]],
            dtype=dtype,
        ).requires_grad_()
        valid = torch.tensor([[T, T, T, F], [T, T, F, F], [T, T, F, T], [F, T, F, F]])
        found = masks.masked_softmax(scores, valid)
        wanted = torch.tensor([[0.5, 0.5, 0, 0], [0.5, 0.5, 0, 0], [0.5, 0, 0, 0.5], [0, 1, 0, 0]], dtype=dtype)
        assert_same(found, wanted)
        expect(bool((found[~valid] == 0).all()), "expected masked places to be exactly 0 beside scores of -10,000")
        (gradient,) = gradients_of(found, [scores])
        expect(bool(gradient.isfinite().all()), "expected finite gradients, got nan or inf")
        expect_zero(gradient, ~valid, "at masked places")

    def test_float64_rows_sum_to_one_exactly(self):
        found = masks.masked_softmax(sample(4, 5, dtype=torch.float64), STEPS).sum(-1)
        assert_same(found, torch.tensor([1.0, 1.0, 0.0, 1.0], dtype=torch.float64), rtol=1e-14, atol=1e-14)

    @pytest.mark.parametrize(
        "shape, dim", [((3, 0), -1), ((0, 4), -1), ((0, 4), 0), ((2, 0, 3), 1), ((2, 0, 3), -1), ((0,), 0)], ids=str
    )
    def test_any_size_may_be_zero(self, shape, dim):
        for mask in (shape, (1,), (1,) * len(shape)):
            scores = torch.zeros(shape, requires_grad=True)
            found = masks.masked_softmax(scores, torch.ones(mask, dtype=torch.bool), dim)
            assert_same(found, torch.zeros(shape))
            gradients_of(found, [scores])

    @pytest.mark.parametrize("dtype", NO_MASKS, ids=str)
    def test_refuses_a_mask_that_is_not_bool(self, dtype):
        with refuses(TypeError):
            masks.masked_softmax(sample(3, 4), torch.ones(3, 4, dtype=dtype))

    @pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.bool], ids=str)
    def test_refuses_scores_that_are_not_floating(self, dtype):
        with refuses(TypeError):
            masks.masked_softmax(torch.ones(3, 4, dtype=dtype), torch.ones(3, 4, dtype=torch.bool))

    @pytest.mark.parametrize(
        "scores, valid", [((3, 4), (3, 5)), ((3, 4), (2, 4)), ((3, 4), (3,)), ((2, 3, 4), (2, 1)), ((2, 3), (3, 2))],
        ids=str,
    )  # fmt: skip
    def test_refuses_a_mask_that_does_not_broadcast(self, scores, valid):
        with refuses(ValueError, mentions=[*scores, *valid] if len(scores) == len(valid) else []):
            masks.masked_softmax(sample(*scores), torch.ones(valid, dtype=torch.bool))

    @pytest.mark.parametrize("scores, valid", [((1, 4), (3, 4)), ((3, 1), (3, 4)), ((2, 1, 4), (2, 3, 4))], ids=str)
    def test_refuses_a_mask_that_would_make_the_result_larger(self, scores, valid):
        """The mask is broadcast to the scores, never the other way round."""
        with refuses(ValueError, mentions=[*scores, *valid]):
            masks.masked_softmax(sample(*scores), torch.ones(valid, dtype=torch.bool))

    @pytest.mark.parametrize("scores, valid", [((4,), (3, 4)), ((4,), (1, 4)), ((3, 4), (2, 3, 4))], ids=str)
    def test_refuses_a_mask_of_more_dimensions_than_the_scores(self, scores, valid):
        with refuses(ValueError):
            masks.masked_softmax(sample(*scores), torch.ones(valid, dtype=torch.bool))

    def test_takes_no_more_operations_for_more_places(self):
        counts = []
        for t in (3, 8):
            with count_ops() as ops:
                masks.masked_softmax(sample(4, t), torch.ones(t, dtype=torch.bool))
            counts.append(ops.total())
        expect(counts[1] <= counts[0], f"expected as many operations for 8 places as for 3, got {counts[1]}")


def loss_by_token(logits, targets, valid):
    """The mean of the valid tokens' losses, one token at a time, and 0 without one."""
    total, count = logits.new_zeros(()), 0
    for i, j in valid.nonzero().tolist():
        total = total + torch.logsumexp(logits[i, j], 0) - logits[i, j, int(targets[i, j])]
        count += 1
    return total / max(count, 1)


def tokens(b=4, t=5, v=6, dtype=torch.float64):
    """Logits, targets and a mask; the rows of STEPS have different numbers of valid tokens."""
    logits = sample(b, t, v, dtype=dtype)
    targets = (torch.arange(b * t) * 5 + 3).remainder(v).view(b, t)
    return logits, targets, STEPS[:b, :t].clone()


class TestMaskedCrossEntropy:
    def test_is_the_mean_loss_of_the_valid_tokens(self):
        logits = torch.tensor([[[0.0, math.log(3.0)], [0.0, 0.0], [9.0, -7.0]]])
        found = masks.masked_cross_entropy(logits, torch.tensor([[1, 0, 1]]), torch.tensor([[T, T, F]]))
        assert_same(found, torch.tensor((math.log(4 / 3) + math.log(2)) / 2))

    @settings(max_examples=15)
    @given(b=sizes, t=st.integers(1, 4), v=sizes, data=st.data())
    def test_every_valid_token_weighs_the_same(self, b, t, v, data):
        """The mean of the sequences' means would give a token of a short sequence more weight."""
        cells = lambda what: st.lists(what, min_size=b * t, max_size=b * t)  # noqa: E731
        targets = torch.tensor(data.draw(cells(st.integers(0, v - 1)))).view(b, t)
        valid = torch.tensor(data.draw(cells(st.booleans()))).view(b, t)
        logits = sample(b, t, v, low=-5, high=5, dtype=torch.float64)
        found = masks.masked_cross_entropy(logits, targets, valid)
        assert_same(found, loss_by_token(logits, targets, valid), **FLOAT64)

    def test_a_sequence_without_valid_tokens_leaves_the_others_alone(self):
        logits, targets, valid = tokens()
        found = masks.masked_cross_entropy(logits, targets, valid)
        others = [0, 1, 3]
        assert_same(found, loss_by_token(logits[others], targets[others], valid[others]), **FLOAT64)

    def test_gradients_are_those_of_the_valid_tokens(self):
        logits, targets, valid = tokens()
        logits.requires_grad_()
        found, wanted = masks.masked_cross_entropy(logits, targets, valid), loss_by_token(logits, targets, valid)
        assert_same_gradients(found, wanted, [logits], **FLOAT64)

    @pytest.mark.parametrize("poison", POISON)
    @pytest.mark.parametrize("dtype", FLOATS, ids=str)
    def test_logits_at_padding_do_not_matter(self, dtype, poison):
        """Neither a product with 0 nor a `where` after the loss keeps nan out of the gradient."""
        clean, targets, valid = tokens(dtype=dtype)
        exact = clean.float().requires_grad_()
        wanted = loss_by_token(exact, targets, valid)
        logits = poisoned(clean, valid, poison)
        found = masks.masked_cross_entropy(logits, targets, valid)
        assert_same(found, wanted.to(dtype))
        (gradient,), (slope,) = gradients_of(found, [logits]), gradients_of(wanted, [exact])
        expect_zero(gradient, ~valid, "at padding")
        assert_same(gradient, slope.to(dtype), what="the gradient")

    @pytest.mark.parametrize("ignored", [-100, -1, 6, 10**12, -(2**63), 2**63 - 1])
    def test_targets_at_padding_may_be_any_int(self, ignored):
        logits, targets, valid = tokens()
        wanted = loss_by_token(logits, targets, valid)
        found = masks.masked_cross_entropy(logits, targets.masked_fill(~valid, ignored), valid)
        assert_same(found, wanted, **FLOAT64)

    def test_targets_at_padding_may_differ_from_place_to_place(self):
        logits, targets, valid = tokens()
        junk = torch.arange(20).view(4, 5) * 37 - 300
        found = masks.masked_cross_entropy(logits, torch.where(valid, targets, junk), valid)
        assert_same(found, loss_by_token(logits, targets, valid), **FLOAT64)

    @pytest.mark.parametrize("more", ["columns", "rows"])
    def test_more_padding_changes_nothing(self, more):
        """A loss that is divided by the number of all places depends on the longest sequence of the batch."""
        logits, targets, valid = tokens()
        shape = (4, 3) if more == "columns" else (2, 5)
        dim = 1 if more == "columns" else 0
        wide = torch.cat([logits, torch.full((*shape, 6), math.nan, dtype=torch.float64)], dim).requires_grad_()
        wide_targets = torch.cat([targets, torch.full(shape, -100)], dim)
        wide_valid = torch.cat([valid, torch.zeros(shape, dtype=torch.bool)], dim)
        found = masks.masked_cross_entropy(wide, wide_targets, wide_valid)
        leaf = logits.requires_grad_()
        wanted = loss_by_token(leaf, targets, valid)
        assert_same(found, wanted, **FLOAT64)
        (gradient,), (slope,) = gradients_of(found, [wide]), gradients_of(wanted, [leaf])
        assert_same(gradient[:4, :5], slope, **FLOAT64, what="the gradient")

    def test_the_target_zero_is_a_class_like_any_other(self):
        logits, _, valid = tokens()
        targets = torch.zeros(4, 5, dtype=torch.int64)
        found = masks.masked_cross_entropy(logits, targets, valid)
        assert_same(found, loss_by_token(logits, targets, valid), **FLOAT64)

    @pytest.mark.parametrize("dtype", FLOATS, ids=str)
    def test_without_a_valid_token_the_loss_is_zero_and_so_are_the_gradients(self, dtype):
        """The mean of nothing is nan; a new 0 without a graph makes backward raise."""
        for fill in (0.0, math.nan):
            logits = (sample(2, 3, 4, dtype=dtype) + fill).requires_grad_()
            found = masks.masked_cross_entropy(logits, torch.full((2, 3), -100), torch.zeros(2, 3, dtype=torch.bool))
            assert_same(found, torch.zeros((), dtype=dtype))
            expect(found.requires_grad, "expected a loss that backward can start from, it does not require grad")
            (gradient,) = torch.autograd.grad(found, logits)
            assert_same(gradient, torch.zeros(2, 3, 4, dtype=dtype), what="the gradient")

    @pytest.mark.parametrize("shape", [(0, 3, 4), (2, 0, 4), (2, 3, 0), (0, 0, 0)], ids=str)
    def test_any_size_may_be_zero_where_nothing_is_valid(self, shape):
        logits = torch.zeros(shape, requires_grad=True)
        targets = torch.zeros(shape[:2], dtype=torch.int64)
        found = masks.masked_cross_entropy(logits, targets, torch.zeros(shape[:2], dtype=torch.bool))
        assert_same(found, torch.zeros(()))
        (gradient,) = torch.autograd.grad(found, logits)
        assert_same(gradient, torch.zeros(shape), what="the gradient")

    def test_large_logits_overflow_nothing(self):
        """The logarithm of a softmax is -inf where the probability is too small; log_softmax knows better."""
        for dtype in (torch.float32, torch.float64):
            logits = torch.tensor(
                [[[1e4, -1e4, 0.0], [1e4, -1e4, 0.0], [-1e4, 1e4, 1e4]]], dtype=dtype
            ).requires_grad_()
            found = masks.masked_cross_entropy(logits, torch.tensor([[0, 1, 2]]), torch.tensor([[T, T, T]]))
            assert_same(found, torch.tensor((0 + 2e4 + math.log(2)) / 3, dtype=dtype))
            (gradient,) = torch.autograd.grad(found, logits)
            wanted = torch.tensor([[[0, 0, 0], [1, -1, 0], [0, 0.5, -0.5]]], dtype=dtype) / 3
            assert_same(gradient, wanted, what="the gradient")

    @pytest.mark.parametrize("dtype", INTEGERS, ids=str)
    def test_takes_targets_of_any_integer_dtype(self, dtype):
        logits, targets, valid = tokens()
        padding = 255 if dtype == torch.uint8 else -100
        narrow = targets.masked_fill(~valid, padding).to(dtype)
        found = masks.masked_cross_entropy(logits, narrow, valid)
        assert_same(found, loss_by_token(logits, targets, valid), **FLOAT64)

    @pytest.mark.parametrize("place", [(0, 0), (1, 4), (3, 3)], ids=str)
    @pytest.mark.parametrize("wrong", [-100, -1, 6, 9, -6])
    def test_refuses_a_valid_target_that_is_no_class(self, wrong, place):
        """-100 is what torch's own loss skips without a word: where it is valid, something went wrong."""
        logits, targets, valid = tokens()
        targets[place] = wrong
        logits.requires_grad_()
        with unchanged(logits, targets, valid), refuses(IndexError, mentions=[wrong, 6]):
            masks.masked_cross_entropy(logits, targets, valid)

    def test_refuses_every_valid_target_where_there_are_no_classes(self):
        with refuses(IndexError, mentions=[2, 0]):
            masks.masked_cross_entropy(torch.zeros(1, 1, 0), torch.tensor([[2]]), torch.tensor([[True]]))

    @pytest.mark.parametrize("dtype", NO_MASKS, ids=str)
    def test_refuses_a_mask_that_is_not_bool(self, dtype):
        logits, targets, _ = tokens()
        with refuses(TypeError):
            masks.masked_cross_entropy(logits, targets, torch.ones(4, 5, dtype=dtype))

    @pytest.mark.parametrize("dtype", NO_INTEGERS, ids=str)
    def test_refuses_targets_that_are_no_integers(self, dtype):
        logits, _, valid = tokens()
        with refuses(TypeError):
            masks.masked_cross_entropy(logits, torch.ones(4, 5, dtype=dtype), valid)

    @pytest.mark.parametrize("dtype", [torch.int64, torch.bool], ids=str)
    def test_refuses_logits_that_are_not_floating(self, dtype):
        _, targets, valid = tokens()
        with refuses(TypeError):
            masks.masked_cross_entropy(torch.ones(4, 5, 6, dtype=dtype), targets, valid)

    @pytest.mark.parametrize("shape", [(4, 1), (1, 5), (5, 4), (4, 7), (9, 5), (2, 10)], ids=str)
    @pytest.mark.parametrize("which", ["targets", "valid"])
    def test_refuses_shapes_that_do_not_fit_and_broadcasts_nothing(self, which, shape):
        logits, targets, valid = tokens()
        if which == "targets":
            targets = torch.zeros(shape, dtype=torch.int64)
        else:
            valid = torch.ones(shape, dtype=torch.bool)
        with refuses(ValueError, mentions=[*shape, 4, 5]):
            masks.masked_cross_entropy(logits, targets, valid)

    @pytest.mark.parametrize("shape", [(20,), (5,), (4, 5, 1), (4, 5, 6)], ids=str)
    @pytest.mark.parametrize("which", ["targets", "valid"])
    def test_refuses_another_number_of_dimensions(self, which, shape):
        logits, targets, valid = tokens()
        if which == "targets":
            targets = torch.zeros(shape, dtype=torch.int64)
        else:
            valid = torch.ones(shape, dtype=torch.bool)
        with refuses(ValueError):
            masks.masked_cross_entropy(logits, targets, valid)

    @pytest.mark.parametrize("shape", [(4, 5), (4, 5, 6, 2)], ids=str)
    def test_refuses_logits_that_are_not_of_three_dimensions(self, shape):
        with refuses(ValueError):
            masks.masked_cross_entropy(
                sample(*shape), torch.zeros(4, 5, dtype=torch.int64), torch.ones(4, 5, dtype=torch.bool)
            )

    @on_each_device
    def test_without_a_valid_token_too_the_loss_is_made_where_the_logits_are(self, device):
        with devices.on(device):
            logits = torch.zeros(2, 3, 4, device=device, requires_grad=True)
            targets = torch.full((2, 3), -100, device=device)
            valid = torch.zeros(2, 3, dtype=torch.bool, device=device)
            with devices.no_strays():
                found = masks.masked_cross_entropy(logits, targets, valid)
            expect(found.device.type == device, f"expected a loss on {device}, got one on {found.device.type}")
            torch.autograd.grad(found, logits)


def packed(s):
    """A batch of two sequences of at most two steps, whatever the number of steps that it has room for."""
    lengths = s.ints(2, high=3)
    return s(2, s.n + 2, 3), lengths


# The house rules, for every function: `s` makes a sample in the dtype, on the device and with the number of rows `s.n`
# that a rule asks about.
RULES = [
    rule("padding_mask", lambda s: (s.ints(s.n, s.n + 1, high=3), 1),
         also={"int32": {"make": lambda s: (s.ints(s.n, s.n + 1, high=3, dtype=torch.int32),)}},
         fails=lambda s: (s.bools(3, 4), 0)),
    rule("lengths_to_mask", lambda s: (s.ints(s.n, high=5), 6),
         also={"int32": {"make": lambda s: (s.ints(s.n, high=5, dtype=torch.int32), 6)}},
         fails=lambda s: (s.ints(3, low=7, high=9), 6)),
    # No tensor goes in: devices, the number of operations and time 0 have specs of their own.
    rule("causal_mask", lambda s: (4,), fails=lambda s: (-2,)),
    rule("attention_mask", lambda s: (s.bools(s.n, s.n + 1), True),
         also={"not causal": {"make": lambda s: (s.bools(s.n, s.n + 1),)}}, fails=lambda s: (s.bools(3), True)),
    # Integers are padded too. The list has three members: the work may grow with it, not with their steps.
    rule("pad_sequences", lambda s: ([s(s.n + 2, 3), s(s.n, 3), s(1, 3)], -1.5), integers_refused=False, is_copy=True,
         refused=("pad_sequence", "nested_tensor", "as_nested_tensor", "to_padded_tensor"),
         fails=lambda s: ([s(2, 3), s(4, 3), s(4, 2)],)),
    # Integers are taken apart too. No rows give no results, so there are two, and `s.n` is the number of steps; strides
    # and views have specs of their own (the rule's asks of one result at a time).
    rule("unpad_sequences", packed, integers_refused=False, any_strides=False,
         fails=lambda s: (s(2, 3), s.ints(2, low=4, high=6))),
    rule("masked_mean", lambda s: (s(s.n, s.n + 1, 3), s.bools(s.n, s.n + 1)),
         fails=lambda s: (s(3, 4, 2), s.bools(1, 4))),
    rule("masked_softmax", lambda s: (s(s.n, 3, s.n + 1), s.bools(s.n, 1, s.n + 1)),
         also={"dim 1": {"make": lambda s: (s(s.n, 3, 4), s.bools(3, 1), 1)},
               "one mask for all": {"make": lambda s: (s(s.n, 4), s.bools(4))}},
         refused=("softmax", "log_softmax", "logsumexp", "attention"), fails=lambda s: (s(1, 4), s.bools(3, 4))),
    rule("masked_cross_entropy", lambda s: (s(s.n, s.n + 1, 5), s.ints(s.n, s.n + 1), s.bools(s.n, s.n + 1)),
         fails=lambda s: (s(2, 3, 4), s.ints(2, 3, low=4, high=6), ~(s.bools(2, 3) & False))),
]  # fmt: skip
