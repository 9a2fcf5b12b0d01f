"""The arrows of the architecture: a module imports from rows below its own, and `import fastrnn` stays light."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import fastrnn

PACKAGE = Path(fastrnn.__file__).parent

# From the top down. A name stands for the module and, where it is a package, for all in it. "fastrnn" is the
# package itself, that is __init__.py with the public names.
ROWS = [
    {"__main__"},
    {"cli", "demo"},
    {"bench"},
    {"lm"},
    {"train", "diagnose", "interop"},
    {"fastrnn"},
    {"nn", "optim", "layers", "init"},
    {"module", "sequence", "config"},
    {"backends"},
    {"cell", "arguments", "errors", "_c"},
]
ROW = {name: row for row, names in enumerate(ROWS) for name in names}


def module_of(path):
    """The dotted name below the package: "backends.native"; "" for the package itself."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(source, module, is_package):
    """Dotted names below the package that a source imports, at whatever depth of its code."""
    inside = module.split(".") if module else []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found = [a.name for a in node.names if a.name.split(".")[0] == "fastrnn"]
            yield from (name.partition(".")[2] for name in found)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                up = node.level - is_package
                base = inside[: len(inside) - up] + (node.module.split(".") if node.module else [])
            elif node.module.split(".")[0] == "fastrnn":
                base = node.module.split(".")[1:]
            else:
                continue
            # `from . import nn` names modules, `from .nn import Linear` does not.
            yield from [".".join(base)] if base else (a.name if a.name in ROW else "" for a in node.names)


def row_of(module):
    name = module.split(".")[0] or "fastrnn"
    assert name in ROW, f"{name} stands in no row of the table in {Path(__file__).name}"
    return ROW[name]


def arrows_up(source, module, is_package=False):
    """What a source imports from a row above its own."""
    return [name or "fastrnn" for name in imports(source, module, is_package) if row_of(name) < row_of(module)]


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: module_of(path) or "fastrnn")
def test_no_arrow_points_up(path):
    if not module_of(path):
        return  # the public names come from every row; those above are lazy, as the next tests say
    assert arrows_up(path.read_text("utf-8"), module_of(path), path.name == "__init__.py") == []


@pytest.mark.parametrize(
    ("module", "is_package", "source", "found"),
    [
        ("cell", False, "from .layers import LSTM", ["layers"]),
        ("cell", False, "from . import nn", ["nn"]),
        ("cell", False, "def f():\n    from .backends import choose", ["backends"]),
        ("cell", False, "import fastrnn.backends.native", ["backends.native"]),
        ("module", False, "from fastrnn import LSTM", ["fastrnn"]),
        ("module", False, "import fastrnn", ["fastrnn"]),
        ("backends.native", False, "from ..module import Block", ["module"]),
        ("backends", True, "from ..module import Block", ["module"]),
        ("backends", True, "from .. import nn, cell", ["nn"]),
        ("layers", False, "if True:\n    from .interop.onnx import load", ["interop.onnx"]),
        ("interop.onnx", False, "from ..cli import main", ["cli"]),
        ("nn", False, "from .train import Trainer\nfrom .lm import Model", ["train", "lm"]),
        ("nn", False, "import numpy\nfrom os import path\nfrom .module import Module", []),
        ("backends.native", False, "from . import LayerTape\nfrom ._sequence import f\nfrom ..cell import Cell", []),
        ("cli", False, "from . import lm, nn\nfrom .interop.onnx import load\nimport fastrnn", []),
    ],
)
def test_the_check_finds_arrows(module, is_package, source, found):
    assert arrows_up(source, module, is_package) == found


def test_the_check_knows_every_module():
    with pytest.raises(AssertionError, match="stands in no row"):
        arrows_up("from .elsewhere import f", "cell")


def python(code):
    """What a fresh interpreter prints, as JSON."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_import_loads_nothing_but_numpy_and_cffi():
    added = python(
        "import sys, json, numpy, cffi, _cffi_backend; before = set(sys.modules); import fastrnn\n"
        "print(json.dumps(sorted({m.split('.')[0] for m in set(sys.modules) - before} - sys.stdlib_module_names)))"
    )
    assert added == ["fastrnn"]


def test_import_takes_no_backend_that_is_not_used():
    loaded = python("import sys, json, fastrnn; print(json.dumps([m for m in sys.modules if 'fastrnn' in m]))")
    heavy = {
        "diagnose",
        "init",
        "nn",
        "optim",
        "train",
        "interop",
        "lm",
        "cli",
        "demo",
        "backends.jit",
        "backends.native",
    }
    assert not heavy & {name.partition(".")[2] for name in loaded}


def test_import_is_quick():
    code = (
        "import json, time, numpy, cffi; start = time.perf_counter(); import fastrnn\n"
        "print(json.dumps(time.perf_counter() - start))"
    )
    assert min(python(code) for _ in range(5)) < 0.2


def test_a_call_loads_no_heavy_package():
    loaded = python(
        "import sys, json, numpy, fastrnn\n"
        "fastrnn.set_num_threads(1)\n"
        "with fastrnn.use_backend('numpy'): fastrnn.LSTM(2, 3)(numpy.zeros((4, 1, 2)))\n"
        "print(json.dumps(list(sys.modules)))"
    )
    assert not {"numba", "torch", "onnx", "keras", "tensorflow", "matplotlib"} & set(loaded)


def test_public_names_are_there_and_lazy():
    assert set(fastrnn.__all__) <= set(dir(fastrnn))
    for name in fastrnn.__all__:
        assert getattr(fastrnn, name) is not None
    with pytest.raises(AttributeError, match="'fastrnn' has no attribute 'LTSM'"):
        fastrnn.LTSM  # noqa: B018
    assert callable(fastrnn.backends)


@pytest.mark.parametrize("name", ["diagnose", "init", "lm", "nn", "optim"])
def test_modules_that_come_with_the_package(name):
    assert name in fastrnn._LAZY and name in fastrnn.__all__
    assert python(f"import json, fastrnn; print(json.dumps(fastrnn.{name}.__name__))") == f"fastrnn.{name}"


def test_type_checkers_know_the_lazy_modules_and_no_other_names():
    # A __getattr__ that they see would stand for every name.
    body = ast.parse((PACKAGE / "__init__.py").read_text("utf-8")).body
    [choice] = [node for node in body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    assert {alias.name for node in choice.body for alias in node.names} == set(fastrnn._LAZY)
    assert "__getattr__" in {node.name for node in choice.orelse}
    assert "__getattr__" not in {node.name for node in body if isinstance(node, ast.FunctionDef)}
