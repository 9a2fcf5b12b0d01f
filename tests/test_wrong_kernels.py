"""Deliberately wrong backends: each must fail the very checks that the right ones pass.

The C core is compiled from its sources with one line of them changed; that the line is still there is checked too.
The unchanged sources, compiled in the same way, pass everything. What the checks are: grid.py, test_backends.py.
"""

from __future__ import annotations

import os
import runpy
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import probe
import pytest
import test_backends as promises
import test_optim
from grid import CASES, check

import fastrnn
from fastrnn.backends import native, reference

CSRC = Path(__file__).parents[1] / "csrc"
CC = shlex.split(os.environ.get("CC", "cc"))
# Terms and tiles go as they do with AVX2, a tile's last terms as with AVX-512, for mistakes there to show.
AS_WIDE = ["-DTERMS=4", "-DTILES_AT_ONCE=4", "-DSTORES_AT_ONCE=6"]
FLAGS = ["-std=gnu11", "-O0", "-ffp-contract=off", "-fno-math-errno", "-fPIC", "-w", *AS_WIDE]
GENERIC = promises.Backend("c", "generic")


class Wrong(NamedTuple):
    """A mistake: in that file, `right` is replaced by `wrong`."""

    file: str
    what: str
    right: str
    wrong: str

    def __str__(self) -> str:
        return f"{self.file} {self.what}".replace(" ", "-")


def mistakes(text: str) -> list[Wrong]:
    """Read them as below."""
    blocks = [block.splitlines() for block in text.strip().split("\n\n")]
    return [Wrong(*head.split(": ", 1), right[2:], wrong[2:]) for head, right, wrong in blocks]


# In the numbers: the comparison with the reference must find them.
WRONG = mistakes("""
lstm.h: i and f swapped
- v_fma(gate[1], c_in, gate[0] * g)
+ v_fma(gate[0], c_in, gate[1] * g)

lstm.h: coupled gate twice
- v_fnma(gate[0], g, g)
+ gate[0] * g

lstm.h: no forget gate but forgets
- c = v_fma(gate[0], g, c_in)
+ c = gate[0] * g

lstm.h: c without tanh
- v_tanhs(n, u_c);
+

lstm.h: o sees the old cell
- x = v_fma(v_load(eye + v * Hp + u), c, x)
+ x = v_fma(v_load(eye + v * Hp + u), c_in, x)

lstm.h: backward through i for f
- dc_in = dc * f;
+ dc_in = dc * i;

lstm.h: backward without tanh's slope
- dc = v_fma(dh * o, plain ? tanh_grad(t)
+ dc = v_fma(dh * o, plain ? one

lstm.h: backward forgets o's peephole
- if (eye) dc = v_fma(v_load(eye + (last - 1) * Hp + u), da[last], dc);
+

lstm.h: backward forgets where gates see c
- dc += doc * o;
+

gru.h: z and 1 - z swapped
- const vec a = keep ? h_in : n, b = keep ? n : h_in;
+ const vec a = keep ? n : h_in, b = keep ? h_in : n;

gru.h: no reset after
- v_fma(reset, q, v_load(n))
+ q + v_load(n)

gru.h: no reset before
- reset * v_load(k->h_in + r * w->Pp + u));
+ v_load(k->h_in + r * w->Pp + u));

gru.h: backward past the reset
- mask_units(da_n * reset, m)
+ mask_units(da_n, m)

gru.h: backward forgets the direct way
- v_fma(dq, reset, v_load(carry_h))
+ dq * reset

kernels.h: the final state's gradient counted at every step
- job.in = gru ? carried : NULL;
+ job.in = carried;

lstm.h: the final state's gradient counted at every step, where the gates see the cell
- v_store(final_dh, v_zero());
+

sequence.h: the state is a step too old
- k->h_in = k->h_out;
+

sequence.h: going back the state is a step too old
- k->h_in = state_row(run, k->me, k->lane->h, w->Pp, k->s);
+ k->h_in = state_row(run, k->me, k->lane->h, w->Pp, k->s ? k->s - 1 : 0);

kernels.h: the final state is a step too old
- steps_of(run, r))) + r * ld
+ steps_of(run, r) ? steps_of(run, r) - 1 : 0)) + r * ld

kernels.h: the initial state is forgotten
- from ? v_load_n(from + outer_batch(run, r) * n
+ 0 ? v_load_n(from + outer_batch(run, r) * n

kernels.h: states stand in sorted order
- v_store_n(to + outer_batch(run, r) * n + u,
+ v_store_n(to + r * n + u,

sequence.h: reverse starts in the padding
- return step_row(run, reverse, s) + place_among(places(run, reverse), r);
+ return (reverse ? run->T - 1 - s : s) * run->batch + run->row0 + place_among(run->perm, r);

kernels.h: reverse reads forwards
- from = input_row(run, lane, reverse, s, me->r0);
+ from = input_row(run, lane, 0, s, me->r0);

kernels.h: the padding is not cleared
- memset(rows + (t * run->batch + run->perm[r]) * n, 0,
+ memset(rows + (t * run->batch + run->perm[r]) * n, 1,

kernels.h: no bias_hh
- b += b_hh[block * H + j];
+ b += 0;

kernels.h: bias_hn counted twice
- b_hh && !(gru && !before && block == 2)
+ b_hh

kernels.h: gru's gates in the wrong order
- const int block = gru ? (v + 2) % 3 : v;
+ const int block = v;

kernels.h: one peephole for all gates
- ch[v * H + j]
+ ch[j]

kernels.h: the last product is left out
- terms own = {a, 0, job->K, NULL},
+ terms own = {a, 0, job->K ? job->K - 1 : 0, NULL},

kernels.h: one row alone has the last product left out
- const terms own = {&a, 0, job->K, NULL},
+ const terms own = {&a, 0, job->K ? job->K - 1 : 0, NULL},

kernels.h: one row alone is the first one's
- *a = job->from + r * job->from_ld,
+ *a = job->from,

sequence.h: no dropout forward
- if (k->lane->mask) h *=
+ if (0) h *=

sequence.h: no dropout backward
- return k->lane->mask ?
+ return 0 ?

activation.h: no clipping
- x = v_clip(f, x);
+

activation.h: backward does not know of clipping
- if (!f->clipped) return d;
+ return d;

activation.h: a tanh of twenty bits
- over[i] = v_fma(less, R[i], more * x[i]);
+ over[i] = v_fma(less, R[i], more * x[i]) * v_set1(1.000002);

gradient.h: the second direction's dx replaces the first's
- reverse ? d + v_load_n(to[m], lanes) : d, lanes
+ d, lanes

gradient.h: o's peephole gradient takes the old cell
- is_o ? NEW_CELL : CELL
+ CELL

sequence.h: outputs go unmasked to the layer above
- if (lane->mask || (p +
+ if ((p +

sequence.h: a sorted row stands at another's place
- b->from + b->place[r] : r
+ b->from + b->place[r ? r - 1 : r] : r

gradient.h: sorted rows of the input's gradient know one panel only
- outer_row(run, reverse, at.s, at.r) * I + p * LANES;
+ outer_row(run, reverse, at.s, at.r) * I;

sequence.h: outputs' gradients come unmasked
- if (!lane->dy || lane->mask ||
+ if (!lane->dy ||

gradient.h: a row is missing in weight gradients
- const terms all = {a, 0, depth, NULL};
+ const terms all = {a, 0, depth - 1, NULL};

gradient.h: the first of a thread's vectors of weight gradients is nobody's
- nearest_edge(from - before, cost, vectors)
+ nearest_edge(from - before + cost, cost, vectors)

gradient.h: rows that are multiplied in place stand without padding
- (lines){(real *)first + c0, ld,
+ (lines){(real *)first + c0, width,

gradient.h: gradients replace what was there
- v_store_n(bias, v_load_n(bias, (int)height) +
+ v_store_n(bias,

gradient.h: every block of rows starts from the first row
- const operand_rows from = find_rows(run, shard, k, job->left, n,
+ const operand_rows from = find_rows(run, shard, k, job->left, n0,

sequence.h: a shard's steps begin with the first one's rows
- * run->batch + run->row0;
+ * run->batch;

kernels.h: a shard's weight gradients are left out
- for (int i = 1; i < run->shards; i++) sum +=
+ for (int i = 2; i < run->shards; i++) sum +=

plan.c: of sorted rows the second shard has the first one's
- t.perm[r] = run->perm[from];
+ t.perm[r] = run->perm[r];

gradient.h: the candidate's weights are multiplied by h where they are by r h
- more->right = RESET_STATE, more
+ more

kernels.h: the input's gradient of the last chunk of steps only
- if (dx) input_grad(run, mine, k, dx, first
+ if (dx && s1 == run->T) input_grad(run, mine, k, dx, first

gradient.h: every panel of the input's gradient stands in the first one's place
- even ? n * I + p * LANES
+ even ? n * I

kernels.h: every tile's rows of x are the first one's
- input.at = even ? r * x_ld : 0;
+ input.at = 0;

kernels.h: every tile's sorted rows of x are the first one's
- x[m] = step_input(k, r + m);
+ x[m] = step_input(k, m);

sequence.h: the reverse direction's steps read x in time order
- input_row(k->run, k->lane, k->reverse, k->s, r); }
+ input_row(k->run, k->lane, 0, k->s, r); }

product.h: a GRU's state adds to the sums that its input does
- &ask, sum + offset);
+ &ask, sum);

gru.h: made with the state's product, a_n is a_r
- n = has_n ? z + j * LANES :
+ n = has_n ? z + plane + j * LANES :

weights.c: q's bias stands in another gate's place
- (char *)t->bx + w->gates * w->Hp * s->real_size : NULL;
+ (char *)t->bx + (w->gates - 1) * w->Hp * s->real_size : NULL;

kernels.h: sorted rows are read forwards
- if (scattered) from = input_row(run, lane, reverse, s, r);
+ if (scattered) from = input_row(run, lane, 0, s, r);

sequence.h: sorted rows are read in the caller's order
- return run->perm && !lane->x_packed; }
+ return 0 && lane; }

kernels.h: tiles that go on together have the first one's place
- end_at.at = (r - done) * width;
+ end_at.at = 0;

product.h: the terms after the last four are left out
- for (; k < K; k++, w += line)
+ for (; rows == 1 && k < K; k++, w += line)

product.h: four terms on, the weights are one on
- k += TERMS, w += TERMS * line)
+ k += TERMS, w += line)

product.h: every tile reads the first one's rows
- row[m] = a->row[m] + a->at;
+ row[m] = a->row[m];

product.h: a tile's last terms are those before the last
- a->at + a->K - LATE;
+ a->at + a->K - LATE - 1;

product.h: the last terms of a tile's lower half go to its upper half
- sum + m0 * sums + offset);
+ sum + offset);

product.h: packing leaves a square of weights out
- k < K && k < k0 + PACK_AT_ONCE
+ k < K && k < k0 + PACK_AT_ONCE - LANES

product.h: packing leaves a row of the transposes out
- j < LANES && unit + j < depth
+ j < LANES - 1 && unit + j < depth
""")

# In what the numbers of ordinary calls do not show: other tests must find them.
(
    NO_BARRIER,
    IN_ONE_PLACE,
    ANOTHERS_INPUT,
    ANOTHERS_ROWS,
    ABREAST,
    ABREAST_BACK,
    BACKWARDS,
    DOWNWARDS,
    IN_TRAINING,
    CHUNKED,
    ANOTHERS,
    UNMASKED,
    AHEAD_4,
    AHEAD_3,
    AHEAD_1,
    UNDECAYED,
    UNSTEADY,
    OFF_CENTRE,
    UNEVEN,
    PIECEWISE,
    PADDED,
    LANELESS,
    PARTED,
    STALE,
    ONE_SUM,
    UNDEALT,
    ANOTHERS_SHARD,
    UNCLEARED,
) = mistakes("""
sequence.h: threads do not wait
- if (me->by_panel) frnn_barrier_wait(me->barrier);
+

sequence.h: a thread's gates stand where another's do
- (me->r0 * (run->chunk - 1) + s % run->chunk
+ (s % run->chunk

kernels.h: one row alone reads the first one's input
- *x = job->with_input ? step_input(k, r) :
+ *x = job->with_input ? step_input(k, 0) :

kernels.h: a thread's tiles read x from the batch's first row on
- input.at = even ? r * x_ld : 0;
+ input.at = even ? (r - r0) * x_ld : 0;

sequence.h: layers do not wait for those below
- while (chunks-- > 0) frnn_barrier_wait(run->team);
+

kernels.h: going back layers do not wait for those above
- if (round >= last - group && s1 > 0) {
+ if (s1 > 0) {

product.h: one row alone is summed from the end
- row, k * step, w,
+ row, (rows == 1 ? K - 1 - k : k) * step, w,

kernels.h: going down, the input's product stays with the first panels
- p0 + left - form.panels : p1 - left;
+ p0 : p1 - left;

lstm.h: training rounds once more
- h = o[n] * u_c[n]
+ h = o[n] * u_c[n] * v_set1(k->keep ? 1 + FLT_EPSILON : 1)

kernels.h: the third chunk starts anew
- if (s0 == 0) {
+ if (s0 % 2048 == 0) {

kernels.h: q starts from another layer's bias
- s0 == 0 || w->spec.num_layers > 1
+ s0 == 0

sequence.h: gradients of padding lanes are kept
- return n == LANES ? a :
+ return 1 ? a :

product.h: tiles that ask ahead read another line's weights
- TILES(ask4_1x4, 4, 1, 4, 0, 1, 4 * LANES, apart)
+ TILES(ask4_1x4, 4, 1, 4, 0, 1, 3 * LANES, apart)

product.h: tiles of three vectors that ask ahead read another line's weights
- TILES(ask4_1x3, 4, 1, 3, 0, 1, 3 * LANES, apart)
+ TILES(ask4_1x3, 4, 1, 3, 0, 1, 2 * LANES, apart)

product.h: tiles of four panels that ask ahead stay in the first one
- TILES(ask4_4x1, 4, 4, 1, 0, 1, LANES, apart)
+ TILES(ask4_4x1, 4, 4, 1, 0, 1, LANES, 0)

update.h: an optimiser's weights do not decay
- return decay != 0 ? g +
+ return 0 ? g +

update.h: a momentum takes the whole gradient
- * momentum + g * fresh;
+ * momentum + g;

update.h: RMSprop is centered by the mean itself
- v -= mean * mean;
+ v -= mean;

update.h: Adam divides by the square
- m / (v_sqrt(v) + eps)
+ m / (v + eps)

update.h: the norm leaves the last numbers out
- for (; i < n; i++) sum +=
+ for (; 0;) sum +=

softmax.h: what is past a row's end counts as zeros
- const vec none = v_set1((real)-INFINITY);
+ const vec none = v_zero();

softmax.h: a sum without its last lane
- i < LANES; i++) all += sum[0][i];
+ i < LANES - 1; i++) all += sum[0][i];

sequence.h: between two threads a vector is nobody's
- least(n, vectors * (rank + 1) / size * LANES)
+ least(n, (vectors * (rank + 1) / size - (rank + 1 < size)) * LANES)

plan.c: a call that wants cells goes by the last one that did not
- && !call->masks && !call->cells;
+ ;

kernels.h: one thread sums all shards' weight gradients as one
- if (run->shards == 1) add_track_grads(
+ if (run->shards) add_track_grads(

gradient.h: of sorted rows one thread finds a shard's in order
- shard->index + r * run->shards
+ shard->index * run->B / run->shards + r

gradient.h: one thread finds the first shard's rows in both
- : shard->row0 + r;
+ : r;

kernels.h: a shard's sums begin with what was there
- if (grad && part.start < part.end) memset(
+ if (0) memset(
""")


def alone(backend: promises.Backend, promise: Callable[..., None], *arguments: Any) -> None:
    """A promise kept without the team: what threads have apart, one alone uses in turn."""
    before = fastrnn.get_num_threads()
    fastrnn.set_num_threads(1)
    try:
        promise(backend, *arguments)
    finally:
        fastrnn.set_num_threads(before)


def shared_somehow(backend: promises.Backend, batch: int) -> None:
    """The promise about small calls, which are tried alone and by the team."""
    promises.test_however_a_small_call_is_shared(fastrnn.GRU, batch, fastrnn.set_num_threads)


def beyond_caches(backend: promises.Backend, name: str, gates: int) -> None:
    """The promise about large weights, where they are large."""
    if probe.caches()["l2"] >= gates * 1030**2:  # times four bytes, and four L2
        pytest.skip("four of this machine's L2 hold the weights")
    alone(backend, promises.test_a_row_is_the_same_where_weights_outgrow_caches, name, 16, fastrnn.set_num_threads)


def swept(backend: promises.Backend, name: str) -> None:
    """The promise about weights that calls sweep over by turns, where they fill a cache."""
    import test_stream

    if probe.caches()["l2"] >= 4e6:
        pytest.skip("this machine's L2 holds the weights")
    test_stream.test_weights_that_fill_a_cache(name.upper(), {}, 1)


def updates(backend: promises.Backend, name: str, options: dict[str, Any]) -> None:
    """The promise about an optimiser's steps."""
    with pytest.MonkeyPatch.context() as patch:
        test_optim.test_kernels_have_numpys_bits(name, options, np.float32, patch, [backend.isa])


def large_update(backend: promises.Backend) -> None:
    """The promise about one that threads share."""
    test_optim.test_threads_share_a_large_step("SGD", {"momentum": 0.9})


def softmax(backend: promises.Backend, columns: int) -> None:
    """The promise about a softmax's sums and exponentials."""
    import test_accuracy  # which skips where the C library was not built

    test_accuracy.test_exponentials_of_rows(columns, np.float32, backend.isa)


SUBTLE: list[tuple[Wrong, Callable[..., None], tuple[Any, ...]]] = [
    (BACKWARDS, promises.test_a_row_is_the_same_in_any_batch, ("lstm", 37)),
    (DOWNWARDS, swept, ("rnn",)),
    (IN_TRAINING, promises.test_training_changes_nothing, ("lstm", 2)),
    (CHUNKED, promises.test_a_long_sequence_is_its_parts, ("rnn", 999)),
    (ANOTHERS, alone, (promises.test_a_long_sequence_is_its_parts, "gru", 999)),
    (AHEAD_4, beyond_caches, ("lstm", 4)),
    (AHEAD_3, beyond_caches, ("gru", 3)),
    (AHEAD_1, beyond_caches, ("rnn", 1)),
    (UNDECAYED, updates, ("Adam", {"weight_decay": 0.1})),
    (UNSTEADY, updates, ("SGD", {"momentum": 0.9, "dampening": 0.3})),
    (OFF_CENTRE, updates, ("RMSprop", {"centered": True})),
    (UNEVEN, updates, ("Adam", {})),
    (PIECEWISE, updates, ("SGD", {})),
    (PADDED, softmax, (17,)),
    (LANELESS, softmax, (64,)),
    (PARTED, large_update, ()),
    (STALE, promises.test_calls_on_the_same_weights_do_not_mix, ()),
    (UNMASKED, promises.test_padding_lanes_may_overflow, ("lstm", np.float32)),
    (NO_BARRIER, promises.test_threads, ("lstm", "panels", np.float32, fastrnn.set_num_threads)),
    (IN_ONE_PLACE, promises.test_threads, ("lstm", "rows", np.float32, fastrnn.set_num_threads)),
    (ANOTHERS_INPUT, promises.test_threads, ("lstm", "rows of a small layer", np.float32, fastrnn.set_num_threads)),
    (ANOTHERS_ROWS, promises.test_threads, ("rnn", "rows of a small layer", np.float32, fastrnn.set_num_threads)),
    (ABREAST, promises.test_threads, ("lstm", "layers", np.float32, fastrnn.set_num_threads)),
    (ABREAST_BACK, promises.test_threads, ("gru", "layers", np.float32, fastrnn.set_num_threads)),
    (ONE_SUM, promises.test_threads, ("lstm", "shards", np.float32, fastrnn.set_num_threads)),
    (UNDEALT, promises.test_threads, ("rnn", "shards", np.float32, fastrnn.set_num_threads)),
    (ANOTHERS_SHARD, shared_somehow, (13,)),
    (UNCLEARED, shared_somehow, (13,)),
]
RIGHT = Wrong("fastrnn.h", "nothing changed", "", "")
ALL = [RIGHT, *WRONG, *(wrong for wrong, _, _ in SUBTLE)]


# ---- compiling -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[Wrong, Future[Path]]]:
    """A library for each mistake, in the making: of the generic float32 kernels alone."""
    if not CSRC.is_dir():
        pytest.skip("the C sources are not here")
    if not shutil.which(CC[0]):
        pytest.skip(f"no C compiler {CC[0]!r}: CC can name another one")
    folder = tmp_path_factory.mktemp("wrong")
    (folder / "common").mkdir()
    common = folder / "common" / "no_double.c"
    common.write_text('#include "core.h"\nconst frnn_kernels frnn_generic_double = {"generic"};\n')
    core = _recipe()["libraries"]("generic")[0][1]["sources"]
    copies = (Path(shutil.copy(CSRC.parent / source, folder / "common")) for source in core)
    objects = {source.name: _compile(source, CSRC) for source in (common, *copies)}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield {wrong: pool.submit(_build, folder / str(k), wrong, objects) for k, wrong in enumerate(ALL)}


def _recipe() -> dict[str, Any]:
    """csrc/build.py: what the library is made of."""
    pytest.importorskip("cffi")
    return runpy.run_path(str(CSRC / "build.py"))


def _compile(source: Path, include: Path) -> Path:
    made = source.with_suffix(".o")
    subprocess.run([*CC, *FLAGS, f"-I{include}", "-c", source, "-o", made], check=True)
    return made


def _build(folder: Path, wrong: Wrong, objects: dict[str, Path]) -> Path:
    shutil.copytree(CSRC, folder, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    changed = folder / wrong.file
    text = changed.read_text()
    if wrong is not RIGHT:
        assert text.count(wrong.right) == 1, f"{wrong.file} holds {wrong.right!r} {text.count(wrong.right)} times"
        changed.write_text("#include <float.h>\n" + text.replace(wrong.right, wrong.wrong))
    library = folder / "wrong.so"
    made = [_compile(folder / "generic.c", folder)]
    made += [_compile(folder / name, folder) if name == wrong.file else ready for name, ready in objects.items()]
    subprocess.run([*CC, "-shared", *made, "-o", library, "-lpthread", "-lm"], check=True)
    return library


LOADED: list[Any] = []  # never closed: each may have threads that sleep in its code


@pytest.fixture
def use(built: dict[Wrong, Future[Path]], monkeypatch: pytest.MonkeyPatch) -> Callable[[Wrong], None]:
    """Have the C backend be that library."""
    cffi = pytest.importorskip("cffi")
    declarations = _recipe()["declarations"]

    def use(wrong: Wrong) -> None:
        ffi = cffi.FFI()
        ffi.cdef(declarations((CSRC / "fastrnn.h").read_text()))
        LOADED.append(ffi.dlopen(str(built[wrong].result())))
        monkeypatch.setattr(native, "ffi", ffi, raising=False)
        monkeypatch.setattr(native, "c", LOADED[-1], raising=False)
        monkeypatch.setenv("FASTRNN_ISA", "generic")

    return use


# ---- wrong kernels ---------------------------------------------------------------------------------------------------

FEW = [
    case for case in CASES if case.shape.H < 20 and case.shape.B not in (25, 130) and not native.unsupported(case.cell)
]


def failures(module: Any) -> Iterator[str]:
    """What the check says of each case that the module fails."""
    for case in FEW:
        try:
            with np.errstate(all="ignore"):  # a wrong kernel may yield anything
                check(module, case, np.float32)
        except AssertionError as error:
            yield f"{case}: {error}"


def test_right_kernels_pass(use: Callable[[Wrong], None]) -> None:
    use(RIGHT)
    assert not list(failures(native))


@pytest.mark.parametrize("wrong", WRONG, ids=str)
def test_wrong_kernels_fail(wrong: Wrong, use: Callable[[Wrong], None]) -> None:
    use(wrong)
    assert next(failures(native), None)


@pytest.mark.parametrize(("wrong", "promise", "arguments"), SUBTLE, ids=[str(row[0]) for row in SUBTLE])
def test_broken_promises(
    wrong: Wrong, promise: Callable[..., None], arguments: tuple[Any, ...], use: Callable[[Wrong], None]
) -> None:
    use(RIGHT)
    promise(GENERIC, *arguments)
    use(wrong)
    with pytest.raises(AssertionError):
        promise(GENERIC, *arguments)


# ---- wrong backends of another kind ----------------------------------------------------------------------------------


def _backend(forward: Callable[..., Any] = reference.forward, backward: Callable[..., Any] = reference.backward) -> Any:
    return SimpleNamespace(forward=forward, backward=backward)


def _writes_to_x(cell: Any, params: Any, x: Any, *rest: Any, **options: Any) -> Any:
    result = reference.forward(cell, params, x.copy(), *rest, **options)
    x[...] = 0
    return result


def _writes_to_params(cell: Any, params: Any, *rest: Any, **options: Any) -> Any:
    result = reference.forward(cell, {name: array.copy() for name, array in params.items()}, *rest, **options)
    params["weight_hh_l0"] *= 2
    return result


def _writes_to_state(cell: Any, params: Any, x: Any, state: Any, *rest: Any, **options: Any) -> Any:
    y, after, tape = reference.forward(cell, params, x, state, *rest, **options)
    for old, new in zip(promises.parts(() if state is None else state), promises.parts(after), strict=False):
        old[...] = new
    return y, after, tape


def _of_another_dtype(*given: Any, **options: Any) -> Any:
    y, state, tape = reference.forward(*given, **options)
    return y.astype(np.float64), state, tape


def _does_not_fill_cells(*given: Any, cells: Any = None, **options: Any) -> Any:
    return reference.forward(*given, **options)


def _forgets_dstate(tape: Any, dy: Any, dstate: Any, dparams: Any = None) -> Any:
    return reference.backward(tape, dy, None, dparams)


def _replaces_gradients(tape: Any, dy: Any, dstate: Any, dparams: Any = None) -> Any:
    return reference.backward(tape, dy, dstate, None)


def _without_dx_of_the_padding(tape: Any, dy: Any, dstate: Any, dparams: Any = None) -> Any:
    dx, *rest = reference.backward(tape, dy, dstate, dparams)
    return np.where(dx == 0, 1e-30, dx).astype(dx.dtype), *rest


WRONG_BACKENDS = [
    _backend(_writes_to_x),
    _backend(_writes_to_params),
    _backend(_writes_to_state),
    _backend(_of_another_dtype),
    _backend(_does_not_fill_cells),
    _backend(backward=_forgets_dstate),
    _backend(backward=_replaces_gradients),
    _backend(backward=_without_dx_of_the_padding),
]


def test_the_reference_passes() -> None:
    assert not list(failures(_backend()))


@pytest.mark.parametrize(
    "backend", WRONG_BACKENDS, ids=lambda b: next(f.__name__ for f in vars(b).values() if f.__name__[0] == "_")
)
def test_wrong_backends_fail(backend: Any) -> None:
    assert next(failures(backend), None)
