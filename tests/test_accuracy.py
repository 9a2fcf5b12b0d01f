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
    ("sigmoid", np.float32): (2.5, 9.0e-8),
    ("sigmoid", np.float64): (2.5, 1.7e-16),
    ("tanh", np.float32): (2.61, 1.5e-7),
    ("tanh", np.float64): (2.65, 2.8e-16),
    ("elu", np.float32): (1.1, 4.3e-8),
    ("elu", np.float64): (1.2, 8.5e-17),
    ("softplus", np.float32): (2, 5e-7),
    ("softplus", np.float64): (2, 5e-15),
}
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
    most, largest = BOUNDS[name, dtype]
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
