"""The NumPy reference: finite differences, PyTorch, ONNX and closed forms are its oracles.

Every other backend is compared with this one, so nothing here compares it with them. The last tests break the
reference on purpose and see that the checks above notice.
"""

import math
from dataclasses import fields, replace

import numpy as np
import pytest

from fastrnn.backends import choose, load, reference
from fastrnn.backends._sequence import reverse_rows
from fastrnn.cell import ACTIVATIONS, Activation, Cell, Stack

# Every activation, some with numbers at which its derivative is easily got wrong.
NUMBERED = [
    *(name for name in ACTIVATIONS if name != "thresholded_relu"),
    ("affine", -0.7, 0.2),
    ("leaky_relu", 0.0),
    ("leaky_relu", 0.3),
    ("thresholded_relu", 0.1),
    ("thresholded_relu", -0.5),
    ("scaled_tanh", 1.5, -0.6),
    ("hard_sigmoid", 0.6, 0.45),
    ("elu", 0.0),
    ("elu", 0.4),
]

RNNS = [Cell("rnn", (a,), clip=clip, bias=clip is None) for a in NUMBERED for clip in (None, 0.4)]
LSTMS = [
    Cell("lstm", forget=forget, peephole=peephole, proj_size=proj, clip=clip, bias=bias)
    for forget in ("gate", "none", "coupled")
    for peephole in ("none", "diagonal", "full", "cell")
    for proj, clip, bias in ((0, None, True), (2, None, False), (0, 0.5, True))
]
LSTMS += [
    Cell("lstm", tuple(NUMBERED[(k + 4 * role) % len(NUMBERED)] for role in range(3)), peephole=peephole, clip=clip)
    for k in range(len(NUMBERED))
    for peephole, clip in (("diagonal", None), ("cell", 0.6))
]
GRUS = [
    Cell("gru", reset=reset, update=update, clip=clip, bias=bias)
    for reset in ("after", "before")
    for update in ("keep", "write")
    for clip, bias in ((None, True), (None, False), (0.5, True))
]
GRUS += [
    Cell("gru", (NUMBERED[k], NUMBERED[(k + 4) % len(NUMBERED)]), reset=reset, clip=clip)
    for k in range(len(NUMBERED))
    for reset, clip in (("after", 0.6), ("before", None))
]
CELLS = RNNS + LSTMS + GRUS
# One of each kind and of each part of the code.
FEW = [
    Cell("rnn"),
    Cell("lstm"),
    Cell("lstm", forget="none", proj_size=2),
    Cell("lstm", forget="coupled", peephole="diagonal", clip=0.5),
    Cell("lstm", peephole="full", proj_size=2),
    Cell("lstm", peephole="cell", proj_size=2, bias=False),
    Cell("gru"),
    Cell("gru", reset="before", update="write", clip=0.5),
]


def short(value):
    """What a parameter is called: of a cell, what is not as in torch's."""
    if not isinstance(value, Cell):
        return repr(value)
    usual = Cell(value.kind)
    return value.kind + "".join(
        f" {f.name}={getattr(value, f.name)!r}"
        for f in fields(Cell)
        if getattr(value, f.name) != getattr(usual, f.name)
    )


class Problem:
    """Arrays for one call of forward and one of backward. All are read-only: to write to one fails.

    inputs holds x, h0, c0 and the parameters by name; gradients have the same names.
    """

    def __init__(self, cell, T=4, B=3, I=3, H=4, L=1, D=1, lengths=None, masks=False, scale=0.6, dtype=np.float64):
        self.cell, self.stack = cell, Stack(cell, I, H, L, D == 2)
        self.rng, self.dtype = np.random.default_rng(0), dtype
        P = self.stack.output_size
        states = {"h": (L * D, B, P), "c": (L * D, B, H)} if cell.has_c else {"h": (L * D, B, P)}
        shapes = {"x": (T, B, I), **{name + "0": shape for name, shape in states.items()}}
        self.inputs = {name: self.normal(scale, shape) for name, shape in shapes.items()}
        self.inputs |= {name: self.normal(2 * scale / H**0.5, shape) for name, shape in self.stack.shapes.items()}
        self.dy, self.dstate = self.normal(1, (T, B, D * P)), as_state(self.normal(1, s) for s in states.values())
        self.lengths = None if lengths is None else frozen(np.array(lengths, np.int64))
        self.masks = frozen((self.rng.random((L - 1, T, B, D * P)) < 0.7) / dtype(0.7)) if masks else None

    def normal(self, scale, shape):
        return frozen((scale * self.rng.standard_normal(shape)).astype(self.dtype))

    @property
    def params(self):
        return {name: self.inputs[name] for name in self.stack.shapes}

    @property
    def state(self):
        return as_state(self.inputs[name] for name in ("h0", "c0") if name in self.inputs)

    def forward(self, cells=None, train=False):
        x = self.inputs["x"]
        return reference.forward(
            self.cell, self.params, x, self.state, self.lengths, train, masks=self.masks, cells=cells
        )

    def backward(self, tape, dparams=None):
        """The gradients by the names of the inputs."""
        dx, dstate0, dparams = reference.backward(tape, self.dy, self.dstate, dparams)
        return {"x": dx, **dict(zip(("h0", "c0"), flat(dstate0), strict=False)), **dparams}

    def run(self):
        """y, state, gradients, tape"""
        y, state, tape = self.forward(train=True)
        return y, state, self.backward(tape), tape

    def loss(self):
        y, state, _ = self.forward()
        return sum((a * b).sum() for a, b in zip(flat(y, state), flat(self.dy, self.dstate), strict=True))


def frozen(array):
    array.flags.writeable = False
    return array


def as_state(parts):
    h, *c = parts
    return (h, *c) if c else h


def flat(*values):
    """The arrays in nested tuples and mappings, in order."""
    found = []
    for value in values:
        parts = tuple(value.values()) if isinstance(value, dict) else value
        found += flat(*parts) if isinstance(parts, (tuple, list)) else [parts]
    return found


def close(ours, theirs, tolerance=1e-12):
    for mine, other in zip(flat(ours), flat(theirs), strict=True):
        np.testing.assert_allclose(mine, other, tolerance, tolerance)


# ---- gradients against finite differences ----------------------------------------------------------------------------


def slope(problem, name, direction):
    """dL of moving an input along the direction: central differences of two steps, extrapolated (Richardson)."""
    value = problem.inputs[name]

    def central(step):
        problem.inputs[name] = value + step * direction
        above = problem.loss()
        problem.inputs[name] = value - step * direction
        return (above - problem.loss()) / (2 * step)

    estimate = (4 * central(5e-5) - central(1e-4)) / 3
    problem.inputs[name] = value
    return estimate


def check_gradients(problem, tolerance=1e-9):
    """Every gradient, along a random direction of length 1, against the slope of the loss."""
    _, _, gradients, _ = problem.run()
    assert gradients.keys() == problem.inputs.keys()
    for name, gradient in gradients.items():
        assert gradient.shape == problem.inputs[name].shape, name
        direction = np.random.default_rng(1).standard_normal(gradient.shape)
        direction /= np.linalg.norm(direction)
        expected = slope(problem, name, direction)
        assert abs((gradient * direction).sum() - expected) < tolerance * (1 + np.linalg.norm(gradient)), name
        unused = name == "h0" and problem.cell.peephole == "cell"
        assert gradient.any() or unused, f"{name} has no effect, which makes this no check"


@pytest.mark.parametrize("lengths", [None, [4, 0, 2]], ids=["full", "lengths"])
@pytest.mark.parametrize("cell", CELLS, ids=short)
def test_gradients(cell, lengths):
    check_gradients(Problem(cell, lengths=lengths))


@pytest.mark.parametrize("cell", FEW, ids=short)
def test_gradients_of_a_stack(cell):
    check_gradients(Problem(cell, T=3, L=3, D=2, lengths=[2, 0, 3], masks=True))


@pytest.mark.parametrize("cell", [cell for cell in CELLS if cell.clip], ids=short)
def test_the_clip_bites(cell):
    """The gradients above would be no test of the clip if no input reached it."""
    clipped, *_ = Problem(cell).forward()
    free, *_ = Problem(replace(cell, clip=None)).forward()
    assert abs(clipped - free).max() > 1e-3


# ---- PyTorch ---------------------------------------------------------------------------------------------------------

LIKE_TORCH = [
    (Cell("rnn"), "RNN", {}),
    (Cell("rnn", ("relu",)), "RNN", {"nonlinearity": "relu"}),
    (Cell("lstm"), "LSTM", {}),
    (Cell("lstm", bias=False), "LSTM", {"bias": False}),
    (Cell("lstm", proj_size=2), "LSTM", {"proj_size": 2}),
    (Cell("gru"), "GRU", {}),
    (Cell("gru", bias=False), "GRU", {"bias": False}),
]


def check_torch(problem, name, options, tolerance=1e-12):
    """y, states and all gradients against torch.nn's layer of that name, with its packed sequences where rows end."""
    torch = pytest.importorskip("torch")
    stack = problem.stack
    layer = getattr(torch.nn, name)(
        stack.input_size, stack.hidden_size, stack.num_layers, bidirectional=stack.bidirectional, **options
    ).double()
    layer.load_state_dict({key: torch.from_numpy(value.copy()) for key, value in problem.params.items()})
    leaves = {
        key: torch.from_numpy(value.copy()).requires_grad_()
        for key, value in problem.inputs.items()
        if key not in problem.params
    }
    x, *state = leaves.values()
    if problem.lengths is not None:
        x = torch.nn.utils.rnn.pack_padded_sequence(x, torch.from_numpy(problem.lengths.copy()), enforce_sorted=False)
    y, state = layer(x, as_state(state))
    if problem.lengths is not None:
        y, _ = torch.nn.utils.rnn.pad_packed_sequence(y, total_length=len(problem.inputs["x"]))
    outputs = flat(y, state)
    torch.autograd.backward(outputs, [torch.from_numpy(d.copy()) for d in flat(problem.dy, problem.dstate)])

    ours_y, ours_state, gradients, _ = problem.run()
    close((ours_y, ours_state), tuple(output.detach().numpy() for output in outputs), tolerance)
    theirs = {**leaves, **dict(layer.named_parameters())}
    close(gradients, {key: theirs[key].grad.numpy() for key in gradients}, tolerance)


@pytest.mark.parametrize("lengths", [None, [5, 1, 3]], ids=["full", "packed"])
@pytest.mark.parametrize("sizes", [{}, {"L": 2, "D": 2}, {"T": 1, "L": 3}, {"H": 33, "I": 17}], ids=str)
@pytest.mark.parametrize(("cell", "name", "options"), LIKE_TORCH, ids=short)
def test_torch(cell, name, options, sizes, lengths):
    sizes = {"T": 5, **sizes}
    check_torch(Problem(cell, **sizes, lengths=lengths and [min(n, sizes["T"]) for n in lengths]), name, options)


TORCH_ACTIVATIONS = {
    ("sigmoid",): lambda torch, a: torch.sigmoid(a),
    ("tanh",): lambda torch, a: torch.tanh(a),
    ("relu",): lambda torch, a: torch.nn.functional.relu(a),
    ("affine", -0.7, 0.2): lambda torch, a: -0.7 * a + 0.2,
    ("leaky_relu", 0.0): lambda torch, a: torch.nn.functional.leaky_relu(a, 0.0),
    ("leaky_relu", 0.3): lambda torch, a: torch.nn.functional.leaky_relu(a, 0.3),
    ("thresholded_relu", 0.1): lambda torch, a: torch.nn.functional.threshold(a, 0.1, 0.0),
    ("thresholded_relu", -0.5): lambda torch, a: torch.nn.functional.threshold(a, -0.5, 0.0),
    ("scaled_tanh", 1.5, -0.6): lambda torch, a: 1.5 * torch.tanh(-0.6 * a),
    ("hard_sigmoid", 0.6, 0.45): lambda torch, a: (0.6 * a + 0.45).clamp(0, 1),
    ("elu", 0.0): lambda torch, a: torch.nn.functional.relu(a),
    ("elu", 0.4): lambda torch, a: torch.nn.functional.elu(a, 0.4),
    ("softsign",): lambda torch, a: torch.nn.functional.softsign(a),
    ("softplus",): lambda torch, a: torch.logaddexp(a, torch.zeros_like(a)),
}


@pytest.mark.parametrize("given", TORCH_ACTIVATIONS, ids=str)
def test_activations(given):
    """Values and derivatives, far out too, without a warning; the dtype stays."""
    torch = pytest.importorskip("torch")
    f = Activation.of(given)
    a = np.concatenate([np.linspace(-8, 8, 801) + 1e-3, [-1e4, -200.0, -1e-12, 1e-12, 200.0, 1e4]])
    leaf = torch.from_numpy(a.copy()).requires_grad_()
    theirs = TORCH_ACTIVATIONS[given](torch, leaf)
    theirs.sum().backward()
    y = reference.activate(f, a)
    close(y, theirs.detach().numpy(), 1e-14)
    close(reference.derivative(f, y), leaf.grad.numpy(), 1e-11)
    low = reference.activate(f, a.astype("f4"))
    assert low.dtype == reference.derivative(f, low).dtype == np.float32
    close(low, y, 2e-6)


def test_every_activation_is_tested():
    assert {name for name, *_ in TORCH_ACTIVATIONS} == set(ACTIVATIONS) == set(reference.ACTIVATIONS)


@pytest.mark.parametrize("given", NUMBERED, ids=short)
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_derivative_of_a_clipped_input_is_zero(given, dtype):
    f = Activation.of(given)
    a = np.array([-5, -0.75, -0.7, 0.3, 0.7, 0.75, 5], dtype)
    y = reference.activate(f, a, 0.75)
    close(y, reference.activate(f, np.clip(a, -0.75, 0.75)), 0)
    inside = np.array([0, 0, 1, 1, 1, 0, 0], dtype)
    close(reference.derivative(f, y, 0.75), inside * reference.derivative(f, y), 0)


# ---- ONNX ------------------------------------------------------------------------------------------------------------

ONNX_NAMES = {
    "sigmoid": "Sigmoid", "tanh": "Tanh", "relu": "Relu", "affine": "Affine", "leaky_relu": "LeakyRelu",
    "thresholded_relu": "ThresholdedRelu", "scaled_tanh": "ScaledTanh", "hard_sigmoid": "HardSigmoid", "elu": "Elu",
    "softsign": "Softsign", "softplus": "Softplus",
}  # fmt: skip
ONNX_ORDER = {"rnn": [0], "lstm": [0, 3, 1, 2], "gru": [1, 0, 2]}  # i o f g; z r n
ONNX_EYES = [0, 2, 1]  # i o f


def onnx_model(problem, **attributes):
    """A model of one node for the problem's one layer, and its inputs, of the problem's float type."""
    onnx = pytest.importorskip("onnx")
    cell, stack, inputs = problem.cell, problem.stack, problem.inputs
    order, gates = ONNX_ORDER[cell.kind], len(cell.gates)

    def stacked(name, order, parts):
        rows = [np.split(inputs[name + suffix], parts) for suffix in stack.suffixes]
        return np.stack([np.concatenate([blocks[k] for k in order]) for blocks in rows])

    feed = {
        "X": inputs["x"],
        "W": stacked("weight_ih", order, gates),
        "R": stacked("weight_hh", order, gates),
        "B": np.concatenate([stacked("bias_ih", order, gates), stacked("bias_hh", order, gates)], axis=1),
        "initial_h": inputs["h0"],
    }
    names = ["X", "W", "R", "B", "", "initial_h"]
    if problem.lengths is not None:
        names[4] = "sequence_lens"
        feed["sequence_lens"] = problem.lengths.astype(np.int32)
    if cell.has_c:
        names.append("initial_c")
        feed["initial_c"] = inputs["c0"]
        if cell.peephole == "diagonal":
            names.append("P")
            feed["P"] = stacked("weight_ch", ONNX_EYES, 3)
    activations, D = cell.activations, stack.num_directions
    alpha = [a.alpha for a in activations if ACTIVATIONS[a.name][0] is not None]
    beta = [a.beta for a in activations if ACTIVATIONS[a.name][1] is not None]
    attributes |= {
        "hidden_size": stack.hidden_size,
        "direction": "bidirectional" if D == 2 else "forward",
        "activations": [ONNX_NAMES[a.name] for a in activations] * D,
        "activation_alpha": alpha * D or None,
        "activation_beta": beta * D or None,
        "clip": cell.clip,
        "linear_before_reset": int(cell.reset == "after") if cell.kind == "gru" else None,
    }
    outputs = ["Y", "Y_h", "Y_c"] if cell.has_c else ["Y", "Y_h"]
    node = onnx.helper.make_node(
        cell.kind.upper(), names, outputs, **{k: v for k, v in attributes.items() if v is not None}
    )
    kind = onnx.helper.np_dtype_to_tensor_dtype

    def value(name, array=None):
        dtype = problem.inputs["x"].dtype if array is None else array.dtype
        return onnx.helper.make_tensor_value_info(name, kind(dtype), None if array is None else array.shape)

    graph = onnx.helper.make_graph(
        [node], "one", [value(*item) for item in feed.items()], [value(name) for name in outputs]
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 14)], ir_version=8), feed


def check_onnx(problem, outputs, tolerance):
    """ONNX's Y [T, D, B, H], Y_h and Y_c against ours."""
    y, state, _ = problem.forward()
    steps, directions, batch, size = outputs[0].shape
    theirs = outputs[0].transpose(0, 2, 1, 3).reshape(steps, batch, directions * size)
    close((y, state), (theirs, *outputs[1:]), tolerance)


@pytest.mark.parametrize(
    "cell",
    [
        Cell("rnn"), Cell("lstm"), Cell("lstm", peephole="diagonal"), Cell("gru"), Cell("gru", reset="before"),
    ],
    ids=short,
)  # fmt: skip
def test_onnx_reference_evaluator(cell):
    """In float64, one direction, no activations nor clip: what ONNX's own evaluator can."""
    evaluator = pytest.importorskip("onnx.reference")
    problem = Problem(cell, T=5)
    model, feed = onnx_model(problem)
    check_onnx(problem, evaluator.ReferenceEvaluator(model).run(None, feed), 1e-12)


def by_onnxruntime(model, feed):
    ort = pytest.importorskip("onnxruntime")
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, feed)


@pytest.mark.parametrize(("D", "lengths"), [(1, None), (2, [3, 1, 2])], ids=["full", "lengths"])
@pytest.mark.parametrize(
    "cell",
    [Cell("rnn", (a,), clip=clip) for a in NUMBERED for clip in (None, 0.4)]
    + [Cell("lstm", peephole=peephole, clip=clip) for peephole in ("none", "diagonal") for clip in (None, 0.5)]
    + [Cell("lstm", (NUMBERED[k], NUMBERED[k - 3], NUMBERED[k - 5]), peephole="diagonal") for k in range(len(NUMBERED))]
    + [Cell("gru", reset=reset, clip=clip) for reset in ("after", "before") for clip in (None, 0.5)]
    + [Cell("gru", (NUMBERED[k], NUMBERED[k - 3]), reset="before") for k in range(len(NUMBERED))],
    ids=short,
)
def test_onnxruntime(cell, D, lengths):
    """In float32, with all that the operators have."""
    problem = Problem(cell, T=3, D=D, lengths=lengths, scale=0.4, dtype=np.float32)
    check_onnx(problem, by_onnxruntime(*onnx_model(problem)), 1e-5)


@pytest.mark.parametrize("peephole", ["none", "diagonal"])
def test_onnxruntime_coupled(peephole):
    """ONNX Runtime takes f = 1 - i where we take i = 1 - f: sigmoid(-a) = 1 - sigmoid(a) is between them."""
    coupled = Problem(Cell("lstm", forget="coupled", peephole=peephole), dtype=np.float32)
    standard = Problem(Cell("lstm", peephole=peephole), dtype=np.float32)
    for name, value in coupled.inputs.items():
        if name in coupled.params:
            f, *others = np.split(value, 2 if "_ch" in name else 3)
            value = np.concatenate([-f, 0 * f, *others])
        standard.inputs[name] = value
    check_onnx(coupled, by_onnxruntime(*onnx_model(standard, input_forget=1)), 1e-5)


# ---- closed forms ----------------------------------------------------------------------------------------------------


def sigmoid(a):
    return 1 / (1 + math.exp(-a))


@pytest.mark.parametrize("forget", ["gate", "none", "coupled"])
@pytest.mark.parametrize("peephole", ["none", "diagonal", "full", "cell"])
def test_lstm_by_hand(forget, peephole):
    """One unit, in Python's own floats."""
    problem = Problem(Cell("lstm", forget=forget, peephole=peephole), T=3, B=1, I=1, H=1)
    names = {"gate": "ifgo", "none": "igo", "coupled": "fgo"}[forget]
    w_x, w_h, b_x, b_h = (
        dict(zip(names, problem.inputs[key + "_l0"].ravel(), strict=True))
        for key in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    )
    p = dict(zip(names.replace("g", ""), problem.inputs.get("weight_ch_l0", np.zeros(3)).ravel(), strict=False))
    h, c, outputs = problem.inputs["h0"].item(), problem.inputs["c0"].item(), []
    for x in problem.inputs["x"].ravel():
        a = {k: w_x[k] * x + b_x[k] + w_h[k] * (c if peephole == "cell" else h) + b_h[k] for k in names}
        f = sigmoid(a["f"] + p["f"] * c) if "f" in a else 1
        i = sigmoid(a["i"] + p["i"] * c) if "i" in a else 1 - f
        c = f * c + i * math.tanh(a["g"])
        o = sigmoid(a["o"] + p["o"] * c)
        h = math.tanh(o * c) if peephole == "cell" else o * math.tanh(c)
        outputs.append(h)
    y, (_, final), _ = problem.forward()
    close((y.ravel(), final.ravel()), (np.array(outputs), np.array([c])), 1e-14)


@pytest.mark.parametrize("reset", ["after", "before"])
@pytest.mark.parametrize("update", ["keep", "write"])
def test_gru_by_hand(reset, update):
    """One unit, in Python's own floats."""
    problem = Problem(Cell("gru", reset=reset, update=update), T=3, B=1, I=1, H=1)
    (r_x, z_x, n_x), (r_h, z_h, n_h), (r_b, z_b, n_b), (r_c, z_c, n_c) = (
        value.ravel().tolist() for value in problem.params.values()
    )
    h, outputs = problem.inputs["h0"].item(), []
    for x in problem.inputs["x"].ravel():
        r, z = sigmoid(r_x * x + r_b + r_h * h + r_c), sigmoid(z_x * x + z_b + z_h * h + z_c)
        n = math.tanh(n_x * x + n_b + (r * (n_h * h + n_c) if reset == "after" else n_h * (r * h) + n_c))
        h = z * h + (1 - z) * n if update == "keep" else (1 - z) * h + z * n
        outputs.append(h)
    close(problem.forward()[0].ravel(), np.array(outputs), 1e-14)


def check_same(problem, other, translate, gradients):
    """Two problems of one computation: `translate` makes other's parameters, `gradients` makes its gradients ours."""
    other.dy, other.dstate = problem.dy, problem.dstate
    for name, value in problem.inputs.items():
        other.inputs[name] = translate(name, value) if name in problem.params else value
    y, state, ours, _ = problem.run()
    other_y, other_state, theirs, _ = other.run()
    close((y, state), (other_y, other_state), 1e-13)
    close(ours, {name: gradients(name, theirs[name]) if name in problem.params else theirs[name] for name in ours})


@pytest.mark.parametrize("reset", ["after", "before"])
def test_write_is_keep_with_z_negated(reset):
    def negated(name, value):
        r, z, n = np.split(value, 3)
        return np.concatenate([r, -z, n])

    keep, write = (Problem(Cell("gru", reset=reset, update=update), L=2, D=2) for update in ("keep", "write"))
    check_same(write, keep, negated, negated)


@pytest.mark.parametrize("peephole", ["none", "diagonal", "full", "cell"])
def test_coupled_is_standard_with_i_of_f_negated(peephole):
    def spread(name, value):
        f, *others = np.split(value, 2 if "_ch" in name else 3)
        return np.concatenate([-f, f, *others])

    def gather(name, value):
        i, f, *others = np.split(value, 3 if "_ch" in name else 4)
        return np.concatenate([f - i, *others])

    coupled, standard = (Problem(Cell("lstm", forget=forget, peephole=peephole)) for forget in ("coupled", "gate"))
    check_same(coupled, standard, spread, gather)


@pytest.mark.parametrize("peephole", ["none", "diagonal", "full", "cell"])
def test_no_forget_gate_is_one_that_is_open(peephole):
    def spread(name, value):
        i, *others = np.split(value, 2 if "_ch" in name else 3)
        return np.concatenate([i, np.full_like(i, 50 if "bias" in name else 0), *others])

    def gather(name, value):
        i, _, *others = np.split(value, 3 if "_ch" in name else 4)
        return np.concatenate([i, *others])

    none, standard = (Problem(Cell("lstm", forget=forget, peephole=peephole)) for forget in ("none", "gate"))
    check_same(none, standard, spread, gather)


def test_diagonal_peepholes_are_full_ones_of_diagonal_matrices():
    def diagonals(name, value):  # np.diag goes both ways
        return np.concatenate([np.diag(p) for p in np.split(value, 3)]) if "_ch" in name else value

    diagonal, full = (Problem(Cell("lstm", peephole=peephole), lengths=[4, 0, 1]) for peephole in ("diagonal", "full"))
    check_same(diagonal, full, diagonals, diagonals)


def test_resets_agree_where_the_product_is_diagonal_and_without_bias():
    def changed(name, value):
        if name == "weight_hh_l0":
            return np.concatenate([value[:8], np.diag([0.5, -1, 2, 0.1])])
        return 0 * value if name == "bias_hh_l0" else value

    def shared(name, value):
        return value if "hh" not in name else value[:8]

    after, before = (Problem(Cell("gru", reset=reset)) for reset in ("after", "before"))
    for problem in (after, before):
        problem.inputs.update({name: changed(name, value) for name, value in problem.inputs.items()})
    (*ours, grads, _), (*theirs, other, _) = after.run(), before.run()
    close(tuple(ours), tuple(theirs))
    close({n: shared(n, g) for n, g in grads.items()}, {n: shared(n, g) for n, g in other.items()})


# ---- lengths, masks, cells, tape -------------------------------------------------------------------------------------


@pytest.mark.parametrize("D", [1, 2])
@pytest.mark.parametrize("cell", FEW, ids=short)
def test_a_row_runs_as_if_alone(cell, D):
    """Rows of any length, in any order, give what each gives alone, cut to its length; the padding is never read."""
    lengths = [2, 0, 5, 3, 1, 5]
    batch = Problem(cell, T=5, B=6, L=2, D=D, lengths=lengths, masks=True)
    past = np.arange(5)[:, None] >= batch.lengths
    batch.inputs["x"], batch.dy = batch.inputs["x"].copy(), batch.dy.copy()
    batch.inputs["x"][past] = batch.dy[past] = np.nan
    cells = np.full((5, 6, D * 4), np.nan) if cell.has_c else None
    y, state, tape = batch.forward(cells, train=True)
    gradients = batch.backward(tape)
    assert not y[past].any() and not gradients["x"][past].any()
    total = {name: np.zeros_like(value) for name, value in batch.params.items()}
    for b, n in enumerate(lengths):
        alone = Problem(cell, T=n, B=1, L=2, D=D)
        alone.inputs |= {
            k: v[:n, b : b + 1] if k == "x" else v[:, b : b + 1] if k in ("h0", "c0") else v
            for k, v in batch.inputs.items()
        }
        alone.masks, alone.dy = batch.masks[:, :n, b : b + 1], batch.dy[:n, b : b + 1]
        alone.dstate = as_state(part[:, b : b + 1] for part in flat(batch.dstate))
        its_cells = np.full((n, 1, D * 4), np.nan) if cell.has_c else None
        its_y, its_state, its_tape = alone.forward(its_cells, train=True)
        its = alone.backward(its_tape, total)
        close((y[:n, b : b + 1], *(part[:, b : b + 1] for part in flat(state))), tuple(flat(its_y, its_state)), 1e-14)
        close((gradients["x"][:n, b : b + 1], gradients["h0"][:, b : b + 1]), (its["x"], its["h0"]))
        if cell.has_c:
            close((cells[:n, b : b + 1], gradients["c0"][:, b : b + 1]), (its_cells, its["c0"]))
            assert not cells[n:, b].any()
        if n == 0:
            close(flat(state)[0][:, b], batch.inputs["h0"][:, b], 0)
            close(gradients["h0"][:, b], flat(batch.dstate)[0][:, b], 0)
    close({name: gradients[name] for name in total}, total)


@pytest.mark.parametrize("cell", [cell for cell in FEW if cell.has_c], ids=short)
def test_cells_are_c_at_every_step(cell):
    problem = Problem(cell, T=5, L=2, D=2)
    cells = np.full((5, 3, 8), np.nan)
    _, (_, c), tape = problem.forward(cells, train=True)
    forth, back = tape.layers[2].c, tape.layers[3].c
    close((cells[..., :4], cells[..., 4:]), (forth[1:], back[:0:-1]), 0)
    close((cells[-1, :, :4], cells[0, :, 4:]), (c[2], c[3]), 0)


@pytest.mark.parametrize("cell", FEW, ids=short)
def test_masks_multiply_between_layers(cell):
    """A stack is its layers one after another, with products between them."""
    problem = Problem(cell, L=3, masks=True)
    y, state, _ = problem.forward()
    below = problem.inputs["x"]
    for layer in range(3):
        one = Problem(cell, I=below.shape[2])
        one.inputs = {"x": below} | {
            name: value[layer : layer + 1] if name in ("h0", "c0") else problem.inputs[name[:-1] + str(layer)]
            for name, value in problem.inputs.items()
            if name in one.inputs and name != "x"
        }
        other_y, other_state, _ = one.forward()
        close([part[layer] for part in flat(state)], [part[0] for part in flat(other_state)], 1e-14)
        below = other_y * problem.masks[layer] if layer < 2 else other_y
    close(y, below, 1e-14)


@pytest.mark.parametrize("lengths", [None, [5, 0, 3]], ids=["full", "lengths"])
@pytest.mark.parametrize("cell", FEW, ids=short)
def test_tape(cell, lengths):
    """What LayerTape promises: input and states in step order, gates that give the states, hn."""
    problem = Problem(cell, T=5, L=2, D=2, lengths=lengths)
    y, state, tape = problem.forward(train=True)
    n = np.array(lengths or [5] * 3)
    runs = np.arange(5)[:, None] < n
    assert (tape.cell, tape.stack, tape.lengths, tape.masks) == (cell, problem.stack, problem.lengths, None)
    assert tape.x is problem.inputs["x"] and len(tape.layers) == 4

    def outputs(forth, back):
        steps = [np.where(runs[..., None], layer.h[1:], 0) for layer in (forth, back)]
        return np.concatenate([steps[0], reverse_rows(steps[1], problem.lengths)], axis=2)

    close(y, outputs(*tape.layers[2:]), 0)
    for k, (layer, suffix) in enumerate(zip(tape.layers, problem.stack.suffixes, strict=True)):
        x = problem.inputs["x"] if k < 2 else outputs(*tape.layers[:2])
        close(layer.x, reverse_rows(x, problem.lengths) if k % 2 else x, 0)
        close((layer.h[0], layer.h[-1]), (problem.inputs["h0"][k], flat(state)[0][k]), 0)
        for b in range(3):
            close(layer.h[n[b] :, b], np.broadcast_to(layer.h[n[b], b], layer.h[n[b] :, b].shape), 0)
        gates = {name: layer.gates[:, :, j][runs] for j, name in enumerate(cell.gates)}
        h_in, h = layer.h[:-1][runs], layer.h[1:][runs]
        if cell.has_c:
            c_in, c = layer.c[:-1][runs], layer.c[1:][runs]
            f = gates.get("f", 1)
            close(c, f * c_in + gates.get("i", 1 - f) * gates["g"], 1e-14)
            m = np.tanh(gates["o"] * c) if cell.peephole == "cell" else gates["o"] * np.tanh(c)
            close(h, m @ problem.inputs["weight_hr" + suffix].T if cell.proj_size else m, 1e-14)
            close((layer.c[0], layer.c[-1]), (problem.inputs["c0"][k], state[1][k]), 0)
        else:
            assert layer.c is None
        if cell.kind == "rnn":
            close(h, gates["h"], 0)
        if cell.kind == "gru":
            z = gates["z"] if cell.update == "keep" else 1 - gates["z"]
            close(h, z * h_in + (1 - z) * gates["n"], 1e-14)
        if cell.kind == "gru" and cell.reset == "after":
            product = h_in @ problem.inputs["weight_hh" + suffix][8:].T + problem.inputs["bias_hh" + suffix][8:]
            close(layer.hn[runs], product, 1e-14)
        else:
            assert layer.hn is None


@pytest.mark.parametrize("lengths", [None, [5, 0, 3]], ids=["full", "lengths"])
@pytest.mark.parametrize("cell", FEW, ids=short)
def test_backward_leaves_dh(cell, lengths):
    """dh of step t is dy[t] and what the steps after it send back to their initial state."""
    problem = Problem(cell, T=5, lengths=lengths)
    _, _, _, tape = problem.run()
    (layer,) = tape.layers
    n = np.array(lengths or [5] * 3)
    for t in range(5):
        rest = Problem(cell, T=4 - t, lengths=np.maximum(n - t - 1, 0))
        rest.inputs = {**problem.inputs, "x": problem.inputs["x"][t + 1 :], "h0": layer.h[None, t + 1]}
        if cell.has_c:
            rest.inputs["c0"] = layer.c[None, t + 1]
        rest.dy, rest.dstate = problem.dy[t + 1 :], problem.dstate
        expected = problem.dy[t] + rest.run()[2]["h0"][0]
        close(layer.dh[t], np.where((t < n)[:, None], expected, 0))


def test_reverse_rows():
    x = np.arange(5 * 4 * 2).reshape(5, 4, 2)
    lengths = np.array([5, 0, 1, 3])
    turned = reverse_rows(x, lengths)
    for b, n in enumerate(lengths):
        assert turned[:, b].tolist() == x[:n, b][::-1].tolist() + x[n:, b].tolist()
    assert np.array_equal(reverse_rows(turned, lengths), x)
    assert np.array_equal(reverse_rows(x, None), x[::-1])
    assert reverse_rows(x[:0], np.zeros(4, int)).shape == (0, 4, 2)


# ---- the contract ----------------------------------------------------------------------------------------------------


def test_it_is_in_the_registry():
    assert load("numpy") is reference
    assert reference.missing() is None and reference.describe() == {}
    assert all(choose(cell, "numpy") is reference for cell in CELLS)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "sizes",
    [
        {"T": 0}, {"B": 0}, {"I": 0}, {"T": 0, "B": 0, "I": 0}, {"T": 0, "lengths": [0, 0, 0]}, {"B": 0, "lengths": []},
        {"lengths": [0, 0, 0]}, {"T": 1, "B": 1, "I": 1, "H": 1}, {"T": 7, "B": 5, "I": 9, "H": 31},
        {"T": 300, "B": 1, "H": 3}, {"T": 2, "B": 2, "H": 257, "I": 300},
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("cell", FEW, ids=short)
def test_shapes_and_dtypes(cell, sizes, dtype):
    if sizes.get("H") == 1 and cell.proj_size:
        sizes = {**sizes, "H": 3}
    problem = Problem(cell, **sizes, L=2, D=2, masks=True, dtype=dtype)
    y, state, gradients, tape = problem.run()
    wanted = [(y, problem.dy), *zip(flat(state), flat(problem.dstate), strict=True)]
    wanted += [(gradients[name], value) for name, value in problem.inputs.items()]
    for ours, like in wanted:
        assert type(ours) is np.ndarray and (ours.shape, ours.dtype) == (like.shape, dtype)
        assert ours.flags.c_contiguous and ours.flags.writeable and np.isfinite(ours).all()
    for layer in tape.layers:
        kept = (layer.x, layer.h, layer.c, layer.gates, layer.hn, layer.dh)
        assert all(array.dtype == dtype for array in kept if array is not None)
    if problem.inputs["x"].shape[0] == 0 or sizes.get("lengths") == [0, 0, 0]:
        close((*flat(state), gradients["h0"]), (*flat(problem.state), flat(problem.dstate)[0]), 0)
        assert not any(gradients[name].any() for name in problem.params)
    if dtype == np.float32:
        exact = Problem(cell, **sizes, L=2, D=2, masks=True)
        exact.inputs = {name: value.astype("f8") for name, value in problem.inputs.items()}
        exact.dy, exact.dstate = problem.dy.astype("f8"), as_state(part.astype("f8") for part in flat(problem.dstate))
        exact_y, exact_state, exact_gradients, _ = exact.run()
        for ours, theirs in zip(flat(y, state, gradients), flat(exact_y, exact_state, exact_gradients), strict=True):
            assert abs(ours - theirs).max(initial=0) <= 1e-5 * (1 + abs(theirs).max(initial=0))


@pytest.mark.parametrize("cell", FEW, ids=short)
def test_what_is_left_out(cell):
    """No state, dy or dstate are zeros of them; gradients are added to what they are given; no tape if not training."""
    problem = Problem(cell, L=2)
    zeros = Problem(cell, L=2)
    for name in ("h0", "c0")[: 1 + cell.has_c]:
        zeros.inputs[name] = 0 * zeros.inputs[name]
    y, state, tape = reference.forward(cell, problem.params, problem.inputs["x"], None, None, True)
    close((y, state), zeros.forward()[:2], 0)
    assert problem.forward()[2] is None

    zeros.dy, zeros.dstate = 0 * zeros.dy, as_state(0 * part for part in flat(zeros.dstate))
    problem.inputs = zeros.inputs
    dy, dstate = problem.dy, problem.dstate
    for problem.dy, problem.dstate in ((None, dstate), (dy, None), (None, None)):
        zeros.dy = 0 * dy if problem.dy is None else dy
        zeros.dstate = as_state(0 * part for part in flat(dstate)) if problem.dstate is None else dstate
        close(problem.backward(tape), zeros.run()[2], 0)

    before = {name: np.full(shape, 3.0) for name, shape in problem.stack.shapes.items()}
    given = {name: value.copy() for name, value in before.items()}
    problem.dy, problem.dstate = dy, dstate
    *_, returned = reference.backward(tape, dy, dstate, given)
    assert returned is given
    fresh = problem.backward(tape)
    close(given, {name: 3 + fresh[name] for name in given}, 1e-14)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf], ids=str)
@pytest.mark.parametrize(("cell", "name", "options"), [row for row in LIKE_TORCH if row[0].bias], ids=short)
def test_what_is_not_finite_goes_through(cell, name, options, bad):
    """As in PyTorch, from its step on and in its row alone; without a warning."""
    torch = pytest.importorskip("torch")
    problem = Problem(cell)
    problem.inputs["x"] = problem.inputs["x"].copy()
    problem.inputs["x"][1, 2, 0] = bad
    layer = getattr(torch.nn, name)(3, 4, **options).double()
    layer.load_state_dict({key: torch.from_numpy(value.copy()) for key, value in problem.params.items()})
    x, *state = (torch.from_numpy(problem.inputs[key].copy()) for key in ("x", "h0", "c0") if key in problem.inputs)
    with torch.no_grad():
        theirs = [part.numpy() for part in flat(layer(x, as_state(state)))]
    y, state, gradients, _ = problem.run()
    close((y, state), tuple(theirs), 1e-12)
    assert np.isfinite(y[:, :2]).all() and np.isfinite(gradients["x"][:, :2]).all()


@pytest.mark.parametrize("cell", CELLS, ids=short)
@pytest.mark.parametrize("scale", [1e4, 1e300])
def test_far_out_nothing_warns(cell, scale):
    problem = Problem(cell, scale=scale)
    with np.errstate(all="raise"):
        problem.run()


# ---- the checks notice -----------------------------------------------------------------------------------------------


def swapped_gates(step):
    """A step whose first two gates have each other's inputs."""

    def wrong(cell, w, ax, *state):
        k = np.roll(np.arange(ax.shape[1]).reshape(len(cell.gates), -1)[:2], 1, axis=0).ravel()
        ax = ax.copy()
        ax[:, : len(k)] = ax[:, k]
        return step(cell, w, ax, *state)

    return wrong


def missing_bias(step):
    """A step that forgets b_hh."""
    return lambda cell, w, *rest: step(cell, replace(w, bias_hh=0 * w.bias_hh), *rest)


def stale_state(step):
    """A step that remembers the h of the step before the one before."""
    seen = {}

    def wrong(cell, w, ax, h, *c):
        stale, seen["h"] = seen.get("h", h), h
        return step(cell, w, ax, stale if len(stale) == len(h) else h, *c)

    return wrong


@pytest.mark.parametrize("wrong", [swapped_gates, missing_bias, stale_state], ids=lambda wrong: wrong.__name__)
@pytest.mark.parametrize(("cell", "name", "options"), [(Cell("lstm"), "LSTM", {}), (Cell("gru"), "GRU", {})], ids=short)
def test_torch_notices_a_wrong_step(monkeypatch, cell, name, options, wrong):
    check_torch(Problem(cell), name, options)
    step, *rest = reference.KINDS[cell.kind]
    monkeypatch.setitem(reference.KINDS, cell.kind, (wrong(step), *rest))
    with pytest.raises(AssertionError):
        check_torch(Problem(cell), name, options)


def test_torch_notices_forgotten_lengths(monkeypatch):
    monkeypatch.setattr(reference, "_ran", lambda x, lengths: np.ones(x.shape[:2], bool))
    with pytest.raises(AssertionError):
        check_torch(Problem(Cell("lstm"), lengths=[4, 1, 3]), "LSTM", {})


def swapped_gradients(step, back, grads):
    def wrong(cell, *rest):
        da, *state = back(cell, *rest)
        first, second, *others = np.split(da, len(cell.gates), axis=1)
        return np.concatenate([second, first, *others], axis=1), *state

    return step, wrong, grads


def missing_bias_gradient(step, back, grads):
    return step, back, lambda cell, dw, *rest: grads(cell, replace(dw, bias_hh=dw.bias_hh.copy()), *rest)


def stale_gradient(step, back, grads):
    return step, back, lambda cell, dw, gates, before, after, *rest: grads(cell, dw, gates, after, after, *rest)


def unclipped_gradient(step, back, grads):
    return step, lambda cell, *rest: back(replace(cell, clip=None), *rest), grads


@pytest.mark.parametrize(
    "wrong",
    [swapped_gradients, missing_bias_gradient, stale_gradient, unclipped_gradient],
    ids=lambda wrong: wrong.__name__,
)
@pytest.mark.parametrize("cell", [Cell("lstm", peephole="diagonal", clip=0.5), Cell("gru", clip=0.5)], ids=short)
def test_finite_differences_notice_a_wrong_gradient(monkeypatch, cell, wrong):
    check_gradients(Problem(cell))
    monkeypatch.setitem(reference.KINDS, cell.kind, wrong(*reference.KINDS[cell.kind]))
    with pytest.raises(AssertionError):
        check_gradients(Problem(cell))


@pytest.mark.parametrize("part", ["_see_back", "derivative"])
def test_finite_differences_notice_a_lost_part(monkeypatch, part):
    monkeypatch.setattr(reference, part, lambda *arguments: 0.0)
    with pytest.raises(AssertionError):
        check_gradients(Problem(Cell("lstm", peephole="full")))
