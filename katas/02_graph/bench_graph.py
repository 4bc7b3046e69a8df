"""The benchmarks of kata 02: a walk and a pass in reverse over the graph of a network of many small layers."""

import graph
import pytest
import torch

from dojo.compare import assert_same
from dojo.strategies import sample

DEPTH, WIDTH = 60, 64


def network():
    """The loss of residual layers and its parameters: each layer adds what it computes to what came in."""
    parameters = [sample(WIDTH, WIDTH, low=-0.1, high=0.1).requires_grad_() for _ in range(DEPTH)]
    x = sample(32, WIDTH)
    for weight in parameters:
        x = x + (x @ weight).tanh()
    return x.square().mean(), parameters


LOSS, PARAMETERS = network()


def loop_order(root):
    """Looks through all nodes that are left for one that no other of them passes gradient to, again and again."""
    left = [root.grad_fn]
    for node in left:
        left += [receiver for receiver, _ in node.next_functions if receiver is not None and receiver not in left]
    order = []
    while left:
        waiting = {receiver for node in left for receiver, _ in node.next_functions}
        ready = next(node for node in left if node not in waiting)
        left.remove(ready)
        order.append(ready)
    return order


def loop_depth(root):
    """The longest path, found by going one step further from every node until nothing changes."""
    front, depth = {root.grad_fn}, 0
    while front:
        front = {receiver for node in front for receiver, _ in node.next_functions if receiver is not None}
        depth += 1
    return depth


def torch_gradients(output, inputs):
    return torch.autograd.grad(output, inputs, retain_graph=True)


@pytest.mark.benchmark(group="topological_order")
@pytest.mark.parametrize("who", ["yours", "loop"])
def test_topological_order(benchmark, who):
    run = {"yours": graph.topological_order, "loop": loop_order}[who]
    found = benchmark(run, LOSS)
    place = {node: i for i, node in enumerate(found)}
    assert len(found) == len(place) == 4 * DEPTH + 2
    assert all(place[node] < place[n] for node in found for n, _ in node.next_functions if n is not None)


@pytest.mark.benchmark(group="depth")
@pytest.mark.parametrize("who", ["yours", "loop"])
def test_depth(benchmark, who):
    run = {"yours": graph.depth, "loop": loop_depth}[who]
    assert benchmark(run, LOSS) == 3 * DEPTH + 3


@pytest.mark.benchmark(group="gradients")
@pytest.mark.parametrize("who", ["yours", "torch"])
def test_gradients(benchmark, who):
    run = {"yours": graph.gradients, "torch": torch_gradients}[who]
    for found, wanted in zip(benchmark(run, LOSS, PARAMETERS), torch_gradients(LOSS, PARAMETERS), strict=True):
        assert_same(found, wanted, rtol=1e-4, atol=1e-6)
