"""The graph that autograd records while a program runs: walked, measured, drawn and differentiated by hand."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.graph import Node, get_gradient_edge


def iterate_doubling(x: Float[Tensor, " n"], limit: float) -> Float[Tensor, " n"]:
    """x, doubled until its Euclidean norm is at least `limit`.

    >>> x = torch.tensor([3.0, 4.0], requires_grad=True)
    >>> iterate_doubling(x, limit=15.0)
    tensor([12., 16.], grad_fn=<MulBackward0>)

    How often x is doubled depends on its values, so the graph differs from call to call: it holds one multiplication
    for each doubling and nothing else, and after k doublings the gradient with respect to x is 2 to the power of k.
    If the limit is already reached, the result has the values of x and its gradient is 1. A tiny x (1e-30) is not zero
    and is doubled like any other. x itself is never modified.

    Raises ValueError, before anything is computed, if x is not one-dimensional or has no elements (with its shape), if
    all of x is zero, or if x or limit is infinite or nan: no input makes the loop endless.
    See: torch.linalg.vector_norm, https://docs.pytorch.org/docs/stable/generated/torch.linalg.vector_norm.html
    """
    if x.dim() != 1 or x.numel() == 0:
        raise ValueError(f"x must be one-dimensional and not empty, its shape is {list(x.shape)}")
    if not math.isfinite(limit):
        raise ValueError(f"limit must be finite, it is {limit}")
    values = x.detach().double()
    peak = values.abs().max().item()
    if not 0 < peak < math.inf:  # nan fails both comparisons
        raise ValueError(f"the largest magnitude in x must be finite and not zero, it is {peak}")

    # Divided by the peak first, since the squares of 1e-200 and 1e200 fit no float. Doubling is exact, and so one norm
    # serves all turns.
    norm = peak * torch.linalg.vector_norm(values / peak).item()
    while norm < limit:
        x = x * 2
        norm *= 2
    return x


def topological_order(root: Float[Tensor, "*dims"]) -> list[Node]:
    """Every autograd node behind `root`, each before the nodes that it passes gradient to.

    >>> x = torch.ones(2, requires_grad=True)
    >>> [node.name() for node in topological_order((x * 3).exp())]
    ['ExpBackward0', 'MulBackward0', 'torch::autograd::AccumulateGrad']

    The list holds each node that can be reached from `root.grad_fn` once, however many paths lead to it, and the
    AccumulateGrad nodes of the leaves too. Where several orders are possible, any of them will do. Chains of 10,000 and
    more nodes work, and the time is linear in the number of nodes and edges. A leaf that requires grad has no nodes:
    the list is empty.

    Raises ValueError if root does not require grad.
    See: torch.autograd.graph.Node.next_functions,
    https://docs.pytorch.org/docs/stable/generated/torch.autograd.graph.Node.next_functions.html
    """
    if not root.requires_grad:
        raise ValueError(f"root (shape {list(root.shape)}) does not require grad: there is no graph behind it")
    if root.grad_fn is None:
        return []

    # A node is ready when all nodes that pass gradient to it have been listed. Both lists grow while they are walked.
    arriving: Counter[Node] = Counter()
    reached = [root.grad_fn]
    for node in reached:
        for receiver in _receivers(node):
            arriving[receiver] += 1
            if arriving[receiver] == 1:
                reached.append(receiver)
    order = [root.grad_fn]
    for node in order:
        for receiver in _receivers(node):
            arriving[receiver] -= 1
            if arriving[receiver] == 0:
                order.append(receiver)
    return order


def leaves(root: Float[Tensor, "*dims"]) -> list[Float[Tensor, "..."]]:
    """The leaf tensors whose `.grad` a backward pass from `root` would fill.

    >>> x, y = torch.ones(2, requires_grad=True), torch.ones(2)
    >>> [leaf is x for leaf in leaves(x * y + x.detach())]
    [True]

    The list holds the tensors themselves, each once, in any order. What lies behind a detach or was computed under
    no_grad is not among them, nor is a leaf whose requires_grad was switched off after it was used. A root that is
    itself a leaf gives [root].

    Raises ValueError if root does not require grad.
    See: torch.Tensor.is_leaf, https://docs.pytorch.org/docs/stable/generated/torch.Tensor.is_leaf.html
    """
    order = topological_order(root)
    if root.grad_fn is None:
        return [root]
    # The graph keeps the node of a leaf that was frozen later, but backward passes it by.
    return [node.variable for node in order if _accumulates(node) and node.variable.requires_grad]


def op_counts(root: Float[Tensor, "*dims"]) -> Counter[str]:
    """How often each kind of node occurs in the graph of `root`, by `node.name()`.

    >>> x = torch.ones(2, requires_grad=True)
    >>> op_counts(x * x * 3)["MulBackward0"]
    2

    Every node counts once, AccumulateGrad nodes too (under "torch::autograd::AccumulateGrad" or "AccumulateGrad"). A
    leaf that requires grad has an empty count.

    Raises ValueError if root does not require grad.
    See: torch.autograd.graph.Node.name,
    https://docs.pytorch.org/docs/stable/generated/torch.autograd.graph.Node.name.html
    """
    return Counter(node.name() for node in topological_order(root))


def depth(root: Float[Tensor, "*dims"]) -> int:
    """The number of nodes on the longest path through the graph of `root`.

    >>> x = torch.ones(2, requires_grad=True)
    >>> depth((x * 3).exp() + x)
    4

    AccumulateGrad nodes count: the path above is Add, Exp, Mul, AccumulateGrad. A leaf that requires grad has depth 0.
    The time is linear in the number of nodes and edges, also where the number of paths is 2 to the power of 60, and
    chains of 10,000 and more nodes work.

    Raises ValueError if root does not require grad.
    See: Autograd mechanics, https://docs.pytorch.org/docs/stable/notes/autograd.html
    """
    longest: dict[Node, int] = {}
    for node in reversed(topological_order(root)):
        longest[node] = 1 + max((longest[receiver] for receiver in _receivers(node)), default=0)
    return max(longest.values(), default=0)


def to_dot(root: Float[Tensor, "*dims"], names: Mapping[str, Float[Tensor, "..."]] | None = None) -> str:
    r"""The graph of `root` as text that Graphviz' `dot` draws.

    >>> x = torch.ones(2, requires_grad=True)
    >>> print(to_dot(x * 3, names={"x": x}))
    digraph {
        node0 [label="MulBackward0", peripheries=2];
        node1 -> node0;
        node1 [label="torch::autograd::AccumulateGrad"];
        leaf1 [label="x\n[2]", shape=box];
        leaf1 -> node1;
    }

    - Each autograd node is a node labelled with its `name()`. Each leaf (see `leaves`) is a node with shape=box, and
      its label is its name in `names`, a line break and its shape, written as a list; without a name the shape alone.
    - Edges point the way the data went: from the leaf's box to its AccumulateGrad node, and from a node that receives
      gradient to the node that passes it on. In `x * x` both factors are x: two edges or one, as you like.
    - The node that made root, or the box of a root that is a leaf, is marked, and no other is: here by peripheries=2,
      but any attribute will do that nothing else in the drawing has.
    - Names belong to tensors by identity, not by value. Names of tensors that are no leaves of the graph are ignored;
      if one tensor has several names, any of them will do. Quotes, backslashes and newlines in a name are escaped, so
      that it is drawn as it is.
    - One graph always gives the same text. The identifiers, their order and the indentation are up to you.

    Raises ValueError if root does not require grad.
    See: the DOT language, https://graphviz.org/doc/info/lang.html
    """
    name_of = {id(tensor): name for name, tensor in (names or {}).items()}

    def box(leaf: Tensor) -> str:
        name = name_of.get(id(leaf))
        shape = str(list(leaf.shape))
        label = shape if name is None else f"{name}\n{shape}"
        return f"label={_quoted(label)}, shape=box"

    number = {node: i for i, node in enumerate(topological_order(root))}
    statements = [] if number else [f"leaf [{box(root)}, peripheries=2]"]
    for node, i in number.items():
        mark = ", peripheries=2" if node is root.grad_fn else ""
        statements.append(f"node{i} [label={_quoted(node.name())}{mark}]")
        statements += [f"node{number[receiver]} -> node{i}" for receiver in _receivers(node)]
        if _accumulates(node) and node.variable.requires_grad:
            statements += [f"leaf{i} [{box(node.variable)}]", f"leaf{i} -> node{i}"]
    return "\n".join(["digraph {", *(f"    {statement};" for statement in statements), "}"])


def gradients(
    output: Float[Tensor, "*dims"],
    inputs: Sequence[Float[Tensor, "..."]],
    grad_output: Float[Tensor, "*dims"] | None = None,
) -> list[Float[Tensor, "..."]]:
    """The gradients of `output` with respect to each of `inputs`, by walking the graph in reverse.

    >>> x = torch.tensor([2.0], requires_grad=True)
    >>> y = x * 3
    >>> gradients(y**2, [x, y])
    [tensor([36.]), tensor([12.])]

    Calling a node, `node(*grads)`, applies its part of the chain rule: it takes one gradient (or None) for each output
    of its operation and gives one gradient (or None) for each entry of `node.next_functions`; a node with one entry
    gives it bare, not in a tuple. An entry is a pair of the node that receives the gradient, or None where nothing
    does, and the number of that receiver's output that the gradient belongs to. `tensor.output_nr` is that number for
    a tensor. Each node is called at most once, with the sum of all gradients that reach each of its outputs.
    AccumulateGrad nodes must not be called: they write to `.grad`.

    The nodes do not undo broadcasting, the engine does: each gradient must be summed to the shape
    `receiver._input_metadata[number].shape` before it is added to others or handed on.

    Inputs are leaves or intermediate results, `output` itself too; the outputs of one node (say, of unbind) are told
    apart. The result has a gradient of the shape, dtype and device of each input, in their order, with zeros where an
    input does not matter. `grad_output` is the gradient with respect to `output`, of its shape; an output of one
    element may go without, which means 1. The graph stays usable, and `.grad` of no tensor is touched. Mixed dtypes,
    hooks, custom Functions and in-place writes on views need not work.

    Raises ValueError if output or one of the inputs does not require grad (with that input's position), if grad_output
    is missing for an output that has not exactly one element (with its shape), or if its shape is not output's (with
    both shapes).
    Refused: torch.autograd.grad, backward in any form, torch.autograd.functional, torch.func.
    See: Automatic differentiation in machine learning: a survey, https://arxiv.org/abs/1502.05767
    """
    order = topological_order(output)
    for position, x in enumerate(inputs):
        if not x.requires_grad:
            raise ValueError(f"input {position} (shape {list(x.shape)}) does not require grad")
    if grad_output is None:
        if output.numel() != 1:
            raise ValueError(f"an output of shape {list(output.shape)} needs a grad_output")
        grad_output = torch.ones_like(output)
    if grad_output.shape != output.shape:
        raise ValueError(f"grad_output has shape {list(grad_output.shape)}, output has {list(output.shape)}")

    wanted = [_edge(x) for x in inputs]
    arrived = {_edge(output): grad_output.detach()}
    with torch.no_grad():
        for node in order:
            if _accumulates(node):
                continue
            edges = [(node, number) for number in range(len(node._input_metadata))]
            incoming = [arrived.get(edge) for edge in edges]
            for edge in set(edges).difference(wanted):  # what has been used and is not asked for is freed early
                arrived.pop(edge, None)
            outgoing = node(*incoming)
            if not isinstance(outgoing, tuple):
                outgoing = (outgoing,)
            for (receiver, number), grad in zip(node.next_functions, outgoing, strict=True):
                if receiver is None or grad is None:
                    continue
                grad = grad.sum_to_size(receiver._input_metadata[number].shape)
                # Not in place: a node may hand the same tensor to several receivers.
                edge = receiver, number
                arrived[edge] = arrived[edge] + grad if edge in arrived else grad
    return [arrived[edge] if edge in arrived else torch.zeros_like(x) for edge, x in zip(wanted, inputs, strict=True)]


def _receivers(node: Node) -> Iterator[Node]:
    """The nodes that `node` passes gradient to, one for each edge."""
    return (receiver for receiver, _ in node.next_functions if receiver is not None)


def _accumulates(node: Node) -> bool:
    """Whether this is the node of a leaf: the end of a path."""
    return node.name().endswith("AccumulateGrad")


def _edge(x: Tensor) -> tuple[Node, int]:
    """Where the gradient of x arrives: a node (for a leaf its AccumulateGrad) and the number of the node's output."""
    node, number, *_ = get_gradient_edge(x)
    return node, number


def _quoted(text: str) -> str:
    """`text` as a quoted string of the DOT language, where labels have escapes of their own."""
    return '"' + text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n") + '"'
