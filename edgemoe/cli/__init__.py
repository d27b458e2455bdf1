"""The command `edgemoe`: arguments in, tables out, one line and an exit code for every error.

Exit codes: 0 ok, 1 mismatch or failed check, 2 usage or bad input, 3 a tool is missing, 4 does not fit or
misses timing, 5 device error (`edgemoe.errors`). Only the standard library is imported here; everything
else is imported by the verb that needs it, so that `edgemoe --help` is quick.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from edgemoe.errors import BadInput, EdgemoeError, ToolMissing

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code; never raises for what a user can cause."""
    from edgemoe.cli.parser import parser

    try:
        arguments = parser().parse_args(argv)
        return arguments.run(arguments) or 0
    except EdgemoeError as error:
        return _fail(error)
    except ModuleNotFoundError as error:
        if (error.name or "edgemoe").split(".")[0] == "edgemoe":
            raise
        return _fail(ToolMissing(f"the Python package {error.name} is missing; see `edgemoe doctor`"))
    except OSError as error:
        if error.filename is None:
            raise
        return _fail(BadInput(f"{error.filename}: {error.strerror}"))
    except KeyboardInterrupt:
        print("edgemoe: interrupted", file=sys.stderr)
        return INTERRUPTED
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0


def _fail(error: EdgemoeError) -> int:
    print("edgemoe: " + " ".join(str(error).split()), file=sys.stderr)
    return error.exit_code


def entry() -> None:
    """Entry point of the console script."""
    try:
        code = main()
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    sys.exit(code)
