"""How far the C kernels' activations are from the true values, and what they make of odd inputs.

float32's bounds are the largest errors over all numbers, which a sweep of minutes found on each instruction set; here
every STRIDE-th is tried. float64 has too many: a sample. The kernels are reached through the front door: an RNN of
one unit, weight_ih 1, weight_hh 0, no bias. Next: csrc/activation.h.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fastrnn.backends import native
from fastrnn.cell import Cell

if reason := native.missing():
    pytest.skip(reason, allow_module_level=True)

STRIDE = 997  # a prime, so that all low bits occur
ISAS = native.isas()

# The largest error in ulps of the true value, and the largest at all. softplus is made of the C library's functions.
BOUNDS = {
    ("sigmoid", np.float32): (2.44, 9.0e-8),
    ("sigmoid", np.float64): (2.5, 1.7e-16),
    ("tanh", np.float32): (2.5, 1.5e-7),
    ("tanh", np.float64): (2.55, 2.8e-16),
    ("elu", np.float32): (1.1, 4.3e-8),
    ("elu", np.float64): (1.2, 8.5e-17),
    ("softplus", np.float32): (2, 5e-7),
    ("softplus", np.float64): (2, 5e-15),
}
# Where a multiply-add rounds twice.
UNFUSED = BOUNDS | {("tanh", np.float32): (4.3, 2.56e-7), ("tanh", np.float64): (4.5, 4.9e-16)}
TRUE = {
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "tanh": np.tanh,
    "elu": lambda x: np.where(x < 0, np.expm1(np.minimum(x, 0)), x),
    "softplus": lambda x: np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x))),
}
# Zeros, subnormal numbers, where exp overflows in either type, and what is no number.
SPECIAL = "0 -0 1e-45 -1e-45 1e-39 -1e-39 1e-30 88 -88 89 -103 -104 710 -710 3e38 -3e38 inf -inf nan"


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("FASTRNN_ISA", request.param)
    return request.param


def activate(name: str, x: np.ndarray) -> np.ndarray:
    """f(x): [N]"""
    params = {"weight_ih_l0": np.ones((1, 1), x.dtype), "weight_hh_l0": np.zeros((1, 1), x.dtype)}
    cell, batches = Cell("rnn", (name,), bias=False), np.array_split(x, len(x) // 2**15 + 1)
    outputs = [native.forward(cell, params, part.reshape(1, -1, 1), None, None, False)[0] for part in batches]
    return np.concatenate(outputs, axis=1).reshape(-1)


def between(low: float, high: float, stride: int) -> np.ndarray:
    """Every stride-th float32 from low to high, both of one sign."""
    bits = np.array([low, high], np.float32).view(np.uint32)
    return np.arange(bits.min(), bits.max() + 1, stride, np.uint32).view(np.float32)


def sample(dtype: Any) -> np.ndarray:
    """Inputs of every size whose outputs are normal numbers, dense where the functions are neither linear nor flat."""
    if dtype == np.float32:
        return np.concatenate([between(2.0**-126, 90, STRIDE), between(-(2.0**-126), -87.3, STRIDE)])
    rng = np.random.default_rng(0)
    sizes = 2 ** rng.uniform(-60, 6, 1_000_000)
    return np.concatenate([sizes, -sizes, rng.uniform(-40, 40, 1_000_000), rng.uniform(-708, 0, 300_000)])


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=lambda dtype: np.dtype(dtype).name)
@pytest.mark.parametrize("name", TRUE)
def test_errors(name: str, dtype: Any, isa: str) -> None:
    """No error is larger than the bound, nor the bound much larger than it must be."""
    wide = np.float64 if dtype == np.float32 else np.longdouble
    if np.finfo(wide).eps > np.finfo(dtype).eps / 100:
        pytest.skip("no wider type than float64 on this machine")
    x = sample(dtype)
    true = TRUE[name](x.astype(wide))
    error = np.abs(activate(name, x).astype(wide) - true)
    in_ulps = error / np.spacing(np.abs(true).astype(dtype))
    most, largest = (UNFUSED if isa == "generic" else BOUNDS)[name, dtype]
    assert in_ulps.max() <= most, f"at {x[np.argmax(in_ulps)]!r}"
    assert error.max() <= largest, f"at {x[np.argmax(error)]!r}"
    if name != "softplus":
        assert in_ulps.max() > 0.8 * most and error.max() > 0.8 * largest


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=lambda dtype: np.dtype(dtype).name)
@pytest.mark.parametrize("name", ["sigmoid", "tanh", "relu"])
def test_odd_inputs_are_torchs(name: str, dtype: Any, isa: str) -> None:
    """But for subnormal numbers, which are zero to the kernels."""
    torch = pytest.importorskip("torch")
    with np.errstate(over="ignore"):
        x = np.array(SPECIAL.split(), dtype)
    wanted = getattr(torch, name)(torch.from_numpy(x)).numpy()
    found = activate(name, x)
    np.testing.assert_allclose(found, wanted, 4 * np.finfo(dtype).eps, np.finfo(dtype).tiny)
    assert np.array_equal(np.isnan(found), np.isnan(x))
    assert np.array_equal(np.abs(found) == 1, np.abs(wanted) == 1)


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=lambda dtype: np.dtype(dtype).name)
@pytest.mark.parametrize(("name", "least"), [("sigmoid", 0), ("tanh", -1)])
def test_range(name: str, least: int, dtype: Any, isa: str) -> None:
    """From end to end and never past it, rising but for roundings, exact at zero."""
    x = np.sort(np.concatenate([sample(dtype)[::101], [-np.inf, 0, np.inf]])).astype(dtype)
    y = activate(name, x)
    assert y[0] == y.min() == least and y[-1] == y.max() == 1
    assert np.diff(y).min() >= -3 * np.finfo(dtype).eps
    assert (y[x == 0] == (1 + least) / 2).all()


# ---- the exponentials of a softmax ---------------------------------------------------------------------------------

EXP_BOUNDS = {np.float32: 1.1, np.float64: 1.1}


def exponentials(x: np.ndarray, peak: float = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of rows x: [N, V] their maximum, their sums, and exp(x - peak)."""
    found, sums = np.empty((2, len(x), 1), x.dtype)
    out, one = np.full_like(x, np.nan), np.ones_like(sums)
    native.softmax_sums(x, found, sums)
    native.scaled_exponentials(x, np.full_like(sums, peak), one, out)
    return found, sums, out


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=lambda dtype: np.dtype(dtype).name)
def test_exponentials_errors(dtype: Any, isa: str) -> None:
    """No error is larger than the bound, nor the bound much larger than it must be."""
    wide = np.float64 if dtype == np.float32 else np.longdouble
    if np.finfo(wide).eps > np.finfo(dtype).eps / 100:
        pytest.skip("no wider type than float64 on this machine")
    x = sample(dtype)
    x = x[(x <= 0) & (x > (-87.3 if dtype == np.float32 else -708))]
    true = np.exp(x.astype(wide))
    error = np.abs(exponentials(x[None])[2][0].astype(wide) - true) / np.spacing(true.astype(dtype))
    assert 0.7 * EXP_BOUNDS[dtype] < error.max() <= EXP_BOUNDS[dtype], f"at {x[np.argmax(error)]!r}"


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=lambda dtype: np.dtype(dtype).name)
@pytest.mark.parametrize("columns", [1, 2, 15, 16, 17, 63, 64, 65, 129, 1000])
def test_exponentials_of_rows(columns: int, dtype: Any, isa: str) -> None:
    """Rows of any length, classes ruled out among them; what is beside an array stays as it was."""
    x = np.random.default_rng(columns).normal(0, 5, (7, columns)).astype(dtype)
    x[2, : columns // 2] = -np.inf
    peak, sums, out = exponentials(x, x.max())
    np.testing.assert_array_equal(peak, x.max(1, keepdims=True))
    eps = 4 * np.finfo(dtype).eps
    np.testing.assert_allclose(sums, np.exp((x - peak).astype(np.float64)).sum(1, keepdims=True), eps)
    np.testing.assert_allclose(out, np.exp((x - x.max()).astype(np.float64)), eps, np.finfo(dtype).tiny)
    assert (out[2, : columns // 2] == 0).all()
    memory = np.full(3 * columns, 7, dtype)
    one = np.ones((1, 1), dtype)
    native.scaled_exponentials(x[:1], peak[:1], one, memory[columns : 2 * columns][None])
    assert (memory[:columns] == 7).all() and (memory[2 * columns :] == 7).all()


def test_exponentials_do_not_depend_on_threads(isa: str) -> None:
    x = np.random.default_rng(0).normal(0, 3, (331, 3001)).astype(np.float32)
    before, found = native.get_num_threads(), []
    try:
        for threads in (1, 2, 4):
            native.set_num_threads(threads)
            found.append(exponentials(x, 12))
    finally:
        native.set_num_threads(before)
    for several in zip(*found, strict=True):
        assert all(np.array_equal(array, several[0]) for array in several)


@pytest.mark.parametrize("odd", [np.nan, np.inf])
@pytest.mark.parametrize("place", [0, 5, 16, 40])
def test_exponentials_tell_of_what_is_no_number(place: int, odd: float, isa: str) -> None:
    x = np.zeros((3, 41), np.float32)
    x[1, place] = odd
    _, sums, _ = exponentials(x)
    assert np.isnan(sums[1, 0]) and (sums[[0, 2]] == 41).all()
