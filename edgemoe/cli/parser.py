"""The verbs of `edgemoe` and their options; `edgemoe.cli.verbs` carries them out."""

from __future__ import annotations

import argparse
import difflib
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import edgemoe
from edgemoe.errors import BadInput

EPILOG = """\
MODEL is a model file (docs/model-file.md) or `nano`, the packaged MultiMNIST model.
HW is a TOML file or a name: nano, m3vit-64, m3vit-128, m3vit-256, m3vit-512, m3vit-1024, ulx3s-85f,
ulx3s-85f-64, ulx3s-25f.
IMAGE is a .npy or .png file, `FILE.npz:N` for image N of a stack, or `nano:N` for packaged test image N.
exit codes: 0 ok, 1 mismatch, 2 bad input, 3 tool missing, 4 does not fit, 5 device error
"""


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, raised as `BadInput`."""

    def __init__(self, **options: Any):
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage and leaving."""
        raise BadInput(f"{message}; see `{self.prog} --help`")

    def parse_known_args(self, args=None, namespace=None):  # noqa: D102 - of argparse
        known, rest = super().parse_known_args(args, namespace)
        if rest:
            self.error(f"unknown argument {rest[0]!r}{self._suggestion(rest[0])}")
        return known, rest

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        choices = list(action.choices or ())
        if action.choices is not None and value not in choices:
            what = (
                "verb" if isinstance(action, argparse._SubParsersAction) else "/".join(action.option_strings)
            )
            near = difflib.get_close_matches(str(value), [str(c) for c in choices], 1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            self.error(
                f"{what or action.metavar} must be one of {', '.join(map(str, choices))}; found {value!r}{hint}"
            )

    def _suggestion(self, argument: str) -> str:
        options = [name for action in self._actions for name in action.option_strings]
        near = difflib.get_close_matches(argument.split("=")[0], options, 1)
        return f" (did you mean {near[0]}?)" if near else ""


def verb(name: str) -> Callable[[argparse.Namespace], int | None]:
    """The function of a verb, imported when it is called."""

    def run(arguments: argparse.Namespace) -> int | None:
        return getattr(importlib.import_module("edgemoe.cli.verbs"), name)(arguments)

    return run


def parser() -> Parser:
    """The parser of the whole command line."""
    top = Parser(
        prog="edgemoe",
        description="Multi-task mixture-of-experts vision transformers as bit-exact gateware.",
        epilog=EPILOG,
    )
    top.add_argument("--version", action="version", version=f"edgemoe {edgemoe.__version__}")
    verbs = top.add_subparsers(metavar="VERB", title="verbs", required=True)

    def add(name: str, help: str, run: str = "", json: bool = True) -> Parser:
        made = verbs.add_parser(name, help=help, description=help[0].upper() + help[1:] + ".", epilog=EPILOG)
        made.set_defaults(run=verb(run or name), verb=name)
        if json:
            made.add_argument("--json", metavar="FILE", type=Path, help="write the report as JSON")
        return made

    _demo(add("demo", "classify real images with generated Verilog and compare every tensor"))
    _import(add("import", "make a model file from released weights", "import_weights"))
    _info(add("info", "show a model's shapes, parameters and multiply-accumulates"))
    _compile(add("compile", "turn a model into a memory image and a program", "compile_model"))
    _reference(add("reference", "run the float model"))
    _golden(add("golden", "run the bit-exact golden machine"))
    _sim(add("sim", "simulate the Verilog and compare it with the golden machine"))
    _compare(add("compare", "compare reference, golden machine and gateware, by tensor"))
    _perf(add("perf", "predict cycles, external bytes and utilisation, by descriptor"))
    _verilog(add("verilog", "write the Verilog of an accelerator"))
    _synth(add("synth", "synthesise, place and route a unit or the accelerator: area and clock"))
    _build_board(add("build", "make a board's bitstream, with a report of area and clocks"))
    _program(add("program", "write a bitstream to a board"))
    _run(add("run", "run a model on a board"))
    add("doctor", "show what is installed, what is missing, and the remedy")
    return top


def _cycles(text: str) -> tuple[int, int]:
    """``A:B`` as two cycles."""
    first, _, end = text.partition(":")
    if not (first.isdigit() and end.isdigit() and int(first) < int(end)):
        raise argparse.ArgumentTypeError(f"must be A:B with A below B, found {text!r}")
    return int(first), int(end)


def _demo(p: Parser) -> None:
    _output(p, "directory", default=Path("build/demo"))
    p.add_argument("--images", type=int, default=32, metavar="N", help="test images to simulate (default 32)")
    p.add_argument(
        "--waves", action="store_true", help="also write a waveform of the first 4000 cycles (waves.vcd)"
    )


def _import(p: Parser) -> None:
    p.add_argument("layout", choices=["edge-moe"], metavar="edge-moe", help="float32 .bin files of Edge-MoE")
    p.add_argument("directory", metavar="DIR", type=Path, help="the folder with the files")
    _output(p, "model file")


def _info(p: Parser) -> None:
    _model(p)
    p.add_argument("--hardware", metavar="HW", help="show whether the model fits this hardware, too")


def _compile(p: Parser) -> None:
    _model(p)
    _hardware(p)
    p.add_argument(
        "--fit", action="store_true", help="raise the hardware's capacities to what the model needs"
    )
    p.add_argument("--profile", metavar="P", help="w8a16 or w16a16, in place of the hardware's")
    p.add_argument(
        "--calibration",
        metavar="IMAGES",
        help="images that set the formats: a folder, a stack (.npy, .npz) or one image "
        "(default for nano: the last 16 packaged images)",
    )
    p.add_argument(
        "--pixel-bytes", type=int, choices=[1, 2], metavar="N", help="1 for uint8 images, 2 for any"
    )
    _output(p, "build directory")


def _reference(p: Parser) -> None:
    _model(p)
    _run_options(p)


def _golden(p: Parser) -> None:
    _build(p)
    _run_options(p)


def _sim(p: Parser) -> None:
    _build(p)
    _run_options(p, routes=False)
    p.add_argument(
        "--verilog", metavar="DIR", type=Path, help="simulate the Verilog in DIR, not the generated one"
    )
    p.add_argument(
        "--waves", metavar="FILE", type=Path, help="write a waveform (.vcd), 40 kB a cycle for nano"
    )
    p.add_argument(
        "--waves-cycles", metavar="A:B", type=_cycles, default=(0, 4000), help="cycles of it (default 0:4000)"
    )


def _compare(p: Parser) -> None:
    _build(p)
    _image_and_task(p)
    p.add_argument(
        "--verilog", metavar="DIR", type=Path, help="simulate the Verilog in DIR, not the generated one"
    )
    p.add_argument(
        "--model", metavar="MODEL", help="the float model, if it is not where BUILD was compiled from"
    )
    p.add_argument("--no-gateware", action="store_true", help="compare reference and golden machine only")


def _perf(p: Parser) -> None:
    _build(p)
    p.add_argument("--image", metavar="IMAGE", help="use the routing of this image")
    p.add_argument("--task", metavar="T", default="0", help="number or name of a task (default 0)")
    p.add_argument(
        "--routing", choices=["balanced", "skewed", "one"], metavar="R",
        help="use a made-up routing: balanced, skewed or one (default balanced)",
    )  # fmt: skip


def _verilog(p: Parser) -> None:
    _hardware(p)
    _output(p, "directory")
    p.add_argument(
        "--testbench", action="store_true", help="add a self-checking Verilog testbench and its memory images"
    )
    p.add_argument(
        "--build", metavar="BUILD", type=Path, help="what the testbench runs (default: the nano model)"
    )
    p.add_argument(
        "--image", metavar="IMAGE", default="nano:0", help="image of the testbench (default nano:0)"
    )
    p.add_argument("--task", metavar="T", default="0", help="task of the testbench (default 0)")


def _synth(p: Parser) -> None:
    p.add_argument(
        "--hardware", metavar="HW", default="m3vit-128", help="TOML file or name (default m3vit-128)"
    )
    p.add_argument(
        "--unit", metavar="NAME", help="one unit alone, such as gelu or array (default: the accelerator)"
    )
    p.add_argument(
        "--target", choices=["ecp5-85k", "ecp5-25k", "ecp5-12k", "ice40up5k", "xcup"], default="ecp5-85k", metavar="T",
        help="ecp5-85k, ecp5-25k, ecp5-12k, or, synthesis only, ice40up5k or xcup (default ecp5-85k)",
    )  # fmt: skip
    p.add_argument("--seeds", type=int, default=1, metavar="N", help="runs of place and route (default 1)")
    p.add_argument(
        "--target-mhz", type=float, default=80.0, metavar="F",
        help="exit with 4 if the clock (median of the seeds) is slower (default 80)",
    )  # fmt: skip
    p.add_argument("--no-route", action="store_true", help="synthesis only: area, no clock")
    p.add_argument("-o", "--output", metavar="DIR", type=Path, help="directory for netlist, reports and logs")


def _build_board(p: Parser) -> None:
    p.add_argument("--board", metavar="B", required=True, help="ulx3s-85f, ulx3s-25f or ulx3s-12f")
    p.add_argument("--hardware", metavar="HW", help="TOML file or name (default: what suits the board)")
    p.add_argument("--seeds", type=int, default=1, metavar="N", help="runs of place and route (default 1)")
    p.add_argument(
        "--target-mhz", type=float, metavar="F",
        help="clock of the core; exit with 4 if it is missed in the median of the seeds (default: the board's)",
    )  # fmt: skip
    p.add_argument(
        "--memory-mhz",
        type=float,
        metavar="F",
        help="highest clock of the SDRAM, 90 to 133 (default: the board's)",
    )
    p.add_argument("--model", metavar="MODEL", help="predict images per second of this model (or m3vit-tiny)")
    _output(p, "directory")


def _program(p: Parser) -> None:
    p.add_argument("--board", metavar="B", required=True, help="ulx3s-85f, ulx3s-25f or ulx3s-12f")
    p.add_argument(
        "bitstream", metavar="BITSTREAM", type=Path, help="the .bit file that `edgemoe build` made"
    )
    p.add_argument(
        "--flash", action="store_true", help="write it to the board's flash: it stays there without power"
    )


def _run(p: Parser) -> None:
    p.add_argument("--board", metavar="B", required=True, help="ulx3s-85f, ulx3s-25f or ulx3s-12f")
    p.add_argument(
        "--tty", metavar="PORT", required=True, help="the board's serial port, such as /dev/ttyUSB0"
    )
    p.add_argument(
        "--model",
        metavar="M",
        required=True,
        help="directory that `edgemoe compile` made, or a model file, or nano",
    )
    p.add_argument(
        "--hardware",
        metavar="HW",
        help="hardware of the bitstream, for a model file (default: what suits the board)",
    )
    p.add_argument("--baud", type=int, metavar="N", help="bits per second (default: the board's)")
    _run_options(p, routes=False, trace=False)


def _model(p: Parser) -> None:
    p.add_argument("model", metavar="MODEL", help="model file, or nano")


def _build(p: Parser) -> None:
    p.add_argument("build", metavar="BUILD", type=Path, help="directory that `edgemoe compile` made")


def _hardware(p: Parser) -> None:
    p.add_argument("--hardware", metavar="HW", required=True, help="TOML file or name")


def _output(p: Parser, what: str, default: Path | None = None) -> None:
    shown = f" (default {default})" if default else ""
    p.add_argument(
        "-o", "--output", metavar="OUT", type=Path, default=default, required=default is None,
        help=f"{what} to write, replaced if it exists{shown}",
    )  # fmt: skip


def _image_and_task(p: Parser) -> None:
    p.add_argument("--image", metavar="IMAGE", required=True, help="image file, FILE.npz:N, or nano:N")
    p.add_argument("--task", metavar="T", default="0", help="number or name of a task (default 0)")


def _run_options(p: Parser, routes: bool = True, trace: bool = True) -> None:
    _image_and_task(p)
    if routes:
        p.add_argument("--routes", metavar="FILE", type=Path, help="force the experts: .npz with l{L}_topk")
    if trace:
        p.add_argument("--trace", action="store_true", help="keep every block's tensors in OUT")
    p.add_argument("-o", "--output", metavar="OUT", type=Path, help=".npz with x, logits and traced tensors")
