"""Builds the C library; where that cannot be done, installs fastrnn without it and says so.

What the library is made of is in csrc/build.py, all else of the package in pyproject.toml. FASTRNN_REQUIRE_C=1 in the
environment makes a build without the library fail.
"""

import os
import runpy
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from setuptools import setup
from setuptools.command.build_clib import build_clib
from setuptools.command.build_ext import build_ext
from setuptools.errors import CCompilerError, ExecError, PlatformError

MESSAGE = """
*******************************************************************************
fastrnn's C library cannot be built here:

    {error}

It needs a C compiler and Python's headers
(Debian and Ubuntu: apt install build-essential python3-dev; macOS: xcode-select --install);
"pip install -v" shows the compiler's own words.
{outcome}
*******************************************************************************
"""
WITHOUT = """
fastrnn is being installed WITHOUT it. It will run with numba where that is installed
(pip install "fastrnn[numba]"), else with NumPy, far more slowly.
pip keeps what it has built: once there is a compiler, it builds anew with
pip install --no-cache-dir --force-reinstall fastrnn"""

REQUIRED = """
FASTRNN_REQUIRE_C is set, so fastrnn is not installed."""

BUILD = runpy.run_path("csrc/build.py")
if sys.platform == "darwin":
    os.environ["ARCHFLAGS"] = f"-arch {BUILD['TARGET']}"  # never two: instruction sets have flags of their own


@contextmanager
def or_without_c(distribution):
    """Where the block fails to compile, leave the library out of what is built, unless it must be there."""
    try:
        yield
    except (CCompilerError, ExecError, PlatformError, OSError) as error:
        if os.environ.get("FASTRNN_REQUIRE_C", "0") not in ("", "0"):
            raise SystemExit(MESSAGE.format(error=error, outcome=REQUIRED)) from error
        leave_out_c(distribution)
        announce(MESSAGE.format(error=error, outcome=WITHOUT))


def leave_out_c(distribution):
    """Build the rest, as what runs on any machine; a library that an earlier build left behind is not packed."""
    build = distribution.get_command_obj("build")
    build.ensure_finalized()
    distribution.libraries = distribution.ext_modules = None
    for module in Path(build.build_lib).glob("fastrnn/_c.*"):
        module.unlink()
    if wheel := distribution.get_command_obj("bdist_wheel", create=False):
        wheel.root_is_pure = True  # which it settled before anything was compiled; its name says py3-none-any


def announce(text):
    """Write to standard error and, since pip hides that, to the terminal, if there is one."""
    print(text, file=sys.stderr)
    if not sys.stderr.isatty():
        try:
            with open("/dev/tty", "w") as terminal:
                print(text, file=terminal)
        except OSError:
            pass


class Libraries(build_clib):
    """The static libraries, one for each instruction set, made side by side."""

    def run(self):
        with or_without_c(self.distribution):
            super().run()

    def build_libraries(self, libraries):
        with ThreadPoolExecutor() as pool:
            list(pool.map(super().build_libraries, [[library] for library in libraries]))


class Extension(build_ext):
    """The module that they become part of."""

    def run(self):
        with or_without_c(self.distribution):
            self.run_command("build_clib")  # which `build_ext --inplace` alone would not do
            if self.distribution.ext_modules:
                super().run()
                return
        self.extensions = []


limited_api = {} if sysconfig.get_config_var("Py_GIL_DISABLED") else {"bdist_wheel": {"py_limited_api": "cp310"}}
setup(
    cffi_modules=["csrc/build.py:ffi"],
    libraries=BUILD["LIBRARIES"],
    cmdclass={"build_clib": Libraries, "build_ext": Extension},
    options=limited_api,
)
