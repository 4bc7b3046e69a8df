"""Walks with a stack of its own and marks when a node is left; no helper of torch.autograd.graph but the type."""

from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.graph import Node


def iterate_doubling(x: Float[Tensor, " n"], limit: float) -> Float[Tensor, " n"]:
    """x, doubled until its norm is at least limit."""
    limit = torch.tensor(limit, dtype=torch.float64, device="cpu")
    if x.ndim != 1 or not x.numel():
        raise ValueError("expected a vector with elements, got " + str(tuple(x.shape)))
    with torch.no_grad():
        biggest = x.abs().max().to("cpu", torch.float64)
    if not torch.isfinite(limit) or not torch.isfinite(biggest):
        raise ValueError(f"nan or infinity: x up to {biggest}, limit {limit}")
    if biggest == 0:
        raise ValueError("zeros stay zeros however often they are doubled")

    def long_enough(y: Tensor) -> bool:
        with torch.no_grad():
            y = y.double()
            scale = y.abs().max()
            return bool(scale.isinf() or scale * (y / scale).square().sum().sqrt() >= limit)

    y = x
    while not long_enough(y):
        y = 2.0 * y
    return y


def topological_order(root: Float[Tensor, "*dims"]) -> list[Node]:
    """Reversed postorder of a depth-first walk."""
    if not root.requires_grad:
        raise ValueError("this tensor does not require grad")
    done, postorder, stack = set(), [], [(root.grad_fn, False)]
    while stack:
        node, leaving = stack.pop()
        if node is None:
            continue
        if leaving:
            postorder.append(node)
        elif node not in done:
            done.add(node)
            stack.append((node, True))
            stack.extend((child, False) for child, _ in node.next_functions if child not in done)
    postorder.reverse()
    return postorder


def leaves(root: Float[Tensor, "*dims"]) -> list[Float[Tensor, "..."]]:
    """The leaves that backward fills."""
    if root.requires_grad and root.is_leaf:
        return [root]
    found = {}
    for node in topological_order(root):
        if type(node).__name__ == "AccumulateGrad":
            found[id(node.variable)] = node.variable
    return [leaf for leaf in found.values() if leaf.requires_grad]


def op_counts(root: Float[Tensor, "*dims"]) -> Counter[str]:
    """How many nodes of each name."""
    counts = Counter()
    for node in topological_order(root):
        counts[type(node).__name__] += 1
    return counts


def depth(root: Float[Tensor, "*dims"]) -> int:
    """Nodes on the longest path, pushed forward from the root."""
    order = topological_order(root)
    level = dict.fromkeys(order, 1)
    for node in order:
        for child, _ in node.next_functions:
            if child is not None:
                level[child] = max(level[child], level[node] + 1)
    return max([0, *level.values()])


def to_dot(root: Float[Tensor, "*dims"], names: Mapping[str, Float[Tensor, "..."]] | None = None) -> str:
    """The graph as DOT."""
    table = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n"})
    order = topological_order(root)
    out = ["digraph autograd {", "  rankdir = LR;", '  node [style="filled", fillcolor="white"];']
    boxed = leaves(root)
    for i, leaf in enumerate(boxed):
        given = [name for name, tensor in (names or {}).items() if tensor is leaf][:1]
        label = "\\n".join([*(name.translate(table) for name in given), repr(list(leaf.shape))])
        out.append(f'  "leaf {i}" [shape="box" label="{label}"{" peripheries=2" * (leaf is root)}];')
    for i, node in enumerate(order):
        out.append(f'  "op {i}" [label="{node.name().translate(table)}"{" peripheries=2" * (node is root.grad_fn)}];')
    place = {node: f'"op {i}"' for i, node in enumerate(order)}
    for node in order:
        senders = dict.fromkeys(child for child, _ in node.next_functions if child is not None)
        out.extend(f"  {place[child]} -> {place[node]};" for child in senders)
        for i, leaf in enumerate(boxed):
            if getattr(node, "variable", None) is leaf:
                out.append(f'  "leaf {i}" -> {place[node]};')
    return "\n".join(out) + "\n}\n"


def gradients(
    output: Float[Tensor, "*dims"],
    inputs: Sequence[Float[Tensor, "..."]],
    grad_output: Float[Tensor, "*dims"] | None = None,
) -> list[Float[Tensor, "..."]]:
    """Reverse mode with a buffer of one slot for each output of each node."""
    order = topological_order(output)
    unfit = [i for i, x in enumerate(inputs) if not x.requires_grad]
    if unfit:
        raise ValueError(f"inputs {unfit} do not require grad")
    if grad_output is None and output.numel() == 1:
        grad_output = torch.ones_like(output, requires_grad=False)
    if grad_output is None or tuple(grad_output.shape) != tuple(output.shape):
        given = None if grad_output is None else tuple(grad_output.shape)
        raise ValueError(f"grad_output of shape {tuple(output.shape)} wanted, got {given}")
    grad_output = grad_output.detach()
    if output.grad_fn is None:
        return [grad_output.clone() if x is output else torch.zeros_like(x, requires_grad=False) for x in inputs]

    slots = {node: [None] * len(node._input_metadata) for node in order}
    slots[output.grad_fn][output.output_nr] = grad_output
    of_leaf = {id(node.variable): node for node in order if type(node).__name__ == "AccumulateGrad"}
    previously = torch.is_grad_enabled()
    torch.set_grad_enabled(False)
    try:
        for node in order:
            if node in of_leaf.values() or all(slot is None for slot in slots[node]):
                continue
            results = node(*slots[node])
            results = (results,) if results is None or isinstance(results, Tensor) else results
            for grad, (child, nr) in zip(results, node.next_functions, strict=True):
                if grad is not None and child is not None:
                    grad = _shrink(grad, child._input_metadata[nr].shape)
                    before = slots[child][nr]
                    slots[child][nr] = grad if before is None else torch.add(before, grad)
    finally:
        torch.set_grad_enabled(previously)

    answers = []
    for x in inputs:
        node = of_leaf.get(id(x)) if x.is_leaf else x.grad_fn
        grad = slots[node][x.output_nr] if node in slots else None
        answers.append(torch.zeros(x.shape, dtype=x.dtype, device=x.device) if grad is None else grad)
    return answers


def _shrink(grad: Tensor, shape: Sequence[int]) -> Tensor:
    while grad.ndim > len(shape):
        grad = grad.sum(0)
    for dim, size in enumerate(shape):
        if size == 1 != grad.shape[dim]:
            grad = grad.sum(dim, keepdim=True)
    return grad
