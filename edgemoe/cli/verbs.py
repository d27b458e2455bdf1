"""What each verb does: read the inputs, call `edgemoe.api`, print a table, write the JSON report."""

from __future__ import annotations

from argparse import Namespace
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import edgemoe
from edgemoe.cli import show
from edgemoe.errors import BadInput, Mismatch

REPORT = 1
"""Version of the JSON reports."""


def write_report(arguments: Namespace, values: dict[str, Any]) -> None:
    """Write ``values`` to the file of ``--json``, if it was given."""
    if arguments.json:
        from edgemoe.output import write_json

        head = {"edgemoe": edgemoe.__version__, "report": arguments.verb, "version": REPORT}
        write_json(arguments.json, {**head, **values})


def demo(arguments: Namespace) -> int:
    """`edgemoe demo`."""
    from edgemoe import demo as demonstration
    from edgemoe.cli import tables

    with show.progress() as tick:
        values = demonstration.run(arguments.output, arguments.images, arguments.waves, tick)
    show.console().print(tables.demo(values))
    show.say(f"\n{arguments.output}/report.html shows it all; {values['seconds']} s")
    write_report(arguments, values)
    if values["mismatches"]:
        raise Mismatch(values["first_difference"])
    return 0


# -- models -------------------------------------------------------------------------------------


def import_weights(arguments: Namespace) -> int:
    """`edgemoe import edge-moe DIR -o FILE`."""
    from edgemoe import checkpoint, output

    model = checkpoint.import_edge_moe(arguments.directory)
    with output.file(arguments.output) as temporary:
        checkpoint.save(temporary, model.config, model.tensors)
    show.say(
        f"{arguments.output}: {model.config.name}, {len(model.config.tasks)} tasks, "
        f"{show.count(model.parameters)} parameters"
    )
    write_report(arguments, {"model": model.config.name, "parameters": model.parameters})
    return 0


def info(arguments: Namespace) -> int:
    """`edgemoe info MODEL`."""
    from dataclasses import asdict

    from edgemoe import inputs
    from edgemoe.config import load_hardware, needs

    model = inputs.model(arguments.model)
    c, macs = model.config, model.config.macs()
    out = show.console()
    shape = show.table("", "")
    rows = {
        "image": f"{c.channels} x {c.height} x {c.width}, patches of {c.patch[0]} x {c.patch[1]}",
        "tokens": f"{c.tokens} (class token and {c.tokens - 1} patches) of {c.dim} channels",
        "blocks": f"{c.depth}, {c.heads} heads of {c.head_dim}",
        "dense MLP": f"{c.mlp_dim} in blocks {_list(b for b in range(c.depth) if b not in c.moe_blocks)}",
        "experts": f"{c.experts} of {c.expert_dim}, {c.top_k} per token, in blocks {_list(c.moe_blocks)}",
        "tasks": ", ".join(f"{t} {n}" + (f" ({k} classes)" if k else "") for t, n, k in _tasks(c)),
        "parameters": f"{show.count(model.parameters)} ({show.size(model.parameters)} at 8 bits)",
    }
    if not c.moe_blocks:
        del rows["experts"]
    for name, value in rows.items():
        shape.add_row(name, value)
    out.print(show.heading(c.name), shape, "", sep="\n")
    work = show.table("", ">MACs", ">share")
    for name, value in macs.items():
        if value:
            work.add_row(name, show.count(value), show.percent(value / sum(macs.values())))
    work.add_row("sum", show.count(sum(macs.values())), "")
    out.print(show.heading("multiply-accumulates per image and task"), work, sep="\n")
    report: dict[str, Any] = {"model": asdict(c), "parameters": model.parameters, "macs": macs}
    report["total_macs"] = sum(macs.values())
    if arguments.hardware:
        hardware = load_hardware(arguments.hardware)
        report["needs"] = needs(c, hardware)
        report["fits"] = all(value <= getattr(hardware, key) for key, value in report["needs"].items())
        fits = show.table("", ">needed", ">there", "")
        for key, value in report["needs"].items():
            have = getattr(hardware, key)
            fits.add_row(
                key, show.count(value), show.count(have), "" if value <= have else "[red]too small[/]"
            )
        out.print("", show.heading(f"capacities of {hardware.name}"), fits, sep="\n")
    write_report(arguments, report)
    return 0


def _tasks(config) -> list[tuple[int, str, int]]:
    classes = config.classes or (0,) * len(config.tasks)
    return [(t, name, k) for t, (name, k) in enumerate(zip(config.tasks, classes))]


def _list(numbers) -> str:
    return ", ".join(str(n) for n in numbers) or "none"


def reference(arguments: Namespace) -> int:
    """`edgemoe reference MODEL --image F --task T`."""
    from edgemoe import api, inputs

    model = inputs.model(arguments.model)
    image = inputs.image(arguments.image, model.config)
    task = inputs.task(arguments.task, model.config)
    tensors = api.reference(model, image, task, routes=inputs.routes(arguments.routes), trace=arguments.trace)
    _finish_run(arguments, model.config, task, tensors)
    return 0


def golden(arguments: Namespace) -> int:
    """`edgemoe golden BUILD --image F --task T`."""
    from edgemoe import api, inputs

    build = api.load_build(arguments.build)
    image = inputs.image(arguments.image, build.model)
    task = inputs.task(arguments.task, build.model)
    tensors = api.golden(build, image, task, routes=inputs.routes(arguments.routes), trace=arguments.trace)
    _finish_run(arguments, build.model, task, tensors)
    return 0


def _finish_run(arguments: Namespace, config, task: int, tensors: dict[str, Any], report=None) -> None:
    """Write OUT.npz and the report of a run, and print the answer."""
    from edgemoe import api

    if arguments.output:
        api.save_tensors(arguments.output, tensors)
    answer = {"model": config.name, "task": config.tasks[task], "image": arguments.image}
    if "logits" in tensors:
        answer["answer"] = int(tensors["logits"].argmax())
        answer["logits"] = tensors["logits"].tolist()
        text = f"{config.name}, task {config.tasks[task]}: class [bold]{answer['answer']}[/]"
    else:
        text = f"{config.name}, task {config.tasks[task]}: no head; x is {tensors['x'].shape}"
    if arguments.output:
        text += f"; {len(tensors)} tensors in {arguments.output}"
    show.say(text)
    write_report(arguments, {**answer, **(report or {})})


def compile_model(arguments: Namespace) -> int:
    """`edgemoe compile MODEL --hardware HW -o BUILD`."""
    from pathlib import Path

    from edgemoe import api, inputs, output
    from edgemoe.cli import tables

    output.check_directory(arguments.output)
    model = inputs.model(arguments.model)
    hardware = api.fitted(model, arguments.hardware, profile=arguments.profile, fit=arguments.fit)
    calibration = inputs.calibration(arguments.calibration, model.config)
    with show.progress() as tick:
        tick(f"compiling {model.config.name} for {hardware.name}", None)
        program, tensors = api.compile_reported(
            model, hardware, calibration=calibration, pixel_bytes=arguments.pixel_bytes
        )
        used: dict[str, Path | str] = {"model": inputs.model_path(arguments.model)}
        if arguments.calibration and Path(arguments.calibration).is_file():
            used["calibration"] = arguments.calibration
        extra = {"model_file": inputs.lasting_name(arguments.model), "calibration_images": len(calibration)}
        api.save_build(program, arguments.output, inputs=used, extra=extra)
    show.console().print(tables.formats(tensors))
    descriptors = len(program.descriptors())
    images = "last packaged" if arguments.calibration is None else "given"
    show.say(
        f"\n{arguments.output}: {model.config.name} on {hardware.name} ({hardware.profile}), {descriptors} descriptors, "
        f"memory image of {show.size(len(program.memory))}; formats from the {len(calibration)} {images} images"
    )
    report = {
        "model": model.config.name,
        "hardware": hardware.name,
        "profile": hardware.profile,
        "descriptors": descriptors,
        "memory_bytes": len(program.memory),
        "useful_macs": program.useful_macs,
        "calibration_images": len(calibration),
        "tensors": tensors,
    }
    write_report(arguments, report)
    return 0


# -- hardware -----------------------------------------------------------------------------------


def sim(arguments: Namespace) -> int:
    """`edgemoe sim BUILD --image F --task T`."""
    from edgemoe import api, inputs, output

    build = api.load_build(arguments.build)
    image = inputs.image(arguments.image, build.model)
    task = inputs.task(arguments.task, build.model)
    _check_outputs(arguments.output, arguments.json, arguments.waves)
    waves = output.file(arguments.waves) if arguments.waves else nullcontext()
    with show.progress() as tick, waves as file:
        (run,) = api.simulate(
            build,
            [image],
            [task],
            verilog=arguments.verilog,
            waves=file,
            waves_cycles=arguments.waves_cycles,
            tick=tick,
            watch=tick.detail,
        )
        checked = api.check(build, [image], [task], [run], tick)
    tensors = api.outputs(build, run, task=task)
    if arguments.trace:
        tensors |= checked.gateware()
    report = {
        "cycles": run.counters["cycles"],
        "mac_utilisation": build.useful_macs / (run.counters["cycles"] * build.hardware.macs),
        "external_bytes": run.external_words * build.hardware.port_bytes,
        "mismatches": checked.mismatches,
        "tensors_compared": checked.tensors,
        "first_difference": checked.first,
        "seconds": run.seconds,
        "counters": run.counters,
    }
    _finish_run(arguments, build.model, task, tensors, report)
    show.say(
        f"{show.count(report['cycles'])} cycles, MAC utilisation {show.percent(report['mac_utilisation'])}, "
        f"{show.size(report['external_bytes'])} of external memory; {show.count(checked.tensors)} tensors compared "
        f"with the golden machine, {show.count(checked.mismatches)} values differ"
    )
    if checked.mismatches:
        raise Mismatch(checked.first)
    return 0


def compare(arguments: Namespace) -> int:
    """`edgemoe compare BUILD --image F --task T`."""
    from edgemoe import api, inputs
    from edgemoe.cli import tables
    from edgemoe.compare import accuracy_report

    build = api.load_build(arguments.build)
    image = inputs.image(arguments.image, build.model)
    task = inputs.task(arguments.task, build.model)
    model = inputs.model(arguments.model) if arguments.model else api.model_of_build(arguments.build)
    _check_outputs(arguments.json)
    with show.progress() as tick:
        tick("reference and golden machine", None)
        accuracy = accuracy_report(build, model, image, task)
        checked = None
        if not arguments.no_gateware:
            runs = api.simulate(
                build, [image], [task], verilog=arguments.verilog, tick=tick, watch=tick.detail
            )
            checked = api.check(build, [image], [task], runs, tick)
    show.console().print(tables.accuracy(accuracy, checked and checked.comparisons[0].tensors))
    report: dict[str, Any] = {"task": build.model.tasks[task], "image": arguments.image, "accuracy": accuracy}
    if checked is not None:
        report |= {
            "mismatches": checked.mismatches,
            "tensors_compared": checked.tensors,
            "first_difference": checked.first,
            "differences": [str(d) for d in checked.comparisons[0].differences],
        }
        show.say(
            f"\ngateware and golden machine: {show.count(checked.tensors)} tensors compared, "
            f"{show.count(checked.mismatches)} values differ"
        )
    write_report(arguments, report)
    if checked is not None and checked.mismatches:
        raise Mismatch(checked.first)
    return 0


def perf(arguments: Namespace) -> int:
    """`edgemoe perf BUILD [--image F --task T | --routing R]`."""
    from dataclasses import asdict

    from edgemoe import api, inputs
    from edgemoe.cli import tables

    if arguments.image and arguments.routing:
        raise BadInput(
            "--image and --routing exclude each other: an image has its own routing; leave one out"
        )
    build = api.load_build(arguments.build)
    task = inputs.task(arguments.task, build.model)
    image = inputs.image(arguments.image, build.model) if arguments.image else None
    found = api.perf(build, image=image, task=task, routing=arguments.routing or "balanced")
    show.console().print(tables.perf(found))
    routing = (
        f"the routing of {arguments.image}"
        if arguments.image
        else f"{arguments.routing or 'balanced'} routing"
    )
    show.say(
        f"\n{build.model.name} on {build.hardware.name}, {routing}: {show.count(found.cycles)} cycles, MAC utilisation "
        f"{show.percent(found.mac_utilisation)}, {show.size(found.external_bytes)} of external memory"
    )
    write_report(arguments, {"model": build.model.name, "hardware": build.hardware.name, **asdict(found)})
    return 0


def _check_outputs(*paths: Any) -> None:
    """Refuse files that cannot be written before the work, not after it."""
    from edgemoe import output

    for path in paths:
        if path is not None:
            output.check_file(path)


def verilog(arguments: Namespace) -> int:
    """`edgemoe verilog --hardware HW -o DIR`."""
    import time

    from edgemoe.config import load_hardware
    from edgemoe.output import check_directory
    from edgemoe.verilog import generate

    hardware = load_hardware(arguments.hardware)
    check_directory(arguments.output)
    vectors = _vectors(arguments, hardware) if arguments.testbench else None
    started = time.monotonic()
    with show.progress() as tick:
        tick(f"generating the Verilog of {hardware.name}", None)
        path = generate(hardware, arguments.output, testbench=vectors)
    seconds = time.monotonic() - started
    lines = path.read_text().count("\n")
    show.say(f"{path}: {show.count(lines)} lines, {hardware.macs} multipliers, {seconds:.1f} s")
    write_report(arguments, {"hardware": hardware.name, "file": path, "lines": lines, "seconds": seconds})
    return 0


def _vectors(arguments: Namespace, hardware) -> Any:
    """What the testbench runs: the image and task of a build, by default the packaged model."""
    from edgemoe import api, inputs

    if arguments.build:
        build = api.load_build(arguments.build)
        same = replace(build.hardware, name=hardware.name, memory_bytes=hardware.memory_bytes) == hardware
        if not same:
            raise BadInput(
                f"{arguments.build}: was compiled for {build.hardware.name}, not for --hardware {hardware.name}"
            )
    else:
        build = api.compile(api.load_model(inputs.NANO), hardware)
    return api.vectors(
        build, inputs.image(arguments.image, build.model), inputs.task(arguments.task, build.model)
    )


def synth(arguments: Namespace) -> int:
    """`edgemoe synth --hardware HW [--unit NAME] --target T`."""
    from edgemoe import synthesis
    from edgemoe.cli import tables
    from edgemoe.config import load_hardware
    from edgemoe.errors import DoesNotFit
    from edgemoe.output import check_directory

    hardware = load_hardware(arguments.hardware)
    _check_outputs(arguments.json)
    if arguments.output:
        check_directory(arguments.output)
    with show.progress() as tick:
        values = synthesis.synthesise(
            hardware,
            arguments.unit,
            arguments.target,
            arguments.seeds,
            arguments.target_mhz,
            arguments.output,
            not arguments.no_route,
            tick,
        )
    show.console().print(tables.synth(values))
    write_report(arguments, values)
    name = f"{arguments.unit or 'the accelerator'} of {hardware.name}"
    if not values["fits"]:
        raise DoesNotFit(
            f"{name} needs {_too_much(values) or 'more than there is'} on {arguments.target}, so it was not placed and "
            "routed; use hardware with fewer lanes or smaller capacities"
        )
    if values["met"] is False:
        path = values["critical_path"] or {"from": "?", "to": "?"}
        raise DoesNotFit(
            f"{name} reaches {values['fmax_mhz']} MHz on {arguments.target}, --target-mhz is "
            f"{arguments.target_mhz:g}; the slowest path is from {path['from']} to {path['to']}"
        )
    return 0


def build(arguments: Namespace) -> int:
    """`edgemoe build --board B -o DIR`."""
    from edgemoe import bitstream
    from edgemoe.cli import tables
    from edgemoe.errors import DoesNotFit
    from edgemoe.output import check_directory

    bitstream.board(arguments.board)
    _check_outputs(arguments.json)
    check_directory(arguments.output)
    with show.progress() as tick:
        values = bitstream.build(
            arguments.board,
            arguments.hardware,
            arguments.seeds,
            arguments.target_mhz,
            arguments.memory_mhz,
            arguments.output,
            arguments.model,
            tick,
        )
    show.console().print(tables.build(values))
    if values["rate"]:
        show.say("\n" + values["rate"]["formula"])
    write_report(arguments, values)
    name = f"{values['hardware']} on {values['board']}"
    if not values["fits"]:
        found = _too_much(values)
        reason = f"it needs {found}" if found else values["reason"]
        raise DoesNotFit(
            f"{name} has no bitstream: {reason}; use --hardware with fewer lanes or smaller capacities"
        )
    if not values["met"]:
        raise DoesNotFit(
            f"{name} reaches {values['fmax_mhz']:g} of {values['target_mhz']:g} MHz (core) and "
            f"{values['memory_fmax_mhz']:g} of {values['memory_target_mhz']:g} MHz (memory); the bitstream was written, "
            "but may not work: lower --target-mhz or --memory-mhz, or try more --seeds"
        )
    return 0


def _too_much(values: dict) -> str:
    """What a report's design needs more of than its device has, as "25000 of 24288 lut"; empty if that is nothing."""
    return ", ".join(
        f"{values['resources'][name]} of {have} {name}"
        for name, have in values["capacity"].items()
        if values["resources"][name] > have
    )


# -- boards -------------------------------------------------------------------------------------


def program(arguments: Namespace) -> int:
    """`edgemoe program --board B BITSTREAM`."""
    from edgemoe import bitstream
    from edgemoe.host import flash

    board = bitstream.board(arguments.board)
    _check_outputs(arguments.json)
    with show.progress() as tick:
        tick(f"writing {arguments.bitstream} to {board.name}", None)
        flash.program(board.name.split("-")[0], arguments.bitstream, arguments.flash)
    where = "flash" if arguments.flash else "FPGA, until its power goes"
    show.say(f"{arguments.bitstream} is in the {where}")
    write_report(
        arguments,
        {"board": board.name, "bitstream": arguments.bitstream, "flash": arguments.flash},
    )
    return 0


def run(arguments: Namespace) -> int:
    """`edgemoe run --board B --tty PORT --model M --image F --task T`."""
    import time
    from pathlib import Path

    from edgemoe import api, bitstream, inputs
    from edgemoe.host import SerialAccelerator, SerialLine
    from edgemoe.targets.top import BAUD

    board = bitstream.board(arguments.board)
    _check_outputs(arguments.output, arguments.json)
    if Path(arguments.model).is_dir():
        if arguments.hardware:
            raise BadInput(
                f"--hardware is for model files, {arguments.model} is compiled already; leave it out, or compile again"
            )
        build = api.load_build(arguments.model)
    else:
        model = inputs.model(arguments.model)
        build = api.compile(model, arguments.hardware or board.hardware)
    image = inputs.image(arguments.image, build.model)
    task = inputs.task(arguments.task, build.model)
    api.pixels(build, [image])
    line = SerialLine(arguments.tty, arguments.baud or BAUD)
    with SerialAccelerator(line) as accelerator, show.progress() as tick:
        started = time.monotonic()
        accelerator.load(build, tick)
        loaded = time.monotonic()
        (tensors,) = accelerator.run([image], task, tick)
        seconds = time.monotonic() - loaded
        cycles, clock = accelerator.counters["cycles"], accelerator.client.identity.clock_hz
        resent = accelerator.client.resent
    report = {
        "board": board.name,
        "hardware": build.hardware.name,
        "cycles": cycles,
        "clock_hz": clock,
        "counters": accelerator.counters,
        "seconds": seconds,
        "load_seconds": loaded - started,
        "resent": resent,
    }
    _finish_run(arguments, build.model, task, tensors, report)
    show.say(
        f"{show.count(cycles)} cycles, {1e3 * cycles / clock:.1f} ms at {clock / 1e6:g} MHz; "
        f"{1e3 * seconds:.0f} ms with image and answer on the serial line, which sets the rate"
    )
    return 0


# -- tools --------------------------------------------------------------------------------------


def doctor(arguments: Namespace) -> int:
    """`edgemoe doctor`."""
    from rich.markup import escape

    from edgemoe import doctor as examiner
    from edgemoe import output
    from edgemoe.errors import ToolMissing

    findings = examiner.examine()
    table = show.table("", "tool", "version", "for", "remedy")
    for f in findings:
        mark = "[red]x[/]" if f.missing else "[green]ok[/]" if f.version else "[dim]-[/]"
        table.add_row(
            mark,
            f.tool.name,
            f.version or "missing",
            f.tool.purpose,
            escape("" if f.version else f.tool.remedy),
        )
    show.console().print(table)
    show.say(f"\nbuilt simulators are kept in {output.cache()} (variable EDGEMOE_CACHE)")
    write_report(arguments, examiner.report(findings))
    missing = [f.tool for f in findings if f.missing]
    if missing:
        raise ToolMissing(f"{missing[0].name} is missing; get it with: {missing[0].remedy}")
    return 0
