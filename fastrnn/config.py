"""What this installation runs on, and with how many threads.

`show_config()` is what a report of a problem begins with. Which backend and which instruction
set run is decided by `backends`; this only asks them.
"""

from __future__ import annotations

import os
import platform
import sys
from typing import Any

import numpy as np

from .backends import REGISTRY, cpus, forced, load
from .errors import DtypeError, OptionError, warn

__all__ = ["get_num_threads", "set_num_threads", "show_config"]

ENVIRONMENT = ("FASTRNN_BACKEND", "FASTRNN_ISA", "FASTRNN_NUM_THREADS")


def set_num_threads(n: int) -> None:
    """Run the C kernels, or where they are not built numba's, with n threads, the caller's among them.

    More than the machine grants count as so many. Raises DtypeError for what is no integer, OptionError below 1.
    Where there are neither kernels, a FastrnnWarning says that nothing changes.
    """
    if isinstance(n, bool) or not hasattr(n, "__index__"):
        raise DtypeError(f"the number of threads must be an integer >= 1, not {n!r}")
    if n.__index__() < 1:
        raise OptionError(f"the number of threads must be an integer >= 1, not {n!r}")
    module = _threaded()
    if module is None:
        warn(f"set_num_threads({n}) changes nothing: {load('c').missing()}")
    else:
        module.set_num_threads(n.__index__())


def get_num_threads() -> int:
    """How many threads the C kernels, or where they are not built numba's, run with; 1 where there are neither."""
    module = _threaded()
    return 1 if module is None else module.get_num_threads()


def _threaded() -> Any:
    """The backend whose threads count, or None."""
    return next((m for m in map(load, ("c", "numba")) if m.missing() is None and m.broken() is None), None)


def show_config(as_dict: bool = False) -> dict[str, Any] | None:
    """Print versions, CPU, threads, what the environment forces, and each backend or why it is missing.

    With as_dict=True, return it instead.
    """
    config: dict[str, Any] = {
        "fastrnn": sys.modules[__package__].__version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "platform": platform.platform(),
        "cpu": _cpu(),
        "cpus": cpus(),
        "threads": get_num_threads(),
        "environment": {name: os.environ[name] for name in ENVIRONMENT if name in os.environ},
        "forced backend": forced(),
        "backends": {name: _describe(name) for name in REGISTRY},
    }
    if as_dict:
        return config
    _print(config)
    return None


def _describe(name: str) -> dict[str, Any]:
    module = load(name)
    reason = module.missing()
    return {"missing": reason} if reason else {"usable": True, **module.describe()}


def _cpu() -> str:
    """The CPU's name, as Linux or Python knows it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _print(config: dict[str, Any], indent: int = 0) -> None:
    for name, value in config.items():
        if isinstance(value, dict) and value:
            print(f"{'':{indent}}{name}")
            _print(value, indent + 2)
        else:
            print(f"{'':{indent}}{name:<{18 - indent}}{'none' if value in (None, {}) else value}")
