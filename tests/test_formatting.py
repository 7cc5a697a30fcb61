"""Means and deviations as text."""

import pytest

from flowjax.formatting import format_mean


@pytest.mark.parametrize(
    ("mean", "deviation", "expected"),
    [
        (3.14159, 0.0123, "3.142 ± 0.012"),
        (94.462, 14.2, "94 ± 14"),
        (91.462, 153.0, "90 ± 150"),
        (115650.0, 82000.0, "116000 ± 82000"),
        (1.0572e8, 2.4e8, "1.1e+08 ± 2.4e+08"),
        (0.0, 3e6, "0 ± 3e+06"),
        (4000.0, 0.0, "4000 ± 0"),
        (0.41481849110834873, 6.8e-17, "0.41482 ± 6.8e-17"),
        (None, 1.0, "-"),
        (2.5, float("nan"), "2.5"),
    ],
)
def test_a_mean_has_the_digits_of_its_deviation(mean: float | None, deviation: float, expected: str):
    assert format_mean(mean, deviation) == expected
