"""The command line: parses, calls, prints. Every command is a function elsewhere, imported when it is called."""

from __future__ import annotations

import json
import os
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import Field, dataclass
from functools import partial
from importlib import import_module
from itertools import zip_longest
from pathlib import Path
from typing import Any

from rebalance import settings
from rebalance.errors import ConfigError, RebalanceError, nearest
from rebalance.files import long_names_told, unwritable_told, write_whole


@dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
        usage: how it is typed.
        help: what it is for.
        run: a function of the arguments; or "module:function,…" of this package, where the first function gets the
            flags, each other one what the one before it returned, and what the last one returns is printed.
        flags: what `help` lists: a class of settings, or a function that returns them by name.
        needed: flags without a default.
        more: what else `help` says.
    """

    usage: str
    help: str
    run: Callable[[list[str]], None] | str
    flags: Any = dict
    needed: tuple[str, ...] = ()
    more: str = ""

    def items(self) -> Mapping[str, Field[Any]]:
        """The flags, by name."""
        own = isinstance(self.flags, type) and self.flags is not dict
        found: Mapping[str, Field[Any]] = settings.settings_of(self.flags) if own else self.flags()
        return found

    def __call__(self, args: list[str]) -> None:
        """Run it."""
        if callable(self.run):
            self.run(args)
            return
        value = settings.parse(self.flags, pairs(args, self.flags))
        settings.require(value, *self.needed)
        module, _, names = self.run.partition(":")
        for name in names.split(","):
            value = getattr(import_module(f"rebalance.{module}"), name)(value)
        print(*(value if isinstance(value, list) else [value]), sep="\n")


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
    known, given = settings.settings_of(cls), dict[str, str]()
    for arg in merge(args):
        name, equals, value = map(str.strip, arg.removeprefix("--").removesuffix(",").partition("="))
        if not equals and name in known and known[name].default is False:
            value = "True"
        if not name or not value:
            raise ConfigError(f"'{arg}' is not key=value{'' if name in known else nearest(name, known)}")
        given[name] = value
    return given


def one_of(args: Sequence[str], choices: Sequence[str], what: str) -> str:
    """Return the one argument of a command that takes a word; ConfigError where it is another, or not one."""
    if len(args) != 1 or args[0] not in choices:
        given = " ".join(args)
        raise ConfigError(f"{what} is one of {', '.join(choices)}; got '{given}'{nearest(given, choices)}")
    return args[0]


def host(mode: str, example: str, help: str, flags: Any = dict) -> Command:
    """The command that runs a mode of Ultralytics with our flags."""

    def run(args: list[str]) -> None:
        from rebalance.versions import require_known

        require_known()
        from rebalance.cli import host_command as command

        command.run(mode, args)

    more = "Every other key=value goes to Ultralytics untouched."
    return Command(f"rebalance {mode} {example}", help, run, flags, more=more)


def training() -> Mapping[str, Field[Any]]:
    """The flags of a training."""
    from rebalance.recipe import TRAIN

    return {name: item for name, (_, item) in TRAIN.items()}


def sweep(args: list[str], *, preset: bool = False) -> None:
    """Train a grid: the one that the arguments or a plan say, or with `preset` that of the built-in benchmark."""
    from rebalance.experiments import papers

    given = pairs(args, settings.SweepFlags)
    dry = asked_dry(given)
    if "plan" in given and not preset:
        from rebalance.experiments import plan

        path = Path(given.pop("plan"))
        read = plan.read(path, given)
        run_grid(read.cells, dry, written=read.words)
    else:
        run_grid(papers.benchmark(given) if preset else given, dry)


def asked_dry(given: dict[str, str]) -> bool:
    """Take `dry` out of the flags of a sweep: whether it is only to be said what would run."""
    return bool(settings.convert(settings.SweepFlags, "dry", given.pop("dry", False)))


def run_grid(args: Any, dry: bool, **about: Any) -> None:
    """Train a grid and show its report, or with `dry` say what would run."""
    if dry:
        from rebalance.experiments.dry import tell

        show_dry(tell(args, written=about.get("written")))
    else:
        from rebalance.experiments.sweep import sweep

        show_report(sweep(args, **about))


def show_dry(told: Any) -> None:
    """Print what would run, see `rebalance.experiments.dry.Told`."""
    print(*told.lines, "", table(told.runs), sep="\n")


def tune(args: list[str]) -> None:
    """Search for flags, or with `dry` say what would be searched."""
    given = pairs(args, settings.TuneFlags)
    if asked_dry(given):
        from rebalance.experiments.dry import tell_search

        show_dry(tell_search(given))
    else:
        from rebalance.experiments import tune

        tune.tune(given)


def rounds(args: list[str]) -> None:
    """Train, audit, complete and train again, or with `dry` say what would be trained."""
    given = pairs(args, settings.RoundsFlags)
    if asked_dry(given):
        from rebalance.audit.dry import tell

        show_dry(tell(given))
    else:
        from rebalance.audit import rounds

        show_report(rounds.rounds(given))


def paper(args: list[str]) -> None:
    """Run the grid of one table or figure of a paper, or list them, or print the numbers that the papers report."""
    from rebalance.experiments import papers

    if not args:
        rows = [(study.key, study.title, study.compared) for study in papers.studies().values()]
        print(table([("Key", "In the paper", "What is compared"), *rows]))
        print("\nrebalance paper KEY data=my.yaml preset=cpu|gpu; any key of `rebalance sweep` overrides the preset.")
        print("rebalance paper numbers > papers.csv writes what the papers report.")
        return
    if args == ["numbers"]:
        from rebalance.report.papers import as_csv

        print(as_csv(), end="")
        return
    study, given = papers.find(args[0]), pairs(args[1:], settings.SweepFlags)
    dry = asked_dry(given)
    if study.cells:
        run_grid(papers.arguments(study, given), dry, study=papers.about(study, given))
        return
    if given:
        raise ConfigError(f"{study.key} is the plot of a function and takes no arguments; got '{' '.join(args[1:])}'")
    from rebalance.report.figures import curves

    folder = Path("runs/benchmark") / study.key
    print(f"dry=True: nothing was made. One plot, in {folder}" if dry else curves.write(study.figures[0], folder))


def report(args: list[str]) -> None:
    """Build the report of a run folder."""
    folders = [arg for arg in args if "=" not in arg]
    given = dict(arg.split("=", 1) for arg in args if "=" in arg)
    if len(folders) != 1 or len(args) != 1 + len(given) or not {*given} <= {"baseline", "reference"}:
        raise ConfigError(
            f"report takes one run folder, e.g. runs/benchmark/mine, baseline= and reference=; got '{' '.join(args)}'"
        )
    references = [Path(text.strip()) for text in given.get("reference", "").split(",") if text.strip()]
    show_report(Path(folders[0]), given.get("baseline", ""), references)


def show_report(folder: Path, baseline: str = "", references: Sequence[Path] = ()) -> None:
    """Build the report of a run folder and print its tables."""
    from rebalance.report import build

    page = build.report(folder, baseline, references)
    print(f"{build.terminal_table(folder, baseline, references)}\n\n{page}")


def check(args: list[str]) -> None:
    """Tell what is known about the labels of a data set; an error where a file of it cannot be read."""
    from rebalance.data import check as data

    given = settings.parse(settings.CheckFlags, pairs(args, settings.CheckFlags))
    found = data.check(given)
    print(data.text(found))
    if given.out:
        write_whole(Path(given.out), (json.dumps(found, indent=1, ensure_ascii=False) + "\n").encode())
    data.require_readable(found)


def audit(args: list[str]) -> None:
    """Tell which labels of a data set are missing."""
    from rebalance.audit import run

    given, own = pairs(args, settings.AuditFlags), settings.settings_of(settings.AuditFlags)
    flags = settings.parse(settings.AuditFlags, {key: value for key, value in given.items() if key in own})
    print(run.summary(run.audit(flags, {key: value for key, value in given.items() if key not in own})))


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


def convert(args: list[str]) -> None:
    """Convert a data set of another format, or list the formats."""
    from rebalance.data.formats import FORMATS, TO_COCO, convert, to_coco
    from rebalance.data.formats.record import ConvertFlags

    if not args:
        told = ((name, row.title, f"rebalance convert {name} {row.example}") for name, row in FORMATS.items())
        back = (TO_COCO, "back to COCO, JSON", f"rebalance convert {TO_COCO} data=my.yaml out=data/my-coco")
        print(table([("Format", "What it is", "Example"), *told, back]))
        print("\nWhat each says of labels that are missing: docs/formats.md. `rebalance help convert` lists the flags.")
        return
    name = one_of([args[0].lower().replace("_", "-")], (*FORMATS, TO_COCO), "the format")
    flags: type[ConvertFlags | to_coco.ToCocoFlags] = to_coco.ToCocoFlags if name == TO_COCO else FORMATS[name].flags
    print(convert(name, settings.parse(flags, pairs(args[1:], flags))))


def converting() -> Mapping[str, Field[Any]]:
    """The flags of all formats; those that belong to one say so."""
    from dataclasses import field, fields

    from rebalance.data.formats import FORMATS, TO_COCO, to_coco
    from rebalance.data.formats.record import ConvertFlags

    found = settings.settings_of(ConvertFlags)
    more: dict[str, Any] = {name: row.flags for name, row in FORMATS.items()} | {TO_COCO: to_coco.ToCocoFlags}
    for name, cls in more.items():
        for item in fields(cls):
            if item.name not in found:
                found[item.name] = field(
                    default=item.default, metadata={**item.metadata, "help": f"{name}: {item.metadata['help']}"}
                )
    return found


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
    from rebalance.versions import versions

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
        print("\n" + table([("Flag", "Default", "Values", "Meaning"), *settings.described(items)]))
    if command.more:
        print("\n" + command.more)


COMMANDS: dict[str, Command] = {
    "train": host(
        "train",
        "model=yolov5n.yaml head=anchor data=seafloor.yaml loss=drop obj_drop=0.75",
        "train, as `yolo train` with these flags",
        training,
    ),
    "val": host("val", "model=best.pt data=seafloor.yaml split=test", "evaluate what was trained"),
    "predict": host("predict", "model=best.pt source=images/", "detect with what was trained"),
    "export": host("export", "model=best.pt format=onnx", "export what was trained"),
    "sparsify": Command(
        "rebalance sparsify data=my.yaml protocol=extreme seed=0 out=data/my-extreme",
        "withhold labels of the training split of a data set, into a new folder",
        "data.derive:sparsify,summary",
        settings.SparsifyFlags,
    ),
    "complete": Command(
        "rebalance complete data=my.yaml audit=runs/audit/my decisions=decisions.json",
        "make a data set with what an audit found, and what somebody decided, in its training labels",
        "audit.complete:complete,summary",
        settings.CompleteFlags,
        more="What is added, unknown and verified as background, by what and with which probability: manifest.json.",
    ),
    "check": Command(
        "rebalance check data=my.yaml",
        "tell what is known about the labels of a data set, what is not, and what counts as background",
        check,
        settings.CheckFlags,
        more="Label and region files that cannot be read are all named, and the exit code is then 2.",
    ),
    "audit": Command(
        "rebalance audit data=my.yaml model=best.pt",
        "find labels that are missing: a ranked list, and an estimate of how many",
        audit,
        settings.AuditFlags,
        more="folds=3 epochs=50 trains three models, each without a third of the images, and asks each about that "
        "third; every other key is then a flag of these trainings, as `rebalance sweep` takes them.",
    ),
    "noise": Command(
        "rebalance noise data=my.yaml missing=0.3 extra=0.1 jitter=0.2 class_flip=0.1 seed=0 out=data/my-noisy",
        "put errors into the labels of the training split of a data set, into a new folder",
        "data.derive:noise,summary",
        settings.NoiseFlags,
        more="Rates may be joined. With the same seed a lower rate changes what a higher one changes, and no more.",
    ),
    "convert": Command(
        "rebalance convert voc source=VOCdevkit out=data/voc",
        "make a data set of one in another format (VOC, COCO, LVIS, CVAT ...); list the formats",
        convert,
        converting,
        more="What a format says of labels that are missing goes to regions/ and keys of data.yaml: docs/formats.md.",
    ),
    "seafloor": Command(
        "rebalance seafloor seed=0",
        "make the built-in data set (seafloor.yaml does it on first use)",
        "data.demo.seafloor:ensure",
        settings.SeafloorFlags,
    ),
    "sweep": Command(
        "rebalance sweep obj_drop=0,0.25,0.75 seeds=0,1,2 model=yolov5n.yaml head=anchor data=seafloor.yaml",
        "train a grid of settings, evaluate each run, write tables and a report",
        sweep,
        settings.SweepFlags,
        more="Flags of `rebalance train` and of Ultralytics are taken too; a comma list makes a dimension of the grid.",
    ),
    "tune": Command(
        "rebalance tune loss=bce,drop obj_drop=0..0.9 lr0=1e-4..1e-2:log model=yolov5n.yaml head=anchor data=my.yaml",
        "search flags for the best mAP50-95 on val, with Optuna (pip install optuna)",
        tune,
        settings.TuneFlags,
        more="Flags of `rebalance train` and of Ultralytics are taken too: a comma list is choices, low..high a range, "
        "low..high:log one that is even in its logarithm, low..high:int one of whole numbers. The same name continues "
        "what was stopped.",
    ),
    "rounds": Command(
        "rebalance rounds data=my.yaml model=yolov8n.pt rounds=2 epochs=50",
        "train, audit the labels, complete them, train again; a report with before and after",
        rounds,
        settings.RoundsFlags,
        more="Flags of `rebalance train` and of Ultralytics are taken too; the same name continues what was stopped.",
    ),
    "benchmark": Command(
        "rebalance benchmark preset=full",
        "the removal-percentage sweep: obj_drop and box_drop 0, 10, 25, 75, 90 %, control, complete labels",
        partial(sweep, preset=True),
        settings.SweepFlags,
        more="preset=cpu (default) or preset=full (640 pixels, 3 seeds). Any key of `rebalance sweep` overrides it.",
    ),
    "paper": Command(
        "rebalance paper brl.table4 data=my.yaml preset=cpu",
        "run a table or figure of a paper, its numbers beside; without a key: list them",
        paper,
        settings.SweepFlags,
        more="preset=cpu (default) or preset=gpu (the paper's detector and schedule). Any key of `rebalance sweep` "
        "overrides the preset; the same command continues what was stopped.",
    ),
    "report": Command(
        "rebalance report runs/benchmark/mine",
        "build tables, plots and the report of a run folder again",
        report,
        more="baseline=focal compares the losses with that one, instead of the first that the sweep was asked for; "
        "reference=runs/benchmark/other takes runs on complete labels and long runs from other sweeps too.",
    ),
    "bench": Command(
        "rebalance bench batch=16 imgsz=320",
        "time the losses against the host's",
        "bench.run:bench,table",
        settings.BenchFlags,
    ),
    "steps": Command(
        "rebalance steps model=best.pt source=images/",
        "draw what a model with head=resobj detects after each step, one picture an image",
        "experiments.inspect:panels",
        settings.StepsFlags,
        needed=("model", "source"),
    ),
    "hook": Command(
        "rebalance hook install|remove|status",
        "let the plain `yolo` of this environment take these flags, or undo that",
        hook,
    ),
    "methods": Command("rebalance methods", "list the losses", methods),
    "help": Command("rebalance help [COMMAND]", "show this list, or the flags of a command", show_help),
    "version": Command("rebalance version", "show versions", version),
}


def table(rows: Sequence[Sequence[str]]) -> str:
    """Lay rows out in columns; the last one is wrapped to the width of the terminal."""
    widths = [min(max(map(len, column)), 34) for column in list(zip(*rows, strict=True))[:-1]]
    widths.append(max(shutil.get_terminal_size((120, 24)).columns - sum(widths) - 2 * len(widths), 30))
    lines = []
    for row in rows:
        wrapped = map(textwrap.wrap, row, widths)
        lines += ["  ".join(map(str.ljust, parts, widths)).rstrip() for parts in zip_longest(*wrapped, fillvalue="")]
    return "\n".join(lines)


def dispatch(args: Sequence[str]) -> None:
    """Run the command that the arguments name; ConfigError where there is none."""
    name, *rest = args or ["help"]
    name = {"-h": "help", "--help": "help", "--version": "version"}.get(name, name)
    if name not in COMMANDS:
        raise ConfigError(f"unknown command '{name}'{nearest(name, COMMANDS)}; commands: {', '.join(COMMANDS)}")
    if {"-h", "--help"} & set(rest):
        show_help([name])
    else:
        COMMANDS[name](rest)


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
    except (RebalanceError, KeyboardInterrupt) as error:
        if debug:
            raise
        slip = isinstance(error, RebalanceError)
        print(f"rebalance: error: {error}" if slip else "rebalance: interrupted", file=sys.stderr)
        return 2 if slip else 130
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line, by default the process's own; return the exit code."""
    args = list(sys.argv[1:] if argv is None else argv)
    rest = [arg for arg in args if arg != "--debug"]

    def call() -> None:
        with unwritable_told("the output"), long_names_told():
            dispatch(rest)

    return guarded(call, debug=len(rest) < len(args))


if __name__ == "__main__":
    sys.exit(main())
