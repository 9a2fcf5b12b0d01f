"""ONNX Runtime and OpenVINO as engines, both on one ONNX graph. They run networks and do not train them.

A variant is a runtime. ONNX has the gates in another order than PyTorch: LSTM i o f c, GRU z r h.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from itertools import cycle
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from .cases import Case, Data
from .engines import Work

ORDER = {"lstm": (0, 3, 1, 2), "gru": (1, 0, 2), "rnn": (0,)}  # which of PyTorch's gates stands at each place
OPSET, IR = 14, 8

_threads = 1
_used = "onnxruntime"


def version() -> str:
    """The runtime's that the latest case was prepared for."""
    return str(import_module(_used).__version__).split("-")[0]


def use_threads(threads: int) -> None:
    """Of the models to come."""
    global _threads
    _threads = threads


def prepare(case: Case, given: Data, runtime: str) -> Work:
    """A case of inference or step."""
    global _used
    _used = runtime
    model = graph(case, given)
    feeds: dict[str, np.ndarray] = {"x": given.x}
    if case.ragged:
        feeds["lengths"] = given.lengths.astype(np.int32)
    states = {name: np.zeros((1, case.batch, case.hidden), np.float32) for name in _states(case)}
    run = {"onnxruntime": _onnxruntime, "openvino": _openvino}[runtime](model, feeds, states)
    return Work(run, lambda y: {"y": np.array(y).reshape(case.steps, case.batch, -1)})


def _states(case: Case) -> list[str]:
    """What a step carries over."""
    return [] if case.mode != "step" else ["h", "c"] if case.cell == "lstm" else ["h"]


def graph(case: Case, given: Data) -> bytes:
    """The case's network as a serialised ONNX model: x [T, B, H] to y [T, B, D*H]; in a step also the states."""
    nodes, constants, below = [], [], "x"
    states = _states(case)
    for layer in range(case.layers):
        weights = [_stacked(case, given, layer, what) for what in ("weight_ih", "weight_hh", "bias")]
        names = [f"{what}{layer}" for what in "WRB"]
        constants += [numpy_helper.from_array(w, name) for w, name in zip(weights, names, strict=True)]
        last = layer == case.layers - 1
        outputs = [f"Y{layer}", *(f"{name}_out" for name in states)]
        nodes.append(
            helper.make_node(
                case.cell.upper(),
                [below, *names, "lengths" * case.ragged, *states],
                outputs,
                hidden_size=case.hidden,
                direction="bidirectional" if case.directions == 2 else "forward",
                **({"linear_before_reset": 1} if case.cell == "gru" else {}),
            )
        )
        below = "y" if last else f"x{layer + 1}"
        nodes += [
            helper.make_node("Transpose", [f"Y{layer}"], [f"TBDH{layer}"], perm=[0, 2, 1, 3]),
            helper.make_node("Reshape", [f"TBDH{layer}", "flat"], [below]),
        ]
    constants.append(numpy_helper.from_array(np.array([0, 0, -1]), "flat"))

    def tensor(name: str, *shape: int) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    inputs = [tensor("x", *given.x.shape)]
    if case.ragged:
        inputs.append(helper.make_tensor_value_info("lengths", TensorProto.INT32, [case.batch]))
    inputs += [tensor(name, 1, case.batch, case.hidden) for name in states]
    made = [tensor("y", case.steps, case.batch, case.directions * case.hidden)]
    made += [tensor(f"{name}_out", 1, case.batch, case.hidden) for name in states]
    opset = helper.make_opsetid("", OPSET)
    model = helper.make_model(
        helper.make_graph(nodes, case.name, inputs, made, constants), opset_imports=[opset], ir_version=IR
    )
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def _stacked(case: Case, given: Data, layer: int, what: str) -> np.ndarray:
    """[D, rows, ...] of a layer in ONNX's order; the two biases side by side."""
    rows = []
    for place in case.places(layer):
        names = [f"bias_ih{place}", f"bias_hh{place}"] if what == "bias" else [f"{what}{place}"]
        rows.append(np.concatenate([case.reordered(given.params[name], ORDER[case.cell]) for name in names]))
    return np.stack(rows)


# ---------------------------------------------------------------- the runtimes


def _onnxruntime(model: bytes, feeds: dict[str, np.ndarray], states: dict[str, np.ndarray]) -> Callable[[], Any]:
    """Its inputs and outputs are bound once: `session.run` would look up, convert and allocate them in each call."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = _threads, 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    y = np.empty(session.get_outputs()[0].shape, np.float32)
    value = onnxruntime.OrtValue.ortvalue_from_numpy  # in the array's own memory
    fixed, output = {name: value(array) for name, array in feeds.items()}, value(y)
    here, there = ({name: value(array.copy()) for name, array in states.items()} for _ in range(2))

    def bound(before: dict[str, Any], after: dict[str, Any]) -> Any:
        """A call that reads its states from one set and writes them to the other."""
        binding = session.io_binding()
        binding.bind_ortvalue_output("y", output)
        for name, array in (fixed | before).items():
            binding.bind_ortvalue_input(name, array)
        for name, array in after.items():
            binding.bind_ortvalue_output(f"{name}_out", array)
        return binding

    turns = cycle([bound(here, there), bound(there, here)])  # a step's states go to and fro between two sets

    def run() -> Any:
        session.run_with_iobinding(next(turns))
        return y

    return run


def _openvino(model: bytes, feeds: dict[str, np.ndarray], states: dict[str, np.ndarray]) -> Callable[[], Any]:
    import openvino

    core = openvino.Core()
    compiled = core.compile_model(
        core.read_model(model, openvino.Tensor(np.empty(0, np.uint8))),
        "CPU",
        {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": _threads,
            "INFERENCE_PRECISION_HINT": "f32",
        },
    )
    request = compiled.create_infer_request()
    inputs = feeds | states
    for name, array in inputs.items():
        request.set_tensor(name, openvino.Tensor(array, shared_memory=True))
    y = request.get_tensor("y").data
    pairs = [(request.get_tensor(f"{name}_out").data, array) for name, array in states.items()]

    def run(_held: Any = inputs) -> Any:  # the request reads their memory without holding on to it
        request.infer()
        for found, array in pairs:
            array[...] = found
        return y

    return run
