def first_to_last(run) -> float:
    return 10 ** run.before[0].item()


def final_loss(run) -> float:
    return run.loss[-10:].mean().item()


def test_the_gradient_vanishes_in_a_plain_stack_and_comes_back_through_skips_and_shut_gates(measured):
    assert first_to_last(measured.runs["plain"]) < 1e-10
    for name in ("skips", "stochastic depth", "highway, gate bias -3"):
        assert 1e-3 < first_to_last(measured.runs[name]) < 1e3


def test_gates_that_are_not_shut_at_first_lose_the_gradient(measured):
    half_open, shut = (first_to_last(measured.runs[f"highway, gate bias {bias}"]) for bias in (-1, -3))
    assert half_open < shut / 100


def test_where_skips_are_open_fifty_layers_learn_and_without_them_they_do_not(measured):
    for name in ("skips", "stochastic depth"):
        assert measured.runs[name].accuracy > 0.7
        assert final_loss(measured.runs[name]) < final_loss(measured.runs["plain"]) / 2


def test_with_hes_weights_the_gradient_comes_back_and_yet_the_digits_become_alike_and_it_learns_less(measured):
    he, skips = measured.runs["plain, He's weights"], measured.runs["skips"]
    assert 1e-3 < first_to_last(he) < 1e3
    assert he.alike > skips.alike + 0.05
    assert final_loss(he) > 2 * final_loss(skips)
