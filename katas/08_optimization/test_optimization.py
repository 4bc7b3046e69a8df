"""The specs of kata 08. One class a name; the house rules that all of them share are in the table at the end."""

import copy
import inspect
import io
import math
from collections import Counter
from collections.abc import Iterator

import hypothesis
import optimization
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from dojo import devices
from dojo.compare import assert_same, expect, refuses
from dojo.guards import count_ops, shares_memory, state_kept, unchanged
from dojo.rules import rule
from dojo.strategies import reseed, sample

FLOAT64 = {"rtol": 1e-12, "atol": 1e-12}
LOUD = (ValueError, RuntimeError, IndexError, TypeError)
# float32 as torch's own steps give it, whatever the order of the operations.
CLOSE = {torch.float32: {"rtol": 1e-4, "atol": 1e-6}, torch.float64: {"rtol": 1e-9, "atol": 1e-12}}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def rows(n, seed=0):
    """Features and labels of n rows that can be told apart: row i has label i."""
    return torch.arange(n * 3).view(n, 3) * 1.0, torch.arange(n)


def order_of(found):
    """The labels in the order in which they came."""
    return [label for _, labels in found for label in labels.tolist()]


class TestBatches:
    def test_the_rows_come_in_order_batch_by_batch(self):
        x, y = rows(7)
        found = list(optimization.batches(x, y, batch_size=3))
        expect(len(found) == 3, f"expected 3 batches of 7 rows, three at a time, got {len(found)}")
        for batch, start in zip(found, (0, 3, 6), strict=True):
            expect(type(batch) is tuple and len(batch) == 2, f"expected a tuple of two tensors, got {type(batch)}")
            assert_same(batch[0], x[start : start + 3])
            assert_same(batch[1], y[start : start + 3])

    @given(n=st.integers(0, 12), batch_size=st.integers(1, 14), drop_last=st.booleans(), shuffle=st.booleans())
    def test_every_row_comes_once_in_batches_of_the_size_asked_for(self, n, batch_size, drop_last, shuffle):
        x, y = rows(n)
        found = list(
            optimization.batches(
                x,
                y,
                batch_size=batch_size,
                drop_last=drop_last,
                shuffle=shuffle,
                generator=seeded() if shuffle else None,
            )
        )
        whole, rest = divmod(n, batch_size)
        wanted = [batch_size] * whole + ([rest] if rest and not drop_last else [])
        sizes = [len(labels) for _, labels in found]
        expect(sizes == wanted, f"expected batches of {wanted} rows, got {sizes}", f"for {n} rows, {batch_size} each")
        order = order_of(found)
        expect(len(set(order)) == len(order), f"expected each row once, got {order}")
        for features, labels in found:
            assert_same(features, x[labels], what="the features of the rows that the labels name")

    def test_the_last_batch_is_kept_unless_told_otherwise(self):
        found = [len(y) for _, y in optimization.batches(*rows(7), batch_size=4)]
        expect(found == [4, 3], f"expected batches of 4 and 3 rows, got {found}")

    def test_takes_one_tensor_or_many_of_any_dimensions_and_dtype(self):
        given = (sample(5), sample(5, 2, 3), torch.arange(5, dtype=torch.int16), torch.ones(5, 1, dtype=torch.bool))
        for batch, start in zip(optimization.batches(*given, batch_size=2), (0, 2, 4), strict=True):
            for found, x in zip(batch, given, strict=True):
                assert_same(found, x[start : start + 2])
        found = list(optimization.batches(given[0], batch_size=5))
        expect(len(found) == 1 and type(found[0]) is tuple, "expected tuples for a single tensor too")
        assert_same(found[0][0], given[0])

    def test_gives_an_iterator(self):
        x, y = rows(4)
        found = optimization.batches(x, y, batch_size=2)
        expect(isinstance(found, Iterator), f"expected an iterator, got {type(found).__name__}")
        assert_same(next(found)[1], y[:2])
        assert_same(next(found)[1], y[2:])
        expect(next(found, None) is None, "expected the iterator to end after the last batch")

    def test_batches_in_order_are_views_and_nothing_is_drawn(self):
        """An epoch of evaluation should cost no copy of the data and move no random number."""
        x, y = rows(7)
        generator = seeded()
        before = generator.get_state()
        with state_kept():
            found = list(optimization.batches(x, y, batch_size=3, generator=generator))
        for batch in found:
            for part, whole in zip(batch, (x, y), strict=True):
                expect(shares_memory(part, whole), "expected a view of the rows, got a copy")
        expect(torch.equal(generator.get_state(), before), "expected the generator to be left alone without shuffle")

    def test_shuffled_rows_stay_together(self):
        """Features of one row with the label of another train nothing, and no error says so."""
        x, y = rows(50)
        for features, labels in optimization.batches(x, y, batch_size=8, shuffle=True, generator=seeded()):
            assert_same(features, x[labels], what="the features of the rows that the labels name")

    def test_each_call_has_an_order_of_its_own(self):
        """The same order in every epoch gives the same batches, whose errors then add up."""
        generator = seeded()
        epochs = [
            order_of(optimization.batches(*rows(50), batch_size=8, shuffle=True, generator=generator)) for _ in range(3)
        ]
        expect(sorted(epochs[0]) == list(range(50)), f"expected every row once, got {sorted(epochs[0])}")
        expect(epochs[0] != list(range(50)), "expected another order than that of the rows")
        expect(epochs[0] != epochs[1] != epochs[2], "expected a new order at each call, it was the same again")

    def test_rows_of_different_batches_are_mixed(self):
        """Shuffling whole batches, or rows within their batch, leaves the same rows together for ever."""
        found = list(optimization.batches(*rows(64), batch_size=8, shuffle=True, generator=seeded()))
        neighbours = [len({label // 8 for label in labels.tolist()}) for _, labels in found]
        expect(
            max(neighbours) > 2, f"expected each batch to mix rows from everywhere, they come from {neighbours} places"
        )

    def test_no_row_is_left_out_for_ever(self):
        """Rows are left over after shuffling: dropped before it, the last ones would never be trained on."""
        generator, y = seeded(), torch.arange(10)
        seen = set()
        for _ in range(40):
            calls = optimization.batches(y, batch_size=4, shuffle=True, drop_last=True, generator=generator)
            seen |= {row for (batch,) in calls for row in batch.tolist()}
        expect(seen == set(range(10)), f"expected every row in one of 40 epochs, never came {set(range(10)) - seen}")

    @pytest.mark.parametrize("shuffle", [True, False])
    def test_more_rows_in_a_batch_take_no_more_operations(self, shuffle):
        counts = []
        for n in (4, 40):
            with count_ops() as ops:
                list(optimization.batches(sample(n, 3), batch_size=n, shuffle=shuffle))
            counts.append(ops.total())
        expect(
            counts[1] <= counts[0],
            f"expected a batch of 40 rows to take the {counts[0]} operations of 4, got {counts[1]}",
        )

    def test_every_order_is_as_likely(self):
        """Three rows have six orders; each comes in a sixth of the calls, up to five standard deviations."""
        generator, y = seeded(), torch.arange(3)
        calls = [optimization.batches(y, batch_size=3, shuffle=True, generator=generator) for _ in range(600)]
        counts = Counter(tuple(next(call)[0].tolist()) for call in calls)
        expect(len(counts) == 6, f"expected all six orders of three rows, got {len(counts)}")
        expect(min(counts.values()) > 100 - 5 * 9.2, f"expected about 100 of each order, got {dict(counts)}")

    def test_equal_generator_states_give_equal_orders(self):
        """A run can be repeated only if the order comes from the generator that was given."""
        first, second = (
            order_of(optimization.batches(*rows(50), batch_size=8, shuffle=True, generator=seeded(3))) for _ in range(2)
        )
        expect(first == second, "expected the same order for the same generator state")
        with torch.random.fork_rng(devices=[]):
            orders = []
            for seed in (5, 5, 6):
                torch.manual_seed(seed)
                orders.append(order_of(optimization.batches(*rows(50), batch_size=8, shuffle=True)))
        expect(orders[0] == orders[1] != orders[2], "expected the global seed to decide where no generator is given")

    @pytest.mark.parametrize("shuffle", [True, False])
    @pytest.mark.parametrize("drop_last", [True, False])
    def test_no_rows_give_no_batches(self, drop_last, shuffle):
        found = list(optimization.batches(torch.zeros(0, 3), batch_size=2, shuffle=shuffle, drop_last=drop_last))
        expect(found == [], f"expected no batches of no rows, got {len(found)}")

    @pytest.mark.parametrize("shuffle", [True, False])
    def test_refuses_what_does_not_fit_at_the_call(self, shuffle):
        """An error that waits for the first batch comes far from the line that caused it."""
        with refuses(ValueError):
            optimization.batches(batch_size=2, shuffle=shuffle)
        for tensors in ((torch.tensor(1.0),), (sample(3), torch.tensor(1.0))):
            with refuses(ValueError):
                optimization.batches(*tensors, batch_size=2, shuffle=shuffle)
        for lengths in ((5, 7), (7, 5), (5, 5, 7), (7, 1), (0, 7)):
            with refuses(ValueError, mentions={min(lengths), max(lengths)}):
                optimization.batches(*map(sample, lengths), batch_size=2, shuffle=shuffle)
        for batch_size in (0, -3):
            with refuses(ValueError, mentions=[batch_size]):
                optimization.batches(sample(5), batch_size=batch_size, shuffle=shuffle)


def small_model(dtype=torch.float64):
    """Two layers, the same for every call, whose parameters are all used."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).to(dtype)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(sample(*p.shape, dtype=dtype))
    return model


def flat_gradient(model, loss_fn, x, y):
    """The gradient of one loss, flat, in parameters() order, zeros where a parameter is not used."""
    parameters = list(model.parameters())
    found = torch.autograd.grad(loss_fn(model(x), y), parameters, allow_unused=True)
    return torch.cat(
        [(torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(parameters, found, strict=True)]
    )


class Unused(nn.Module):
    """A parameter that no loss depends on stands between two that it does."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 2).double()
        self.unused = nn.Parameter(torch.ones(5, dtype=torch.float64))
        self.last = nn.Linear(2, 2).double()

    def forward(self, x):
        return self.last(self.first(x))


class TestMinibatchGradients:
    def test_each_row_is_the_gradient_of_one_batch(self):
        model = nn.Linear(1, 1)
        model.load_state_dict({"weight": torch.tensor([[1.0]]), "bias": torch.tensor([0.0])})
        x = torch.tensor([[1.0], [2.0], [3.0], [4.0]])
        found = optimization.minibatch_gradients(model, nn.functional.mse_loss, x, torch.zeros(4, 1), 2)
        assert_same(found, torch.tensor([[5.0, 3.0], [25.0, 7.0]]))

    @hypothesis.settings(max_examples=15)
    @given(n=st.integers(1, 9), batch_size=st.integers(1, 10), data=st.data())
    def test_batches_come_in_order_and_the_incomplete_last_is_dropped(self, n, batch_size, data):
        model, x = small_model(), sample(n, 3, dtype=torch.float64)
        y = torch.arange(n) % 2
        found = optimization.minibatch_gradients(model, nn.functional.cross_entropy, x, y, batch_size)
        size = sum(p.numel() for p in model.parameters())
        wanted = [
            flat_gradient(model, nn.functional.cross_entropy, x[i : i + batch_size], y[i : i + batch_size])
            for i in range(0, n - batch_size + 1, batch_size)
        ]
        assert_same(found, torch.stack(wanted) if wanted else torch.zeros(0, size, dtype=torch.float64), **FLOAT64)

    def test_the_columns_are_in_the_order_of_parameters(self):
        """Not sorted by name, nor by size: the row must fit to torch.nn.utils.vector_to_parameters."""
        model, x = Unused(), sample(4, 3, dtype=torch.float64)
        y = sample(4, 2, dtype=torch.float64)
        found = optimization.minibatch_gradients(model, nn.functional.mse_loss, x, y, 2)
        wanted = [flat_gradient(model, nn.functional.mse_loss, x[i : i + 2], y[i : i + 2]) for i in (0, 2)]
        assert_same(found, torch.stack(wanted), **FLOAT64)

    def test_a_parameter_that_is_not_used_has_zeros(self):
        model, x = Unused(), sample(2, 3, dtype=torch.float64)
        found = optimization.minibatch_gradients(model, nn.functional.mse_loss, x, x[:, :2], 1)
        at = 5 + sum(p.numel() for p in model.first.parameters())
        names = [name for name, _ in model.named_parameters()]
        start = sum(p.numel() for name, p in model.named_parameters() if names.index(name) < names.index("unused"))
        assert_same(
            found[:, start : start + 5], torch.zeros(2, 5, dtype=torch.float64), what=f"columns {start} to {at}"
        )

    def test_the_loss_is_taken_as_it_is(self):
        """A sum over the batch is not divided by its size, nor a mean multiplied."""
        model, x, y = small_model(), sample(6, 3, dtype=torch.float64), torch.arange(6) % 2

        def summed(output, target):
            return nn.functional.cross_entropy(output, target, reduction="sum")

        found = optimization.minibatch_gradients(model, summed, x, y, 3)
        wanted = [flat_gradient(model, summed, x[i : i + 3], y[i : i + 3]) for i in (0, 3)]
        assert_same(found, torch.stack(wanted), **FLOAT64)

    @pytest.mark.parametrize("filled", [True, False])
    def test_grad_and_parameters_stay_as_they_are(self, filled):
        """To look at gradients must not change what the next optimizer step does."""
        model, x, y = small_model(), sample(4, 3, dtype=torch.float64), torch.arange(4) % 2
        if filled:
            for p in model.parameters():
                p.grad = sample(*p.shape, dtype=torch.float64)
        parameters = list(model.parameters())
        kept = [(p.grad, None if p.grad is None else p.grad.clone()) for p in parameters]
        with unchanged(*parameters), state_kept():
            optimization.minibatch_gradients(model, nn.functional.cross_entropy, x, y, 2)
        for p, (grad, value) in zip(parameters, kept, strict=True):
            expect(p.grad is grad, "expected .grad to stay the tensor that it was")
            if grad is not None:
                assert_same(grad, value, rtol=0, atol=0, what=".grad")
        for training in (True, False):
            model.train(training)
            optimization.minibatch_gradients(model, nn.functional.cross_entropy, x, y, 2)
            modes = {module.training for module in model.modules()}
            expect(modes == {training}, "expected the model's mode to be left as it was")

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
    def test_has_the_dtype_of_the_parameters(self, dtype):
        model, x = small_model(dtype), sample(4, 3, dtype=dtype)
        for batch_size in (2, 9):
            found = optimization.minibatch_gradients(
                model, nn.functional.mse_loss, x, sample(4, 2, dtype=dtype), batch_size
            )
            expect(
                found.dtype == dtype, f"expected {dtype}, got {found.dtype}", f"for batches of {batch_size} of 4 rows"
            )

    @pytest.mark.parametrize("device", devices.DEVICES)
    def test_works_on_another_device(self, device):
        model, x, y = small_model(torch.float32), sample(4, 3), sample(4, 2)
        wanted = torch.stack([flat_gradient(model, nn.functional.mse_loss, x[i : i + 2], y[i : i + 2]) for i in (0, 2)])
        with devices.on(device):
            model, x, y = model.to(device), x.to(device), y.to(device)
            with devices.no_strays():
                found = optimization.minibatch_gradients(model, nn.functional.mse_loss, x, y, 2)
            assert_same(found, wanted.to(device), rtol=1e-4)

    def test_refuses_inputs_and_targets_of_different_lengths(self):
        for n, m in ((6, 4), (4, 6), (6, 1)):
            with refuses(ValueError, mentions=[n, m]):
                optimization.minibatch_gradients(nn.Linear(3, 2), nn.functional.mse_loss, sample(n, 3), sample(m, 2), 2)

    @pytest.mark.parametrize("batch_size", [0, -2])
    def test_refuses_batches_of_less_than_one_row(self, batch_size):
        with refuses(ValueError, mentions=[batch_size]):
            optimization.minibatch_gradients(
                nn.Linear(3, 2), nn.functional.mse_loss, sample(4, 3), sample(4, 2), batch_size
            )


class TestAccumulateGradients:
    @pytest.mark.parametrize("n, micro", [(6, 2), (7, 2), (7, 3), (7, 6), (5, 5), (5, 9), (5, 1), (1, 1)])
    def test_the_gradient_and_the_loss_are_those_of_the_whole_batch(self, n, micro):
        """The rows of a smaller last micro-batch count as much as all others: a mean of means would weigh them more."""
        model, x, y = small_model(), sample(n, 3, dtype=torch.float64), torch.arange(n) % 2
        loss = nn.functional.cross_entropy(model(x), y)
        wanted = torch.autograd.grad(loss, list(model.parameters()))
        found = optimization.accumulate_gradients(model, nn.functional.cross_entropy, x, y, micro)
        expect(type(found) is float, f"expected a Python float, got {type(found).__name__}")
        expect(math.isclose(found, loss.item(), rel_tol=1e-9), f"expected the loss {loss.item():.6g}, got {found:.6g}")
        for p, gradient in zip(model.parameters(), wanted, strict=True):
            expect(p.grad is not None, "expected the gradient in .grad, there is none")
            assert_same(p.grad, gradient, rtol=1e-9, atol=1e-12, what=".grad")

    def test_adds_to_what_is_there(self):
        """Zeroing is the caller's: who accumulates over several calls must not lose the first."""
        model, x, y = small_model(), sample(5, 3, dtype=torch.float64), torch.arange(5) % 2
        wanted = torch.autograd.grad(nn.functional.cross_entropy(model(x), y), list(model.parameters()))
        before = [sample(*p.shape, dtype=torch.float64) for p in model.parameters()]
        for p, value in zip(model.parameters(), before, strict=True):
            p.grad = value.clone()
        optimization.accumulate_gradients(model, nn.functional.cross_entropy, x, y, 2)
        for p, value, gradient in zip(model.parameters(), before, wanted, strict=True):
            assert_same(p.grad, value + gradient, rtol=1e-9, atol=1e-12, what=".grad")

    def test_the_model_sees_a_micro_batch_at_a_time(self):
        """That is what it is for: a batch whose activations do not fit into memory at once."""
        model, x, y = small_model(), sample(7, 3, dtype=torch.float64), torch.arange(7) % 2
        seen = []
        model.register_forward_hook(lambda module, args, output: seen.append(len(args[0])))
        optimization.accumulate_gradients(model, nn.functional.cross_entropy, x, y, 3)
        expect(sum(seen) == 7 and max(seen) <= 3, f"expected 7 rows, 3 at most at a time, the model was given {seen}")

    def test_parameters_and_their_settings_stay_as_they_are(self):
        model, x, y = small_model(), sample(5, 3, dtype=torch.float64), torch.arange(5) % 2
        values = [p.detach().clone() for p in model.parameters()]
        with state_kept():
            optimization.accumulate_gradients(model, nn.functional.cross_entropy, x, y, 2)
        for p, value in zip(model.parameters(), values, strict=True):
            assert_same(p.detach(), value, rtol=0, atol=0, what="a parameter")
            expect(p.grad.grad_fn is None, "expected no graph on .grad")

    def test_frozen_parameters_get_no_gradient(self):
        model, x, y = small_model(), sample(5, 3, dtype=torch.float64), torch.arange(5) % 2
        model[0].weight.requires_grad_(False)
        optimization.accumulate_gradients(model, nn.functional.cross_entropy, x, y, 2)
        expect(model[0].weight.grad is None, "expected no .grad for a parameter that does not require one")
        expect(model[0].bias.grad is not None, "expected .grad for the parameters that require one")

    @pytest.mark.parametrize("device", devices.DEVICES)
    def test_works_on_another_device(self, device):
        model, x, y = small_model(torch.float32), sample(5, 3), sample(5, 2)
        wanted = torch.autograd.grad(nn.functional.mse_loss(model(x), y), list(model.parameters()))
        with devices.on(device):
            model, x, y = model.to(device), x.to(device), y.to(device)
            with devices.no_strays():
                optimization.accumulate_gradients(model, nn.functional.mse_loss, x, y, 2)
            for p, gradient in zip(model.parameters(), wanted, strict=True):
                assert_same(p.grad, gradient.to(device), rtol=1e-4, what=".grad")

    def test_refuses_what_does_not_fit_before_grad_is_touched(self):
        model = small_model(torch.float32)
        model.zero_grad()
        with refuses(ValueError):
            optimization.accumulate_gradients(model, nn.functional.mse_loss, torch.zeros(0, 3), torch.zeros(0, 2), 2)
        for n, m in ((5, 4), (4, 5), (5, 1)):
            with refuses(ValueError, mentions=[n, m]):
                optimization.accumulate_gradients(model, nn.functional.mse_loss, sample(n, 3), sample(m, 2), 2)
        for micro in (0, -2):
            with refuses(ValueError, mentions=[micro]):
                optimization.accumulate_gradients(model, nn.functional.mse_loss, sample(4, 3), sample(4, 2), micro)
        expect(all(p.grad is None for p in model.parameters()), "expected no .grad after an error, one was filled")


def with_gradients(*gradients):
    """Leaves with these gradients; None leaves one without."""
    leaves = []
    for gradient in gradients:
        leaves.append(
            torch.zeros((2,) if gradient is None else gradient.shape, dtype=torch.float64, requires_grad=True)
        )
        leaves[-1].grad = None if gradient is None else gradient.clone()
    return leaves


class TestClipGradNorm:
    def test_all_gradients_are_one_vector(self):
        """Clipping each tensor on its own would turn the direction of the step."""
        w, b = with_gradients(torch.tensor([[2.0], [3.0]]).double(), torch.tensor([6.0]).double())
        found = optimization.clip_grad_norm_([w, b], 3.5)
        assert_same(found, torch.tensor(7.0), dtype=False, what="the norm before clipping")
        assert_same(w.grad, torch.tensor([[1.0], [1.5]]).double(), rtol=1e-5, what="the first .grad")
        assert_same(b.grad, torch.tensor([3.0]).double(), rtol=1e-5, what="the second .grad")

    @given(count=st.integers(1, 4), max_norm=st.sampled_from([0.0, 0.1, 1.0, 5.0, 1e6]))
    def test_scales_by_the_limit_over_the_norm_where_it_is_above(self, count, max_norm):
        gradients = [sample(2, i + 1, dtype=torch.float64) for i in range(count)]
        total = math.sqrt(sum((g * g).sum().item() for g in gradients))
        leaves = with_gradients(*gradients)
        found = optimization.clip_grad_norm_(leaves, max_norm)
        expect(isinstance(found, torch.Tensor), f"expected a tensor, got {type(found).__name__}")
        assert_same(found, torch.tensor(total), dtype=False, rtol=1e-5, what="the norm before clipping")
        for leaf, gradient in zip(leaves, gradients, strict=True):
            wanted = gradient * (max_norm / total) if max_norm < total else gradient
            assert_same(leaf.grad, wanted, rtol=1e-5, what=".grad")

    @pytest.mark.parametrize("max_norm", [7.5, 100, math.inf])
    def test_below_the_limit_gradients_are_untouched(self, max_norm):
        """Scaling up would turn a step that should be small into a large one."""
        leaves = with_gradients(torch.tensor([2.0, 3.0]).double(), torch.tensor([6.0]).double())
        before = [leaf.grad.clone() for leaf in leaves]
        found = optimization.clip_grad_norm_(leaves, max_norm)
        assert_same(found, torch.tensor(7.0), dtype=False, what="the norm")
        for leaf, gradient in zip(leaves, before, strict=True):
            assert_same(leaf.grad, gradient, rtol=0, atol=0, what=".grad")

    def test_scales_in_the_gradients_own_memory(self):
        """Whoever holds the gradients, a hook or a flat buffer that they are views of, must see them clipped."""
        buffer = torch.tensor([2.0, 3.0, 6.0])
        w, b = torch.zeros(2, requires_grad=True), torch.zeros(1, requires_grad=True)
        w.grad, b.grad = buffer[:2], buffer[2:]
        held = w.grad
        optimization.clip_grad_norm_([w, b], 3.5)
        expect(w.grad is held, "expected .grad to stay the tensor that it was, it is another one")
        assert_same(buffer, torch.tensor([1.0, 1.5, 3.0]), rtol=1e-5, what="the memory behind the gradients")

    def test_takes_a_tensor_or_anything_that_can_be_iterated_over(self):
        """model.parameters() can be read only once: a second pass over it finds nothing."""

        def given():
            return with_gradients(torch.tensor([3.0]).double(), torch.tensor([4.0]).double())

        for kind in (list, tuple, iter, lambda leaves: (p for p in leaves), lambda leaves: dict.fromkeys(leaves)):
            leaves = given()
            found = optimization.clip_grad_norm_(kind(leaves), 1.0)
            assert_same(found, torch.tensor(5.0), dtype=False, what="the norm before clipping")
            assert_same(leaves[1].grad, torch.tensor([0.8]).double(), rtol=1e-5, what="the second .grad")
        (leaf,) = with_gradients(torch.tensor([[3.0, 4.0], [0.0, 0.0]]).double())
        assert_same(optimization.clip_grad_norm_(leaf, 1.0), torch.tensor(5.0), dtype=False)
        assert_same(leaf.grad, torch.tensor([[0.6, 0.8], [0.0, 0.0]]).double(), rtol=1e-5, what=".grad")

    def test_parameters_without_gradient_do_not_count(self):
        first, without, last = with_gradients(torch.tensor([3.0]).double(), None, torch.tensor([4.0]).double())
        found = optimization.clip_grad_norm_([first, without, last], 2.5)
        assert_same(found, torch.tensor(5.0), dtype=False, what="the norm before clipping")
        expect(without.grad is None, "expected no .grad where there was none")
        assert_same(last.grad, torch.tensor([2.0]).double(), rtol=1e-5, what=".grad")

    @pytest.mark.parametrize("parameters", [[], [None], [None, None]], ids=str)
    def test_the_norm_of_no_gradients_is_zero(self, parameters):
        found = optimization.clip_grad_norm_(with_gradients(*parameters), 1.0)
        assert_same(found, torch.tensor(0.0), dtype=False)

    def test_the_parameters_stay_as_they_are(self):
        leaves = with_gradients(torch.tensor([3.0]).double(), torch.tensor([4.0]).double())
        with unchanged(*leaves), state_kept():
            found = optimization.clip_grad_norm_(leaves, 1.0)
        expect(found.grad_fn is None and leaves[0].grad.grad_fn is None, "expected no graph to be recorded")

    def test_a_limit_of_zero_leaves_nothing(self):
        (leaf,) = with_gradients(torch.tensor([3.0, -4.0]).double())
        optimization.clip_grad_norm_([leaf], 0)
        assert_same(leaf.grad, torch.zeros(2).double(), what=".grad")

    def test_gradients_of_zero_stay_zero(self):
        """0 / 0 would be nan."""
        (leaf,) = with_gradients(torch.zeros(3).double())
        for max_norm in (0.0, 1.0):
            assert_same(optimization.clip_grad_norm_([leaf], max_norm), torch.tensor(0.0), dtype=False)
            assert_same(leaf.grad, torch.zeros(3).double(), what=".grad")

    @pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
    def test_refuses_a_norm_that_is_not_finite_and_leaves_the_gradients(self, poison):
        """Scaled by max_norm / inf every finite gradient becomes 0, and by nan nothing is left of any."""
        leaves = with_gradients(torch.tensor([3.0, 1.0]).double(), torch.tensor([poison, 2.0]).double())
        before = [leaf.grad.clone() for leaf in leaves]
        with refuses(ValueError):
            optimization.clip_grad_norm_(leaves, 1.0)
        for leaf, gradient in zip(leaves, before, strict=True):
            assert_same(leaf.grad, gradient, rtol=0, atol=0, what=".grad after an error")

    @pytest.mark.parametrize("max_norm", [-1.0, -0.25])
    @pytest.mark.parametrize("gradient", [True, False])
    def test_refuses_a_negative_limit(self, gradient, max_norm):
        leaves = with_gradients(torch.tensor([3.0]).double() if gradient else None)
        with refuses(ValueError, mentions=[max_norm]):
            optimization.clip_grad_norm_(leaves, max_norm)
        expect(not gradient or leaves[0].grad.item() == 3, "expected .grad to stay as it was after an error")

    @pytest.mark.parametrize("device", devices.DEVICES)
    @pytest.mark.parametrize("max_norm", [1.0, 100.0])
    def test_works_on_another_device(self, max_norm, device):
        with devices.on(device):
            leaf = torch.zeros(2, device=device, requires_grad=True)
            leaf.grad = torch.tensor([3.0, 4.0]).to(device)
            with devices.no_strays():
                found = optimization.clip_grad_norm_([leaf], max_norm)
            expect(found.device.type == device, f"expected the norm on {device}, got it on {found.device.type}")
            assert_same(found, torch.tensor(5.0), device=False, dtype=False)
            wanted = torch.tensor([0.6, 0.8]) if max_norm == 1 else torch.tensor([3.0, 4.0])
            assert_same(leaf.grad, wanted.to(device), rtol=1e-5, what=".grad")

    def test_the_work_grows_with_the_parameters_alone(self):
        counts = []
        for n in (3, 300):
            leaves = with_gradients(sample(n, 2, dtype=torch.float64))
            with count_ops() as ops:
                optimization.clip_grad_norm_(leaves, 1.0)
            counts.append(ops.total())
        expect(counts[1] <= counts[0], f"expected no more operations for 300 rows than for 3, got {counts}")

    def test_float64_gradients_are_measured_in_float64(self):
        (leaf,) = with_gradients(torch.tensor([1.0, 1e-5]).double())
        found = optimization.clip_grad_norm_([leaf], 10.0)
        expect(found.dtype == torch.float64, f"expected the norm in float64, got {found.dtype}")
        expect(abs(found.item() - math.sqrt(1 + 1e-10)) < 1e-13, f"expected 1 + 5e-11, got 1 + {found.item() - 1:.3g}")

    def test_a_gradient_may_be_transposed(self):
        leaf = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
        leaf.grad = torch.full((3, 2), 1.0, dtype=torch.float64).T
        found = optimization.clip_grad_norm_([leaf], 1.0)
        assert_same(found, torch.tensor(math.sqrt(6)).double(), rtol=1e-6)
        assert_same(leaf.grad, torch.full((2, 3), 1 / math.sqrt(6), dtype=torch.float64), rtol=1e-5)


SHAPES = [(3, 4), (5,), (), (2, 1, 3)]


def native_step(optimizer):
    """One step of torch's own optimizer, without the wrapper that imports torch._dynamo."""
    with torch.no_grad():
        inspect.unwrap(type(optimizer).step)(optimizer)


def leaves_like(values):
    return [value.clone().requires_grad_() for value in values]


def gradient_of_step(step, number, dtype, scale=1.0):
    """A gradient that is another for each parameter and step, and sometimes 0."""
    generator = torch.Generator().manual_seed(100 * number + step)
    gradient = torch.randn(SHAPES[number], generator=generator, dtype=torch.float64) * scale
    return (gradient * 0 if (step + number) % 5 == 4 else gradient).to(dtype)


class OptimizerSpecs:
    """What is asked of every optimizer; `mine` and `theirs` make the learner's and torch's own."""

    settings: tuple[dict, ...]
    groups: tuple[dict, ...]  # what differs between three groups of parameters
    later: dict  # what is changed in mid-run

    @staticmethod
    def mine(params, **settings):
        raise NotImplementedError

    @staticmethod
    def theirs(params, **settings):
        raise NotImplementedError

    def follow(self, params_of, settings, steps=12, dtype=torch.float64, scale=1.0, present=None, change=None):
        """Steps both side by side, with the same gradients, and compares the parameters after each step.

        params_of makes the optimizer's argument of the leaves; present(step, number) says whether a parameter has a
        gradient in a step; change(optimizer, step) is done to both before each step.
        """
        values = [sample(*shape, dtype=dtype) for shape in SHAPES]
        ours, others = leaves_like(values), leaves_like(values)
        optimizers = [self.mine(params_of(ours), **settings), self.theirs(params_of(others), **settings)]
        for step in range(steps):
            for leaves in (ours, others):
                for number, leaf in enumerate(leaves):
                    has_one = present is None or present(step, number)
                    leaf.grad = gradient_of_step(step, number, dtype, scale) if has_one else None
            for optimizer in optimizers:
                if change:
                    change(optimizer, step)
            optimizers[0].step()
            native_step(optimizers[1])
            for leaf, other in zip(ours, others, strict=True):
                what = f"a parameter after step {step + 1}"
                assert_same(leaf.detach(), other.detach(), **CLOSE[dtype], what=what)
        return optimizers[0], ours

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
    def test_follows_torch_step_for_step(self, dtype):
        for settings in self.settings:
            self.follow(list, settings, dtype=dtype)

    def test_groups_have_settings_of_their_own(self):
        """Biases without weight decay, a small rate for what is trained already: groups are how one asks for it."""

        def grouped(leaves):
            first, second, third, fourth = leaves
            given = ([first, fourth], [second], [third])
            return [{"params": p, **own} for p, own in zip(given, self.groups, strict=True)]

        self.follow(grouped, self.settings[-1])

    def test_settings_are_read_at_each_step(self):
        """A schedule changes param_groups between steps; what was copied at the start would never see it."""

        def change(optimizer, step):
            if step == 5:
                optimizer.param_groups[0].update(self.later)

        for settings in self.settings:
            self.follow(list, settings, change=change)

    def test_a_parameter_without_gradient_is_skipped(self):
        """Neither moved by momentum nor by weight decay, and its step is not counted."""

        def present(step, number):
            return number == 0 or (step % 3 == number and number != 3)

        for settings in self.settings:
            optimizer, leaves = self.follow(list, settings, present=present)
            expect(
                not optimizer.state.get(leaves[3]),
                "expected no state for a parameter that never had a gradient, got some",
                "a large model of which one layer is trained would need the memory for all",
            )

    @pytest.mark.parametrize("scale", [1e-12, 1e12])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
    def test_tiny_and_huge_gradients_are_steps_like_any(self, dtype, scale):
        for settings in self.settings:
            self.follow(list, settings, steps=4, dtype=dtype, scale=scale)

    def test_the_defaults_are_torchs(self):
        first = self.settings[0]
        self.follow(list, {"lr": first["lr"]})

    def test_the_gradients_are_left_as_they_are(self):
        """Zeroing them is the caller's, and weight decay is added to a copy."""
        for settings in self.settings:
            (leaf,) = leaves_like([sample(3, 4)])
            optimizer = self.mine([leaf], **settings)
            for _ in range(3):
                leaf.grad = gradient = sample(3, 4)
                before = gradient.clone()
                optimizer.step()
                expect(leaf.grad is gradient, "expected .grad to stay the tensor that it was")
                assert_same(gradient, before, rtol=0, atol=0, what=".grad after a step")

    def test_what_is_kept_is_not_the_gradients_memory(self):
        """Where gradients are zeroed in place, a buffer that is the first gradient itself is zeroed with it."""
        for settings in self.settings:
            values = [sample(3, 4, dtype=torch.float64)]
            (leaf,), (other,) = leaves_like(values), leaves_like(values)
            optimizer, native = self.mine([leaf], **settings), self.theirs([other], **settings)
            leaf.grad = torch.zeros(3, 4, dtype=torch.float64)
            for _ in range(4):
                new = sample(3, 4, dtype=torch.float64)
                leaf.grad.copy_(new)
                other.grad = new
                optimizer.step()
                native_step(native)
                leaf.grad.zero_()
            assert_same(leaf.detach(), other.detach(), **CLOSE[torch.float64], what="the parameter after 4 steps")

    def test_parameters_are_updated_in_their_own_memory_and_without_a_graph(self):
        """A graph that grows from step to step keeps every batch of the run alive."""
        for settings in self.settings:
            base = sample(5, 4)
            leaf = base[1:4].detach().requires_grad_()
            before, where = base.clone(), leaf.data_ptr()
            optimizer = self.mine([leaf], **settings)
            for _ in range(2):
                leaf.grad = sample(3, 4)
                with state_kept():
                    optimizer.step()
            expect(leaf.data_ptr() == where, "expected the parameter to stay in its memory")
            expect(leaf.is_leaf and leaf.requires_grad, "expected the parameter to stay a leaf that requires grad")
            expect(not torch.equal(base[1:4], before[1:4]), "expected whoever shares the memory to see the step")
            assert_same(base[[0, 4]], before[[0, 4]], rtol=0, atol=0, what="the memory around the parameter")
            for value in optimizer.state[leaf].values():
                graph = isinstance(value, torch.Tensor) and value.requires_grad
                expect(not graph, "expected state without a graph, a tensor of it requires grad")

    @pytest.mark.parametrize("saved", [True, False])
    def test_a_state_dict_resumes_exactly(self, saved):
        """A training run that stopped must go on bit for bit: what is not in the state dict is forgotten."""
        for settings in self.settings:
            values = [sample(*shape) for shape in SHAPES]
            straight, first = leaves_like(values), leaves_like(values)
            unbroken, optimizer = self.mine(straight, **settings), self.mine(first, **settings)
            for step in range(3):
                self.fill([*zip(straight, first, strict=True)], step)
                unbroken.step()
                optimizer.step()
            state = copy.deepcopy(optimizer.state_dict())
            if saved:
                file = io.BytesIO()
                torch.save(state, file)
                file.seek(0)
                state = torch.load(file)
            second = leaves_like([leaf.detach() for leaf in first])
            resumed = self.mine(second, lr=123.0)  # the settings come back too
            resumed.load_state_dict(state)
            for step in range(3, 7):
                self.fill([*zip(straight, second, strict=True)], step)
                unbroken.step()
                resumed.step()
            for leaf, other in zip(second, straight, strict=True):
                assert_same(leaf.detach(), other.detach(), rtol=0, atol=0, what="a parameter of the resumed run")

    @staticmethod
    def fill(pairs, step):
        """The same gradients for both of each pair; the second parameter gets its first one late."""
        for number, pair in enumerate(pairs):
            for leaf in pair:
                late = number == 1 and step < 2
                leaf.grad = None if late else gradient_of_step(step, number, torch.float32)

    def test_the_closure_runs_with_gradients_and_its_loss_comes_back(self):
        for settings in self.settings:
            (leaf,), (other,) = leaves_like([torch.tensor([2.0, -1.0])]), leaves_like([torch.tensor([2.0, -1.0])])
            optimizer, native, calls = self.mine([leaf], **settings), self.theirs([other], **settings), []

            def closure(optimizer=optimizer, leaf=leaf, calls=calls):
                optimizer.zero_grad()
                loss = (leaf**3).sum()
                loss.backward()
                calls.append(loss.item())
                return loss

            for _ in range(2):
                with torch.no_grad(), state_kept():  # as inside a decorated step
                    found = optimizer.step(closure)
                other.grad = 3 * other.detach() ** 2
                native_step(native)
                expect(
                    found is not None and float(found.detach()) == calls[-1],
                    f"expected the loss {calls[-1]}, got {found}",
                )
            expect(len(calls) == 2, f"expected the closure to be called once a step, it was called {len(calls)} times")
            assert_same(leaf.detach(), other.detach(), **CLOSE[torch.float32], what="the parameter after two steps")

    def test_is_an_optimizer_and_none_of_torchs_own(self):
        (leaf,) = leaves_like([sample(3)])
        found = self.mine([leaf], **self.settings[0])
        expect(isinstance(found, torch.optim.Optimizer), "expected a torch.optim.Optimizer, schedules ask for one")
        own = [c.__name__ for c in type(found).__mro__ if c.__module__.startswith("torch.optim")]
        expect(own == ["Optimizer"], f"expected torch.optim.Optimizer as the only base from torch.optim, got {own}")

    def test_takes_groups_that_come_later(self):
        values = [sample(3, dtype=torch.float64), sample(2, dtype=torch.float64)]
        ours, others = leaves_like(values), leaves_like(values)
        settings = self.settings[-1]
        optimizer, native = self.mine(ours[:1], **settings), self.theirs(others[:1], **settings)
        for made, leaves in ((optimizer, ours), (native, others)):
            made.add_param_group({"params": leaves[1:], "lr": 0.25})
        for _ in range(3):
            for leaf, other in zip(ours, others, strict=True):
                leaf.grad = other.grad = sample(*leaf.shape, dtype=torch.float64)
            optimizer.step()
            native_step(native)
        for leaf, other in zip(ours, others, strict=True):
            assert_same(leaf.detach(), other.detach(), **CLOSE[torch.float64], what="a parameter after 3 steps")

    @pytest.mark.parametrize("name", ["lr", "weight_decay"])
    @pytest.mark.parametrize("wrong", [-0.5, -3])
    def test_refuses_a_negative_setting(self, wrong, name):
        (leaf,) = leaves_like([sample(3)])
        with refuses(ValueError, mentions=[wrong]):
            self.mine([leaf], **({"lr": 0.1} | {name: wrong}))

    def test_zero_is_a_setting_like_any_other(self):
        """A rate of 0 is how a schedule begins or ends."""
        (leaf,) = leaves_like([sample(3)])
        before = leaf.detach().clone()
        leaf.grad = sample(3)
        optimizer = self.mine([leaf], lr=0.0)
        optimizer.step()
        assert_same(leaf.detach(), before, what="a parameter after a step with lr 0")


class TestSGD(OptimizerSpecs):
    settings = (
        {"lr": 0.1},
        {"lr": 0.1, "momentum": 0.9},
        {"lr": 0.05, "weight_decay": 0.3},
        {"lr": 0.1, "momentum": 0.5, "nesterov": True},
        {"lr": 0.1, "momentum": 0.8, "weight_decay": 0.2, "nesterov": True},
    )
    groups = (
        {"lr": 0.01},
        {"momentum": 0.25, "nesterov": False},
        {"weight_decay": 0.0, "momentum": 0.0, "nesterov": False},
    )
    later = {"lr": 0.02, "weight_decay": 0.5}

    @staticmethod
    def mine(params, **settings):
        return optimization.SGD(params, **settings)

    @staticmethod
    def theirs(params, **settings):
        return torch.optim.SGD(params, **settings)

    @pytest.mark.parametrize("wrong", [-0.5, -1])
    def test_refuses_a_negative_momentum(self, wrong):
        with refuses(ValueError, mentions=[wrong]):
            optimization.SGD(leaves_like([sample(3)]), lr=0.1, momentum=wrong)

    def test_refuses_nesterov_without_momentum(self):
        """It looks ahead along the momentum: without one there is nowhere to look."""
        with refuses(ValueError):
            optimization.SGD(leaves_like([sample(3)]), lr=0.1, nesterov=True)

    def test_without_momentum_nothing_is_kept(self):
        (leaf,) = leaves_like([sample(3)])
        leaf.grad = torch.tensor([1.0, -2.0, 0.5])
        before = leaf.detach().clone()
        optimization.SGD([leaf], lr=0.5).step()
        assert_same(leaf.detach(), before - 0.5 * leaf.grad, what="the parameter after a step")

    def test_takes_its_settings_in_the_order_of_the_signature(self):
        (group,) = optimization.SGD([torch.zeros(2, requires_grad=True)], 0.5, 0.25, 0.125, True).param_groups
        found = [group.get(name) for name in ("lr", "momentum", "weight_decay", "nesterov")]
        expect(found == [0.5, 0.25, 0.125, True], f"expected lr, momentum, weight_decay, nesterov, got {found}")


class AdamSpecs(OptimizerSpecs):
    groups = ({"lr": 0.01}, {"betas": (0.5, 0.6), "eps": 1e-2}, {"weight_decay": 0.0, "lr": 0.3})
    later = {"lr": 0.02, "weight_decay": 0.5, "eps": 1e-3, "betas": (0.7, 0.8)}

    @pytest.mark.parametrize("wrong", [-0.5, -3])
    def test_refuses_a_negative_eps(self, wrong):
        with refuses(ValueError, mentions=[wrong]):
            self.mine(leaves_like([sample(3)]), lr=0.1, eps=wrong)

    @pytest.mark.parametrize(
        "betas, wrong",
        [((1.0, 0.999), 1.0), ((0.9, 1.0), 1.0), ((-0.5, 0.9), -0.5), ((0.9, -0.25), -0.25), ((1.5, 0.9), 1.5)],
    )
    def test_refuses_betas_outside_zero_to_one(self, betas, wrong):
        """With 1 the running mean never moves, and its correction divides by 0."""
        with refuses(ValueError, mentions=[wrong]):
            self.mine(leaves_like([sample(3)]), lr=0.1, betas=betas)

    def test_betas_of_zero_keep_nothing_of_the_past(self):
        self.follow(list, {"lr": 0.1, "betas": (0.0, 0.0)})
        self.follow(list, {"lr": 0.1, "betas": (0.9, 0.0)})

    @pytest.mark.parametrize("scale", [1e-12, 1e-3, 1.0, 1e12])
    def test_the_first_step_is_as_long_as_the_rate_whatever_the_gradient(self, scale):
        """Both means start at 0: without their correction the first step would be three times as long."""
        leaf = torch.zeros(2, dtype=torch.float64, requires_grad=True)
        leaf.grad = torch.tensor([scale, -scale], dtype=torch.float64)
        self.mine([leaf], lr=0.25, eps=0.0, weight_decay=0.0).step()
        assert_same(leaf.detach(), torch.tensor([-0.25, 0.25]).double(), rtol=1e-9, what="the parameter after a step")

    def test_eps_stands_outside_the_root(self):
        """Inside it, an eps of 0.25 would count as 0.5."""
        leaf = torch.zeros(1, dtype=torch.float64, requires_grad=True)
        leaf.grad = torch.ones(1, dtype=torch.float64)
        self.mine([leaf], lr=1.0, eps=0.25, weight_decay=0.0).step()
        assert_same(leaf.detach(), torch.tensor([-0.8]).double(), rtol=1e-9, what="the parameter after a step")


class TestAdam(AdamSpecs):
    settings = (
        {"lr": 0.1},
        {"lr": 0.1, "betas": (0.5, 0.7)},
        {"lr": 0.1, "eps": 0.1},
        {"lr": 0.1, "weight_decay": 0.3},
        {"lr": 0.05, "betas": (0.8, 0.9), "eps": 1e-3, "weight_decay": 0.1},
    )

    @staticmethod
    def mine(params, **settings):
        return optimization.Adam(params, **settings)

    @staticmethod
    def theirs(params, **settings):
        return torch.optim.Adam(params, **settings)

    def test_a_thousandth_is_the_default_rate(self):
        self.follow(list, {})

    def test_weight_decay_is_a_part_of_the_gradient(self):
        """And so it is divided by the root of the squares as well: with gradient 0 the step is as long as any."""
        leaf = torch.tensor([2.0, -4.0], dtype=torch.float64, requires_grad=True)
        leaf.grad = torch.zeros(2, dtype=torch.float64)
        optimization.Adam([leaf], lr=0.25, eps=0.0, weight_decay=0.5).step()
        assert_same(leaf.detach(), torch.tensor([1.75, -3.75]).double(), what="the parameter after a step")

    def test_takes_its_settings_in_the_order_of_the_signature(self):
        (group,) = optimization.Adam([torch.zeros(2, requires_grad=True)], 0.5, (0.25, 0.5), 0.125, 0.75).param_groups
        found = [group.get(name) for name in ("lr", "betas", "eps", "weight_decay")]
        expect(found == [0.5, (0.25, 0.5), 0.125, 0.75], f"expected lr, betas, eps, weight_decay, got {found}")


class TestAdamW(AdamSpecs):
    settings = (
        {"lr": 0.1},
        {"lr": 0.1, "betas": (0.5, 0.7), "weight_decay": 0.0},
        {"lr": 0.1, "eps": 0.1},
        {"lr": 0.1, "weight_decay": 0.3},
        {"lr": 0.05, "betas": (0.8, 0.9), "eps": 1e-3, "weight_decay": 0.1},
    )

    @staticmethod
    def mine(params, **settings):
        return optimization.AdamW(params, **settings)

    @staticmethod
    def theirs(params, **settings):
        return torch.optim.AdamW(params, **settings)

    def test_a_thousandth_is_the_default_rate(self):
        self.follow(list, {})

    def test_weight_decay_shrinks_all_parameters_by_one_factor(self):
        """Decoupled from the gradient: neither its size nor its running mean decides how much is taken away."""
        leaf = torch.tensor([2.0, -4.0], dtype=torch.float64, requires_grad=True)
        leaf.grad = torch.zeros(2, dtype=torch.float64)
        optimization.AdamW([leaf], lr=0.25, weight_decay=0.5).step()
        assert_same(leaf.detach(), torch.tensor([1.75, -3.5]).double(), what="the parameter after a step")

    def test_is_an_adam(self):
        expect(issubclass(optimization.AdamW, optimization.Adam), "expected AdamW to be a kind of this kata's Adam")
        self.mine(leaves_like([sample(3)]))

    def test_takes_its_settings_in_the_order_of_the_signature(self):
        (group,) = optimization.AdamW([torch.zeros(2, requires_grad=True)], 0.5, (0.25, 0.5), 0.125, 0.75).param_groups
        found = [group.get(name) for name in ("lr", "betas", "eps", "weight_decay")]
        expect(found == [0.5, (0.25, 0.5), 0.125, 0.75], f"expected lr, betas, eps, weight_decay, got {found}")


def stepped(make):
    """Two steps of an optimizer as a function of a parameter and its gradient."""

    def run(parameter, gradient):
        leaf = parameter.detach().clone().requires_grad_()
        leaf.grad = gradient.detach().clone()
        optimizer = make([leaf])
        for _ in range(2):
            optimizer.step()
        return leaf.detach()

    return run


def shuffled(learner):
    """All batches, with the arguments that a table of house rules can give."""
    return lambda *tensors, generator=None: tuple(
        learner.batches(*tensors, batch_size=4, shuffle=True, generator=generator)
    )


def with_gradients_on(name):
    """The function where gradients are recorded, and without those of inputs and targets."""

    def build(learner):
        @torch.enable_grad()
        def run(model, loss_fn, inputs, targets, size):
            return getattr(learner, name)(model, loss_fn, inputs.detach(), targets.detach(), size)

        return run

    return build


def one_layer(s):
    reseed()
    layer = nn.Linear(3, 2)
    with torch.no_grad():
        for p in layer.parameters():
            p.copy_(sample(*p.shape))
    return layer


# No gradients of results, half precision is not asked, and integers are no matter of optimizers.
OF_STEPS = {"dtypes": (torch.float32, torch.float64), "integers_refused": False, "differentiable": False}
# A model comes with its own dtype and device, so these have specs of their own.
OF_MODELS = {
    "keeps_dtype": False,
    "integers_refused": False,
    "any_device": False,
    "differentiable": False,
    "empty": False,
}

RULES = [
    # Any dtype; the number of batches grows with the rows.
    rule("batches", lambda s: (s(s.n, 3), s.ints(s.n)), build=shuffled, random=True, integers_refused=False,
         vectorised=False, empty=False, refused=("DataLoader",), fails=lambda s: (s(5, 3), s(4))),
    rule("minibatch_gradients", lambda s: (one_layer(s), nn.functional.mse_loss, s(s.n, 3), s(s.n, 2), 2), **OF_MODELS,
         build=with_gradients_on("minibatch_gradients"), vectorised=False, refused=("DataLoader",),
         fails=lambda s: (one_layer(s), nn.functional.mse_loss, s(4, 3), s(3, 2), 2)),
    rule("accumulate_gradients", lambda s: (one_layer(s), nn.functional.mse_loss, s(s.n, 3), s(s.n, 2), 2), **OF_MODELS,
         build=with_gradients_on("accumulate_gradients"), vectorised=False, refused=("DataLoader",),
         fails=lambda s: (one_layer(s), nn.functional.mse_loss, s(4, 3), s(3, 2), 2)),
    # It is there to change `.grad`; the limit is so high that it does not, and what it changes has specs of its own.
    rule("clip_grad_norm_", lambda s: ([s(3, 2), s(4)], 1e9), **OF_MODELS, any_strides=False, vectorised=False,
         refused=("clip_grad_norm",), fails=lambda s: ([s(3, 2), s(4)], -1.0)),
    rule("SGD", lambda s: (s(s.n, 3), s(s.n, 3)), build=lambda m: stepped(lambda p: m.SGD(p, 0.1, 0.9, 0.1, True)),
         also={"plain": {"build": lambda m: stepped(lambda p: m.SGD(p, 0.1))},
               "momentum": {"build": lambda m: stepped(lambda p: m.SGD(p, 0.1, 0.9))}},
         refused=("optim",), **OF_STEPS),
    rule("Adam", lambda s: (s(s.n, 3), s(s.n, 3)), build=lambda m: stepped(lambda p: m.Adam(p, 0.1, weight_decay=0.1)),
         also={"no decay": {"build": lambda m: stepped(lambda p: m.Adam(p, 0.1))}},
         refused=("optim",), **OF_STEPS),
    rule("AdamW", lambda s: (s(s.n, 3), s(s.n, 3)), build=lambda m: stepped(lambda p: m.AdamW(p, 0.1)),
         also={"no decay": {"build": lambda m: stepped(lambda p: m.AdamW(p, 0.1, weight_decay=0.0))}},
         refused=("optim",), **OF_STEPS),
]  # fmt: skip
