"""The graph that autograd records while a program runs: walked, measured, drawn and differentiated by hand."""

from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.graph import Node


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
    raise NotImplementedError


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
    raise NotImplementedError


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
    raise NotImplementedError


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
    raise NotImplementedError


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
    raise NotImplementedError


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
    raise NotImplementedError


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
    raise NotImplementedError
