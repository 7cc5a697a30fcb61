"""Tables and comparisons of results."""

import dataclasses

import pytest

from flowjax.errors import ConfigError
from flowjax.reproduce.results import (
    Measurement,
    Results,
    deviations,
    markdown_table,
    read_results,
    write_results,
)

pytestmark = pytest.mark.analytic

RESULTS = Results(
    "toy",
    False,
    "2 CPU cores",
    {"jax": "0.10.2"},
    "2026-01-01",
    6.0,
    (
        Measurement("a", 0, 1.0, {"fid": 3.0, "curve": [1.0, 2.0]}),
        Measurement("a", 1, 3.0, {"fid": 5.0}),
        Measurement("b", 0, 2.0, {"fid": 7.0, "nll": 0.5}),
    ),
)


def test_a_table_has_means_spreads_seeds_and_published_values():
    table = markdown_table(RESULTS, {"fid": "FID", "nll": "NLL", "missing": "M"}, {"a": {"fid": 4.2}})
    head, _, a, b = table.splitlines()[:4]
    assert head == "| setting | FID, published | ours | NLL | seeds | seconds |"
    assert a == "| a | 4.2 | 4.0 ± 1.4 |  | 2 | 2.0 |"  # the standard deviation of 3 and 5 is sqrt(2)
    assert b == "| b |  | 7 | 0.5 | 1 | 2.0 |"
    assert "2 CPU cores, jax 0.10.2" in table
    assert "standard deviation" in table


def test_a_single_seed_says_so():
    single = dataclasses.replace(RESULTS, measurements=RESULTS.measurements[2:])
    assert "A single seed" in markdown_table(single, {"fid": "FID"}, {})


def test_deviations_name_what_differs_and_what_is_missing():
    assert deviations(RESULTS, {"a": {"fid": [4.5, 0.6]}}) == []
    (line,) = deviations(RESULTS, {"a": {"fid": [4.5, 0.4]}})
    assert line == "a: fid is 4; expected 4.5 ± 0.4"
    (line,) = deviations(RESULTS, {"c": {"fid": [1.0, 9.0]}})
    assert "was not measured" in line


def test_a_number_that_is_not_finite_is_shown_and_deviates():
    lost = Measurement("a", 2, None, {"fid": None})
    results = dataclasses.replace(RESULTS, measurements=(*RESULTS.measurements, lost))
    assert "| a | nan |" in markdown_table(results, {"fid": "FID"}, {})
    assert deviations(results, {"a": {"fid": [4.0, 1e9]}}) == ["a: fid is nan; expected 4 ± 1e+09"]


def test_results_are_read_as_they_were_written(tmp_path):
    path = tmp_path / "results.json"
    write_results(path, RESULTS)
    assert read_results(path) == RESULTS
    path.write_text("{}")
    with pytest.raises(ConfigError, match="cannot be read as results"):
        read_results(path)
