"""The command line: parses, calls, prints. Every command is a function elsewhere, imported when it is called."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import Field, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rebalance.errors import ConfigError, RebalanceError, nearest
from rebalance.settings import (
    BenchFlags,
    SeafloorFlags,
    SparsifyFlags,
    StepsFlags,
    SweepFlags,
    described,
    parse,
    require,
    settings_of,
)

PASSED_ON = "Every other key=value goes to Ultralytics untouched."


@dataclass(frozen=True, kw_only=True)
class Command:
    """One command: what runs it, how it is typed, what it is for, and the flags that `help` lists."""

    run: Callable[[list[str]], None]
    usage: str
    help: str
    items: Callable[[], Mapping[str, Field[Any]]] = dict
    more: str = ""


def merge(args: Iterable[str]) -> list[str]:
    """Join what the shell took apart, as Ultralytics' command line does: `key = value`, `key= value`, `[1, 2]`."""
    merged: list[str] = []
    for arg in args:
        last = merged[-1] if merged else ""
        apart = arg.startswith("=") or (last.endswith("=") and "=" not in arg) or last.count("[") > last.count("]")
        if merged and apart:
            merged[-1] += arg
        else:
            merged.append(arg)
    return merged


def pairs(args: Iterable[str], cls: type[Any]) -> dict[str, str]:
    """Read `key=value` arguments; leading dashes and a trailing comma are dropped, a bare name switches a flag on.

    Args:
        args: the command line after the command.
        cls: the command's flags; only the names of its switches are used here.

    Raises:
        ConfigError: an argument that is neither.
    """
    given: dict[str, str] = {}
    for arg in merge(args):
        name, equals, value = arg.removeprefix("--").removesuffix(",").partition("=")
        name, value = name.strip(), value.strip()
        if not equals and name in settings_of(cls) and settings_of(cls)[name].default is False:
            value = "True"
        if not name or not value:
            hint = nearest(name, settings_of(cls)) if name not in settings_of(cls) else ""
            raise ConfigError(f"'{arg}' is not key=value{hint}")
        given[name] = value
    return given


def one_of(args: Sequence[str], choices: Sequence[str], what: str) -> str:
    """Return the one argument of a command that takes a word.

    Raises:
        ConfigError: none, more than one, or an unknown one.
    """
    if len(args) != 1 or args[0] not in choices:
        given = " ".join(args)
        raise ConfigError(f"{what} is one of {', '.join(choices)}; got '{given}'{nearest(given, choices)}")
    return args[0]


def host(mode: str) -> Callable[[list[str]], None]:
    """The command that runs a mode of Ultralytics with our flags."""

    def run(args: list[str]) -> None:
        from rebalance.cli import host_command as command

        command.run(mode, args)

    return run


def training() -> Mapping[str, Field[Any]]:
    """The flags of a training."""
    from rebalance.recipe import TRAIN

    return {name: item for name, (_, item) in TRAIN.items()}


def sparsify(args: list[str]) -> None:
    """Withhold training labels of a data set."""
    given = parse(SparsifyFlags, pairs(args, SparsifyFlags))
    from rebalance.data import derive as module

    print(module.summary(module.sparsify(given)))


def seafloor(args: list[str]) -> None:
    """Make the built-in data set."""
    given = parse(SeafloorFlags, pairs(args, SeafloorFlags))
    from rebalance.data.demo import seafloor as module

    print(module.ensure(given))


def sweep(args: list[str]) -> None:
    """Train a grid."""
    from rebalance.experiments import sweep as module

    show_report(module.sweep(pairs(args, SweepFlags)))


def benchmark(args: list[str]) -> None:
    """Train the removal-percentage sweep."""
    from rebalance.experiments import papers, sweep

    show_report(sweep.sweep(papers.benchmark(pairs(args, SweepFlags))))


def paper(args: list[str]) -> None:
    """Run the grid of one table or figure of a paper, or list them."""
    from rebalance.experiments import papers

    if not args:
        rows = [(study.key, study.title, study.compared) for study in papers.studies().values()]
        print(table([("Key", "In the paper", "What is compared"), *rows]))
        print("\nrebalance paper KEY data=my.yaml preset=cpu|gpu; any key of `rebalance sweep` overrides the preset.")
        return
    study, given = papers.find(args[0]), pairs(args[1:], SweepFlags)
    if study.cells:
        from rebalance.experiments import sweep

        show_report(sweep.sweep(papers.arguments(study, given), study=papers.about(study, given)))
        return
    if given:
        raise ConfigError(f"{study.key} is the plot of a function and takes no arguments; got '{' '.join(args[1:])}'")
    from rebalance.report.figures import curves

    print(curves.write(study.figures[0], Path("runs/benchmark") / study.key))


def report(args: list[str]) -> None:
    """Build the report of a run folder."""
    folders = [arg for arg in args if "=" not in arg]
    chosen = [arg.removeprefix("baseline=") for arg in args if arg.startswith("baseline=")]
    if len(folders) != 1 or len(chosen) > 1 or len(args) != len(folders) + len(chosen):
        raise ConfigError(
            f"report takes one run folder, e.g. runs/benchmark/mine, and baseline=; got '{' '.join(args)}'"
        )
    show_report(Path(folders[0]), *chosen)


def show_report(folder: Path, baseline: str = "") -> None:
    """Build the report of a run folder and print its tables."""
    from rebalance.report import build

    page = build.report(folder, baseline)
    print(f"{build.terminal_table(folder, baseline)}\n\n{page}")


def bench(args: list[str]) -> None:
    """Time the losses."""
    given = parse(BenchFlags, pairs(args, BenchFlags))
    from rebalance.bench import run as module

    print(module.table(module.bench(given)))


def steps(args: list[str]) -> None:
    """Draw the detections after each step."""
    given = parse(StepsFlags, pairs(args, StepsFlags))
    require(given, "model", "source")
    from rebalance.experiments import inspect as module

    for file in module.panels(given):
        print(file)


def hook(args: list[str]) -> None:
    """Install, remove or show the start-up hook."""
    from rebalance.cli import hook as module

    action = one_of(args, ("install", "remove", "status"), "hook")
    if action == "install":
        print(f"hook installed: {module.install()}; yolo takes the flags of rebalance")
    elif action == "remove":
        print(f"hook removed: {module.place()}" if module.remove() else "no hook was installed")
    else:
        print(f"installed: {module.place()}" if module.installed() else f"not installed (would be {module.place()})")


def methods(args: list[str]) -> None:
    """List the losses."""
    if args:
        raise ConfigError(f"methods takes no arguments; got '{' '.join(args)}'")
    from rebalance.hosts import SITES
    from rebalance.methods import METHODS

    rows = [
        (name, row.kind, ", ".join(site.name for site in SITES.values() if row.defined(site)), row.title, row.source)
        for name, row in METHODS.items()
    ]
    print(table([("loss=", "Kind", "Where", "What it is", "Source"), *rows]))
    print("\nAn element loss and a weighting may be joined by +. `rebalance help train` lists the flags.")


def version(args: list[str]) -> None:
    """Show the versions of this package and of what it runs on."""
    if args:
        raise ConfigError(f"version takes no arguments; got '{' '.join(args)}'")
    from rebalance.experiments.machine import versions

    print(table([(name, text or "not installed") for name, text in versions().items()]))


def show_help(args: list[str]) -> None:
    """Show all commands, or the flags of one."""
    if not args:
        print("rebalance trains object detectors on incomplete labels. Commands take key=value:\n")
        print(table([(name, command.help) for name, command in COMMANDS.items()]))
        print("\n`rebalance help COMMAND` lists the flags of one. --debug shows where an error came from.")
        return
    command = COMMANDS[one_of(args, tuple(COMMANDS), "the command")]
    print(f"{command.help}\n\n  {command.usage}")
    if items := command.items():
        print("\n" + table([("Flag", "Default", "Values", "Meaning"), *described(items)]))
    if command.more:
        print("\n" + command.more)


COMMANDS: dict[str, Command] = {
    "train": Command(
        run=host("train"),
        usage="rebalance train model=yolov5n.yaml head=anchor data=seafloor.yaml loss=drop obj_drop=0.75",
        help="train, as `yolo train` with these flags",
        items=training,
        more=PASSED_ON,
    ),
    "val": Command(
        run=host("val"),
        usage="rebalance val model=best.pt data=seafloor.yaml split=test",
        help="evaluate what was trained",
        more=PASSED_ON,
    ),
    "predict": Command(
        run=host("predict"),
        usage="rebalance predict model=best.pt source=images/",
        help="detect with what was trained",
        more=PASSED_ON,
    ),
    "export": Command(
        run=host("export"),
        usage="rebalance export model=best.pt format=onnx",
        help="export what was trained",
        more=PASSED_ON,
    ),
    "sparsify": Command(
        run=sparsify,
        usage="rebalance sparsify data=my.yaml protocol=extreme seed=0 out=data/my-extreme",
        help="withhold labels of the training split of a data set, into a new folder",
        items=partial(settings_of, SparsifyFlags),
    ),
    "seafloor": Command(
        run=seafloor,
        usage="rebalance seafloor seed=0",
        help="make the built-in data set (seafloor.yaml does it on first use)",
        items=partial(settings_of, SeafloorFlags),
    ),
    "sweep": Command(
        run=sweep,
        usage="rebalance sweep obj_drop=0,0.25,0.75 seeds=0,1,2 model=yolov5n.yaml head=anchor data=seafloor.yaml",
        help="train a grid of settings, evaluate each run, write tables and a report",
        items=partial(settings_of, SweepFlags),
        more="Flags of `rebalance train` and of Ultralytics are taken too; a comma list makes a dimension of the grid.",
    ),
    "benchmark": Command(
        run=benchmark,
        usage="rebalance benchmark preset=full",
        help="the removal-percentage sweep: obj_drop and box_drop 0, 10, 25, 75, 90 %",
        items=partial(settings_of, SweepFlags),
        more="preset=cpu (default) or preset=full (640 pixels, 3 seeds). Any key of `rebalance sweep` overrides it.",
    ),
    "paper": Command(
        run=paper,
        usage="rebalance paper brl.table4 data=my.yaml preset=cpu",
        help="run a table or figure of a paper, its numbers beside; without a key: list them",
        items=partial(settings_of, SweepFlags),
        more="preset=cpu (default) or preset=gpu (the paper's detector and schedule). Any key of `rebalance sweep` "
        "overrides the preset; the same command continues what was stopped.",
    ),
    "report": Command(
        run=report,
        usage="rebalance report runs/benchmark/mine",
        help="build tables, plots and the report of a run folder again",
        more="baseline=focal compares the losses with that one, instead of the first that the sweep was asked for.",
    ),
    "bench": Command(
        run=bench,
        usage="rebalance bench batch=16 imgsz=320",
        help="time the losses against the host's",
        items=partial(settings_of, BenchFlags),
    ),
    "steps": Command(
        run=steps,
        usage="rebalance steps model=best.pt source=images/",
        help="draw what a model with head=resobj detects after each step, one picture an image",
        items=partial(settings_of, StepsFlags),
    ),
    "hook": Command(
        run=hook,
        usage="rebalance hook install|remove|status",
        help="let the plain `yolo` of this environment take these flags, or undo that",
    ),
    "methods": Command(run=methods, usage="rebalance methods", help="list the losses"),
    "help": Command(run=show_help, usage="rebalance help [COMMAND]", help="show this list, or the flags of a command"),
    "version": Command(run=version, usage="rebalance version", help="show versions"),
}


def table(rows: Sequence[Sequence[str]]) -> str:
    """Lay rows out in columns; the last one is wrapped to the width of the terminal."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    widths = [min(width, 34) for width in widths]
    indent = sum(widths) + 2 * len(widths)
    room = max(shutil.get_terminal_size((120, 24)).columns - indent, 30)
    lines = []
    for *cells, last in rows:
        columns = [textwrap.wrap(cell, width) or [""] for cell, width in zip(cells, widths, strict=True)]
        columns.append(textwrap.wrap(last, room) or [""])
        for i in range(max(map(len, columns))):
            parts = [column[i] if i < len(column) else "" for column in columns]
            lines.append(
                "  ".join(f"{part:<{width}}" for part, width in zip(parts, [*widths, 0], strict=True)).rstrip()
            )
    return "\n".join(lines)


def dispatch(args: Sequence[str]) -> None:
    """Run the command that the arguments name.

    Raises:
        ConfigError: there is no such command.
    """
    name, *rest = args or ["help"]
    name = {"-h": "help", "--help": "help", "--version": "version"}.get(name, name)
    if name not in COMMANDS:
        raise ConfigError(f"unknown command '{name}'{nearest(name, COMMANDS)}; commands: {', '.join(COMMANDS)}")
    if {"-h", "--help"} & set(rest):
        show_help([name])
    else:
        COMMANDS[name].run(rest)


def guarded(call: Callable[[], None], *, debug: bool = False) -> int:
    """Call; return the exit code: 0, 2 after an error that is the user's to solve, 130 when interrupted.

    Args:
        call: what to run.
        debug: let those two out as they are, with their traceback. Any other exception is a bug and always gets out.
    """
    try:
        call()
        sys.stdout.flush()
    except BrokenPipeError:  # whoever reads has enough, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the interpreter, which flushes at its end
    except RebalanceError as error:
        if debug:
            raise
        print(f"rebalance: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        if debug:
            raise
        print("rebalance: interrupted", file=sys.stderr)
        return 130
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; return the exit code.

    Args:
        argv: the arguments after the program's name; default: the process's own.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    rest = [arg for arg in args if arg != "--debug"]
    return guarded(lambda: dispatch(rest), debug=len(rest) < len(args))


if __name__ == "__main__":
    sys.exit(main())
