"""What the C library is made of: its sources, the flags of each instruction set, the interface for cffi.

Read by setup.py and, through its `cffi_modules`, by cffi, which makes `fastrnn._c` of it; nothing here compiles
anything, and nothing of it is installed. Which kernels run is decided when they do, by machine.c. Next: setup.py.
"""

from __future__ import annotations

import os
import platform
import re
import sys
import sysconfig
from pathlib import Path

from cffi import FFI

FOLDER = Path(__file__).parent

# Python's own flags ask for debug information, ten times as much as there is code: it is made where CFLAGS asks, too.
DEBUG = [] if re.search(r"(^|\s)-g(?!0)", os.environ.get("CFLAGS", "")) else ["-g0"]
# No -march=native and no -ffast-math: a wheel runs on every machine of its kind, and NaN stays NaN.
FLAGS = ["-std=gnu11", "-O3", "-ffp-contract=off", "-fno-math-errno", "-fvisibility=hidden", "-fPIC", *DEBUG]
FLAGS_OF = {
    "generic": [],
    "avx2": ["-mavx2", "-mfma"],
    "avx512": ["-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mprefer-vector-width=512"],
    "neon": [],
}
ISAS = {"x86_64": ["generic", "avx2", "avx512"], "aarch64": ["generic", "neon"], "arm64": ["generic", "neon"]}


def target() -> str:
    """The architecture to compile for: this Python's, another one where the build is told to cross-compile."""
    if sys.platform == "darwin":  # where Python itself may be for two
        archs = re.findall(r"-arch\s+(\S+)", os.environ.get("ARCHFLAGS", ""))
        return archs[0] if len(archs) == 1 else platform.machine()
    return sysconfig.get_platform().rpartition("-")[2]


def libraries(machine: str) -> list[tuple[str, dict]]:
    """Setuptools' `libraries` for an architecture: one for each instruction set, and the core, which uses them.

    A file belongs to the instruction set that its name begins with, else to the core.
    """
    isas = ISAS.get(machine, ["generic"])
    sources = {name: [] for name in ("core", *FLAGS_OF)}
    for path in sorted(FOLDER.glob("*.c")):
        owner = path.stem.partition("_")[0]
        sources[owner if owner in FLAGS_OF else "core"].append(f"csrc/{path.name}")
    return [
        (
            f"frnn_{name}",
            {
                "sources": sources[name],
                "cflags": FLAGS + FLAGS_OF.get(name, []),
                "macros": [(f"FRNN_HAVE_{isa.upper()}", "1") for isa in isas],
                "include_dirs": ["csrc"],
                "obj_deps": {"": HEADERS},
            },
        )
        for name in ("core", *isas)
    ]


def declarations(header: str) -> str:
    """What cffi may read of a header: all between its two marks but for the preprocessor's lines."""
    text = header.split("/* cdef: begin */")[1].split("/* cdef: end */")[0]
    return "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))


# What everything is made again for when it changes; this file is among them for its flags.
HEADERS = ["csrc/build.py", *(f"csrc/{path.name}" for path in sorted(FOLDER.glob("*.h")))]
TARGET = target()
LIBRARIES = libraries(TARGET)

ffi = FFI()
ffi.cdef(declarations((FOLDER / "fastrnn.h").read_text(encoding="utf-8")))
ffi.set_source(
    "fastrnn._c",
    '#include "fastrnn.h"',
    include_dirs=["csrc"],
    depends=[*HEADERS, *(source for _, library in LIBRARIES for source in library["sources"])],
    extra_compile_args=["-std=gnu11", "-fvisibility=hidden", *DEBUG],
    extra_link_args=["-pthread", "-lm"],
)
