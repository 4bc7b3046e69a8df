def test_a_broadcast_loss_learns_nothing_and_strict_mse_refuses_it(measured):
    assert abs(measured.broadcast_slope) < 0.1
    assert 1.8 < measured.strict_slope < 2.2
    assert measured.refused.startswith("ValueError") and "(200, 1)" in measured.refused


def test_a_broadcast_stores_one_row_its_copy_all_of_them(measured):
    assert measured.stored["row, expanded"] == (4_000_000, 4_000)
    assert measured.stored["expanded, copied"] == (4_000_000, 4_000_000)
    assert measured.stored["row + column"] == (4_000_000, 4_000_000)
