"""The errors that a user can cause, and the exit code of each (docs/architecture.md, "Errors").

Every message is one line that names the file or option, the rule, the value found and the remedy.
"""

from __future__ import annotations


class EdgemoeError(Exception):
    """Base of all errors that end a command with a message instead of a traceback."""

    exit_code = 1


class Mismatch(EdgemoeError):
    """Gateware and golden machine, or a file and its hash, differ."""

    exit_code = 1


class BadInput(EdgemoeError):
    """A file, option or value that the user gave breaks a rule."""

    exit_code = 2


class ToolMissing(EdgemoeError):
    """An external tool is not installed; the message has the command that installs it."""

    exit_code = 3


class DoesNotFit(EdgemoeError):
    """A model exceeds the capacities of the hardware, or a design its device or its clock."""

    exit_code = 4


class DeviceError(EdgemoeError):
    """The accelerator ended with an error code, or a device does not answer."""

    exit_code = 5
