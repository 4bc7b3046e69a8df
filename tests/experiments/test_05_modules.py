CROSS_ENTROPY, FOCAL, WEIGHTED = "cross-entropy", "focal loss, gamma 2", "weighted cross-entropy"
RARE = 8


def found(measured, name):
    """The share of held-out eights that is found, mean of the second half of training."""
    recall = measured.recall[name][:, RARE]
    return recall[len(recall) // 2 :].mean()


def test_focal_loss_finds_more_of_the_rare_digit_than_cross_entropy(measured):
    assert found(measured, FOCAL) > found(measured, CROSS_ENTROPY) + 0.05


def test_weighting_the_rare_rows_finds_more_of_them_than_focal_loss(measured):
    assert found(measured, WEIGHTED) > found(measured, FOCAL) + 0.05


def test_the_other_digits_are_read_with_each_loss_and_the_rare_one_is_the_worst(measured):
    for recall in measured.recall.values():
        assert recall[-1].argmin() == RARE
        assert (recall[-1].sum() - recall[-1, RARE]) / 9 > 0.93


def test_focal_loss_brings_smaller_gradients_to_every_layer_than_cross_entropy(measured):
    assert measured.norms[FOCAL].shape == measured.norms[CROSS_ENTROPY].shape
    assert (measured.norms[FOCAL][:, -1] < 0.8 * measured.norms[CROSS_ENTROPY][:, -1]).all()
