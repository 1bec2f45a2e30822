from bench.inspecting import reference


def test_the_reference_is_one_fixed_piece_of_work() -> None:
    """Its id stands in stored runs for ever: another size or dtype needs another id."""
    assert reference.ID == "matmul-512-fp32-v1"
    # More than a launch and less than a second, on anything.
    assert 1e-6 < reference.measure("cpu", 1) < 1
