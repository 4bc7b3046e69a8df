def test_adam_wants_far_smaller_rates_than_sgd_and_momentum_stands_between(measured):
    sgd, momentum, adam = (measured.good(name) for name in ("SGD", "SGD, momentum 0.9", "Adam"))
    assert min(sgd) > 5 * min(adam)
    assert min(adam) < min(momentum) < min(sgd)
    assert max(sgd) > 2 * max(adam)


def test_decay_costs_accuracy_in_adams_gradient_and_not_beside_it(measured):
    best = {name: max(found.values()) for name, found in measured.accuracy.items()}
    assert best["AdamW, decay 0.1"] > best["Adam, decay 0.1"] + 0.02
    assert abs(best["AdamW, decay 0.1"] - best["Adam"]) < 0.03


def test_the_spread_of_batches_falls_with_the_root_of_their_size(measured):
    for noise in measured.noise.values():
        assert -0.6 < noise.slope < -0.4
        assert noise.spread[1] > noise.gradient > noise.spread[256]
