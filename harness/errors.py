"""The errors that a user can mend.

BenchError                 shown as one line, without a traceback; exit code 2 before anything ran
├── UnknownName            no such model, task, attention, ...
├── DuplicateName          two things of one name
├── SetupError             options that cannot be used, or not together
├── DataError              a data set that is absent, incomplete or unreadable
├── WeightsError           weights that are absent, unsafe or of another model
├── ModelError             a model that cannot be built or breaks its contract
├── MissingPackage         an optional package that this job needs
└── RecordError            a record that cannot be read or written

A message says what failed (with the value quoted), what was expected, and the next step.
"""

from __future__ import annotations

import os
import traceback
from pathlib import Path

# Frames below these say nothing to somebody who looks for the mistake in his own file.
NOT_THE_USERS = (os.path.dirname(os.__file__), os.path.dirname(__file__), "<")


class BenchError(Exception):
    """Base of every error that the harness raises on purpose."""


class UnknownName(BenchError):
    """A name that no registry holds."""


class DuplicateName(BenchError):
    """A name that is registered twice."""


class SetupError(BenchError):
    """Options that cannot be used, or not together."""


class DataError(BenchError):
    """A data set that is absent, incomplete or unreadable."""


class WeightsError(BenchError):
    """Weights that are absent, unsafe to read, or of another model."""


class ModelError(BenchError):
    """A model that cannot be built or breaks its contract."""


class MissingPackage(BenchError):
    """An optional package that this job needs.

    Args:
        package: the distribution to install, as pip names it.
        purpose: what needs it, as the start of a sentence.
    """

    def __init__(self, package: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs the package {package!r}. Install it with: pip install {package}")


class RecordError(BenchError):
    """A record that cannot be read or written."""


def reason(error: BaseException) -> str:
    """Return one line on a stranger's exception: type, first line of the message, where in the user's code."""
    if isinstance(error, SyntaxError):
        return f"{type(error).__name__}: {error.msg}, {Path(error.filename or '?').name}:{error.lineno}"
    lines = str(error).strip().splitlines()
    text = f"{type(error).__name__}: {lines[0].strip()}" if lines else type(error).__name__
    for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
        file = frame.f_code.co_filename
        if not file.startswith(NOT_THE_USERS) and "site-packages" not in file:
            return f"{text}, {Path(file).name}:{line}"
    return text
