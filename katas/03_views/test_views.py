"""The specs of kata 03. One class a function; the house rules that all of them share are in the table at the end."""

import math

import pytest
import torch
import views
from hypothesis import given
from hypothesis import strategies as st

from dojo.compare import assert_same, expect, refuses
from dojo.guards import count_ops, shares_memory
from dojo.rules import rule
from dojo.strategies import sample, shapes, sizes, strided

# For another number of dimensions torch's own error is as good as ours, silence is not.
LOUD = (ValueError, RuntimeError, IndexError, TypeError)


def layouts(*shape):
    """One tensor of the shape in each layout: its own memory, transposed, sliced from an offset, expanded."""
    return [sample(*shape), *(strided(sample(*shape), layout) for layout in ("transposed", "sliced", "expanded"))]


def copies(ops):
    """How many operations of a count made a copy of a whole tensor."""
    return sum(ops[name] for name in ("clone", "copy_", "_to_copy", "cat", "stack", "index", "gather"))


class TestSameStorage:
    def test_slices_of_one_tensor_look_at_one_storage_even_where_they_overlap_nowhere(self):
        x = sample(6)
        assert views.same_storage(x[:2], x[4:]) is True

    def test_equal_values_in_two_memories_are_not_one_storage(self):
        x = sample(6)
        assert views.same_storage(x, x.clone()) is False

    @pytest.mark.parametrize("see", [torch.t, torch.ravel, torch.detach, lambda x: x.data, lambda x: x[1:, ::2]])
    def test_every_view_looks_at_the_storage_of_its_base(self, see):
        x = sample(4, 6).requires_grad_()
        assert views.same_storage(x, see(x)) is True
        assert views.same_storage(see(x), x) is True

    def test_a_view_in_another_dtype_is_still_the_same_memory(self):
        x = sample(6)
        assert views.same_storage(x, x.view(torch.int32)) is True

    def test_views_that_begin_at_different_places_are_found_from_either_side(self):
        x = sample(5, 4)
        assert views.same_storage(x[3], x.t()[2]) is True
        assert views.same_storage(x[1:], x.reshape(2, 10).t().contiguous()) is False

    def test_memory_shared_with_the_result_of_set_is_found(self):
        x, other = sample(6), torch.empty(0)
        other.set_(x.untyped_storage(), 2, (3,), (1,))
        assert views.same_storage(x, other) is True

    def test_a_view_without_elements_still_belongs_to_its_storage(self):
        x = sample(6)
        assert views.same_storage(x, x[2:2]) is True


class TestElementOffset:
    @given(data=st.data(), shape=shapes(min_dims=1, min_size=2), layout=st.sampled_from(["transposed", "sliced"]))
    def test_reading_the_storage_at_that_place_gives_the_element(self, data, shape, layout):
        x = strided(torch.arange(math.prod(shape)).view(shape), layout)[1:]
        index = tuple(data.draw(st.integers(-size, size - 1)) for size in x.shape)
        place = views.element_offset(x, index)
        flat = torch.as_strided(x, (x.untyped_storage().nbytes() // x.itemsize,), (1,), 0)
        expect(0 <= place < flat.numel(), f"expected a place among the {flat.numel()} elements stored, got {place}")
        expect(int(flat[place]) == int(x[index]), f"expected x[{index}] = {x[index]} at {place}, found {flat[place]}")

    def test_an_expanded_dimension_takes_no_step(self):
        x = torch.arange(3).view(3, 1).expand(3, 5)
        assert [views.element_offset(x, (2, j)) for j in range(5)] == [2] * 5

    def test_the_storage_offset_counts(self):
        assert views.element_offset(torch.arange(12).view(3, 4)[1:, 2:], (1, -1)) == 11

    def test_a_tensor_of_one_element_has_an_empty_index(self):
        assert views.element_offset(torch.arange(4)[3], ()) == 3

    def test_counts_elements_and_not_bytes(self):
        for dtype in (torch.float64, torch.int8):
            assert views.element_offset(torch.zeros(4, 3, dtype=dtype), [2, 1]) == 7

    def test_gives_a_python_int(self):
        assert isinstance(views.element_offset(sample(3, 4), (1, 2)), int)

    @pytest.mark.parametrize("index, wrong", [((3, 0), 3), ((0, 4), 4), ((-4, 0), -4), ((0, -5), -5)])
    def test_refuses_an_index_out_of_range_before_it_leaves_the_tensor(self, index, wrong):
        with refuses(IndexError, mentions=[wrong]):
            views.element_offset(sample(9, 8)[:3, :4], index)

    def test_refuses_every_index_of_an_empty_dimension(self):
        with refuses(IndexError):
            views.element_offset(torch.zeros(0, 3), (0, 1))

    @pytest.mark.parametrize("index", [(), (1,), (0, 1, 0)])
    def test_refuses_a_wrong_number_of_indices(self, index):
        with refuses(ValueError, mentions=[len(index), 2]):
            views.element_offset(sample(3, 4), index)


class TestResolveShape:
    @given(shape=shapes(min_dims=1, max_size=5), data=st.data())
    def test_finds_the_size_that_was_left_out(self, shape, data):
        left_out = data.draw(st.integers(0, len(shape) - 1))
        asked = [-1 if i == left_out else size for i, size in enumerate(shape)]
        assert views.resolve_shape(math.prod(shape), asked) == shape

    @given(shape=shapes(min_size=0))
    def test_a_complete_shape_comes_back_as_a_tuple(self, shape):
        found = views.resolve_shape(math.prod(shape), list(shape))
        expect(found == shape, f"expected {shape}, got {found!r}")

    @given(numel=st.integers(0, 24), shape=st.lists(st.integers(-1, 6), max_size=4))
    def test_agrees_with_what_torch_accepts_and_refuses(self, numel, shape):
        try:
            wanted = tuple(torch.empty(numel).view(shape).shape)
        except RuntimeError:
            with refuses(ValueError):
                views.resolve_shape(numel, shape)
        else:
            found = views.resolve_shape(numel, shape)
            expect(found == wanted, f"expected {wanted}, as torch's view gives, got {found!r}")

    def test_no_elements_leave_nothing_for_the_size_that_was_left_out(self):
        assert views.resolve_shape(0, (-1, 3)) == (0, 3)

    def test_sizes_are_python_ints(self):
        assert all(type(size) is int for size in views.resolve_shape(12, (3, -1)))

    def test_big_tensors_need_no_memory(self):
        assert views.resolve_shape(10**15, (-1, 10**5)) == (10**10, 10**5)

    @pytest.mark.parametrize("shape", [(-1, -1), (2, -1, -1)])
    def test_refuses_two_sizes_left_out(self, shape):
        with refuses(ValueError):
            views.resolve_shape(4, shape)

    @pytest.mark.parametrize(
        "numel, shape, wrong", [(6, (-2, 3), [-2]), (6, (-2, -3), []), (6, (-3, -1, 2), [-3]), (0, (0, -4), [-4])]
    )
    def test_refuses_any_other_negative_size(self, numel, shape, wrong):
        with refuses(ValueError, mentions=wrong):
            views.resolve_shape(numel, shape)

    @pytest.mark.parametrize(
        "numel, shape, known", [(13, (3, 4), 12), (14, (4, -1), 4), (0, (3, 4), 12), (5, (0, 7), 0), (7, (), 1)]
    )
    def test_names_both_numbers_where_the_sizes_do_not_fit(self, numel, shape, known):
        with refuses(ValueError, mentions=[numel, known]):
            views.resolve_shape(numel, shape)

    @pytest.mark.parametrize("numel", [0, 6])
    def test_refuses_a_size_left_out_beside_a_zero(self, numel):
        with refuses(ValueError, mentions=[numel, 0]):
            views.resolve_shape(numel, (0, -1))

    def test_counts_beyond_what_a_float_can_hold(self):
        big = 2**53 + 1
        for shape, wanted in (((-1, 3), (big, 3)), ((big, -1), (big, 3))):
            found = views.resolve_shape(3 * big, shape)
            expect(tuple(found) == wanted, f"expected {wanted}, got {found}")
        with refuses(ValueError):
            views.resolve_shape(3 * big + 1, (-1, 3))


class TestTryView:
    @given(data=st.data(), shape=shapes(max_dims=3), layout=st.sampled_from(["transposed", "sliced", "expanded"]))
    def test_gives_a_view_exactly_where_torch_can(self, data, shape, layout):
        x = strided(torch.arange(math.prod(shape)).view(shape), layout)
        wanted = data.draw(st.permutations([*shape, 1]).map(tuple) | st.just((x.numel(),)) | st.just((-1, 1)))
        found = views.try_view(x, wanted)
        try:
            expected = x.view(wanted)
        except RuntimeError:
            expect(found is None, f"expected None: strides {x.stride()} allow no view in shape {wanted}")
        else:
            expect(found is not None, f"expected a view: strides {x.stride()} allow shape {wanted}, got None")
            assert_same(found, expected)
            expect(shares_memory(found, x), "expected a view of x's memory, got a copy")

    def test_a_transposed_matrix_has_no_flat_view(self):
        assert views.try_view(sample(2, 3).t(), (6,)) is None

    def test_a_dimension_that_only_lies_apart_can_still_be_split(self):
        x = sample(4, 6)[:, ::2]
        found = views.try_view(x, (2, 2, 3))
        assert_same(found, x.reshape(2, 2, 3))

    @pytest.mark.parametrize("shape", [(4, 1, 3), (2, 2, 3), (-1, 3)])
    def test_an_expanded_dimension_can_be_split_too(self, shape):
        x = torch.arange(3).expand(4, 3)
        found = views.try_view(x, shape)
        expect(found is not None, f"expected a view: a step of 0 can be taken twice, got None for shape {shape}")
        assert_same(found, x.reshape(shape))
        expect(shares_memory(found, x), "expected a view of x's memory, got a copy")

    def test_writes_show_in_the_input(self):
        x = torch.zeros(2, 6)
        views.try_view(x, [3, -1])[1, 2] = 7.0
        assert x.view(-1)[6] == 7.0

    def test_where_only_a_copy_would_do_nothing_is_copied(self):
        x = sample(64, 64).t()
        with count_ops() as ops:
            views.try_view(x, (64 * 64,))
        expect(copies(ops) == 0, "expected no copy, one was made and thrown away")

    def test_works_for_integers_and_without_elements(self):
        assert_same(views.try_view(torch.arange(6), (2, 3)), torch.arange(6).view(2, 3))
        assert_same(views.try_view(torch.zeros(0, 3).t(), (5, 0)), torch.zeros(5, 0))

    @pytest.mark.parametrize("shape, known", [((5,), 5), ((4, -1), 4), ((7, 2), 14)])
    def test_refuses_sizes_that_do_not_fit_also_where_the_strides_would_not_do(self, shape, known):
        for x in (sample(2, 3), sample(2, 3).t()):
            with refuses(ValueError, mentions=[6, known]):
                views.try_view(x, shape)

    @pytest.mark.parametrize("shape", [(-1, -1), (-2, -3)])
    def test_refuses_negative_sizes_but_one(self, shape):
        with refuses(ValueError):
            views.try_view(sample(2, 3), shape)

    def test_a_size_of_1_is_in_nobodys_way(self):
        """No step is taken along it, so that its stride does not matter."""
        x = sample(1, 2, 3).transpose(0, 1)
        for shape in ((6,), (3, 2), (-1,)):
            found = views.try_view(x, shape)
            expect(found is not None, f"expected a view in shape {shape}, got None")
            assert_same(found, x.reshape(shape))


class TestCenterCrop:
    def test_takes_the_middle(self):
        image = torch.arange(35).view(5, 7)
        assert_same(views.center_crop(image, 3, 3), image[1:4, 2:5])

    def test_an_odd_row_or_column_left_over_is_left_at_the_end(self):
        image = torch.arange(63).view(7, 9)
        assert_same(views.center_crop(image, 4, 4), image[1:5, 2:6])

    @given(batch=shapes(max_dims=2), h=sizes, w=sizes, data=st.data())
    def test_every_window_that_fits_is_centred(self, batch, h, w, data):
        height, width = data.draw(st.integers(1, h)), data.draw(st.integers(1, w))
        row, column = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
        for axis, size, kept in ((row, h, height), (column, w, width)):
            seen = views.center_crop(axis.expand(*batch, h, w), height=height, width=width)
            expect(
                seen.shape == (*batch, height, width), f"expected {(*batch, height, width)}, got {tuple(seen.shape)}"
            )
            before, after = int(seen.min()), size - 1 - int(seen.max())
            expect(before + kept + after == size, f"expected {kept} neighbours, got {seen.unique().tolist()}")
            expect(after - before in (0, 1), f"expected equal margins, got {before} before and {after} after")

    def test_writing_to_the_window_writes_to_the_image(self):
        images = sample(2, 5, 7)
        views.center_crop(images, 3, 3).zero_()
        assert_same(images[:, 1:4, 2:5], torch.zeros(2, 3, 3))

    @pytest.mark.parametrize(
        "height, width, wrong", [(6, 3, 6), (3, 8, 8), (0, 3, 0), (3, 0, 0), (3, -1, -1), (-2, 3, -2)]
    )
    def test_refuses_a_window_that_does_not_fit(self, height, width, wrong):
        with refuses(ValueError, mentions=[wrong]):
            views.center_crop(sample(2, 5, 7), height, width)

    def test_refuses_what_has_too_few_dimensions(self):
        with refuses(LOUD):
            views.center_crop(sample(5), 3, 3)


class TestSlidingWindows:
    @given(batch=shapes(max_dims=2), n=st.integers(1, 9), data=st.data(), step=st.integers(1, 4))
    def test_window_i_begins_at_i_times_step(self, batch, n, data, step):
        size = data.draw(st.integers(1, n))
        x = torch.arange(math.prod(batch) * n).view(*batch, n)
        found = views.sliding_windows(x, size, step)
        wanted = [x[..., start : start + size] for start in range(0, n - size + 1, step)]
        assert_same(found, torch.stack(wanted, dim=-2))

    def test_without_a_step_each_window_begins_one_later(self):
        assert_same(views.sliding_windows(torch.arange(4), 3), torch.tensor([[0, 1, 2], [1, 2, 3]]))

    def test_what_is_left_at_the_end_is_in_no_window(self):
        assert_same(views.sliding_windows(torch.arange(6), size=2, step=3), torch.tensor([[0, 1], [3, 4]]))

    def test_any_strides_and_offset_will_do(self):
        for x in (*layouts(3, 8), sample(4, 9)[1:, 2:], sample(20)[3::2], sample(2, 3, 8).movedim(0, -1)):
            size = min(3, x.shape[-1])
            found = views.sliding_windows(x, size, 2)
            expect(shares_memory(found, x), f"expected a view, got a copy for strides {x.stride()}")
            starts = range(0, x.shape[-1] - size + 1, 2)
            assert_same(found, torch.stack([x[..., i : i + size] for i in starts], dim=-2))

    def test_a_write_to_the_input_shows_in_every_window_over_it(self):
        x = torch.zeros(5)
        windows = views.sliding_windows(x, 3)
        x[2] = 1.0
        assert_same(windows.sum(dim=-1), torch.ones(3))

    def test_a_write_to_a_window_shows_in_the_input(self):
        x = torch.zeros(2, 5)
        views.sliding_windows(x, 2, 2)[1, 1] = 3.0
        assert_same(x[1], torch.tensor([0.0, 0.0, 3.0, 3.0, 0.0]))

    def test_gradients_add_up_where_windows_overlap(self):
        x = sample(5).requires_grad_()
        (gradient,) = torch.autograd.grad(views.sliding_windows(x, 3).sum(), x)
        assert_same(gradient, torch.tensor([1.0, 2.0, 3.0, 2.0, 1.0]))

    def test_an_empty_batch_has_windows_of_its_own(self):
        assert_same(views.sliding_windows(torch.zeros(0, 7), 3, 2), torch.zeros(0, 3, 3))

    def test_refuses_windows_longer_than_the_input(self):
        with refuses(ValueError, mentions=[6, 5]):
            views.sliding_windows(sample(2, 5), 6)

    @pytest.mark.parametrize("size, step, wrong", [(0, 1, 0), (-1, 1, -1), (2, 0, 0), (2, -3, -3)])
    def test_refuses_a_size_or_step_below_one(self, size, step, wrong):
        with refuses(ValueError, mentions=[wrong]):
            views.sliding_windows(sample(5), size, step)

    def test_refuses_windows_over_nothing(self):
        with refuses(ValueError, mentions=[1, 0]):
            views.sliding_windows(torch.zeros(3, 0), 1)

    def test_refuses_what_has_too_few_dimensions(self):
        with refuses(LOUD):
            views.sliding_windows(torch.tensor(1.0), 1)


class TestDiagonal:
    @given(batch=shapes(max_dims=2), n=st.integers(0, 5))
    def test_element_i_is_row_i_column_i(self, batch, n):
        x = torch.arange(math.prod(batch) * n * n).view(*batch, n, n)
        wanted = torch.stack([x[..., i, i] for i in range(n)], dim=-1) if n else torch.zeros(*batch, 0, dtype=x.dtype)
        assert_same(views.diagonal(x), wanted)

    def test_a_write_to_it_changes_the_matrix_and_nothing_else(self):
        x = torch.zeros(2, 3, 3)
        views.diagonal(x).fill_(1.0)
        assert_same(x, torch.eye(3).expand(2, 3, 3))

    def test_any_strides_and_offset_will_do(self):
        for x in (*layouts(3, 3, 3), sample(5, 6)[1:4, 2:5], sample(4, 8)[:, ::2].t(), sample(3, 3, 2).movedim(-1, 0)):
            found = views.diagonal(x)
            expect(shares_memory(found, x), f"expected a view, got a copy for strides {x.stride()}")
            assert_same(found, torch.stack([x[..., i, i] for i in range(x.shape[-1])], dim=-1))

    def test_only_the_diagonal_gets_a_gradient(self):
        x = sample(2, 3, 3).requires_grad_()
        (gradient,) = torch.autograd.grad(views.diagonal(x).sum(), x)
        assert_same(gradient, torch.eye(3).expand(2, 3, 3).contiguous())

    @pytest.mark.parametrize("shape", [(2, 3, 4), (4, 3), (1, 3)])
    def test_refuses_matrices_that_are_not_square(self, shape):
        with refuses(ValueError, mentions=shape[-2:]):
            views.diagonal(sample(*shape))

    def test_refuses_what_has_too_few_dimensions(self):
        with refuses(LOUD):
            views.diagonal(sample(3))


class TestSplitHeads:
    @given(batch=sizes, time=sizes, heads=sizes, width=sizes)
    def test_head_k_gets_the_kth_block_of_features_of_every_step(self, batch, time, heads, width):
        x = torch.arange(batch * time * heads * width).view(batch, time, heads * width)
        found = views.split_heads(x, heads)
        wanted = [x[:, :, k * width : (k + 1) * width] for k in range(heads)]
        assert_same(found, torch.stack(wanted, dim=1))

    def test_writing_to_a_head_writes_to_the_input(self):
        x = torch.zeros(2, 3, 8)
        views.split_heads(x, 4)[1, 3] = 1.0
        assert_same(x[1, :, 6:], torch.ones(3, 2))
        assert x.sum() == 6

    def test_no_features_are_split_into_empty_heads(self):
        assert_same(views.split_heads(torch.zeros(2, 3, 0), 4), torch.zeros(2, 4, 3, 0))

    def test_sequences_may_be_empty(self):
        assert_same(views.split_heads(torch.zeros(2, 0, 6), 3), torch.zeros(2, 3, 0, 2))

    @pytest.mark.parametrize("heads", [4, 12])
    def test_refuses_features_that_cannot_be_dealt_out_evenly(self, heads):
        with refuses(ValueError, mentions=[6, heads]):
            views.split_heads(sample(2, 3, 6), heads)

    @pytest.mark.parametrize("heads", [0, -2])
    def test_refuses_less_than_one_head(self, heads):
        with refuses(ValueError, mentions=[heads]):
            views.split_heads(sample(2, 3, 6), heads)


class TestMergeHeads:
    @given(batch=sizes, time=sizes, heads=sizes, width=sizes)
    def test_the_features_of_the_heads_stand_side_by_side(self, batch, time, heads, width):
        x = torch.arange(batch * heads * time * width).view(batch, heads, time, width)
        assert_same(views.merge_heads(x), torch.cat([x[:, k] for k in range(heads)], dim=-1))

    def test_what_was_split_comes_back_without_a_copy(self):
        x = sample(2, 3, 8)
        heads = x.view(2, 3, 4, 2).transpose(1, 2)
        merged = views.merge_heads(heads)
        assert_same(merged, x)
        expect(shares_memory(merged, x), "expected a view: the features already lie side by side, got a copy")

    def test_copies_once_where_the_features_lie_apart(self):
        x = sample(2, 4, 3, 5)
        with count_ops() as ops:
            views.merge_heads(x)
        expect(copies(ops) <= 1, f"expected one copy at most, {copies(ops)} were made")

    def test_one_head_or_one_step_needs_no_copy(self):
        for x in (sample(2, 1, 3, 5), sample(2, 4, 1, 5)):
            expect(shares_memory(views.merge_heads(x), x), f"expected a view for shape {list(x.shape)}, got a copy")

    def test_sequences_and_heads_may_be_empty(self):
        assert_same(views.merge_heads(torch.zeros(2, 4, 0, 3)), torch.zeros(2, 0, 12))
        assert_same(views.merge_heads(torch.zeros(2, 4, 3, 0)), torch.zeros(2, 3, 0))

    def test_what_was_split_from_a_part_comes_back_without_a_copy(self):
        for x in (sample(2, 3, 16)[..., :8], sample(2, 3, 16)[..., ::2], sample(3, 2, 8).transpose(0, 1)):
            merged = views.merge_heads(x.unflatten(-1, (4, 2)).transpose(1, 2))
            assert_same(merged, x)
            expect(shares_memory(merged, x), "expected a view: the features already lie side by side, got a copy")


def patch_by_patch(images, size):
    """The patches, cut out one at a time."""
    _, _, h, w = images.shape
    corners = [(top, left) for top in range(0, h, size) for left in range(0, w, size)]
    return torch.stack([images[:, :, i : i + size, j : j + size].flatten(1) for i, j in corners], dim=1)


class TestPatchify:
    @given(b=st.integers(1, 3), c=st.integers(1, 3), rows=st.integers(1, 3), columns=st.integers(1, 4), size=sizes)
    def test_patches_come_row_by_row_and_inside_channel_row_column(self, b, c, rows, columns, size):
        shape = (b, c, rows * size, columns * size)
        images = torch.arange(math.prod(shape)).view(shape)
        assert_same(views.patchify(images, size), patch_by_patch(images, size))

    def test_one_copy_at_most_whatever_the_strides(self):
        for images in layouts(2, 3, 6, 4):
            with count_ops() as ops:
                found = views.patchify(images, 2)
            expect(copies(ops) <= 1, f"expected one copy at most, {copies(ops)} were made")
            assert_same(found, patch_by_patch(images, 2))

    def test_images_without_channels_have_patches_without_values(self):
        assert_same(views.patchify(torch.zeros(2, 0, 4, 6), 2), torch.zeros(2, 6, 0))

    @pytest.mark.parametrize("size, wrong", [(4, 6), (3, 8), (5, 6)])
    def test_refuses_images_that_cannot_be_cut_evenly(self, size, wrong):
        with refuses(ValueError, mentions=[size, wrong]):
            views.patchify(sample(2, 3, 6, 8), size)

    @pytest.mark.parametrize("size", [0, -2])
    def test_refuses_patches_smaller_than_one(self, size):
        with refuses(ValueError, mentions=[size]):
            views.patchify(sample(2, 3, 6, 8), size)

    def test_refuses_what_has_too_few_dimensions(self):
        with refuses(LOUD):
            views.patchify(sample(3, 4, 6), 2)

    def test_takes_no_more_operations_for_more_patches(self):
        counts = []
        for side in (4, 16):
            with count_ops() as ops:
                views.patchify(sample(2, 3, side, side), 2)
            counts.append(ops.total())
        expect(counts[1] <= counts[0], f"expected no more operations for 64 patches than for 4, got {counts}")

    def test_an_image_without_rows_or_columns_has_no_patches(self):
        for images in (torch.zeros(2, 3, 0, 6), torch.zeros(2, 3, 4, 0)):
            assert_same(views.patchify(images, 2), torch.zeros(2, 0, 12))


class TestUnpatchify:
    @given(b=st.integers(1, 3), c=st.integers(1, 3), rows=st.integers(1, 3), columns=st.integers(1, 4), size=sizes)
    def test_puts_every_value_back_where_it_was(self, b, c, rows, columns, size):
        height, width = rows * size, columns * size
        images = torch.arange(b * c * height * width).view(b, c, height, width)
        patches = patch_by_patch(images, size)
        assert_same(views.unpatchify(patches, size, height, width), images)

    def test_one_copy_at_most_whatever_the_strides(self):
        for patches in layouts(2, 6, 12):
            with count_ops() as ops:
                found = views.unpatchify(patches, 2, height=4, width=6)
            expect(copies(ops) <= 1, f"expected one copy at most, {copies(ops)} were made")
            assert_same(patch_by_patch(found, 2), patches)

    def test_patches_without_values_give_images_without_channels(self):
        assert_same(views.unpatchify(torch.zeros(2, 6, 0), 2, 4, 6), torch.zeros(2, 0, 4, 6))

    @pytest.mark.parametrize("height, width, wrong", [(5, 6, 5), (4, 7, 7), (0, 6, 0), (4, -6, -6)])
    def test_refuses_images_that_patches_cannot_fill(self, height, width, wrong):
        with refuses(ValueError, mentions=[wrong]):
            views.unpatchify(sample(2, 6, 12), 2, height, width)

    @pytest.mark.parametrize("patches, height, width, wrong", [(6, -4, -6, []), (0, 0, 6, [0]), (0, 4, 0, [0])])
    def test_refuses_sizes_below_one_also_where_their_product_fits(self, patches, height, width, wrong):
        with refuses(ValueError, mentions=wrong):
            views.unpatchify(torch.zeros(2, patches, 12), 2, height, width)

    def test_refuses_another_number_of_patches_than_the_image_has(self):
        for height, width in ((6, 6), (2, 6), (4, 4)):
            with refuses(ValueError, mentions=[6]):
                views.unpatchify(sample(2, 6, 12), 2, height, width)

    def test_refuses_values_that_are_no_whole_number_of_channels(self):
        with refuses(ValueError, mentions=[10]):
            views.unpatchify(sample(2, 6, 10), 2, 4, 6)

    @pytest.mark.parametrize("size", [0, -2])
    def test_refuses_patches_smaller_than_one(self, size):
        with refuses(ValueError, mentions=[size]):
            views.unpatchify(sample(2, 6, 12), size, 4, 6)

    def test_refuses_what_has_too_few_dimensions(self):
        with refuses(LOUD):
            views.unpatchify(sample(6, 12), 2, 4, 6)


class TestInterleave:
    @given(n=st.integers(0, 5), rest=shapes(max_dims=2))
    def test_row_i_of_each_stands_at_2i_and_2i_plus_1(self, n, rest):
        shape = (n, *rest)
        a = torch.arange(math.prod(shape)).view(shape)
        found = views.interleave(a, -a - 1)
        assert_same(found[0::2], a)
        assert_same(found[1::2], -a - 1)

    def test_gradients_find_their_way_to_both(self):
        a, b = sample(3, 2).requires_grad_(), sample(3, 2).requires_grad_()
        weight = sample(6, 2)
        to_a, to_b = torch.autograd.grad((views.interleave(a, b) * weight).sum(), (a, b))
        assert_same(to_a, weight[0::2].contiguous())
        assert_same(to_b, weight[1::2].contiguous())

    def test_a_tensor_can_be_interleaved_with_itself(self):
        a = sample(3)
        assert_same(views.interleave(a, a), a.repeat_interleave(2))

    @pytest.mark.parametrize(
        "other, numbers", [((4, 2), (3, 4)), ((3, 1), (2, 1)), ((3,), ()), ((1, 2), (3, 1)), ((3, 1, 2), ())]
    )
    def test_refuses_different_shapes_and_broadcasts_nothing(self, other, numbers):
        with refuses(ValueError, mentions=numbers):
            views.interleave(sample(3, 2), sample(*other))
        with refuses(ValueError, mentions=numbers):
            views.interleave(sample(*other), sample(3, 2))

    def test_refuses_what_has_too_few_dimensions(self):
        with refuses(LOUD):
            views.interleave(torch.tensor(1.0), torch.tensor(2.0))


# The house rules, for every function: `s` makes a sample in the dtype, on the device and with the number of rows `s.n`
# that a rule asks about. Integers are welcome in the whole kata: nothing is computed.
RULES = [
    rule("same_storage", lambda s: (s(s.n, 2), s(3)), integers_refused=False, any_strides=False),
    rule("element_offset", lambda s: (s(s.n + 2, 3), (1, 2)), integers_refused=False, any_strides=False,
         fails=lambda s: (s(2, 3), (2, 0))),
    rule("resolve_shape", lambda s: (12, [3, -1]), fails=lambda s: (12, [5, -1])),
    rule("try_view", lambda s: (s(s.n, 6), (s.n, 2, 3)), integers_refused=False, any_strides=False, is_view=True,
         also={"-1": {"make": lambda s: (s(s.n + 1, 6), (-1, 2))},
               "one dimension": {"make": lambda s: (s(s.n, 6), (s.n * 6,))}},
         fails=lambda s: (s(2, 3), (4,))),
    rule("center_crop", lambda s: (s(s.n, 3, 5, 7), 3, 4), integers_refused=False, is_view=True,
         also={"one image": {"make": lambda s: (s(5, s.n + 5), 3, 4)},
               "all of it": {"make": lambda s: (s(s.n, 5, 7), 5, 7)}},
         fails=lambda s: (s(2, 5, 7), 6, 4)),
    rule("sliding_windows", lambda s: (s(s.n, 7), 3, 2), integers_refused=False, is_view=True,
         also={"step left out": {"make": lambda s: (s(s.n, 7), 3)},
               "one row": {"make": lambda s: (s(3 * s.n + 4), 4, 3)}},
         refused=("unfold",), fails=lambda s: (s(2, 3), 4)),
    rule("diagonal", lambda s: (s(s.n, 3, 3),), integers_refused=False, is_view=True,
         also={"one matrix": {"make": lambda s: (s(s.n, s.n),)}},
         refused=("diagonal", "diag", "einsum"), fails=lambda s: (s(2, 3),)),
    rule("split_heads", lambda s: (s(s.n, 3, 12), 4), integers_refused=False, is_view=True,
         fails=lambda s: (s(2, 3, 12), 5)),
    rule("merge_heads", lambda s: (s(s.n, 4, 3, 5),), integers_refused=False),
    rule("patchify", lambda s: (s(s.n, 3, 4, 6), 2), integers_refused=False, refused=("unfold",),
         fails=lambda s: (s(2, 3, 4, 6), 4)),
    rule("unpatchify", lambda s: (s(s.n, 6, 12), 2, 4, 6), integers_refused=False,
         fails=lambda s: (s(2, 6, 12), 2, 4, 4)),
    rule("interleave", lambda s: (s(s.n, 4), s(s.n, 4)), integers_refused=False, is_copy=True,
         fails=lambda s: (s(3, 4), s(3, 5))),
]  # fmt: skip
