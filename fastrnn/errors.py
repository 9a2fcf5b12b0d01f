"""The exceptions and the warning of fastrnn.

Each is also the built-in exception that fits, so code written against NumPy or
PyTorch keeps catching what it caught. A message names what was given, what was
wanted and, where there is one, the way out.
"""

import os
import sys
import warnings


class FastrnnError(Exception):
    """Anything fastrnn raises on purpose."""


class ShapeError(FastrnnError, ValueError):
    """An array, a size or a length does not fit the others."""


class DtypeError(FastrnnError, TypeError):
    """An argument is of a type or dtype that cannot be used."""


class OptionError(FastrnnError, ValueError):
    """An option has a value that does not exist or does not go with the others."""


class BackendError(FastrnnError, RuntimeError):
    """A backend or an instruction set is not there, or cannot do what was asked."""


class UsageError(FastrnnError, RuntimeError):
    """Calls came in an order that has no meaning, such as backward before forward."""


class OutOfMemoryError(FastrnnError, MemoryError):
    """A buffer could not be allocated."""


class FastrnnWarning(UserWarning):
    """Something works, but slower or otherwise than the user may expect."""


def warn(message: str) -> None:
    """Warn of it at the caller's line: the innermost one that is not in this package."""
    level, frame, inside = 2, sys._getframe(1), os.path.dirname(__file__) + os.sep
    while frame.f_back is not None and frame.f_code.co_filename.startswith(inside):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, FastrnnWarning, stacklevel=level)
