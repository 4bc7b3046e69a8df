"""The specs of kata 02. One class a function; the house rules that all of them share are in the table at the end."""

import contextlib
import functools
import itertools
import math
import re
from collections import Counter
from types import MappingProxyType

import graph
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from torch.autograd.graph import Node

from dojo.compare import Mismatch, assert_same, assert_same_gradients, describe, expect, refuses
from dojo.guards import count_ops, state_kept, unchanged
from dojo.rules import rule
from dojo.strategies import sample

EXACT = {"rtol": 1e-12, "atol": 1e-12}


def leaf(*shape, dtype=torch.float64):
    """A leaf that requires grad."""
    return sample(*shape, dtype=dtype, low=-0.9, high=0.9).requires_grad_()


def reach(root):
    """The nodes behind a tensor, in no order that is of use to anybody."""
    found = dict.fromkeys([root.grad_fn] if root.grad_fn else [])
    waiting = list(found)
    while waiting:
        for node, _ in waiting.pop().next_functions:
            if node is not None and node not in found:
                found[node] = None
                waiting.append(node)
    return list(found)


def spelled(name):
    """A node's name, with one spelling for AccumulateGrad."""
    return "AccumulateGrad" if name == "torch::autograd::AccumulateGrad" else name


@functools.cache
def chain(length=12_000):
    """A leaf and what is left of it after so many operations, one after the other."""
    x = y = leaf(3)
    for _ in range(length):
        y = -y
    return x, y


def ladder(levels=60):
    """A leaf and a root with two ways between each level and the next: 2 to the power of 60 paths in all."""
    x = y = leaf(3)
    for level in range(levels):
        y = y + y.tanh() if level % 2 else y.tanh() + y
    return x, y


# Programs: each step is an operation and the places of its operands among all that there is by then.
programs = st.lists(
    st.tuples(st.sampled_from(["mul", "add", "tanh", "unbind"]), st.integers(0, 9), st.integers(0, 9)), max_size=9
)


def play(program):
    """Runs a program: the tensors in it (three leaves and a constant first, the root last), and how deep each lies."""
    tensors = [leaf(2, 3), leaf(3), leaf(2, 1), sample(1, 3, dtype=torch.float64)]
    depths = [1, 1, 1, 0]

    def add(made, *operands):
        depth = max(depths[i] for i in operands)
        tensors.extend(made)
        depths.extend([depth + 1 if depth else 0] * len(made))

    for name, i, j in program:
        i, j = -1 - i % len(tensors), -1 - j % len(tensors)
        if name == "unbind" and tensors[i].dim():
            add(tensors[i].unbind(), i)
        elif name == "mul":
            add([tensors[i] * tensors[j]], i, j)
        elif name == "add":
            add([tensors[i] + tensors[j]], i, j)
        else:
            add([tensors[i].tanh()], i)
    add([tensors[-1] * tensors[0]], -1, 0)
    return tensors, depths


def without_graph():
    """Tensors that do not require grad, for one reason or another."""
    x = leaf(2, 3)
    with torch.no_grad():
        quiet = x * 2
    return {"a constant": sample(2, 3), "detached": (x * 2).detach(), "no_grad": quiet, "integers": torch.arange(6)}


def refuses_what_has_no_graph(call):
    """ValueError for each tensor that does not require grad, and nothing is changed."""
    for root in without_graph().values():
        with state_kept(), unchanged(root), refuses(ValueError):
            call(root)


class TestIterateDoubling:
    def test_doubles_until_the_norm_is_at_least_the_limit(self):
        assert_same(graph.iterate_doubling(torch.tensor([3.0, 4.0]), 15.0), torch.tensor([12.0, 16.0]))

    @given(n=st.integers(1, 6), scale=st.floats(0.01, 10), limit=st.floats(0.01, 1000))
    def test_takes_as_many_turns_as_the_euclidean_norm_asks_for_and_no_more(self, n, scale, limit):
        x = sample(n, dtype=torch.float64) * scale
        wanted = x
        norm = math.hypot(*x.tolist())
        assume(norm > 0)
        while norm < limit * (1 - 1e-9):
            norm, wanted = norm * 2, wanted * 2
        assume(norm > limit * (1 + 1e-9))
        with unchanged(x, names=("x",)):
            found = graph.iterate_doubling(x, limit)
        assert_same(found, wanted, rtol=1e-15, atol=0)

    def test_a_norm_that_equals_the_limit_has_reached_it(self):
        for limit, wanted in ((4.0, 4.0), (16.0, 16.0)):
            assert_same(graph.iterate_doubling(torch.tensor([0.0, -4.0]), limit), torch.tensor([0.0, -wanted]))

    @pytest.mark.parametrize("limit", [3.0, 0.0, -7.0])
    def test_a_limit_already_reached_leaves_the_values_and_a_gradient_of_one(self, limit):
        x = torch.tensor([3.0, -4.0], requires_grad=True)
        found = graph.iterate_doubling(x, limit)
        assert_same(found, x)
        assert_same_gradients(found, x * 1, [x])

    @pytest.mark.parametrize("limit, turns", [(5.0, 0), (9.0, 1), (79.0, 4), (5000.0, 10)])
    def test_the_graph_holds_one_multiplication_for_each_turn_and_nothing_else(self, limit, turns):
        """The graph is recorded anew at each call, so that it has just the turns that this call took."""
        x = torch.tensor([3.0, 4.0], requires_grad=True)
        found = Counter(spelled(node.name()) for node in reach(graph.iterate_doubling(x, limit)))
        found.pop("AccumulateGrad", None)
        wanted = Counter({"MulBackward0": turns} if turns else {})
        expect(found == wanted, f"expected {describe(dict(wanted))}, got {describe(dict(found), 60)}")

    def test_the_gradient_is_two_to_the_power_of_the_turns(self):
        x = torch.tensor([0.3, -0.4, 0.0], requires_grad=True)
        assert_same_gradients(graph.iterate_doubling(x, 30.0), x * 2**6, [x])

    def test_gradients_reach_what_x_was_computed_from(self):
        x = leaf(5)
        found = graph.iterate_doubling(x.exp(), 100.0)
        turns = round(math.log2((found / x.exp())[0].item()))
        assert_same_gradients(found, x.exp() * 2**turns, [x], **EXACT)

    def test_records_nothing_for_an_x_that_does_not_require_grad(self):
        assert not graph.iterate_doubling(sample(4), 100.0).requires_grad

    @pytest.mark.parametrize(
        "dtype, tiny, turns", [("float32", 1e-30, 100), ("float64", 1e-200, 665), ("float16", 1e-4, 14)]
    )
    def test_a_tiny_x_is_not_zero(self, dtype, tiny, turns):
        """The square of a tiny number is 0 to a computer."""
        x = torch.tensor([0.0, tiny, 0.0], dtype=getattr(torch, dtype))
        wanted = (x.double() * 2.0**turns).to(x.dtype)
        assert_same(graph.iterate_doubling(x, 1.0), wanted)

    def test_ends_also_where_the_limit_lies_beyond_what_the_dtype_holds(self):
        with contextlib.suppress(ValueError):
            graph.iterate_doubling(torch.tensor([3.0, 4.0]), 1e300)

    @pytest.mark.parametrize("limit", [10.0, 0.0, -1.0])
    def test_refuses_zeros_which_stay_zeros_however_often_they_are_doubled(self, limit):
        with refuses(ValueError):
            graph.iterate_doubling(torch.zeros(3), limit)

    @pytest.mark.parametrize("limit", [10.0, 0.0])
    def test_refuses_an_empty_x(self, limit):
        with refuses(ValueError):
            graph.iterate_doubling(torch.zeros(0), limit)

    @pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
    def test_refuses_an_x_that_is_not_finite(self, bad):
        for place, limit in itertools.product((0, 1, 2), (10.0, -1.0)):
            x = torch.tensor([1.0, 2.0, 3.0])
            x[place] = bad
            with refuses(ValueError):
                graph.iterate_doubling(x, limit)

    @pytest.mark.parametrize("limit", [math.inf, -math.inf, math.nan])
    def test_refuses_a_limit_that_is_not_finite(self, limit):
        with refuses(ValueError):
            graph.iterate_doubling(torch.tensor([3.0, 4.0]), limit)


def check_order(found, root):
    """Each node once, each before the nodes that it passes gradient to."""
    expect(isinstance(found, list), f"expected a list, got {type(found).__name__}")
    strange = [type(entry).__name__ for entry in found if not isinstance(entry, Node)]
    expect(not strange, f"expected a list of nodes, got {strange[:1]} among them")
    names = Counter(spelled(node.name()) for node in found)
    wanted = Counter(spelled(node.name()) for node in reach(root))
    twice = [node.name() for node, count in Counter(found).items() if count > 1]
    expect(not twice, f"expected each node once, {twice[0] if twice else ''} is there more than once")
    missing, more = wanted - names, names - wanted
    expect(not missing, f"expected every node behind the root, {', '.join(sorted(missing))} is missing")
    expect(not more, f"expected no node but those behind the root, {', '.join(sorted(more))} is there")
    expect(set(found) == set(reach(root)), "expected the nodes behind the root, got others of the same names")
    place = {node: i for i, node in enumerate(found)}
    for node in found:
        for receiver, _ in node.next_functions:
            if receiver is not None and place[receiver] < place[node]:
                raise Mismatch(
                    f"expected {node.name()} before {receiver.name()}, to which it passes gradient",
                    f"the order is {' '.join(spelled(n.name()).removesuffix('Backward0') for n in found[:12])}",
                )


class TestTopologicalOrder:
    def test_begins_at_the_root_and_ends_at_the_leaf(self):
        found = graph.topological_order((leaf(3) * 3).exp().sum())
        names = [spelled(node.name()) for node in found]
        assert names == ["SumBackward0", "ExpBackward0", "MulBackward0", "AccumulateGrad"]

    @pytest.mark.parametrize("shortcut", ["first", "last", "both", "twice"])
    def test_a_shortcut_puts_no_node_before_one_that_passes_gradient_to_it(self, shortcut):
        """A skip connection reaches a node sooner than the long way does: the node must wait for both."""
        x = leaf(3)
        shared = x.exp()
        long = (shared * 2).tanh()
        root = {
            "first": shared + long,
            "last": long + shared,
            "both": shared + long * shared + x,
            "twice": shared * shared + long,
        }[shortcut]
        check_order(graph.topological_order(root), root)

    @given(program=programs)
    @settings(max_examples=40)
    def test_lists_each_node_once_before_those_that_it_passes_gradient_to(self, program):
        root = play(program)[0][-1]
        check_order(graph.topological_order(root), root)

    def test_a_node_that_is_used_many_times_is_listed_once(self):
        x = leaf(3)
        root = torch.stack([x, x * x, x, x])
        check_order(graph.topological_order(root), root)

    def test_the_outputs_of_one_operation_share_one_node(self):
        a, b, c = leaf(3, 2).unbind()
        root = c * (a + b)
        check_order(graph.topological_order(root), root)

    def test_what_lies_behind_a_detach_or_was_made_without_grad_has_no_nodes(self):
        x, constant = leaf(3), sample(3, dtype=torch.float64)
        with torch.no_grad():
            quiet = x.exp()
        found = graph.topological_order((x * constant + quiet) * x.tanh().detach())
        assert [spelled(node.name()) for node in found] == [
            "MulBackward0", "AddBackward0", "MulBackward0", "AccumulateGrad",
        ]  # fmt: skip

    def test_a_chain_of_thousands_of_nodes_meets_no_recursion_limit(self):
        """An RNN over 10,000 steps is such a chain."""
        _, root = chain()
        found = graph.topological_order(root)
        expect(len(found) == 12_001, f"expected 12001 nodes, got {len(found)}")
        check_order(found, root)

    def test_ends_soon_also_where_there_are_more_paths_than_anybody_can_walk(self):
        _, root = ladder()
        check_order(graph.topological_order(root), root)

    def test_a_leaf_has_no_nodes(self):
        found = graph.topological_order(leaf(3))
        expect(isinstance(found, list) and not found, f"expected an empty list, got {describe(found)}")

    def test_refuses_a_tensor_that_does_not_require_grad(self):
        refuses_what_has_no_graph(graph.topological_order)


def check_leaves(found, wanted):
    """The same tensors, as objects, in any order."""
    expect(isinstance(found, list), f"expected a list, got {type(found).__name__}")
    expect(len(found) == len(wanted), f"expected {len(wanted)} leaves, got {len(found)}: {describe(found, 60)}")
    for x in wanted:
        expect(any(x is y for y in found), f"expected the very tensor {describe(x)} among the leaves, it is not there")


class TestLeaves:
    def test_finds_every_leaf_that_requires_grad(self):
        x, y, z, constant = leaf(3), leaf(2, 3), leaf(), sample(3, dtype=torch.float64)
        check_leaves(graph.leaves(((x * constant).exp() + y) * z), [x, y, z])

    def test_finds_leaves_far_from_the_root(self):
        x, y = leaf(3), leaf(3)
        root = x
        for _ in range(20):
            root = root.tanh()
        check_leaves(graph.leaves(y + root), [x, y])

    def test_a_leaf_used_several_times_is_one_leaf(self):
        x, y = leaf(3), leaf(3)
        check_leaves(graph.leaves(x * y + x.exp() * x), [x, y])

    def test_gives_the_tensors_themselves_also_where_their_values_are_equal(self):
        """An optimizer has to write to the parameter, not to a copy."""
        x, y = torch.ones(2, requires_grad=True), torch.nn.Parameter(torch.ones(2))
        check_leaves(graph.leaves(x * y), [x, y])

    def test_nothing_behind_a_detach_or_made_without_grad_is_a_leaf_of_it(self):
        x, y, z = leaf(3), leaf(3), leaf(3)
        with torch.no_grad():
            quiet = y.exp()
        check_leaves(graph.leaves(x * quiet + z.tanh().detach()), [x])

    def test_no_intermediate_result_is_a_leaf(self):
        x = leaf(3)
        middle = x.exp()
        middle.retain_grad()
        check_leaves(graph.leaves(middle * 2), [x])

    def test_a_leaf_that_was_frozen_after_its_use_gets_no_gradient_and_is_left_out(self):
        x, y = leaf(3), leaf(3)
        root = x.tanh() * y
        x.requires_grad_(False)
        check_leaves(graph.leaves(root), [y])

    @given(program=programs)
    def test_they_are_the_tensors_that_autograd_finds_a_gradient_for(self, program):
        tensors, _ = play(program)
        given = tensors[:3]
        gradients = torch.autograd.grad(tensors[-1].sum(), given, allow_unused=True, retain_graph=True)
        reached = [x for x, gradient in zip(given, gradients, strict=True) if gradient is not None]
        check_leaves(graph.leaves(tensors[-1]), reached)

    def test_the_graph_and_the_grad_of_its_leaves_stay_as_they_are(self):
        x = leaf(3)
        x.grad = sample(3, dtype=torch.float64)
        root = x.exp().sum()
        with unchanged(x, root, names=("the leaf", "the root")):
            graph.leaves(root)
        (gradient,) = torch.autograd.grad(root, x)
        assert_same(gradient, x.detach().exp(), **EXACT)

    def test_chains_may_be_long_and_paths_many(self):
        for x, root in (chain(), ladder()):
            check_leaves(graph.leaves(root), [x])

    def test_a_leaf_is_its_own_leaf(self):
        for x in (leaf(2, 3), leaf(), leaf(0)):
            check_leaves(graph.leaves(x), [x])

    def test_refuses_a_tensor_that_does_not_require_grad(self):
        refuses_what_has_no_graph(graph.leaves)


def check_counts(found, wanted):
    """The same counts; AccumulateGrad under either of its names."""
    expect(isinstance(found, Counter), f"expected a Counter, got {type(found).__name__}")
    strange = [name for name in found if not isinstance(name, str)]
    expect(not strange, f"expected names as keys, got {strange[:1]}")
    counted = Counter()
    for name, count in found.items():
        counted[spelled(name)] += count
    for name in sorted({*counted, *wanted}):
        expect(counted[name] == wanted[name], f"expected {wanted[name]} of {name}, got {counted[name]}")


class TestOpCounts:
    def test_counts_each_kind_of_node(self):
        x, y = leaf(2, 3), leaf(3)
        found = graph.op_counts((x * y * 3).exp() + y)
        check_counts(found, Counter(MulBackward0=2, ExpBackward0=1, AddBackward0=1, AccumulateGrad=2))

    def test_names_are_those_of_the_nodes_with_their_number(self):
        root = (leaf(2, 3).sum(0) * 2).sum()
        check_counts(graph.op_counts(root), Counter(SumBackward0=1, SumBackward1=1, MulBackward0=1, AccumulateGrad=1))

    def test_a_node_counts_once_however_often_its_result_is_used(self):
        x = leaf(3)
        y = x.exp()
        root = y * y + y * x
        check_counts(graph.op_counts(root), Counter(MulBackward0=2, ExpBackward0=1, AddBackward0=1, AccumulateGrad=1))

    def test_the_outputs_of_one_operation_count_once(self):
        a, b = leaf(2, 3).unbind()
        check_counts(graph.op_counts(a * b), Counter(MulBackward0=1, UnbindBackward0=1, AccumulateGrad=1))

    def test_what_does_not_occur_counts_zero(self):
        assert graph.op_counts(leaf(3) * 2)["ExpBackward0"] == 0

    @given(program=programs)
    def test_counts_add_up_over_the_whole_graph(self, program):
        root = play(program)[0][-1]
        check_counts(graph.op_counts(root), Counter(spelled(node.name()) for node in reach(root)))

    def test_chains_may_be_long_and_paths_many(self):
        check_counts(graph.op_counts(chain()[1]), Counter(NegBackward0=12_000, AccumulateGrad=1))
        check_counts(graph.op_counts(ladder()[1]), Counter(AddBackward0=60, TanhBackward0=60, AccumulateGrad=1))

    def test_a_leaf_has_nothing_to_count(self):
        check_counts(graph.op_counts(leaf(3)), Counter())

    def test_refuses_a_tensor_that_does_not_require_grad(self):
        refuses_what_has_no_graph(graph.op_counts)


def check_depth(root, wanted):
    found = graph.depth(root)
    expect(found == wanted, f"expected depth {wanted}, got {describe(found)}")


class TestDepth:
    def test_counts_the_nodes_of_a_chain_and_that_of_the_leaf(self):
        check_depth((leaf(3) * 3).exp().sum(), 4)

    @pytest.mark.parametrize("order", [(0, 1, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)])
    def test_the_longest_path_counts_whichever_operand_it_comes_through(self, order):
        x, y = leaf(3), leaf(3)
        ways = [x, (y * 2).exp().tanh(), x.exp()]
        check_depth(torch.stack([ways[i] for i in order]), 5)

    def test_a_shortcut_makes_no_path_shorter(self):
        x = leaf(3)
        shared = x.exp()
        check_depth(shared + (shared * 2).tanh(), 5)
        check_depth((shared * 2).tanh() + shared, 5)

    def test_branches_side_by_side_do_not_add_up(self):
        x, y = leaf(3), leaf(3)
        check_depth(x.exp() * y.exp(), 3)

    def test_constants_and_what_was_detached_have_no_depth(self):
        x = leaf(3)
        check_depth(x * x.exp().tanh().exp().detach(), 2)

    @given(program=programs)
    def test_each_operation_lies_one_deeper_than_its_deepest_operand(self, program):
        tensors, depths = play(program)
        check_depth(tensors[-1], depths[-1])

    def test_is_a_python_int(self):
        found = graph.depth(leaf(3).exp())
        expect(isinstance(found, int), f"expected an int, got {type(found).__name__}")

    def test_a_chain_of_thousands_of_nodes_meets_no_recursion_limit(self):
        check_depth(chain()[1], 12_001)

    def test_ends_soon_also_where_there_are_more_paths_than_anybody_can_walk(self):
        """Sixty levels with two ways each: a walk along every path would outlast us all."""
        check_depth(ladder()[1], 121)

    def test_a_leaf_has_depth_0(self):
        check_depth(leaf(3), 0)

    def test_refuses_a_tensor_that_does_not_require_grad(self):
        refuses_what_has_no_graph(graph.depth)


DOT_TOKENS = re.compile(
    r'\s+ | //[^\n]* | /\*.*?\*/ | (?P<quoted> "(?:\\.|[^"\\])*" ) | (?P<sign> -> | [{}\[\];,=:] )'
    r"| (?P<word> -?(?:\.\d+|\d+(?:\.\d*)?) | [^\W\d]\w* )",
    re.VERBOSE | re.DOTALL,
)


class Dot:
    """What `dot` reads in a text: `nodes`, the attributes of each by its identifier, and `edges`, from and to."""

    def __init__(self, text):
        expect(isinstance(text, str), f"expected a str, got {type(text).__name__}")
        self.text, self.tokens, self.nodes, self.edges = text, [], {}, set()
        at = 0
        while at < len(text):
            token = DOT_TOKENS.match(text, at)
            if token is None:
                self.stop(at)
            if token.lastgroup:
                self.tokens.append((token.lastgroup, token[0], at))
            at = token.end()
        self.tokens.append(("end", "", at))
        self.accept("strict")
        if not self.accept("digraph"):
            self.stop()
        if not self.comes("{"):
            self.identifier()
        self.block({})
        if self.tokens[0][0] != "end":
            self.stop()

    def stop(self, at=None):
        """Says where dot would stop reading."""
        at = self.tokens[0][2] if at is None else at
        line = self.text.count("\n", 0, at) + 1
        near = " ".join(self.text[at : at + 40].split()) or "the end"
        raise Mismatch("expected text that dot can read", f"it stops in line {line} at: {near}")

    def comes(self, *words):
        kind, token, _ = self.tokens[0]
        return kind in ("sign", "word") and token.lower() in words

    def accept(self, *words):
        return bool(self.comes(*words)) and bool(self.tokens.pop(0))

    def demand(self, word):
        if not self.accept(word):
            self.stop()

    def identifier(self):
        kind, token, _ = self.tokens[0]
        if kind not in ("word", "quoted"):
            self.stop()
        self.tokens.pop(0)
        return token if kind == "word" else re.sub(r'\\(["\\\n])', self.unescaped, token[1:-1])

    @staticmethod
    def unescaped(match):
        """Inside quotes only a quote and a newline lose their backslash: all else is left to the label."""
        return {'"': '"', "\n": ""}.get(match[1], match[0])

    def block(self, defaults):
        self.demand("{")
        members = []
        while not self.accept("}"):
            if not self.accept(";"):
                members += self.statement(defaults)
        return members

    def statement(self, defaults):
        if self.comes("graph", "node", "edge"):
            about = self.tokens.pop(0)[1].lower()
            given = self.attributes()
            defaults.update(given if about == "node" else {})
            return []
        ends = [self.operand(defaults)]
        if isinstance(ends[0], str) and self.accept("="):
            self.identifier()
            return []
        while self.accept("->"):
            ends.append(self.operand(defaults))
        given = self.attributes()
        groups = [[end] if isinstance(end, str) else end for end in ends]
        for group in groups:
            for name in group:
                self.nodes.setdefault(name, dict(defaults))
                if len(ends) == 1 and isinstance(ends[0], str):
                    self.nodes[name].update(given)
        for tails, heads in itertools.pairwise(groups):
            self.edges |= {(tail, head) for tail in tails for head in heads}
        return [name for group in groups for name in group]

    def operand(self, defaults):
        """One node, or the nodes of a subgraph."""
        if self.accept("subgraph") and not self.comes("{"):
            self.identifier()
        if self.comes("{"):
            return self.block(dict(defaults))
        name = self.identifier()
        while self.accept(":"):
            self.identifier()
        return name

    def attributes(self):
        given = {}
        while self.accept("["):
            while not self.accept("]"):
                name = self.identifier()
                self.demand("=")
                given[name] = self.identifier()
                self.accept(",", ";")
        return given

    def label(self, name):
        """The text that is drawn in a node."""
        drawn = {"n": "\n", "l": "\n", "r": "\n", "N": name}
        label = self.nodes[name].get("label", r"\N")
        return re.sub(r"\\(.)", lambda m: drawn.get(m[1], m[1]), label, flags=re.DOTALL)


def box_label(name, x):
    return str(list(x.shape)) if name is None else spaced(f"{name}\n{list(x.shape)}")


def wanted_drawing(root, names):
    """Nodes (label, whether a box, whether marked) and edges of the drawing that is asked for."""
    name_of = {id(x): name for name, x in names.items()}
    if root.grad_fn is None:
        return {"root": (box_label(name_of.get(id(root)), root), True, True)}, set()
    nodes, edges = {}, set()
    for node in reach(root):
        nodes[node] = (spelled(node.name()), False, node is root.grad_fn)
        edges |= {(receiver, node) for receiver, _ in node.next_functions if receiver is not None}
        if spelled(node.name()) == "AccumulateGrad":
            nodes["box", node] = (box_label(name_of.get(id(node.variable)), node.variable), True, False)
            edges.add((("box", node), node))
    return nodes, edges


def spaced(label):
    """A box's label in one form: the name, a new line, the shape as a list. (2, 3), 2x3 and torch.Size([2, 3]) are
    shapes too, and may stand on the line of the name."""
    shape = r"(?:shape\s*[=:]?\s*)?(?:torch\.Size\()?[\[(]?\s*((?:\d+\s*[,x×]?\s*)*)[\])]?\)?"
    match = re.fullmatch(rf"(.*?)[\s:,|]*{shape}\s*", label, re.DOTALL)
    if match is None:
        return label
    numbers = ", ".join(re.findall(r"\d+", match[2]))
    return f"{match[1]}\n[{numbers}]" if match[1] else f"[{numbers}]"


def read_drawing(text):
    """The same for a text. Marked is what shows something that nothing else does, or leads to one more node."""
    dot = Dot(text)
    sinks = set(dot.nodes) - {tail for tail, _ in dot.edges}
    sources = {tail for tail, head in dot.edges if head in sinks}
    extra = len(sinks) == 1 and len(sources) == 1 and not dot.label(*sinks).endswith(("Backward0", "AccumulateGrad"))
    if extra:
        dot.edges -= {(tail, head) for tail, head in dot.edges if head in sinks}
        for name in sinks:
            del dot.nodes[name]
    shown = Counter(item for attributes in dot.nodes.values() for item in attributes.items() if item[0] != "label")
    nodes = {}
    for name, attributes in dot.nodes.items():
        label, box = dot.label(name), attributes.get("shape") in ("box", "rect", "rectangle")
        special = {item for item in attributes.items() if shown[item] == 1 and item[0] != "label"}
        special -= {("shape", attributes["shape"])} if box else set()
        marked = name in sources if extra else bool(special)
        nodes[name] = (spaced(label) if box else spelled(label), box, marked)
    return nodes, dot.edges


def refined(nodes, edges):
    """Nodes told apart by all that is behind and before them: equal counts for equal drawings, whatever the names."""
    colours = dict(nodes)
    for _ in range(len(nodes)):
        behind, before = {name: [] for name in nodes}, {name: [] for name in nodes}
        for tail, head in edges:
            behind[head].append(hash(colours[tail]))
            before[tail].append(hash(colours[head]))
        colours = {n: (hash(colours[n]), *sorted(behind[n]), "|", *sorted(before[n])) for n in nodes}
    return Counter(colours.values())


def several(labels):
    """Labels with their counts, in few words."""
    return ", ".join(f"{label!r}" + (f" {count} times" if count > 1 else "") for label, count in labels.items())


def check_drawing(text, root, names=None):
    """The text draws the graph: its nodes, boxes, mark and edges, asked in that order."""
    found, found_edges = read_drawing(text)
    wanted, wanted_edges = wanted_drawing(root, names or {})
    for is_box, what in ((False, "node"), (True, "box")):
        have = Counter(label for label, box, _ in found.values() if box == is_box)
        want = Counter(label for label, box, _ in wanted.values() if box == is_box)
        expect(not want - have, f"expected a {what} labelled {several(want - have)}", f"got {several(have) or 'none'}")
        expect(not have - want, f"expected no {what} labelled {several(have - want)}", f"got {several(have)}")
    have = Counter(label for label, _, marked in found.values() if marked)
    want = Counter(label for label, _, marked in wanted.values() if marked)
    expect(have == want, f"expected a mark on {several(want)} alone, got one on {several(have) or 'nothing'}")
    have = {(found[tail][0], found[head][0]) for tail, head in found_edges}
    want = {(wanted[tail][0], wanted[head][0]) for tail, head in wanted_edges}
    for edges, title in ((want - have, "expected an edge"), (have - want, "expected no edge")):
        expect(not edges, f"{title} from {' to '.join(map(repr, sorted(edges)[0]))}" if edges else "")
    expect(
        refined(found, found_edges) == refined(wanted, wanted_edges),
        "expected each node to be joined to its own neighbours, some are joined to others of the same label",
    )


class TestToDot:
    def test_draws_a_node_for_each_operation_and_a_box_for_each_leaf(self):
        x, y = leaf(2, 3), leaf(3)
        root = (x * y).exp().sum()
        check_drawing(graph.to_dot(root), root)

    def test_boxes_bear_the_names_that_were_given_and_their_shapes(self):
        x, y, z = leaf(2, 3), leaf(), leaf(4, 0, 1)
        root = x * y + z.sum()
        names = {"weight": x, "the bias": y}
        check_drawing(graph.to_dot(root, names), root, names)

    def test_without_names_the_shape_alone_stands_in_the_box(self):
        root = leaf(2, 3).exp()
        for names in ({}, None):
            check_drawing(graph.to_dot(root, names), root)
        check_drawing(graph.to_dot(root), root)

    def test_edges_point_the_way_the_data_went(self):
        x = leaf(3)
        nodes, edges = read_drawing(graph.to_dot(x.exp().sum(), names={"x": x}))
        found = {(nodes[tail][0], nodes[head][0]) for tail, head in edges}
        wanted = {("x\n[3]", "AccumulateGrad"), ("AccumulateGrad", "ExpBackward0"), ("ExpBackward0", "SumBackward0")}
        expect(found == wanted, f"expected edges {sorted(wanted)}", f"got {sorted(found)}")

    def test_the_operation_that_made_the_root_is_marked_and_no_other(self):
        x = leaf(3)
        root = (x.exp() * 2).exp()
        check_drawing(graph.to_dot(root), root)

    def test_operations_of_the_same_kind_are_nodes_of_their_own(self):
        x = leaf(3)
        root = x.exp() * x.exp().tanh() + (x * 2).exp()
        check_drawing(graph.to_dot(root), root)

    def test_leaves_of_equal_shape_are_boxes_of_their_own(self):
        x, y = leaf(3), leaf(3)
        root = x * y.exp()
        check_drawing(graph.to_dot(root), root)

    @given(name=st.text('ab"\\\nnlN{}|<>;-[]#/ é', min_size=1, max_size=6))
    @example(name='say "x"')
    @example(name="back\\slash")
    @example(name="ends with a backslash\\")
    @example(name="no \\new line")
    @example(name='\\"')
    @example(name="two\nlines")
    def test_a_name_is_drawn_as_it_is_whatever_is_in_it(self, name):
        """A quote that is not escaped ends the label, and dot reads no further."""
        x = leaf(3)
        root = x.exp()
        check_drawing(graph.to_dot(root, {name: x}), root, {name: x})

    def test_a_newline_in_a_name_is_escaped(self):
        x = leaf(3)
        expect("up\ndown" not in graph.to_dot(x.exp(), {"up\ndown": x}), r"expected \n in place of the line break")

    def test_a_name_is_a_label_and_may_be_the_same_as_any_identifier(self):
        x, y = leaf(3), leaf(3)
        root = x.exp() * y
        for name in Dot(graph.to_dot(root)).nodes:
            check_drawing(graph.to_dot(root, {name: x}), root, {name: x})

    def test_names_belong_to_tensors_and_not_to_values(self):
        x, y = torch.ones(3, requires_grad=True), torch.ones(3, requires_grad=True)
        root, names = x * y.exp(), {"y": y}
        check_drawing(graph.to_dot(root, names), root, names)

    def test_ignores_the_names_of_tensors_that_are_not_in_the_graph(self):
        x = torch.ones(2, 3, requires_grad=True)
        equal, constant = x.detach().clone().requires_grad_(), torch.ones(2, 3)
        root = x.exp() * constant
        names = {"detached": x.detach(), "equal": equal, "x": x, "constant": constant, "other": leaf(5)}
        check_drawing(graph.to_dot(root, names), root, names)

    def test_the_name_of_an_intermediate_result_adds_nothing(self):
        x = leaf(3)
        middle = x.exp()
        root = middle * 2
        check_drawing(graph.to_dot(root, {"middle": middle, "root": root, "x": x}), root, {"x": x})

    @given(program=programs)
    def test_shared_nodes_are_drawn_once_with_all_their_edges(self, program):
        tensors, _ = play(program)
        names = dict(zip("abcdefgh", tensors, strict=False))
        check_drawing(graph.to_dot(tensors[-1], names), tensors[-1], names)

    def test_of_two_names_for_one_tensor_either_will_do(self):
        x = leaf(3)
        root = x.exp()
        text = graph.to_dot(root, {"one": x, "two": x})
        name = "one" if any(label.startswith("one\n") for label, *_ in read_drawing(text)[0].values()) else "two"
        check_drawing(text, root, {name: x})

    def test_takes_any_mapping_and_leaves_it_as_it_is(self):
        x = leaf(3)
        root, names = x.exp(), {"x": x}
        check_drawing(graph.to_dot(root, names=MappingProxyType(names)), root, names)
        with unchanged(names):
            graph.to_dot(root, names)

    def test_one_graph_always_gives_the_same_text(self):
        """Two drawings can be compared only if what differs between them is a difference of the graphs."""
        _, root = ladder(8)
        first, _, second = graph.to_dot(root), graph.to_dot(ladder(5)[1]), graph.to_dot(root)
        expect(first == second, "expected the same text for the same graph, got another at the second call")

    def test_what_lies_behind_a_detach_is_not_drawn(self):
        x, y = leaf(3), leaf(2, 3)
        root = x * y.exp().detach()
        check_drawing(graph.to_dot(root, {"y": y}), root)

    def test_chains_may_be_long(self):
        _, root = chain(1_500)
        nodes, edges = read_drawing(graph.to_dot(root))
        expect(len(nodes) == 1_502, f"expected 1501 nodes and a box, got {len(nodes)} in all")
        expect(len(edges) == 1_501, f"expected 1501 edges, got {len(edges)}")

    def test_a_leaf_is_a_marked_box_and_nothing_else(self):
        x = leaf(2, 3)
        check_drawing(graph.to_dot(x), x)
        check_drawing(graph.to_dot(x, {"x": x}), x, {"x": x})

    def test_refuses_a_tensor_that_does_not_require_grad(self):
        refuses_what_has_no_graph(graph.to_dot)


def check_gradients(output, inputs, grad_output=None):
    """The gradients are those of autograd, in float64."""
    given = torch.ones_like(output) if grad_output is None else grad_output
    total = (output * given.detach()).sum()
    wanted = torch.autograd.grad(total, list(inputs), allow_unused=True, retain_graph=True)
    asked = list(inputs)
    found = graph.gradients(output, inputs, grad_output) if grad_output is not None else graph.gradients(output, inputs)
    same = len(asked) == len(inputs) and all(x is y for x, y in zip(asked, inputs, strict=True))
    expect(same, "expected the sequence of inputs to stay as it was, it was changed")
    expect(isinstance(found, list), f"expected a list, got {type(found).__name__}")
    expect(len(found) == len(inputs), f"expected one gradient for each of {len(inputs)} inputs, got {len(found)}")
    for number, (x, mine, right) in enumerate(zip(inputs, found, wanted, strict=True)):
        try:
            assert_same(mine, torch.zeros_like(x) if right is None else right, rtol=1e-10, atol=1e-12)
        except Mismatch as mismatch:
            raise Mismatch(f"in the gradient of input {number}:", *mismatch.lines) from None


class TestGradients:
    def test_a_chain_multiplies_the_slopes_along_it(self):
        x = torch.tensor([2.0], requires_grad=True)
        y = x * 3
        to_x, to_y = graph.gradients(y**2, [x, y])
        assert_same(to_x, torch.tensor([36.0]))
        assert_same(to_y, torch.tensor([12.0]))

    def test_touches_the_grad_of_no_tensor(self):
        x, y, other = leaf(3), leaf(3), leaf(3)
        middle = x.exp() * y
        middle.retain_grad()
        y.grad = torch.full((3,), 7.0, dtype=torch.float64)
        kept = y.grad
        graph.gradients((middle * 2).sum(), [x, middle, other])
        expect(
            x.grad is None and middle.grad is None and other.grad is None,
            "expected the .grad of every tensor to stay None, one was filled",
        )
        expect(y.grad is kept and bool((kept == 7).all()), "expected the .grad of y to stay as it was, it was changed")

    def test_a_result_used_in_several_places_gets_the_sum_of_what_comes_back(self):
        x = leaf(3)
        y = x.exp()
        check_gradients((y * x + y.tanh() + y * y).sum(), [x, y])

    def test_a_shortcut_waits_for_the_long_way(self):
        """A node called before all its gradients have arrived hands on too little."""
        x = leaf(3)
        shared = x.exp()
        long = (shared * 2).tanh().exp()
        for output in (shared + long, long + shared, shared * shared + long):
            check_gradients(output, [x, shared, long], sample(3, dtype=torch.float64))

    @pytest.mark.parametrize(
        "small, big",
        [((3,), (2, 3)), ((2, 1), (2, 3)), ((1, 3), (2, 3)), ((), (2, 3)), ((1,), (4,)), ((1, 3, 1), (2, 1, 4))],
    )
    def test_what_was_broadcast_gets_a_gradient_of_its_own_shape(self, small, big):
        """The nodes do not undo broadcasting: the engine sums the gradient to the shape of what it belongs to."""
        x, y = leaf(*small), leaf(*big)
        middle = x.tanh()
        for output in (middle * y, y + middle, x - y, x.tanh().exp() * y):
            check_gradients(output, [x, y, middle], sample(*output.shape, dtype=torch.float64))

    def test_each_output_of_an_operation_has_a_gradient_of_its_own(self):
        x = leaf(3, 2)
        a, b, c = x.unbind()
        check_gradients((a * 2 + b.exp() * c * c).sum(), [x, c, a, b])

    def test_outputs_of_different_shapes_are_told_apart(self):
        x, weight = leaf(7, 2), leaf(2)
        short, long = x.split([2, 5])
        check_gradients((long * weight).sum() * (short + weight).sum(), [short, x, long, weight])

    def test_outputs_that_nothing_came_back_to_count_as_zeros(self):
        x = leaf(7, 2)
        short, middle, long = x.split([1, 2, 4])
        check_gradients((middle * middle).sum(), [x, long, middle, short])

    def test_one_of_several_outputs_can_be_the_output(self):
        x = leaf(3, 2)
        a, b, c = x.exp().unbind()
        check_gradients(b, [x, a, b, c], sample(2, dtype=torch.float64))

    def test_an_input_behind_another_input_gets_its_whole_gradient(self):
        x = leaf(3)
        y = x.exp()
        z = y.tanh()
        check_gradients((z * y).sum(), [y, x, z])

    def test_the_output_may_be_among_the_inputs(self):
        x = leaf(3)
        y = x.exp()
        check_gradients(y, [y, x], sample(3, dtype=torch.float64))

    def test_inputs_are_answered_in_their_order_as_often_as_they_are_asked(self):
        x, y = leaf(3), leaf(2, 3)
        output = (x * y).exp().sum()
        check_gradients(output, (y, x, y))
        check_gradients(output, [x, y, x])
        assert graph.gradients(output, []) == []

    def test_inputs_that_do_not_matter_get_zeros_of_their_own_shape(self):
        x, unused = leaf(3), leaf(2, 5)
        y = x.exp()
        later = y.sum() * 2
        check_gradients(y * x.tanh().detach(), [unused, x, unused.exp(), later], sample(3, dtype=torch.float64))

    def test_what_was_detached_passes_nothing_on(self):
        x, y = leaf(3), leaf(3)
        check_gradients((x * y.exp().detach()).sum(), [y, x])

    @pytest.mark.parametrize("shape", [(), (1,), (1, 1, 1)])
    def test_an_output_of_one_element_needs_no_grad_output(self, shape):
        x = leaf(*shape)
        check_gradients(x.exp() * 3, [x])
        check_gradients(x.exp() * 3, [x], torch.full(shape, -0.7, dtype=torch.float64))

    def test_an_empty_output_takes_an_empty_grad_output(self):
        x, weight = leaf(0, 3), leaf(3)
        check_gradients(x * weight, [x, weight], torch.zeros(0, 3, dtype=torch.float64))

    def test_a_leaf_is_its_own_output(self):
        x, other, one = leaf(3), leaf(2), leaf()
        check_gradients(x, [x, other, x], sample(3, dtype=torch.float64))
        check_gradients(one, [one, other])

    def test_grad_output_may_be_a_view_or_require_grad(self):
        x = leaf(2, 3)
        for cotangent in (leaf(2, 3), leaf(3, 2).t(), sample(1, dtype=torch.float64).expand(2, 3)):
            check_gradients(x.exp() + x, [x], cotangent)

    @given(program=programs)
    @settings(max_examples=50)
    def test_agrees_with_autograd_for_leaves_and_for_all_that_lies_between(self, program):
        tensors, _ = play(program)
        inputs = [x for x in tensors if x.requires_grad]
        check_gradients(tensors[-1], inputs, sample(*tensors[-1].shape, dtype=torch.float64))

    @given(program=programs)
    def test_starts_from_any_output_and_stops_for_no_input(self, program):
        tensors, _ = play(program)
        inputs = [x for x in reversed(tensors) if x.requires_grad]
        output = tensors[-2] if tensors[-2].requires_grad else tensors[0]
        check_gradients(output, inputs, sample(*output.shape, dtype=torch.float64))

    def test_operations_of_a_small_network_all_have_their_part(self):
        x, w, b, v = leaf(5, 3), leaf(4, 3), leaf(4), leaf(2, 4)
        hidden = torch.nn.functional.layer_norm(x @ w.t() + b, (4,))
        output = torch.nn.functional.linear(hidden.relu(), v).log_softmax(-1)[:, 1:].mean()
        check_gradients(output, [w, x, hidden, b, v])
        pairs = torch.cat([x[:, [0, 2, 0]], x.transpose(0, 1).reshape(5, 3)], 1).view(2, 3, 5)
        check_gradients(torch.einsum("abc,abd->cd", pairs, pairs).sum(0), [pairs, x], sample(5, dtype=torch.float64))

    def test_calls_each_node_once_however_many_paths_lead_to_it(self):
        """Reverse mode costs about as much as the forward pass because each node is called once, with the sum."""
        x, root = ladder(12)
        with count_ops() as ops:
            graph.gradients(root, [x], torch.ones(3, dtype=torch.float64))
        calls = ops["tanh_backward"]
        expect(calls <= 12, f"expected a call for each of 12 tanh nodes, got {calls}: a node was called again")

    def test_calls_a_node_once_for_all_of_its_outputs(self):
        x = leaf(7, 2)
        short, middle, long = x.split([1, 2, 4])
        with count_ops() as ops:
            graph.gradients((short.sum() * middle * long.mean()).sum(), [x])
        expect(ops["cat"] <= 1, f"expected one call of the split's node with three gradients, got {ops['cat']} calls")

    def test_ends_soon_also_where_there_are_more_paths_than_anybody_can_walk(self):
        x, root = ladder()
        check_gradients(root, [x], torch.full((3,), 1e-9, dtype=torch.float64))

    def test_a_chain_of_thousands_of_nodes_meets_no_recursion_limit(self):
        x, root = chain(1_500)
        (found,) = graph.gradients(root, [x], torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))
        assert_same(found, torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))

    def test_writes_into_no_gradient_that_somebody_else_holds(self):
        """An addition hands one and the same tensor to both of its operands."""
        x, y = leaf(3), leaf(3)
        a, b = x.exp(), y.exp()
        cotangent = sample(3, dtype=torch.float64)
        with unchanged(x, y, a, b, cotangent):
            check_gradients((a + b) + (a + x) + y, [b, a, x, y], cotangent)

    def test_the_graph_can_be_used_again(self):
        x = leaf(3)
        output = (x.exp() * x.tanh()).sum()
        first, second = graph.gradients(output, [x]), graph.gradients(output, [x])
        (wanted,) = torch.autograd.grad(output, x)
        assert_same(first[0], wanted, **EXACT)
        assert_same(second[0], wanted, **EXACT)

    def test_leaves_grad_mode_as_it_was_also_when_a_node_raises(self):
        x = leaf(3)
        output = x.exp().sum()
        graph.gradients(output, [x])
        output.backward()  # frees what the nodes had saved: they can be called no more
        try:
            with state_kept(), refuses(RuntimeError):
                graph.gradients(output, [x])
        finally:
            torch.set_grad_enabled(True)

    @pytest.mark.parametrize("place", [0, 1, 2])
    def test_refuses_an_input_that_does_not_require_grad(self, place):
        x, y, constant = leaf(3), leaf(3), sample(3, dtype=torch.float64)
        output = (x * y * constant).sum()
        for bad in (constant, x.detach(), *without_graph().values()):
            inputs = [x, y]
            inputs.insert(place, bad)
            with state_kept(), unchanged(inputs), refuses(ValueError):
                graph.gradients(output, inputs)

    @pytest.mark.parametrize("shape", [(5,), (7, 3), (0,), (2, 0)])
    def test_refuses_an_output_of_several_elements_or_none_without_grad_output(self, shape):
        x = leaf(*shape)
        for output in (x.exp(), x):
            with state_kept(), unchanged(x), refuses(ValueError, mentions=shape):
                graph.gradients(output, [x])

    @pytest.mark.parametrize(
        "shape, given",
        [((5, 7), (7,)), ((5, 7), (7, 5)), ((5, 7), (1, 7)), ((5, 7), (35,)), ((5, 7), (1, 5, 7)), ((5, 7), ()),
         ((), (1,)), ((1,), ()), ((1,), (1, 1)), ((4,), (0,)), ((3,), (5, 3))],
    )  # fmt: skip
    def test_refuses_a_grad_output_of_another_shape(self, shape, given):
        x = leaf(*shape)
        cotangent = torch.ones(given, dtype=torch.float64)
        for output in (x.exp(), x):
            with state_kept(), unchanged(x, cotangent), refuses(ValueError, mentions=(*shape, *given)):
                graph.gradients(output, [x], cotangent)

    def test_refuses_an_output_that_does_not_require_grad(self):
        refuses_what_has_no_graph(lambda output: graph.gradients(output.flatten()[0], [leaf(3)]))
        refuses_what_has_no_graph(lambda output: graph.gradients(output, [], output))


def recorded(x):
    """A root with one leaf behind it, x itself where it can be; recorded whatever the caller's mode."""
    with torch.enable_grad():
        x = x if x.is_leaf and x.requires_grad else x.detach().requires_grad_()
        return x.exp().sum(-1) + (x * 2).tanh().sum(-1)


def differentiated(gradients, x, weight, cotangent):
    """Gradients of a small network for its leaves (the arguments where they can be), one between and one beside."""
    with torch.enable_grad():
        x, weight = (t if t.is_leaf and t.requires_grad else t.detach().requires_grad_() for t in (x, weight))
        beside = x.exp()
        middle = (x * weight).tanh()
        output = (middle * x + weight.exp()).sum(-1)
        total = output.sum()
    return gradients(output, [x, middle, weight, beside], cotangent) + gradients(total, [weight])


# The house rules, for every function: `s` makes a sample in the dtype, on the device and with the number of rows `s.n`
# that a rule asks about. Functions of a graph are asked through a call that records one over the sample (`build`), so
# that it is made in that dtype, on that device and whatever the mode; that they refuse is in their classes.
# Integers raise no TypeError in this kata: they cannot require grad, which is a ValueError.
RULES = [
    # It says no to an empty x. The limit grows with the norm: the turns are the same for any number of elements.
    rule("iterate_doubling", lambda s: (s(s.n + 1, low=1, high=1.3), 28.0 * (s.n + 1) ** 0.5),
         integers_refused=False, empty=False, fails=lambda s: (s(3) * 0, 2.0)),
    # Nodes, names, numbers and text have neither dtype nor strides nor gradients.
    rule("topological_order", lambda s: (s(s.n, 3),),
         build=lambda graph: lambda x: graph.topological_order(recorded(x)),
         integers_refused=False, keeps_dtype=False, any_strides=False, differentiable=False),
    # The leaves are the caller's own tensors: there is nothing to differentiate.
    rule("leaves", lambda s: (s(s.n, 3),),
         build=lambda graph: lambda x: graph.leaves(recorded(x)),
         integers_refused=False, differentiable=False),
    rule("op_counts", lambda s: (s(s.n, 3),),
         build=lambda graph: lambda x: graph.op_counts(recorded(x)),
         integers_refused=False, keeps_dtype=False, any_strides=False, differentiable=False),
    rule("depth", lambda s: (s(s.n, 3),),
         build=lambda graph: lambda x: graph.depth(recorded(x)),
         integers_refused=False, keeps_dtype=False, any_strides=False, differentiable=False),
    rule("to_dot", lambda s: (s(s.n, 3),),
         build=lambda graph: lambda x: graph.to_dot(recorded(x), {"x": x}),
         integers_refused=False, keeps_dtype=False, any_strides=False, differentiable=False),
    # Gradients made by hand need not be differentiable themselves (R5).
    rule("gradients", lambda s: (s(s.n, 3), s(3), s(s.n)),
         build=lambda graph: lambda x, weight, cotangent: differentiated(graph.gradients, x, weight, cotangent),
         integers_refused=False, differentiable=False, refused=("backward", "grad")),
]  # fmt: skip
