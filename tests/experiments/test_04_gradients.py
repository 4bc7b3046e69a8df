def exponent(eps, errors, low, high):
    """The slope of the errors between low and high on logarithmic axes."""
    between = (eps > low) & (eps < high)
    x, y = eps[between].log(), errors[between].log()
    x = x - x.mean()
    return (x @ y / (x @ x)).item()


def test_the_error_of_a_smooth_function_is_a_v_in_eps_curvature_against_rounding(measured):
    errors = measured.errors["LogSumExp", "float64"]
    assert 1.7 < exponent(measured.eps, errors, 2e-4, 0.5) < 2.3
    assert -1.4 < exponent(measured.eps, errors, 1e-12, 1e-6) < -0.6


def test_float32_asks_for_a_larger_eps_and_reaches_a_far_larger_error(measured):
    best = {key: measured.eps[errors.argmin()] for key, errors in measured.errors.items()}
    assert best["LogSumExp", "float32"] > 10 * best["LogSumExp", "float64"]
    for name in ("Square", "LogSumExp", "mlp_gradients"):
        assert measured.errors[name, "float32"].min() > 1e3 * measured.errors[name, "float64"].min()


def test_the_differences_of_a_square_are_exact_but_for_rounding_and_a_relu_has_kinks(measured):
    at = (measured.eps - 0.1).abs().argmin()
    square, smooth, kinked = (measured.errors[name, "float64"][at] for name in ("Square", "LogSumExp", "mlp_gradients"))
    assert square < 1e-10
    assert 1e-5 < smooth < kinked / 5


def test_float64_reveals_mistakes_that_float32_hides(measured):
    right = measured.checks["LogSumExp", "right"]
    tiny = measured.checks["LogSumExp", "one slope 1e-6 too large"]
    assert tiny.float64 > 50 * right.float64
    assert 0.5 < tiny.float32 / right.float32 < 2
    for key, wrong in measured.checks.items():
        if key[1] in ("one factor of 2 missing", "one sign wrong", "one slope 1e-3 too large"):
            assert wrong.float64 > 1e4 * measured.checks[key[0], "right"].float64
            assert wrong.float32 > 5 * measured.checks[key[0], "right"].float32
