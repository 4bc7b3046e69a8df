DEEP = 20


def test_gradients_fade_towards_the_first_layer_and_with_batch_norm_they_grow(measured):
    for kind in ("neither", "dropout 0.1"):
        gradients = measured.trained[DEEP, kind].gradients
        assert gradients[0] < 1e-3 * gradients[-1]
    for kind in ("batch norm", "both"):
        gradients = measured.trained[DEEP, kind].gradients
        assert 2 < gradients[0] / gradients[-1] < 1e4


def test_a_deep_network_learns_with_batch_norm_alone(measured):
    best = measured.trained[DEEP, "batch norm"].accuracy
    assert best > 0.5
    assert all(measured.trained[DEEP, kind].accuracy < best - 0.2 for kind in ("neither", "dropout 0.1", "both"))
    losses = measured.trained[DEEP, "batch norm"].losses
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


def test_a_shallow_network_learns_with_any_of_them(measured):
    assert all(found.accuracy > 0.85 for (depth, _), found in measured.trained.items() if depth == 2)


def test_what_dropout_shifts_multiplies_by_layer_in_either_order_until_training_mends_it(measured):
    shifts = measured.shifts
    after, before = shifts["norm, dropout, untrained"], shifts["dropout, norm, untrained"]
    assert 0.97 < after[0] < 1.03 and before[0] < 0.93
    for shares in (after, before):
        assert shares[-1] < 0.6 * shares[1] < 0.6
        assert shares[-1] < 0.5 * shifts["no dropout, untrained"][-1]
    assert shifts["norm, dropout, trained"][4] > 1.2 * after[4]
    assert shifts["dropout, norm, trained"][4] > 1.2 * before[4]
