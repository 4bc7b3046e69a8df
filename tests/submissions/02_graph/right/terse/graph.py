"""Functional and terse: one traversal, everything else folds over it."""

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from functools import reduce
from graphlib import TopologicalSorter
from operator import add

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.graph import Node


def _next(node: Node) -> list[Node]:
    return [n for n, _ in node.next_functions if n]


def _leaf(node: Node) -> Tensor | None:
    return None if node.next_functions else node.variable


def _ok(condition: bool, *complaint: object) -> None:
    if not condition:
        raise ValueError(" ".join(map(str, complaint)))


def iterate_doubling(x: Float[Tensor, " n"], limit: float) -> Float[Tensor, " n"]:
    """Doubles x up to a norm of limit."""
    _ok(x.ndim == 1 and len(x) > 0, "a vector, please, not", *x.shape)
    norm = math.hypot(*x.tolist())  # scales by itself
    _ok(norm > 0 and all(map(math.isfinite, [*x.tolist(), limit])), "zero or not finite:", norm, limit)
    while norm < limit:
        x, norm = x.mul(2), norm + norm
    return x


def topological_order(root: Float[Tensor, "*dims"]) -> list[Node]:
    """The standard library's sorter, fed with who passes gradient to whom."""
    _ok(root.requires_grad, "no grad, no graph: shape", *root.shape)
    senders, todo = {}, [root.grad_fn] if root.grad_fn else []
    senders.update((n, []) for n in todo)
    for n in todo:
        for m in _next(n):
            if m not in senders:
                senders[m] = []
                todo.append(m)
            senders[m].append(n)
    return list(TopologicalSorter(senders).static_order())


def leaves(root: Float[Tensor, "*dims"]) -> list[Float[Tensor, "..."]]:
    """Leaves of root."""
    found = [_leaf(n) for n in topological_order(root)] if root.grad_fn else [root]
    _ok(root.requires_grad, "no grad")
    return [leaf for leaf in found if leaf is not None and leaf.requires_grad]


def op_counts(root: Float[Tensor, "*dims"]) -> Counter[str]:
    """Names, counted."""
    return Counter(n.name() for n in topological_order(root))


def depth(root: Float[Tensor, "*dims"]) -> int:
    """Length of the longest path."""
    below = defaultdict(int)
    for n in topological_order(root)[::-1]:
        below[n] = 1 + max([below[m] for m in _next(n)], default=0)
    return below[root.grad_fn]


def to_dot(root: Float[Tensor, "*dims"], names: Mapping[str, Float[Tensor, "..."]] | None = None) -> str:
    """DOT text, edges first."""
    order = topological_order(root)
    rank = {n: len(order) - i for i, n in enumerate(order)}
    called = {id(t): str(k) + "\n" for k, t in (names or {}).items()}

    def show(key: str, label: str, *more: str) -> str:
        for raw, safe in (("\\", "\\\\"), ('"', '\\"'), ("\n", "\\n")):
            label = label.replace(raw, safe)
        return f"{key}[{','.join([f'label={chr(34)}{label}{chr(34)}', *more])}]"

    def box(key: str, leaf: Tensor) -> str:
        mark = ["peripheries=2"] if leaf is root else []
        return show(key, called.get(id(leaf), "") + str([*leaf.shape]), "shape=box", *mark)

    edges = [f"o{rank[m]}->o{rank[n]}" for n in order for m in _next(n)]
    shown = [show(f"o{rank[n]}", n.name(), *["peripheries=2"] * (n is order[0])) for n in order]
    ends = [n for n in order if not n.next_functions and n.variable.requires_grad]
    boxes = [box(f"x{rank[n]}", n.variable) for n in ends] or [box("x", root)]
    return "digraph{" + ";".join(edges + [f"x{rank[n]}->o{rank[n]}" for n in ends] + shown + boxes) + "}"


@torch.no_grad()
def gradients(
    output: Float[Tensor, "*dims"],
    inputs: Sequence[Float[Tensor, "..."]],
    grad_output: Float[Tensor, "*dims"] | None = None,
) -> list[Float[Tensor, "..."]]:
    """Lists of what arrives, summed when a node's turn comes."""
    order = topological_order(output)
    _ok(all(x.requires_grad for x in inputs), "inputs need grad:", [x.requires_grad for x in inputs])
    _ok(grad_output is not None or output.numel() == 1, "grad_output missing for", *output.shape)
    seed = output.new_ones(output.shape) if grad_output is None else grad_output.detach()
    _ok(seed.shape == output.shape, *seed.shape, "is not", *output.shape)

    key = {id(_leaf(n)): (n, 0) for n in order if not n.next_functions}
    where = lambda x: (x.grad_fn, x.output_nr) if x.grad_fn else key.get(id(x), id(x))  # noqa: E731
    mail = defaultdict(list, {where(output): [seed]})
    for n in filter(lambda n: n.next_functions, order):
        given = n(*(reduce(add, mail[n, i]) if mail[n, i] else None for i in range(len(n._input_metadata))))
        for (m, i), g in zip(n.next_functions, given if isinstance(given, tuple) else [given], strict=True):
            if m and g is not None:
                shape = m._input_metadata[i].shape
                lead = g.ndim - len(shape)
                dims = [*range(lead), *(lead + d for d, s in enumerate(shape) if s == 1 and g.shape[lead + d] != 1)]
                mail[m, i].append((g.sum(dims, keepdim=True) if dims else g).reshape(shape))
    return [reduce(add, mail[where(x)]) if mail[where(x)] else torch.zeros_like(x) for x in inputs]
