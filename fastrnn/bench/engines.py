"""The engines that can be timed, and what each must offer. None is imported until it is asked for.

An engine is a module of this folder with `version()` and `prepare(case, data, variant)`; this file is the list of
them. They run in processes of their own: worker.py serves one, race.py asks them in turn.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np

from .cases import Case, data

__all__ = ["ENGINES", "OURS", "Engine", "Unsupported", "Work", "prepare"]


class Unsupported(Exception):
    """The engine cannot do the case, or not in reasonable time; the message says why."""


class Work(NamedTuple):
    """A case made ready.

    run   does the work once, as its users would, and returns what it found in the engine's own form
    read  that as arrays in fastrnn's layout and names: "y" [T, B, D*H]; in training also "dx" and "d" + the name of
          each parameter; of a language model "loss" and "norm", the gradient's norm before clipping
    """

    run: Callable[[], Any]
    read: Callable[[Any], dict[str, np.ndarray]]


@dataclass(frozen=True)
class Engine:
    """title: in tables; module, variant: what runs it; needs: the modules without which it is not here."""

    title: str
    module: str
    variant: str
    needs: tuple[str, ...] = ()
    modes: tuple[str, ...] = ("inference", "training", "step", "words")

    def missing(self) -> str | None:
        """Why it cannot run here, in a few words, or None."""
        absent = [name for name in self.needs if not find_spec(name)]
        if absent:
            return f"{' and '.join(absent)} not installed"
        return import_module(f".{self.module}", __package__).missing(self.variant) if self.module == "ours" else None


ENGINES = {
    "c": Engine("fastrnn C", "ours", "c"),
    "numba": Engine("fastrnn numba", "ours", "numba"),
    "numpy": Engine("fastrnn NumPy", "ours", "numpy"),
    "torch": Engine("PyTorch", "pytorch", "inference", ("torch",)),
    "torch-eager": Engine("PyTorch, recording", "pytorch", "eager", ("torch",), ("inference", "step")),
    "torch-compiled": Engine("PyTorch, compiled", "pytorch", "compiled", ("torch",), ("inference",)),
    "onnxruntime": Engine("ONNX Runtime", "onnx_graph", "onnxruntime", ("onnx", "onnxruntime"), ("inference", "step")),
    "openvino": Engine("OpenVINO", "onnx_graph", "openvino", ("onnx", "openvino"), ("inference", "step")),
    "jax": Engine("JAX", "jax_scan", "jit", ("jax",)),
    "keras": Engine("Keras", "keras_layers", "tensorflow", ("keras", "tensorflow")),
}
OURS = ("c", "numba", "numpy")


def load(engine: str) -> Any:
    """The module that runs an engine."""
    return import_module(f".{ENGINES[engine].module}", __package__)


def prepare(engine: str, case: Case) -> Work:
    """The case, ready to run; raises Unsupported."""
    entry = ENGINES[engine]
    if case.mode not in entry.modes:
        raise Unsupported(f"no {case.mode}")
    return load(engine).prepare(case, data(case), entry.variant)
