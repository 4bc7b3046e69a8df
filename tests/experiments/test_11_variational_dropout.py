def test_a_mask_per_step_erases_every_unit_and_a_locked_one_half_of_them(measured):
    assert measured.survivors["none"][-1] == 1
    assert 0.4 < measured.survivors["locked"][-1] < 0.6
    assert measured.survivors["per step"][-1] == 0


def test_a_network_recalls_over_more_steps_with_a_locked_mask_than_with_a_mask_per_step(measured):
    dropout_on, after_16 = 0, -2
    locked, per_step = (measured.recalled[mask][dropout_on, after_16] for mask in ("locked", "per step"))
    assert locked > per_step + 0.25
    assert all(recalled[dropout_on, 0] > 0.8 for recalled in measured.recalled.values())


def test_beyond_the_data_the_std_of_mc_dropout_grows_less_than_the_error_and_covers_little_of_the_truth(measured):
    seen = measured.seen()
    for p, std in measured.std.items():
        errors, covered = measured.errors(p), measured.covered(p)
        assert errors[:, ~seen].mean() / errors[:, seen].mean() > 2 * std[:, ~seen].mean() / std[:, seen].mean()
        assert covered[:, seen].mean() > 0.8
        assert covered[:, ~seen].mean() < 0.6
