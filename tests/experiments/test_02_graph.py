from itertools import pairwise
from math import ceil, log2


def test_the_graph_of_the_loop_has_a_node_for_each_turn_that_the_norm_asks_for_all_on_one_path(measured):
    assert len({found.nodes for found in measured.loops.values()}) > 8
    for norm, found in measured.loops.items():
        turns = max(0, ceil(log2(100 / norm)))
        assert found.nodes == found.depth == (turns + 1 if turns else 0)


def test_gradients_is_right_through_a_thousand_turns(measured):
    assert max(measured.passes) == 1000
    assert all(found.gradient == 2.0**turns for turns, found in measured.passes.items())


def test_an_mlp_grows_by_the_same_with_each_layer_and_faster_in_nodes_than_in_depth(measured):
    sizes = list(measured.mlps.values())
    steps = {(b.nodes - a.nodes, b.depth - a.depth) for a, b in pairwise(sizes)}
    assert len(steps) == 1
    ((nodes, depth),) = steps
    assert nodes > depth >= 2
