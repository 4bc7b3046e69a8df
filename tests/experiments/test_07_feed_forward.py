import torch


def test_a_feed_forward_network_depends_on_its_own_position_alone(measured):
    for name in ("feed-forward", "gated feed-forward", "sublayer: norm, feed-forward, skip"):
        pairs = measured.influence[name]
        assert pairs.diagonal().min() > 0
        assert pairs.count_nonzero() == len(pairs)


def test_attention_depends_on_all_positions_and_stays_causal_with_the_network_after_it(measured):
    assert measured.influence["attention"].min() > 0
    causal = measured.influence["causal attention, then sublayer"]
    assert (causal > 0).equal(torch.ones_like(causal, dtype=torch.bool).tril())


def test_small_chunks_save_memory_and_less_of_it_while_gradients_are_recorded(measured):
    whole = measured.costs[max(measured.costs)]
    small = measured.costs[16]
    assert small.peak < whole.peak / 2
    assert small.recorded_peak > 1.5 * small.peak
    assert measured.difference < 1e-4
