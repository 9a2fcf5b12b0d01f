"""Numbers as arguments: what counts as one, and what the message says where it does not."""

import math
from fractions import Fraction

import numpy as np
import pytest

from fastrnn.arguments import integer, number, probability
from fastrnn.errors import OptionError, ShapeError


@pytest.mark.parametrize("value", [3, np.int8(3), np.uint64(3), np.array(3)])
def test_integers(value):
    found = integer("n", value, 3)
    assert found == 3 and type(found) is int


@pytest.mark.parametrize("value", [2, 3.0, True, "3", None, np.float32(3), np.array([3]), np.bool_(True)])
def test_what_is_no_integer(value):
    with pytest.raises(OptionError, match="n must be an integer >= 3, not "):
        integer("n", value, 3)
    if value != 2:
        with pytest.raises(ShapeError, match="n must be an integer, not "):
            integer("n", value, error=ShapeError)


@pytest.mark.parametrize("value", [0.5, np.float32(0.5), np.array(0.5), Fraction(1, 2)])
def test_numbers(value):
    for found in (number("a", value), number("a", value, 0.5, finite=True), probability("a", value)):
        assert found == 0.5 and type(found) is float


def test_numbers_of_which_little_is_asked():
    assert number("a", -(10**20)) == -1e20
    assert number("a", math.inf, 0) == math.inf
    assert math.isnan(number("a", math.nan))


@pytest.mark.parametrize("value", [True, np.array(True), "0.5", None, 1j, np.array([0.5]), 10**400])
def test_what_is_no_number(value):
    with pytest.raises(OptionError, match="a must be a number, not "):
        number("a", value)
    with pytest.raises(OptionError, match=r"a must be a probability, a number within 0\.\.1, not "):
        probability("a", value)


@pytest.mark.parametrize("value", [math.nan, -0.1, -math.inf])
def test_what_is_too_little(value):
    with pytest.raises(OptionError, match="a must be a number >= 0, not "):
        number("a", value, 0)
    with pytest.raises(OptionError, match="probability"):
        probability("a", value)


def test_what_is_not_finite():
    with pytest.raises(OptionError, match="a must be a finite number >= 1, not inf"):
        number("a", math.inf, 1, finite=True)
