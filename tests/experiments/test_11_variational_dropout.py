def test_a_mask_per_step_erases_every_unit_and_a_locked_one_about_half_of_them(measured):
    assert measured.survivors["none"][-1] == 1
    assert 0.4 < measured.survivors["locked"][-1] < 0.6
    assert measured.survivors["per step"][-1] == 0


def test_a_network_learns_to_recall_over_more_steps_with_a_locked_mask_than_with_a_mask_per_step(measured):
    shortest, after_16 = 0, 2
    assert all(shares[shortest] > 0.8 for shares in measured.recalled.values())
    assert measured.recalled["locked"][after_16] > measured.recalled["per step"][after_16] + 0.3


def test_beyond_the_data_the_error_grows_more_than_the_std_of_mc_dropout(measured):
    def growth(values):
        return values[:, ~measured.within].mean() / values[:, measured.within].mean()

    assert growth(measured.errors) > 2 * growth(measured.std)


def test_two_std_of_mc_dropout_cover_the_truth_within_the_data_and_little_of_it_beyond(measured):
    assert measured.covered[:, measured.within].mean() > 0.8
    assert measured.covered[:, ~measured.within].mean() < 0.5
