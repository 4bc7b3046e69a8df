ZERO, LEARNED = "mean, padding 0", "mean, padding learned"


def test_with_the_mask_more_padding_changes_nothing(measured):
    accuracy = measured.accuracy["masked_mean"]
    assert accuracy.min() > 0.85
    assert accuracy.max() - accuracy.min() < 0.005


def test_without_the_mask_accuracy_falls_as_padding_grows(measured):
    for pooling in (ZERO, LEARNED):
        accuracy = measured.accuracy[pooling]
        assert accuracy[0] > 0.8
        assert accuracy[-1] < accuracy[0] - 0.08
    assert measured.accuracy[LEARNED][-1] < 0.35


def test_masked_attention_goes_neither_to_padding_nor_to_the_future(measured):
    assert min(measured.shares["no mask"]) > 0.1
    assert measured.shares["padding mask"][0] == 0 < measured.shares["padding mask"][1]
    assert measured.shares["padding and causal mask"] == (0, 0)
    assert (measured.weights.sum(1) - 1).abs().max() < 1e-5
