def test_smoothing_calibrates_a_model_that_learned_wrong_labels_by_heart(measured):
    hard, smooth = (measured.found[0.4, smoothing] for smoothing in (0.0, 0.1))
    assert hard.learned.mean() > 0.95 and smooth.learned.mean() > 0.95
    assert hard.confidence.mean() > hard.accuracy.mean() + 0.05
    assert smooth.error.mean() < 0.7 * hard.error.mean()


def test_smoothing_spoils_the_calibration_of_a_model_that_learned_right_labels(measured):
    hard, smooth, smoother = (measured.found[0.0, smoothing] for smoothing in (0.0, 0.1, 0.3))
    assert 2 * hard.error.mean() < smooth.error.mean() < smoother.error.mean()
    assert smooth.confidence.mean() < smooth.accuracy.mean() - 0.05


def test_accuracy_gains_with_right_labels_and_not_with_two_fifths_of_them_wrong(measured):
    def gain(noise, smoothing):
        return (measured.found[noise, smoothing].accuracy - measured.found[noise, 0.0].accuracy).mean()

    assert gain(0.0, 0.1) > 0.005 and gain(0.0, 0.3) > 0.005
    assert gain(0.4, 0.1) < gain(0.0, 0.1)
