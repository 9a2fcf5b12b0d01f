"""The four shapes of sequence problems, each a small program in examples/ that must learn what it says."""

import runpy
from pathlib import Path

import pytest

import fastrnn

EXAMPLES = Path(__file__).parent / "examples"

# What each must reach on data it has not seen, and what it gets without learning.
REACHED = {
    "many_to_one": (0.85, 0.5),
    "one_to_many": (0.85, 0.2),
    "many_to_many": (0.85, 0.7),
    "encoder_decoder": (0.85, 0.2),
}


def test_no_example_is_left_out():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == REACHED.keys()


@pytest.mark.parametrize("name", REACHED)
def test_example_learns(name):
    main = runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"]
    least, chance = REACHED[name]
    with fastrnn.use_backend("numpy"):
        assert main() >= least
        assert main(updates=0) <= chance  # so that it is the training that did it
