"""The examples of CONTRIBUTING.md are doctests."""

import doctest
from pathlib import Path

import pytest

pytestmark = pytest.mark.analytic


@pytest.mark.usefixtures("as_users_call")
def test_the_examples_run():
    path = Path(__file__).parent.parent / "CONTRIBUTING.md"
    failed, tried = doctest.testfile(str(path), module_relative=False)
    assert tried > 10
    assert failed == 0
