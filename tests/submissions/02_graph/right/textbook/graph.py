"""Plain loops, small dictionaries, guards at the top: what a careful beginner would write."""

from collections import Counter, deque
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.graph import Node, get_gradient_edge


def _check(root: Tensor) -> None:
    if not root.requires_grad:
        raise ValueError("root does not require grad")


def iterate_doubling(x: Float[Tensor, " n"], limit: float) -> Float[Tensor, " n"]:
    """Doubles x until its norm reaches the limit."""
    if x.dim() != 1:
        raise ValueError(f"x has {x.dim()} dimensions: {x.size()}")
    if x.size(0) == 0:
        raise ValueError("x has 0 elements")
    if not bool(x.isfinite().all()) or limit != limit or abs(limit) == float("inf"):
        raise ValueError(f"x or limit ({limit}) is not finite")
    if bool((x == 0).all()):
        raise ValueError("x is zero")
    result = x
    while _norm(result) < limit:
        result = result * 2
    return result


def _norm(x: Tensor) -> float:
    """The norm in float64; the scale is taken out first, so that squares neither vanish nor overflow."""
    x = x.detach().double()
    scale = x.abs().max()
    if scale.item() == float("inf"):
        return float("inf")
    return (scale * (x / scale).pow(2).sum().sqrt()).item()


def topological_order(root: Float[Tensor, "*dims"]) -> list[Node]:
    """Kahn's algorithm with a queue."""
    _check(root)
    if root.is_leaf:
        return []
    in_degree = {root.grad_fn: 0}
    stack = [root.grad_fn]
    while stack:
        node = stack.pop()
        for other, _ in node.next_functions:
            if other is None:
                continue
            if other not in in_degree:
                in_degree[other] = 0
                stack.append(other)
            in_degree[other] += 1
    order = []
    queue = deque([root.grad_fn])
    while queue:
        node = queue.popleft()
        order.append(node)
        for other, _ in node.next_functions:
            if other is not None:
                in_degree[other] -= 1
                if in_degree[other] == 0:
                    queue.append(other)
    return order


def leaves(root: Float[Tensor, "*dims"]) -> list[Float[Tensor, "..."]]:
    """Every leaf once."""
    _check(root)
    if root.is_leaf:
        return [root]
    result = []
    for node in topological_order(root):
        if node.name() in ("torch::autograd::AccumulateGrad", "AccumulateGrad"):
            leaf = node.variable
            if leaf.requires_grad and all(leaf is not other for other in result):
                result.append(leaf)
    return result


def op_counts(root: Float[Tensor, "*dims"]) -> Counter[str]:
    """Counts names without the namespace."""
    names = [node.name() for node in topological_order(root)]
    return Counter(
        name.removeprefix("torch::autograd::") if name.endswith("AccumulateGrad") else name for name in names
    )


def depth(root: Float[Tensor, "*dims"]) -> int:
    """Longest path by dynamic programming."""
    order = topological_order(root)
    if len(order) == 0:
        return 0
    height = {}
    for node in reversed(order):
        best = 0
        for other, _ in node.next_functions:
            if other is not None and height[other] > best:
                best = height[other]
        height[node] = best + 1
    return height[order[0]]


def _escape(text: str) -> str:
    result = ""
    for character in text:
        if character in '"\\':
            result += "\\"
        result += "\\n" if character == "\n" else character
    return result


def _leaf_label(leaf: Tensor, names: Mapping[str, Tensor] | None) -> str:
    shape = "[" + ", ".join(str(size) for size in leaf.shape) + "]"
    for name in names or {}:
        if names[name] is leaf:
            return _escape(name) + "\\n" + shape
    return shape


def to_dot(root: Float[Tensor, "*dims"], names: Mapping[str, Float[Tensor, "..."]] | None = None) -> str:
    """Three loops: nodes, boxes, edges."""
    _check(root)
    if root.is_leaf:
        return f'digraph G {{\n\ta [shape=box, peripheries=2, label="{_leaf_label(root, names)}"];\n}}'
    order = topological_order(root)
    numbers = {}
    text = "digraph G {\n"
    for node in order:
        numbers[node] = len(numbers)
        text += f'\tn{numbers[node]} [shape=ellipse, label="{_escape(node.name())}"'
        if node is root.grad_fn:
            text += ", peripheries=2"
        text += "];\n"
    for node in order:
        for other, _ in node.next_functions:
            if other is not None:
                text += f"\tn{numbers[other]} -> n{numbers[node]};\n"
    boxed = {id(leaf) for leaf in leaves(root)}
    for node in order:
        if len(node.next_functions) == 0 and id(node.variable) in boxed:
            text += f'\tb{numbers[node]} [shape=box, label="{_leaf_label(node.variable, names)}"];\n'
            text += f"\tb{numbers[node]} -> n{numbers[node]};\n"
    return text + "}\n"


def gradients(
    output: Float[Tensor, "*dims"],
    inputs: Sequence[Float[Tensor, "..."]],
    grad_output: Float[Tensor, "*dims"] | None = None,
) -> list[Float[Tensor, "..."]]:
    """The chain rule, node by node; a missing gradient is passed on as zeros."""
    _check(output)
    for number, x in enumerate(inputs):
        if not x.requires_grad:
            raise ValueError(f"input number {number} does not require grad")
    if grad_output is None:
        if output.numel() != 1:
            raise ValueError(f"the output has shape {tuple(output.shape)}, so grad_output is needed")
        grad_output = torch.ones(output.shape, dtype=output.dtype, device=output.device)
    elif grad_output.shape != output.shape:
        raise ValueError(f"shapes {tuple(grad_output.shape)} and {tuple(output.shape)} differ")
    with torch.no_grad():
        start = get_gradient_edge(output)
        collected = {(start.node, start.output_nr): grad_output.detach().clone()}
        for node in topological_order(output):
            if node.name().endswith("AccumulateGrad"):
                continue
            arguments = []
            for number, metadata in enumerate(node._input_metadata):
                if (node, number) in collected:
                    arguments.append(collected[node, number])
                else:
                    arguments.append(torch.zeros(metadata.shape, dtype=metadata.dtype, device=metadata.device))
            results = node(*arguments)
            if len(node.next_functions) == 1 and not isinstance(results, tuple):
                results = [results]
            for (other, number), result in zip(node.next_functions, results, strict=True):
                if other is None or result is None:
                    continue
                result = torch.Tensor.sum_to_size(result, tuple(other._input_metadata[number].shape))
                if (other, number) in collected:
                    result = collected[other, number] + result
                collected[other, number] = result
        answer = []
        for x in inputs:
            edge = get_gradient_edge(x)
            found = collected.get((edge.node, edge.output_nr))
            answer.append(torch.zeros(x.shape, dtype=x.dtype, device=x.device) if found is None else found)
        return answer
