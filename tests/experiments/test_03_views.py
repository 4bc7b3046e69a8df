def test_views_read_the_memory_of_the_square_and_patches_all_of_it_once(measured):
    square, transpose = measured.offsets["square"], measured.offsets["its transpose"]
    assert square.flatten().tolist() == list(range(36))
    assert transpose.equal(square.T)
    assert measured.offsets["diagonal(square)"].tolist() == [list(range(0, 36, 7))]
    assert sorted(measured.offsets["patchify(square, 3)"].flatten().tolist()) == list(range(36))


def test_views_share_the_memory_that_their_copies_fill_many_times_over(measured):
    assert all(cost.shared for cost in measured.costs.values())
    assert measured.costs["sliding_windows"].nbytes > 15 * measured.costs["split_heads"].nbytes
