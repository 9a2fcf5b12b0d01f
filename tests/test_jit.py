"""What is the numba backend's own: products in tiles, activations, packed weights, threads, imports and the cache.

That it computes what the reference does, in every cell and shape, and keeps the bits that forward promises, is tested
with the other backends in test_backends.py; here are the sizes at which its own loops end, each one against the
reference. Next: fastrnn/backends/_jit_kernels.py.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from grid import Case, Shape, arrays, check, run, same_bits

import fastrnn
from fastrnn.backends import jit, reference
from fastrnn.cell import ACTIVATIONS, Activation, Cell
from fastrnn.errors import OptionError, OutOfMemoryError

numba = pytest.importorskip("numba")
K = jit.kernels()

DTYPES = [np.float32, np.float64]
ROOT = Path(__file__).parents[1]


@pytest.fixture(params=DTYPES, ids=lambda dtype: np.dtype(dtype).name)
def dtype(request: pytest.FixtureRequest) -> Any:
    return request.param


# ---- products --------------------------------------------------------------------------------------------------------


@numba.njit
def multiply(out, orow, ocol, a, arow, acol, count, w, N, columns):  # type: ignore[no-untyped-def]
    K.product(out, orow, ocol, a, arow, acol, count, w, N, columns)


def product(a: np.ndarray, w: np.ndarray, out: np.ndarray) -> np.ndarray:
    """out + a @ w by the kernel, of rows and columns that lie scattered in larger arrays."""
    (count, columns), N = a.shape, -(-w.shape[1] // K.lanes(w.dtype)) * K.lanes(w.dtype)
    rows = np.random.default_rng(2).permutation(count + 3)[:count]
    own_a, own_out = np.full((count + 3, columns + 5), np.nan, a.dtype), np.full((count + 3, N + 7), np.nan, a.dtype)
    own_a[rows, 2 : 2 + columns] = a
    own_out[rows, 4 : 4 + N] = 0
    own_out[rows, 4 : 4 + w.shape[1]] = out
    multiply(own_out, rows, 4, own_a, rows, 2, count, K.pack(w), N, columns)
    untouched = np.ones(own_out.shape, bool)
    untouched[rows, 4 : 4 + N] = False
    assert np.isnan(own_out[untouched]).all(), "wrote outside of its rows or columns"
    return own_out[rows, 4 : 4 + w.shape[1]]


def numbers(dtype: Any, *shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(dtype)


@pytest.mark.parametrize("N", [1, 7, 16, 17, 63, 64, 65, 150])
@pytest.mark.parametrize("columns", [0, 1, 2, 33])
def test_product(columns: int, N: int, dtype: Any) -> None:
    """Exactly, in numbers that leave nothing to round, for as many rows as there are ways through the tiles."""
    rng = np.random.default_rng(1)
    a, w = rng.integers(-8, 9, (14, columns)).astype(dtype), rng.integers(-8, 9, (columns, N)).astype(dtype)
    out = rng.integers(-8, 9, (14, N)).astype(dtype)
    for count in range(15):
        np.testing.assert_array_equal(product(a[:count], w, out[:count]), out[:count] + a[:count] @ w)


@pytest.mark.parametrize(("columns", "N"), [(1, 1), (19, 40), (300, 130)])
def test_a_row_of_a_product_does_not_see_the_others(columns: int, N: int, dtype: Any) -> None:
    a, w, out = numbers(dtype, 13, columns), numbers(dtype, columns, N), numbers(dtype, 13, N)
    wanted = product(a, w, out)
    for start in range(13):
        for stop in range(start + 1, 14):
            assert same_bits(product(a[start:stop], w, out[start:stop]), wanted[start:stop])


@pytest.mark.parametrize("columns", [5, 300])
def test_a_sum_is_one_chain(columns: int, dtype: Any) -> None:
    """Cut anywhere in k, the two halves one after the other give the same bits."""
    a, w, out = numbers(dtype, 7, columns), numbers(dtype, columns, 70), numbers(dtype, 7, 70)
    wanted = product(a, w, out)
    for cut in (0, 1, columns // 2, columns):
        half = product(np.ascontiguousarray(a[:, :cut]), w[:cut], out)
        assert same_bits(product(np.ascontiguousarray(a[:, cut:]), w[cut:], half), wanted)


# ---- activations -----------------------------------------------------------------------------------------------------

# Largest errors in ulps of the true value, where that is a normal number.
TRUE = {
    "sigmoid": (2.5, lambda x: 1 / (1 + np.exp(-x))),
    "tanh": (2.7, np.tanh),
    "elu": (1.2, lambda x: np.where(x < 0, np.expm1(np.minimum(x, 0)), x)),
    "softplus": (3.0, lambda x: np.maximum(x, 0) + np.log1p(np.exp(-abs(x)))),
}
SPECIAL = "0 -0 1e-39 -1e-39 1e-30 -1e-30 0.5 -0.5 88 -88 89 -89 -104 710 -710 3e38 -3e38 inf -inf nan"
NUMBERED = [
    *ACTIVATIONS,
    *[("affine", -0.7, 0.2), ("leaky_relu", 0.0), ("thresholded_relu", -0.5), ("scaled_tanh", 1.5, -0.6), ("elu", 0.4)],
]


@numba.njit
def activate(acts, a, y):  # type: ignore[no-untyped-def]
    K.activate(acts, K.HIDDEN, a, y)


def activated(given: Any, x: np.ndarray, clip: float = np.inf) -> np.ndarray:
    f = Activation.of(given)
    acts = K.Activations(np.array([K.NAMES.index(f.name)]), np.array([[f.alpha, f.beta, clip, 0, 0]], x.dtype))
    y = np.empty_like(x)
    activate(acts, x.copy(), y)
    return y


@pytest.mark.parametrize("name", TRUE)
def test_errors(name: str, dtype: Any) -> None:
    wide = np.float64 if dtype == np.float32 else np.longdouble
    if np.finfo(wide).eps > np.finfo(dtype).eps / 100:
        pytest.skip("no wider type than float64 on this machine")
    rng = np.random.default_rng(0)
    sizes = 2.0 ** rng.uniform(-60, 6.4, 200_000)
    x = np.concatenate([sizes, -sizes, rng.uniform(-10, 10, 200_000)]).astype(dtype)
    most, true = TRUE[name]
    with np.errstate(over="ignore"):
        wanted = true(x.astype(wide))
    normal = abs(wanted) > np.finfo(dtype).tiny
    ulps = abs(activated(name, x).astype(wide) - wanted) / np.spacing(abs(wanted).astype(dtype))
    assert ulps[normal].max() < most
    assert name == "softplus" or ulps[normal].max() > 0.7 * most


@pytest.mark.parametrize("clip", [None, 0.6])
@pytest.mark.parametrize("given", NUMBERED, ids=str)
def test_odd_inputs_are_the_references(given: Any, clip: float | None, dtype: Any) -> None:
    """But for subnormal outputs; one input at a time and all together."""
    with np.errstate(all="ignore"):
        x = np.array(SPECIAL.split(), dtype)
        wanted = reference.activate(Activation.of(given), x, clip)
    bound = np.inf if clip is None else clip
    tiny = np.finfo(dtype).tiny
    np.testing.assert_allclose(activated(given, x, bound), wanted, 8 * np.finfo(dtype).eps, tiny)
    for one, own in zip(x, wanted, strict=True):
        np.testing.assert_allclose(activated(given, np.array([one]), bound), [own], 8 * np.finfo(dtype).eps, tiny)


@pytest.mark.parametrize("name", ["sigmoid", "tanh"])
def test_range(name: str, dtype: Any) -> None:
    """From end to end and never past it, exact at zero."""
    x = np.array([-np.inf, -1000, -20, 0, 20, 1000, np.inf], dtype)
    y, least = activated(name, x), -1 if name == "tanh" else 0
    assert y[0] == y[1] == y.min() == least and y[-1] == y[-2] == y.max() == 1 and y[3] == (1 + least) / 2


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_a_number_is_the_same_wherever_it_stands(name: str, dtype: Any) -> None:
    """Vectors, and what is left over after them, give the same bits."""
    x = numbers(dtype, 150)
    wanted = activated(name, x)
    for n in (1, 2, 5, 16, 17, 31, 64, 65, 127):
        assert same_bits(activated(name, x[-n:]), wanted[-n:])


# ---- whole sequences, where loops end --------------------------------------------------------------------------------

CELLS = {
    "rnn": Cell("rnn"),
    "lstm": Cell("lstm"),
    "gru": Cell("gru"),
    "gru-before": Cell("gru", reset="before", update="write"),
    "lstm-proj": Cell("lstm", proj_size=5),
    "lstm-full": Cell("lstm", forget="none", peephole="full", clip=1.5),
}
# Chunks of 48 rows of x: one row of the batch and many, chunks that end in the middle of a step, batches beyond them.
SHAPES = [
    Shape(T=49, B=1, I=3, H=7, P=5),
    Shape(T=20, B=7, I=2, H=16, P=5, D=2, lengths="ragged", cells=True),
    Shape(T=3, B=49, I=1, H=33, P=5, lengths="ragged"),
    Shape(T=2, B=97, I=65, H=6, P=5, L=2, D=2, masks=True),
    Shape(T=4, B=5, I=6, H=150, P=5, added=True),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", CELLS)
def test_results(name: str, shape: Shape, dtype: Any) -> None:
    check(jit, Case(name, CELLS[name], shape), dtype)


@pytest.mark.parametrize("what", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", CELLS)
def test_no_number_goes_as_far_as_in_the_reference(name: str, what: float, dtype: Any) -> None:
    """NaN and infinities in one row of x spread over what they spread over there, and over no other row."""
    case = Case(name, CELLS[name], Shape(T=6, B=8, I=3, H=9, P=5, D=2))
    given = arrays(case, dtype)
    given.x[3, 2, 1] = what
    found, wanted = run(jit, case, given), run(reference, case, given)
    for key in ("y", "dx"):
        assert np.array_equal(np.isfinite(found[key]), np.isfinite(wanted[key])), key
        assert np.isfinite(found[key][:, 3:]).all(), key


def test_a_type_is_compiled_once(dtype: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the cell, the shape, the number of threads, and whether arrays can be written to."""
    run(jit, (case := Case("rnn", CELLS["rnn"], SHAPES[0])), arrays(case, dtype))
    compiled = len(K.forward.signatures), len(K.backward.signatures)
    assert max(compiled) <= len(DTYPES)
    monkeypatch.setattr(jit, "get_num_threads", lambda: 2)
    for shared in (jit.SHARED, 0):
        monkeypatch.setattr(jit, "SHARED", shared)
        for name, cell in CELLS.items():
            for shape in SHAPES:
                given = arrays(case := Case(name, cell, shape), dtype)
                for array in given.flat().values():
                    array.flags.writeable = False
                run(jit, case, given)
    assert (len(K.forward.signatures), len(K.backward.signatures)) == compiled


def test_a_sequence_too_large_for_memory() -> None:
    stack = Case("lstm", CELLS["lstm"], Shape(T=1, B=1, I=1, H=3)).stack
    params = {name: np.zeros(shape, np.float32) for name, shape in stack.shapes.items()}
    x = np.lib.stride_tricks.as_strided(np.zeros(1, np.float32), (2**44, 2**10, 1), (0, 0, 0))
    with pytest.raises(OutOfMemoryError, match=r"\[17592186044416, 1024, 3\]"):
        jit.forward(CELLS["lstm"], params, x, None, None, False)


# ---- packed weights --------------------------------------------------------------------------------------------------


class Params(dict):  # type: ignore[type-arg]
    """Parameters with a version and a cache."""

    def __init__(self, arrays: dict[str, np.ndarray]) -> None:
        super().__init__(arrays)
        self.version, self.cache = 0, {}


def test_weights_are_packed_once_a_version() -> None:
    case = Case("gru", CELLS["gru"], SHAPES[0])
    given = arrays(case, np.float32)
    given.params = params = Params(given.params)
    first = run(jit, case, given)
    packed = params.cache["numba"]
    assert same_bits(run(jit, case, given)["y"], first["y"])
    assert params.cache["numba"] is packed
    params["weight_hh_l0"][0, 0] += 1
    assert same_bits(run(jit, case, given)["y"], first["y"]), "packed again though the version stands"
    params.version += 1
    assert not same_bits(run(jit, case, given)["y"], first["y"]), "not packed again though the version moved"
    check_same(run(jit, case, given), run(reference, case, given))


def test_the_cache_knows_its_cell() -> None:
    case = Case("gru", CELLS["gru"], SHAPES[0])
    given = arrays(case, np.float64)
    given.params = Params(given.params)
    run(jit, case, given)
    other = Case("gru-before", CELLS["gru-before"], SHAPES[0])
    check_same(run(jit, other, given), run(reference, other, given))


def check_same(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    for key, array in found.items():
        np.testing.assert_allclose(array, wanted[key], 1e-4, 1e-5, err_msg=key)


# ---- threads ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", ["lstm", "gru-before"])
def test_threads(name: str, shape: Shape, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any number of threads gives the same bits, gradients included."""
    case = Case(name, CELLS[name], shape)
    given = arrays(case, np.float32)
    wanted = run(jit, case, given)
    monkeypatch.setattr(jit, "SHARED", 0)
    for n in (2, 3, 8):
        monkeypatch.setattr(jit, "get_num_threads", lambda n=n: n)
        for key, array in run(jit, case, given).items():
            assert same_bits(array, wanted[key]), f"{key} on {n} threads"


def test_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every direction's rows, each once, whatever the number of threads; one thread where there is little to do."""
    stack = Case("lstm", CELLS["lstm"], Shape(T=1, B=1, I=1, H=3, D=2)).stack
    assert jit.Shares(stack, 5, None, 3).threads == 1
    monkeypatch.setattr(jit, "SHARED", 0)
    for n in (1, 2, 5, 40):
        monkeypatch.setattr(jit, "get_num_threads", lambda n=n: n)
        for lengths in (None, np.array([3, 0, 5, 5, 1, 2, 4])):
            shares = jit.Shares(stack, 5, lengths, 7)
            for d in range(2):
                calls = [(rows, ends) for direction, rows, ends in shares.calls if direction == d]
                assert sorted(np.concatenate([rows for rows, _ in calls])) == list(range(7))
                assert len(calls) == min(max(n // 2, 1), 7)
                for rows, ends in calls:
                    assert np.array_equal(ends, np.full(7, 5)[rows] if lengths is None else lengths[rows])
                    assert (np.diff(ends) <= 0).all()


def test_an_error_in_a_thread_is_the_callers(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise MemoryError("here")

    monkeypatch.setattr(jit, "SHARED", 0)
    monkeypatch.setattr(jit, "get_num_threads", lambda: 2)
    monkeypatch.setattr(jit, "_work", fail)
    case = Case("lstm", CELLS["lstm"], SHAPES[3])
    with pytest.raises(MemoryError, match="here"):
        run(jit, case, arrays(case, np.float32))


def test_the_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    native = SimpleNamespace(missing=lambda: None, get_num_threads=lambda: 7)
    monkeypatch.setattr(jit, "load", lambda name: native)
    assert jit.get_num_threads() == jit.describe()["threads"] == 7
    native.missing = lambda: "not built"
    granted = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    for given in (1, 64):  # never more than are granted
        monkeypatch.setenv("FASTRNN_NUM_THREADS", str(given))
        assert jit.get_num_threads() == min(given, granted)
    for wrong in ("0", "-1", "two", "1.5"):
        monkeypatch.setenv("FASTRNN_NUM_THREADS", wrong)
        with pytest.raises(OptionError, match=f"must be an integer >= 1, not '{wrong}'"):
            jit.get_num_threads()
    monkeypatch.delenv("FASTRNN_NUM_THREADS")
    assert jit.get_num_threads() == granted
    monkeypatch.setattr(jit, "_threads", None)
    for n in (1, 64):
        jit.set_num_threads(n)
        assert jit.get_num_threads() == min(n, granted)


def test_a_thread_that_outlives_the_main_one_is_served() -> None:
    """When Python ends, which waits for such threads, its executors take no more work."""
    assert python(
        "import threading, time, numpy as np, fastrnn\n"
        "from fastrnn.backends import jit\n"
        "jit.SHARED, jit.get_num_threads = 0, lambda: 2\n"
        "layer, x = fastrnn.LSTM(3, 4, backend='numba', seed=0), np.ones((5, 6, 3), np.float32)\n"
        "wanted = layer(x)[0]\n"
        "def late():\n"
        "    threading.main_thread().join()\n"
        "    time.sleep(0.2)\n"
        "    print('true' if np.array_equal(layer(x)[0], wanted) else 'false')\n"
        "threading.Thread(target=late).start()\n"
    )


@pytest.mark.parametrize("how", ["raise ImportError('it needs an older NumPy')", "class config: DISABLE_JIT = 1"])
def test_a_numba_that_cannot_compile_is_passed_over(how: str, tmp_path: Path) -> None:
    (tmp_path / "numba").mkdir()
    (tmp_path / "numba" / "__init__.py").write_text(how + "\n")
    told, refused = python(
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "import json, warnings, numpy as np, fastrnn\n"
        "fastrnn.backends.__globals__['load']('c').missing = lambda: 'it was not built'\n"
        "with warnings.catch_warnings(record=True) as told:\n"
        "    warnings.simplefilter('always')\n"
        "    fastrnn.RNN(2, 3)(np.zeros((4, 2)))\n"
        "try: fastrnn.RNN(2, 3, backend='numba')(np.zeros((4, 2)))\n"
        "except fastrnn.BackendError as error: refused = str(error)\n"
        "print(json.dumps([[str(w.message) for w in told], refused]))"
    )
    assert any("'numba' is not used: " in line for line in told)
    assert "cannot run here" in refused


# ---- imports and the cache on disk -----------------------------------------------------------------------------------


def python(code: str, **environment: str) -> Any:
    """What a fresh interpreter prints, as JSON."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={**os.environ, **environment, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])},
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_numba_is_imported_by_the_first_forward() -> None:
    before, after = python(
        "import sys, json, numpy, fastrnn\n"
        "from fastrnn.backends import jit\n"
        "assert 'numba' in fastrnn.backends() and fastrnn.show_config(as_dict=True)['backends']['numba']['usable']\n"
        "layer, before = fastrnn.RNN(2, 3, backend='numba'), 'numba' in sys.modules\n"
        "jit.kernels()\n"
        "print(json.dumps([before, 'numba' in sys.modules]))"
    )
    assert not before and after


def test_numba_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jit, "find_spec", lambda name: None)
    assert "pip install" in jit.missing()
    with pytest.raises(fastrnn.BackendError, match="numba is not installed"):
        fastrnn.use_backend("numba")


def test_results_and_cache_without_avx(tmp_path: Path) -> None:
    """On a CPU of the least kind, whose vectors are short: the results; a second process compiles nothing."""
    code = (
        "import json, numpy as np\n"
        "from grid import CASES, check\n"
        "from fastrnn.backends import jit\n"
        "K = jit.kernels()\n"
        "for case in CASES[::7]: check(jit, case, np.float32)\n"
        "stats = K.forward.stats, K.backward.stats\n"
        "print(json.dumps([K.VECTOR, [[sum(s.cache_hits.values()), sum(s.cache_misses.values())] for s in stats]]))"
    )
    environment = {"NUMBA_CPU_NAME": "generic", "NUMBA_CACHE_DIR": str(tmp_path)}
    assert python(code, **environment) == [16, [[0, 1], [0, 1]]]
    assert python(code, **environment) == [16, [[1, 0], [1, 0]]]


def test_kernels_compile_where_nothing_can_be_written() -> None:
    """A function without a file has nowhere to be cached."""
    scope: dict[str, Any] = {}
    exec("def double(x): return 2 * x", scope)
    assert K.kernel(scope["double"])(4) == 8


FORKED = """
import os, sys
import numpy as np
import fastrnn
layer, x = fastrnn.LSTM(64, 64, seed=0, backend="numba"), np.ones((100, 32, 64), "f4")
y, _ = layer(x)
child = os.fork()
if child == 0:
    os._exit(0 if np.array_equal(layer(x)[0], y) else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_has_threads_of_its_own() -> None:
    environment = {**os.environ, "FASTRNN_NUM_THREADS": "2"}
    subprocess.run([sys.executable, "-W", "ignore", "-c", FORKED], check=True, timeout=100, env=environment)
