def test_crops_teach_to_read_digits_that_have_moved(measured):
    assert measured.cropped.moved[-1] > measured.plain.moved[-1] + 0.08


def test_digits_in_place_are_read_without_crops_too_and_sooner(measured):
    assert measured.plain.in_place[-1] > 0.9
    assert sum(measured.plain.in_place) > sum(measured.cropped.in_place)


def test_attention_is_no_even_share(measured):
    assert measured.attention.max(-1).values.mean() > 1.5 / 16


def test_the_schedule_climbs_to_1_and_falls_to_its_floor(measured):
    for factors in measured.schedule.values():
        assert max(factors) == 1
        assert factors[-1] == min(factors[20:])
