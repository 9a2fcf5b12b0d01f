"""The kernels of the numba backend: a whole sequence of one layer and direction in one call, forward and back.

Everything that numba compiles is in this file, because its cache on disk looks at one file's date. Two functions are
called from outside, `forward` and `backward`; what they are given is prepared by jit.py, and no kernel allocates.
Every sum over k is one chain of multiply-adds in order, whatever the batch, so a row's bits do not depend on the
others. Read from the top: vectors, products, activations, RNN, LSTM, GRU, the sequence. The equations and their
sources are in reference.py.

In comments h' is h before the step and da is dL/da. Arrays are matrices [rows, columns]: what has time and batch has
a row for each pair. G gates, H units, U = H rounded up to whole vectors, P the size of h.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.core.registry import cpu_target
from numba.extending import intrinsic, overload
from numba.np.arrayobj import make_array, populate_array

# No fast-math: NaN and infinities go through as they come, and what is fused is written fma(). No counting of
# references, which took two thirds of a small layer's time: nothing is allocated here, and the caller holds all arrays.
compiled: Any = partial(njit, nogil=True, error_model="numpy", no_cfunc_wrapper=True, _nrt=False)
helper = compiled(no_cpython_wrapper=True)
step = compiled(no_cpython_wrapper=True, inline="always")  # in the caller it compiles faster


def kernel(function: Callable[..., Any]) -> Any:
    """What is called from outside: compiled, and cached on disk unless there is nowhere to write."""
    try:
        return compiled(cache=True)(function)
    except RuntimeError:
        return compiled()(function)


# ---- vectors ---------------------------------------------------------------------------------------------------------


def _vectors() -> tuple[int, int]:
    """Bytes of a vector and vectors abreast in a tile: what the registers hold with BLOCK rows of accumulators."""
    machine, _, features = cpu_target.target_context.codegen().magic_tuple()
    if "+avx512f" in features.split(","):
        return 64, 4
    if "+avx" in features.split(","):
        return 32, 2
    return 16, 4 if machine.startswith(("aarch64", "arm64")) else 2


VECTOR, ABREAST = _vectors()
BLOCK = 6  # rows that go through a step together


def lanes(dtype: Any) -> int:
    """The numbers in a vector."""
    return VECTOR // np.dtype(dtype).itemsize


@intrinsic
def real(typingctx, number, like):
    """The number in the type of `like`, so that float32 stays float32."""
    return like(like, like), lambda context, builder, signature, args: args[0]


def _fma(builder: Any, kind: Any, *args: Any) -> Any:
    """a b + c, rounded once where the machine can (LLVM's fmuladd), of numbers or of vectors."""
    lane = kind.element if isinstance(kind, ir.VectorType) else kind
    name = f"v{kind.count}" if isinstance(kind, ir.VectorType) else ""
    name = f"llvm.fmuladd.{name}{'f32' if isinstance(lane, ir.FloatType) else 'f64'}"
    function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(kind, [kind] * 3), name)
    return builder.call(function, args)


@intrinsic
def fma(typingctx, a, b, c):
    """a b + c in the type of a."""
    return a(a, a, a), lambda context, builder, signature, args: _fma(builder, args[0].type, *args)


@intrinsic
def power_of_two(typingctx, t):
    """2^n of an n that stands in the low bits of t."""
    bits, shift, one = (32, 23, 0x3F800000) if t is types.float32 else (64, 52, 0x3FF0000000000000)

    def codegen(context, builder, signature, args):
        integer = ir.IntType(bits)
        n = builder.bitcast(args[0], integer)
        return builder.bitcast(builder.add(builder.shl(n, integer(shift)), integer(one)), args[0].type)

    return t(t), codegen


@intrinsic
def view(typingctx, matrix, row, start, n):
    """matrix[row, start : start + n], neither checked nor counted: what a kernel was given outlives it."""
    result = types.Array(matrix.dtype, 1, "C")

    def codegen(context, builder, signature, args):
        own = make_array(matrix)(context, builder, args[0])
        at = builder.add(builder.mul(args[1], builder.extract_value(own.shape, 1)), args[2])
        array, size = make_array(result)(context, builder), context.get_constant(types.intp, matrix.dtype.bitwidth // 8)
        populate_array(array, builder.gep(own.data, [at]), [args[3]], [size], size, None)
        return array._getvalue()

    return result(matrix, types.intp, types.intp, types.intp), codegen


# Not literals, for each of which numba would compile anew.
START = np.int64(0)  # a first column
HIDDEN = GATES = np.int64(0)  # roles of activations
CANDIDATE = np.int64(1)
OUTPUT = np.int64(2)

# ---- products --------------------------------------------------------------------------------------------------------


def _tile(rows: int, vectors: int) -> Any:
    """A product that stays in registers: `rows` rows of `vectors` vectors.

    out[orow[first + r], ocol + v] += sum over k of a[arow[first + r], acol + k] w[at + k*vectors + v]
    """

    @intrinsic
    def tile(typingctx, out, orow, ocol, a, arow, acol, first, w, at, K):
        def codegen(context, builder, signature, args):
            out, orow, ocol, a, arow, acol, first, w, at, K = (
                make_array(kind)(context, builder, value) if isinstance(kind, types.Array) else value
                for kind, value in zip(signature.args, args, strict=True)
            )
            dtype = signature.args[0].dtype
            count, index = VECTOR * 8 // dtype.bitwidth, ir.IntType(64)
            vector = ir.VectorType(context.get_data_type(dtype), count)

            def row(matrix, rows, r, column):
                """Where that column of the row begins."""
                number = builder.load(builder.gep(rows.data, [builder.add(first, index(r))]))
                start = builder.mul(number, builder.extract_value(matrix.shape, 1))
                return builder.gep(matrix.data, [builder.add(start, column)])

            def part(base, v):
                return builder.bitcast(builder.gep(base, [index(v * count)]), vector.as_pointer())

            def load(base, v):
                return builder.load(part(base, v), align=dtype.bitwidth // 8)

            outs = [row(out, orow, r, ocol) for r in range(rows)]
            ins = [row(a, arow, r, acol) for r in range(rows)]
            panel = builder.gep(w.data, [at])
            sums = [[cgutils.alloca_once_value(builder, load(base, v)) for v in range(vectors)] for base in outs]
            everywhere = ir.Constant(ir.VectorType(ir.IntType(32), count), None)
            with cgutils.for_range(builder, K) as loop:
                slice_k = builder.gep(panel, [builder.mul(loop.index, index(vectors * count))])
                weights = [load(slice_k, v) for v in range(vectors)]
                for base, own in zip(ins, sums, strict=True):
                    x = builder.load(builder.gep(base, [loop.index]))
                    x = builder.insert_element(ir.Constant(vector, ir.Undefined), x, ir.IntType(32)(0))
                    x = builder.shuffle_vector(x, x, everywhere)
                    for weight, total in zip(weights, own, strict=True):
                        builder.store(_fma(builder, vector, x, weight, builder.load(total)), total)
            for base, own in zip(outs, sums, strict=True):
                for v, total in enumerate(own):
                    builder.store(builder.load(total), part(base, v), align=dtype.bitwidth // 8)
            return context.get_dummy_value()

        return types.void(out, orow, ocol, a, arow, acol, first, w, at, K), codegen

    return tile


_wide6, _wide2, _wide1 = (_tile(rows, ABREAST) for rows in (BLOCK, 2, 1))
_narrow6, _narrow2, _narrow1 = (_tile(rows, 1) for rows in (BLOCK, 2, 1))


def pack(matrix: np.ndarray) -> np.ndarray:
    """[K, N] as `product` reads it, with N rounded up to whole vectors by zeros.

    Panels [K, ABREAST vectors] one after the other, then panels [K, one vector] of what is left.
    """
    K, N = matrix.shape
    vector = lanes(matrix.dtype)
    abreast = ABREAST * vector
    columns = -(-N // vector) * vector
    wide = columns - columns % abreast
    packed = np.zeros(K * columns, matrix.dtype)
    for start in (*range(0, wide, abreast), *range(wide, columns, vector)):
        width = abreast if start < wide else vector
        own = matrix[:, start : start + width]
        packed[start * K : (start + width) * K].reshape(K, width)[:, : own.shape[1]] = own
    return packed


@helper
def product(out, orow, ocol, a, arow, acol, count, w, N, K):
    """out[orow[r], ocol:ocol+N] += a[arow[r], acol:acol+K] W for r < count, with W [K, N] packed."""
    vector = VECTOR // w.itemsize
    abreast = ABREAST * vector
    wide = N - N % abreast
    six = count - count % BLOCK
    two = count - count % 2
    for col in range(0, wide, abreast):
        for r in range(0, six, BLOCK):
            _wide6(out, orow, ocol + col, a, arow, acol, r, w, col * K, K)
        for r in range(six, two, 2):
            _wide2(out, orow, ocol + col, a, arow, acol, r, w, col * K, K)
        for r in range(two, count):
            _wide1(out, orow, ocol + col, a, arow, acol, r, w, col * K, K)
    for col in range(wide, N, vector):
        for r in range(0, six, BLOCK):
            _narrow6(out, orow, ocol + col, a, arow, acol, r, w, col * K, K)
        for r in range(six, two, 2):
            _narrow2(out, orow, ocol + col, a, arow, acol, r, w, col * K, K)
        for r in range(two, count):
            _narrow1(out, orow, ocol + col, a, arow, acol, r, w, col * K, K)


# ---- activations -----------------------------------------------------------------------------------------------------
#
# exp(x) is 2^n (1 + p) with n = round(x / ln 2) and p = expm1(x - n ln 2) = r + r^2 q(r), q the best polynomial on
# |r| <= ln 2 / 2; p's relative error is 1.4e-8 in float32 (degree 4) and 1.9e-17 in float64 (degree 9). Adding
# 1.5 * 2^23 (2^52) rounds to n and leaves it in the low bits of the sum. All of it is plain arithmetic, which LLVM
# turns into vectors, and the polynomials are those of csrc/activation.h.


@helper
def within(x, low, high):
    """x, but not below low nor above high; NaN passes."""
    x = low if x < low else x
    return high if x > high else x


def _exp_parts(x):
    """p and 2^n, as above, of x within the bounds of exp: 88 in float32, 709 in float64. NaN passes."""


@overload(_exp_parts)
def _exp_parts_of_type(x):
    number: Any = np.float32 if x is types.float32 else np.float64

    def float32(x):
        x = within(x, number(-88), number(88))
        t = fma(x, number(1.44269504), number(12582912.0))
        n = t - number(12582912.0)
        r = fma(n, number(-0.693145751953125), x)
        r = fma(n, number(-1.42860682e-6), r)
        q = fma(r, number(1.3882510493565301e-3), number(8.3665803281462136e-3))
        q = fma(q, r, number(4.1667201773213947e-2))
        q = fma(q, r, number(1.6666543178112161e-1))
        q = fma(q, r, number(4.9999998144090187e-1))
        return fma(q * r, r, r), power_of_two(t)

    def float64(x):
        x = within(x, number(-709), number(709))
        t = fma(x, number(1.4426950408889634), number(6755399441055744.0))
        n = t - number(6755399441055744.0)
        r = fma(n, number(-0.6931471803691238), x)
        r = fma(n, number(-1.9082149292705877e-10), r)
        q = fma(r, number(2.5053777736851027957e-8), number(2.7626161424905040285e-7))
        q = fma(q, r, number(2.7557407861056161998e-6))
        q = fma(q, r, number(2.4801504978878475321e-5))
        q = fma(q, r, number(1.9841269718346295646e-4))
        q = fma(q, r, number(1.3888888931794995529e-3))
        q = fma(q, r, number(8.3333333333899568998e-3))
        q = fma(q, r, number(4.1666666666576108693e-2))
        q = fma(q, r, number(1.6666666666666588583e-1))
        q = fma(q, r, number(5.0000000000000052258e-1))
        return fma(q * r, r, r), power_of_two(t)

    return float32 if x is types.float32 else float64


@helper
def sigmoid(x):
    """1 / (1 + exp(-x)) as exp(min(x, 0)) / (1 + exp(-|x|)), which goes down to 0. Largest error 2.5 ulp."""
    one = real(1, x)
    p, two_n = _exp_parts(-abs(x))
    e = fma(two_n, p, two_n)
    return (e if x < real(0, x) else one) / (one + e)


@helper
def expm1(x):
    """exp(x) - 1. Largest error 1.2 ulp where x <= 0, which is where it is used alone."""
    p, two_n = _exp_parts(x)
    return fma(two_n, p, two_n - real(1, x))


@helper
def tanh(x):
    """e / (e + 2) with e = expm1(2x), so that small x keep their relative accuracy. Largest error 2.7 ulp."""
    e = expm1(x + x)
    return e / (e + real(2, x))


@helper
def softplus(x):
    """log(1 + exp(x)), a number at a time: too rare to deserve more."""
    zero = real(0, x)
    return (x if x > zero else zero) + real(np.log1p(np.exp(-abs(x))), x)


NAMES = (
    *("sigmoid", "tanh", "relu", "affine", "leaky_relu", "thresholded_relu"),
    *("scaled_tanh", "hard_sigmoid", "elu", "softsign", "softplus"),
)
SIGMOID, TANH, RELU, AFFINE, LEAKY_RELU, THRESHOLDED_RELU, SCALED_TANH, HARD_SIGMOID, ELU, SOFTSIGN, SOFTPLUS = range(
    11
)


@helper
def activate(acts, role, a, y):
    """y = f(a), all of a row. Where a has a bound, it is changed."""
    code, alpha, beta, clip = acts.codes[role], acts.numbers[role, 0], acts.numbers[role, 1], acts.numbers[role, 2]
    zero, one = real(0, alpha), real(1, alpha)
    if clip < np.inf:
        for j in range(len(y)):
            a[j] = within(a[j], -clip, clip)
    if code == SIGMOID:
        for j in range(len(y)):
            y[j] = sigmoid(a[j])
    elif code == TANH:
        for j in range(len(y)):
            y[j] = tanh(a[j])
    elif code == RELU:
        for j in range(len(y)):
            y[j] = zero if a[j] < zero else a[j]
    elif code == AFFINE:
        for j in range(len(y)):
            y[j] = fma(alpha, a[j], beta)
    elif code == LEAKY_RELU:
        for j in range(len(y)):
            y[j] = alpha * a[j] if a[j] < zero else a[j]
    elif code == THRESHOLDED_RELU:
        for j in range(len(y)):
            y[j] = zero if a[j] < alpha else a[j]
    elif code == SCALED_TANH:
        for j in range(len(y)):
            y[j] = alpha * tanh(beta * a[j])
    elif code == HARD_SIGMOID:
        for j in range(len(y)):
            y[j] = within(fma(alpha, a[j], beta), zero, one)
    elif code == ELU:
        for j in range(len(y)):
            y[j] = alpha * expm1(a[j]) if a[j] < zero else a[j]
    elif code == SOFTSIGN:
        for j in range(len(y)):
            y[j] = a[j] / (one + abs(a[j]))
    else:
        for j in range(len(y)):
            y[j] = softplus(a[j])


@helper
def slope(acts, role, y, d):
    """d *= df/da at the outputs y = f(a); zero where a was at its bound, which is where y is the output of a bound."""
    code, alpha, beta, clip = acts.codes[role], acts.numbers[role, 0], acts.numbers[role, 1], acts.numbers[role, 2]
    zero, one = real(0, alpha), real(1, alpha)
    if code == SIGMOID:
        for j in range(len(y)):
            d[j] *= y[j] * (one - y[j])
    elif code == TANH:
        for j in range(len(y)):
            d[j] *= fma(-y[j], y[j], one)
    elif code == RELU:
        for j in range(len(y)):
            d[j] *= one if y[j] > zero else zero
    elif code == AFFINE:
        for j in range(len(y)):
            d[j] *= alpha
    elif code == LEAKY_RELU:
        for j in range(len(y)):
            d[j] *= one if y[j] > zero else alpha
    elif code == THRESHOLDED_RELU:
        for j in range(len(y)):
            d[j] *= one if y[j] != zero else zero
    elif code == SCALED_TANH:
        for j in range(len(y)):
            d[j] *= beta * (alpha - y[j] * y[j] / alpha)
    elif code == HARD_SIGMOID:
        for j in range(len(y)):
            d[j] *= alpha if zero < y[j] < one else zero
    elif code == ELU:
        for j in range(len(y)):
            d[j] *= one if y[j] > zero else y[j] + alpha
    elif code == SOFTSIGN:
        for j in range(len(y)):
            d[j] *= (one - abs(y[j])) * (one - abs(y[j]))
    else:
        for j in range(len(y)):
            d[j] *= -expm1(-y[j])
    if clip < np.inf:
        low, high = acts.numbers[role, 3], acts.numbers[role, 4]
        for j in range(len(y)):
            d[j] *= zero if y[j] == low or y[j] == high else one


@intrinsic
def copy(typingctx, a, x):
    """a = x, as far as x goes."""

    def codegen(context, builder, signature, args):
        to, source = (make_array(t)(context, builder, v) for t, v in zip(signature.args, args, strict=True))
        size = signature.args[0].dtype.bitwidth // 8
        cgutils.raw_memcpy(builder, to.data, source.data, builder.extract_value(source.shape, 0), size)
        return context.get_dummy_value()

    return types.void(a, x), codegen


@helper
def clear(a):
    """a = 0."""
    for j in range(len(a)):
        a[j] = 0


@helper
def add(a, x):
    """a += x."""
    for j in range(len(x)):
        a[j] += x[j]


@helper
def add_product(a, x, y):
    """a += x y, number by number."""
    for j in range(len(x)):
        a[j] = fma(x[j], y[j], a[j])


# ---- what kernels are given ------------------------------------------------------------------------------------------

RNN, LSTM, GRU = range(3)
GATE, NONE, COUPLED = range(3)  # forget
DIAGONAL, FULL, CELL = range(1, 4)  # peephole, 0 for none


class Spec(NamedTuple):
    """The cell and its sizes, as integers."""

    kind: int
    forget: int
    peephole: int
    reset_after: int
    keep: int  # update
    G: int
    H: int
    P: int
    projected: int


class Activations(NamedTuple):
    """What is done to the gates, a row for each role."""

    codes: Any  # [roles] index in NAMES
    numbers: Any  # [roles, 5] alpha, beta, the bound on a (infinite for none), and room for what f makes of the bounds


class Weights(NamedTuple):
    """The parameters of a layer and direction, packed; what a cell or a direction of the call has no use for is empty.

    Forward, each gate's columns take U; backward, matrices are transposed and no column is between the gates.
    """

    bias: Any  # [G*U]
    x: Any  # W_ih
    h: Any  # W_hh; of a GRU the rows for r and z
    n: Any  # W_hn of a GRU
    bias_n: Any  # [U] b_hn of a GRU that resets after the product
    peep: Any  # [gates, H] diagonal peepholes
    see: Any  # full peepholes of i and f
    see_o: Any  # the full peephole of o
    r: Any  # W_hr


class States(NamedTuple):
    """The states and gates of a sequence: in training of all steps, else of two by turns.

    B rows of the batch; S = T+1 slots, or 2. Slot s of row b is row s*B + b.
    """

    h: Any  # [S*B, P]
    c: Any  # [S*B, H] (LSTM)
    gates: Any  # [T*B, G*H], or [BLOCK, G*H] for the rows of one block
    hn: Any  # [T*B, H], or none: W_hn h + b_hn (GRU that resets after)


class At(NamedTuple):
    """Where the rows of a block are, each [BLOCK]."""

    pre: Any  # in work.pre
    before: Any  # in the states, before the step
    after: Any
    gate: Any  # in the gates
    batch: Any


class Work(NamedTuple):
    """The memory that kernels work in."""

    pre: Any  # [chunk of steps * rows, G*U] inputs of the gates' activations
    m: Any  # [BLOCK, U] what a projection or a second product reads or writes
    u: Any  # [BLOCK, U]
    plain: Any  # [chunk of steps * rows] 0, 1, 2, ...
    x: Any  # [chunk of steps * rows] of x and y
    at: At


# ---- RNN -------------------------------------------------------------------------------------------------------------


@step
def rnn_step(spec, acts, w, s, work, count):
    pre, before, after, _, _ = work.at
    # a = W_hh h' + what x gave;  h = f(a)
    product(work.pre, pre, START, s.h, before, START, count, w.h, work.pre.shape[1], spec.P)
    for k in range(count):
        activate(acts, HIDDEN, view(work.pre, pre[k], 0, spec.H), view(s.h, after[k], 0, spec.H))


@step
def rnn_step_back(spec, acts, w, s, d, work, count):
    _, before, after, _, batch = work.at
    for k in range(count):
        da, dh = view(d.a, before[k], 0, spec.H), view(d.h, batch[k], 0, spec.H)
        copy(da, dh)
        clear(dh)
        # h = f(a)
        slope(acts, HIDDEN, view(s.h, after[k], 0, spec.H), da)
    # a = W_hh h' + ...
    product(d.h, batch, START, d.a, before, START, count, w.h, d.h.shape[1], spec.H)


# ---- LSTM ------------------------------------------------------------------------------------------------------------
#
# The gates that see c' come first: i and f, or one of them. `seen` is how many; g is next, o the last.


@step
def lstm_step(spec, acts, w, s, work, count):
    pre, before, after, gate, _ = work.at
    H, seen, one = spec.H, 2 if spec.forget == GATE else 1, real(1, acts.numbers[0, 0])
    U = work.pre.shape[1] // spec.G
    # a = W_hh h' + what x gave, or W_hh c'
    recurrent = s.c if spec.peephole == CELL else s.h
    product(work.pre, pre, START, recurrent, before, START, count, w.h, work.pre.shape[1], recurrent.shape[1])
    if spec.peephole == FULL:
        product(work.pre, pre, START, s.c, before, START, count, w.see, seen * U, H)
    for k in range(count):
        c_in, c = view(s.c, before[k], 0, H), view(s.c, after[k], 0, H)
        # i = s(a_i + p_i c'), f = s(a_f + p_f c'), g = t(a_g)
        for q in range(seen + 1):
            a, role = view(work.pre, pre[k], q * U, H), CANDIDATE if q == seen else GATES
            if spec.peephole == DIAGONAL and q < seen:
                add_product(a, view(w.peep, q, 0, H), c_in)
            activate(acts, role, a, view(s.gates, gate[k], q * H, H))
        # c = f c' + i g
        first, f = view(s.gates, gate[k], 0, H), view(s.gates, gate[k], H, H)
        g = view(s.gates, gate[k], seen * H, H)
        if spec.forget == GATE:
            for j in range(H):
                c[j] = fma(f[j], c_in[j], first[j] * g[j])
        elif spec.forget == NONE:
            for j in range(H):
                c[j] = fma(first[j], g[j], c_in[j])
        else:
            for j in range(H):
                c[j] = fma(first[j], c_in[j], (one - first[j]) * g[j])
    if spec.peephole == FULL:
        product(work.pre, pre, (seen + 1) * U, s.c, after, START, count, w.see_o, U, H)
    for k in range(count):
        # o = s(a_o + p_o c)
        a_o, o, c = (
            view(work.pre, pre[k], (seen + 1) * U, H),
            view(s.gates, gate[k], (seen + 1) * H, H),
            view(s.c, after[k], 0, H),
        )
        if spec.peephole == DIAGONAL:
            add_product(a_o, view(w.peep, seen, 0, H), c)
        activate(acts, GATES, a_o, o)
        # m = o u(c), or u(o c)
        m, u = view(work.m, k, 0, H) if spec.projected else view(s.h, after[k], 0, H), view(work.u, k, 0, H)
        if spec.peephole == CELL:
            for j in range(H):
                u[j] = o[j] * c[j]
            activate(acts, OUTPUT, u, m)
        else:
            activate(acts, OUTPUT, c, u)
            for j in range(H):
                m[j] = o[j] * u[j]
    if spec.projected:
        # h = W_hr m
        for k in range(count):
            clear(view(work.u, k, 0, spec.P))
        product(work.u, work.plain, START, work.m, work.plain, START, count, w.r, len(w.r) // H, H)
        for k in range(count):
            copy(view(s.h, after[k], 0, spec.P), view(work.u, k, 0, spec.P))


@step
def lstm_step_back(spec, acts, w, s, d, work, count):
    _, before, after, _, batch = work.at
    H, seen, one = spec.H, 2 if spec.forget == GATE else 1, real(1, acts.numbers[0, 0])
    last = (seen + 1) * H
    if spec.projected:
        # h = W_hr m
        for k in range(count):
            clear(view(work.m, k, 0, H))
            copy(view(d.dh, before[k], 0, spec.P), view(d.h, batch[k], 0, spec.P))
        product(work.m, work.plain, START, d.h, batch, START, count, w.r, work.m.shape[1], spec.P)
    for k in range(count):
        c, dc, u = view(s.c, after[k], 0, H), view(d.c, batch[k], 0, H), view(work.u, k, 0, H)
        dm = view(work.m, k, 0, H) if spec.projected else view(d.h, batch[k], 0, H)
        o, do = view(s.gates, before[k], last, H), view(d.a, before[k], last, H)
        if spec.peephole == CELL:
            # m = u(o c), with d(o c) taking the place of dm
            for j in range(H):
                do[j] = o[j] * c[j]
            activate(acts, OUTPUT, do, u)
            slope(acts, OUTPUT, u, dm)
            for j in range(H):
                do[j] = dm[j] * c[j]
                dc[j] = fma(dm[j], o[j], dc[j])
        else:
            # m = o u(c), with d u(c) taking the place of dm
            activate(acts, OUTPUT, c, u)
            for j in range(H):
                do[j] = dm[j] * u[j]
                dm[j] *= o[j]
            slope(acts, OUTPUT, u, dm)
            add(dc, dm)
            for j in range(H):
                u[j] *= o[j]
        if spec.projected:
            copy(view(d.m, before[k], 0, H), u)
        # o = s(a_o + p_o c)
        slope(acts, GATES, o, do)
        if spec.peephole == DIAGONAL:
            add_product(dc, view(w.peep, seen, 0, H), do)
    if spec.peephole == FULL:
        product(d.c, batch, START, d.a, before, last, count, w.see_o, d.c.shape[1], H)
    for k in range(count):
        c_in, dc = view(s.c, before[k], 0, H), view(d.c, batch[k], 0, H)
        first, dfirst = view(s.gates, before[k], 0, H), view(d.a, before[k], 0, H)
        f, df = view(s.gates, before[k], H, H), view(d.a, before[k], H, H)
        g, dg = view(s.gates, before[k], seen * H, H), view(d.a, before[k], seen * H, H)
        if spec.forget == GATE:
            # c = f c' + i g
            for j in range(H):
                dfirst[j], df[j], dg[j] = dc[j] * g[j], dc[j] * c_in[j], dc[j] * first[j]
                dc[j] *= f[j]
        elif spec.forget == NONE:
            # c = c' + i g
            for j in range(H):
                dfirst[j], dg[j] = dc[j] * g[j], dc[j] * first[j]
        else:
            # c = f c' + (1 - f) g
            for j in range(H):
                dfirst[j], dg[j] = dc[j] * (c_in[j] - g[j]), dc[j] * (one - first[j])
                dc[j] *= first[j]
        # i = s(a_i + p_i c'), f = s(a_f + p_f c'), g = t(a_g)
        for q in range(seen + 1):
            da, role = view(d.a, before[k], q * H, H), CANDIDATE if q == seen else GATES
            slope(acts, role, view(s.gates, before[k], q * H, H), da)
            if spec.peephole == DIAGONAL and q < seen:
                add_product(dc, view(w.peep, q, 0, H), da)
        clear(view(d.h, batch[k], 0, spec.P))
    if spec.peephole == FULL:
        product(d.c, batch, START, d.a, before, START, count, w.see, d.c.shape[1], seen * H)
    # a = W_hh h' + ..., or W_hh c' + ...
    dseen = d.c if spec.peephole == CELL else d.h
    product(dseen, batch, START, d.a, before, START, count, w.h, dseen.shape[1], spec.G * H)


# ---- GRU -------------------------------------------------------------------------------------------------------------


@step
def gru_step(spec, acts, w, s, work, count):
    pre, before, after, gate, _ = work.at
    H, U, one = spec.H, work.pre.shape[1] // spec.G, real(1, acts.numbers[0, 0])
    # r, z = s(W_h* h' + what x gave)
    product(work.pre, pre, START, s.h, before, START, count, w.h, 2 * U, H)
    if spec.reset_after:
        for k in range(count):
            copy(view(work.m, k, 0, U), w.bias_n)
        product(work.m, work.plain, START, s.h, before, START, count, w.n, U, H)
    for k in range(count):
        h_in, m, a_n = view(s.h, before[k], 0, H), view(work.m, k, 0, H), view(work.pre, pre[k], 2 * U, H)
        for q in range(2):
            activate(acts, GATES, view(work.pre, pre[k], q * U, H), view(s.gates, gate[k], q * H, H))
        r = view(s.gates, gate[k], 0, H)
        if spec.reset_after:
            # a_n + r (W_hn h' + b_hn)
            add_product(a_n, r, m)
            if len(s.hn):
                copy(view(s.hn, gate[k], 0, H), m)
        else:
            for j in range(H):
                m[j] = r[j] * h_in[j]
    if not spec.reset_after:
        # a_n + W_hn (r h')
        product(work.pre, pre, 2 * U, work.m, work.plain, START, count, w.n, U, H)
    for k in range(count):
        h_in, h = view(s.h, before[k], 0, H), view(s.h, after[k], 0, H)
        z, n = view(s.gates, gate[k], H, H), view(s.gates, gate[k], 2 * H, H)
        activate(acts, CANDIDATE, view(work.pre, pre[k], 2 * U, H), n)
        if spec.keep:
            # h = z h' + (1 - z) n
            for j in range(H):
                h[j] = fma(z[j], h_in[j], (one - z[j]) * n[j])
        else:
            # h = (1 - z) h' + z n
            for j in range(H):
                h[j] = fma(z[j], n[j], (one - z[j]) * h_in[j])


@step
def gru_step_back(spec, acts, w, s, d, work, count):
    _, before, _, _, batch = work.at
    H, one = spec.H, real(1, acts.numbers[0, 0])
    for k in range(count):
        h_in, dh = view(s.h, before[k], 0, H), view(d.h, batch[k], 0, H)
        z, dz = view(s.gates, before[k], H, H), view(d.a, before[k], H, H)
        n, dn = view(s.gates, before[k], 2 * H, H), view(d.a, before[k], 2 * H, H)
        if spec.keep:
            # h = z h' + (1 - z) n
            for j in range(H):
                dz[j], dn[j] = dh[j] * (h_in[j] - n[j]), dh[j] * (one - z[j])
                dh[j] *= z[j]
        else:
            # h = (1 - z) h' + z n
            for j in range(H):
                dz[j], dn[j] = dh[j] * (n[j] - h_in[j]), dh[j] * z[j]
                dh[j] *= one - z[j]
        slope(acts, GATES, z, dz)
        slope(acts, CANDIDATE, n, dn)
        clear(view(work.m, k, 0, H))
    if not spec.reset_after:
        # a_n + W_hn (r h')
        product(work.m, work.plain, START, d.a, before, 2 * H, count, w.n, work.m.shape[1], H)
    for k in range(count):
        r, dr, drh = view(s.gates, before[k], 0, H), view(d.a, before[k], 0, H), view(work.m, k, 0, H)
        if spec.reset_after:
            # a_n + r (W_hn h' + b_hn)
            hn, dhn, dn = view(s.hn, before[k], 0, H), view(d.hn, before[k], 0, H), view(d.a, before[k], 2 * H, H)
            for j in range(H):
                dr[j], dhn[j] = dn[j] * hn[j], dn[j] * r[j]
        else:
            h_in = view(s.h, before[k], 0, H)
            for j in range(H):
                dr[j] = drh[j] * h_in[j]
            add_product(view(d.h, batch[k], 0, H), drh, r)
        slope(acts, GATES, r, dr)
    if spec.reset_after:
        product(d.h, batch, START, d.hn, before, START, count, w.n, d.h.shape[1], H)
    # r, z = s(W_h* h' + ...)
    product(d.h, batch, START, d.a, before, START, count, w.h, d.h.shape[1], 2 * H)


# ---- the sequence ----------------------------------------------------------------------------------------------------
#
# rows: [n] the rows of the batch that the call is for, the longest first; ends: [n] their lengths.
# Step t of a row reads x and writes y at time t, or, in the reverse direction, at its length - 1 - t.


@helper
def running(ends, t):
    """How many rows take step t."""
    n = 0
    while n < len(ends) and ends[n] > t:
        n += 1
    return n


@kernel
def forward(spec, acts, w, rows, ends, B, reverse, train, x, y, cells, s, work):
    """Run a sequence: x [T*B, I] to y [T*B, D*P], of which the reverse direction's are the last P columns.

    cells is filled in the same way, [T*B, D*H], unless it has no rows.
    s.h and s.c hold the initial state in slot 0; in training the slots past a row's end repeat its last one.
    """
    pre, before, after, gate, _ = work.at
    slots, T = len(s.h) // B, ends[0]
    chunk = len(work.plain) // len(rows)
    for start in range(0, T, chunk):
        # what x gives, for some steps at once
        taken = 0
        for t in range(start, min(start + chunk, T)):
            for q in range(running(ends, t)):
                work.x[taken] = (ends[q] - 1 - t if reverse else t) * B + rows[q]
                copy(view(work.pre, taken, 0, len(w.bias)), w.bias)
                taken += 1
        product(work.pre, work.plain, START, x, work.x, START, taken, w.x, work.pre.shape[1], x.shape[1])
        base = 0
        for t in range(start, min(start + chunk, T)):
            active = running(ends, t)
            for first in range(0, active, BLOCK):
                count = min(BLOCK, active - first)
                for k in range(count):
                    b = rows[first + k]
                    pre[k] = base + first + k
                    before[k] = t % slots * B + b
                    after[k] = (t + 1) % slots * B + b
                    gate[k] = t * B + b if train else k
                if spec.kind == RNN:
                    rnn_step(spec, acts, w, s, work, count)
                elif spec.kind == LSTM:
                    lstm_step(spec, acts, w, s, work, count)
                else:
                    gru_step(spec, acts, w, s, work, count)
                for k in range(count):
                    row = work.x[pre[k]]
                    copy(view(y, row, reverse * spec.P, spec.P), view(s.h, after[k], 0, spec.P))
                    if len(cells):
                        copy(view(cells, row, reverse * spec.H, spec.H), view(s.c, after[k], 0, spec.H))
            base += active
    if train:
        for q in range(len(rows)):
            for t in range(ends[q], slots - 1):
                at = t * B + rows[q]
                copy(view(s.h, at + B, 0, spec.P), view(s.h, at, 0, spec.P))
                if spec.kind == LSTM:
                    copy(view(s.c, at + B, 0, spec.H), view(s.c, at, 0, spec.H))


class Grads(NamedTuple):
    """The gradients on the way back. h and c begin as those of the final state and end as those of the initial one."""

    h: Any  # [B, P rounded up to vectors]
    c: Any  # [B, U]
    a: Any  # [T*B, G*H] of the inputs of the gates' activations, in step order
    hn: Any  # [T*B, H] of W_hn h + b_hn (GRU that resets after)
    dh: Any  # [T*B, P] d.h at each step, and
    m: Any  # [T*B, H] what W_hr was multiplied with (LSTM with projection)


@kernel
def backward(spec, acts, w, rows, ends, B, reverse, s, dy, d, work):
    """Go back through `forward`'s sequence. dy: as y, or of no rows for zeros. Writes to acts.numbers."""
    _, before, after, _, batch = work.at
    for role in range(len(acts.codes)):
        bounds = view(acts.numbers, role, 3, 2)
        bounds[0], bounds[1] = -acts.numbers[role, 2], acts.numbers[role, 2]
        activate(acts, role, bounds, bounds)
    for t in range(ends[0] - 1, -1, -1):
        active = running(ends, t)
        for first in range(0, active, BLOCK):
            count = min(BLOCK, active - first)
            for k in range(count):
                b = batch[k] = rows[first + k]
                before[k] = t * B + b
                after[k] = (t + 1) * B + b
                if len(dy):
                    row = (ends[first + k] - 1 - t if reverse else t) * B + b
                    add(view(d.h, b, 0, spec.P), view(dy, row, reverse * spec.P, spec.P))
            if spec.kind == RNN:
                rnn_step_back(spec, acts, w, s, d, work, count)
            elif spec.kind == LSTM:
                lstm_step_back(spec, acts, w, s, d, work, count)
            else:
                gru_step_back(spec, acts, w, s, d, work, count)
