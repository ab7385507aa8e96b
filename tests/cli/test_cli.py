from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rebalance.cli import main as cli
from rebalance.errors import ConfigError, DataError, RebalanceError
from rebalance.recipe import TRAIN
from rebalance.settings import BenchFlags, SeafloorFlags, SparsifyFlags, StepsFlags, SweepFlags, settings_of

ROOT = Path(__file__).resolve().parents[2]


def stub(monkeypatch: pytest.MonkeyPatch, module: str, **functions: Any) -> None:
    """Put a stand-in in the place of a module that a command imports."""
    package, _, name = module.rpartition(".")
    replacement = SimpleNamespace(**functions)
    monkeypatch.setitem(sys.modules, module, replacement)
    monkeypatch.setattr(import_module(package), name, replacement, raising=False)


@pytest.mark.parametrize(
    ("args", "merged"),
    [
        (["a=1", "b=2"], ["a=1", "b=2"]),
        (["a", "=", "1", "b=2"], ["a=1", "b=2"]),
        (["a=", "1"], ["a=1"]),
        (["a", "=1"], ["a=1"]),
        (["a=[1,", "2]", "b=3"], ["a=[1,2]", "b=3"]),
        (["a=", "b=2"], ["a=", "b=2"]),
        ([], []),
    ],
)
def test_merge_joins_as_the_stock_command_line_does(args: list[str], merged: list[str]) -> None:
    from ultralytics.cfg import merge_equals_args

    assert cli.merge(args) == merged
    assert merge_equals_args(args) == merged


def test_pairs_tolerates_what_the_stock_command_line_tolerates() -> None:
    args = ["--data=a.yaml", "rate", "=", "0.25,", "seed= 3", "keep_one", "out=x=y"]
    expected = {"data": "a.yaml", "rate": "0.25", "seed": "3", "keep_one": "True", "out": "x=y"}
    assert cli.pairs(args, SparsifyFlags) == expected


@pytest.mark.parametrize("arg", ["rate", "rate=", "=3", "something", "--"])
def test_pairs_refuses_what_is_not_a_pair(arg: str) -> None:
    with pytest.raises(ConfigError, match=f"'{arg}' is not key=value"):
        cli.pairs([arg], SparsifyFlags)


def test_pairs_names_the_switch_that_was_meant() -> None:
    with pytest.raises(ConfigError, match=r"did you mean keep_one\?"):
        cli.pairs(["keepone"], SparsifyFlags)


@pytest.mark.parametrize("mode", ["train", "val", "predict", "export"])
def test_host_commands_pass_every_argument_on_untouched(monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    calls: list[tuple[str, list[str]]] = []
    stub(monkeypatch, "rebalance.cli.host_command", run=lambda mode, args: calls.append((mode, args)))
    assert cli.main([mode, "model=a.pt", "obj_drop", "=", "0.5", "imgsz=[3,", "4]"]) == 0
    assert calls == [(mode, ["model=a.pt", "obj_drop", "=", "0.5", "imgsz=[3,", "4]"])]


def test_sparsify_prints_the_summary(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    stub(monkeypatch, "rebalance.data.derive", sparsify=lambda given: given, summary=repr)
    assert cli.main(["sparsify", "data=a.yaml", "rate=0.25", "out=b"]) == 0
    assert capsys.readouterr().out == f"{SparsifyFlags(data='a.yaml', rate=0.25, out='b')!r}\n"


def test_seafloor_prints_the_path(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    stub(monkeypatch, "rebalance.data.demo.seafloor", ensure=lambda given: Path(f"made-{given.seed}/data.yaml"))
    assert cli.main(["seafloor", "seed=4"]) == 0
    assert capsys.readouterr().out == "made-4/data.yaml\n"


@pytest.mark.parametrize("command", ["sweep", "benchmark"])
def test_a_sweep_ends_with_its_report(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    given: list[dict[str, str]] = []

    def sweep(args: dict[str, str]) -> Path:
        given.append(args)
        return Path("runs/x")

    stub(monkeypatch, "rebalance.experiments.sweep", sweep=sweep)
    monkeypatch.setattr("rebalance.experiments.papers.benchmark", lambda args: {"preset": "found", **args})
    stub(
        monkeypatch,
        "rebalance.report.build",
        report=lambda folder, baseline, references: folder / "report.html",
        terminal_table=lambda folder, baseline, references: " ".join(
            map(str, ["table of", folder, baseline, *references])
        ),
    )
    assert cli.main([command, "obj_drop=0,0.5", "series"]) == 0
    expected = {"obj_drop": "0,0.5", "series": "True"}
    assert given == [expected if command == "sweep" else {"preset": "found", **expected}]
    assert capsys.readouterr().out == "table of runs/x \n\nruns/x/report.html\n"
    assert cli.main(["report", "runs/y"]) == 0
    assert capsys.readouterr().out == "table of runs/y \n\nruns/y/report.html\n"
    assert cli.main(["report", "reference=runs/long, runs/full", "runs/y", "baseline=focal"]) == 0
    assert capsys.readouterr().out == "table of runs/y focal runs/long runs/full\n\nruns/y/report.html\n"


def test_paper_runs_the_cells_of_its_study_and_reports(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[tuple[list[dict[str, str]], dict[str, Any]]] = []

    def sweep(cells: list[dict[str, str]], study: dict[str, Any]) -> Path:
        calls.append((cells, study))
        return Path("runs/x")

    stub(monkeypatch, "rebalance.experiments.sweep", sweep=sweep)
    stub(
        monkeypatch, "rebalance.report.build", report=lambda folder, *_: folder / "report.html",
        terminal_table=lambda folder, *_: str(folder),
    )  # fmt: skip
    assert cli.main(["paper", "brl.fig3", "data=my.yaml", "seeds=0,1"]) == 0
    assert capsys.readouterr().out == "runs/x\n\nruns/x/report.html\n"
    ((cells, study),) = calls
    assert [(cell["model"], cell["loss"]) for cell in cells] == [
        ("retinanet_tiny", "focal"),
        ("retinanet_tiny", "focal,ghm,brl"),
        ("fasterrcnn_tiny", "ohem"),
    ]
    assert {(cell["data"], cell["seeds"]) for cell in cells} == {("my.yaml", "0,1")}
    assert (study["key"], study["given"]) == ("brl.fig3", {"data": "my.yaml", "seeds": "0,1"})


def test_paper_alone_lists_the_tables_and_figures(capsys: pytest.CaptureFixture[str]) -> None:
    from rebalance.experiments.papers import studies

    assert cli.main(["paper"]) == 0
    out = capsys.readouterr().out
    assert all(f"\n{study.key} " in out for study in studies().values())


def test_paper_numbers_is_a_csv(capsys: pytest.CaptureFixture[str]) -> None:
    from rebalance.report.papers import as_csv

    assert cli.main(["paper", "numbers"]) == 0
    assert capsys.readouterr().out == as_csv()


def test_paper_draws_a_function(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["paper", "brl.fig2"]) == 0
    assert capsys.readouterr().out == "runs/benchmark/brl.fig2/brl.png\n"
    assert (tmp_path / "runs/benchmark/brl.fig2/brl.png").exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["brl.tabel4"], "there is no 'brl.tabel4' (did you mean brl.table4?); tables and figures: brl.table1, "),
        (["data=my.yaml"], "there is no 'data=my.yaml'"),
        (["brl.table1"], "data= is missing: rebalance paper brl.table1 data=my.yaml"),
        (["brl.table1", "data=my.yaml", "preset=gpus"], "preset=gpus is not one of cpu, gpu (did you mean gpu?)"),
        (["brl.table1", "my.yaml"], "'my.yaml' is not key=value"),
        (["brl.fig2", "data=my.yaml"], "brl.fig2 is the plot of a function and takes no arguments"),
    ],
)
def test_paper_refuses_what_it_cannot_run(capsys: pytest.CaptureFixture[str], args: list[str], message: str) -> None:
    assert cli.main(["paper", *args]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "args", [["report"], ["report", "a", "b"], ["report", "name=a"], ["report", "a", "baseline=b", "baseline=c"]]
)
def test_report_takes_one_folder(capsys: pytest.CaptureFixture[str], args: list[str]) -> None:
    assert cli.main(args) == 2
    assert "report takes one run folder" in capsys.readouterr().err


def test_bench_parses_its_flags(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    stub(
        monkeypatch,
        "rebalance.bench.run",
        bench=lambda given: given.batch,
        table=lambda found: f"batch {found}",
    )
    assert cli.main(["bench", "batch=2"]) == 0
    assert capsys.readouterr().out == "batch 2\n"
    assert cli.main(["bench", "batch=none"]) == 2


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["trian"], "unknown command 'trian' (did you mean train?); commands: train, val, "),
        (["sparsify", "protocl=hard"], "unknown flag protocl=hard (did you mean protocol?)"),
        (["sparsify", "protocol=hrad"], "protocol=hrad is not one of normal, easy, hard"),
        (["seafloor", "labelled=60"], "labelled=60 is out of range: 0 to 1"),
        (["hook", "instal"], "got 'instal' (did you mean install?)"),
        (["hook"], "hook is one of install, remove, status; got ''"),
        (["help", "swep"], "got 'swep' (did you mean sweep?)"),
        (["version", "x"], "version takes no arguments"),
        (["methods", "x"], "methods takes no arguments"),
    ],
)
def test_a_slip_is_one_line_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(args) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("rebalance: error: ")
    assert message in err
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def fails(error: BaseException) -> cli.Command:
    def run(args: list[str]) -> None:
        raise error

    return cli.Command(run=run, usage="", help="")


def test_debug_lets_the_error_out(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(cli.COMMANDS, "train", fails(DataError("no such file")))
    assert cli.main(["train", "data=x"]) == 2
    assert capsys.readouterr().err == "rebalance: error: no such file\n"
    for args in (["train", "data=x", "--debug"], ["--debug", "train"]):
        with pytest.raises(DataError):
            cli.main(args)


def test_an_interrupt_is_exit_code_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(cli.COMMANDS, "train", fails(KeyboardInterrupt()))
    assert cli.main(["train"]) == 130
    assert capsys.readouterr().err == "rebalance: interrupted\n"


def test_bugs_are_not_dressed_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cli.COMMANDS, "train", fails(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        cli.main(["train"])


@pytest.mark.parametrize("args", [[], ["help"], ["--help"], ["-h"]])
def test_help_lists_every_command(capsys: pytest.CaptureFixture[str], args: list[str]) -> None:
    assert cli.main(args) == 0
    out = capsys.readouterr().out
    assert all(f"\n{name} " in out for name in cli.COMMANDS)


@pytest.mark.parametrize(
    ("command", "items"),
    [
        ("train", TRAIN),
        ("sparsify", settings_of(SparsifyFlags)),
        ("seafloor", settings_of(SeafloorFlags)),
        ("sweep", settings_of(SweepFlags)),
        ("benchmark", settings_of(SweepFlags)),
        ("paper", settings_of(SweepFlags)),
        ("bench", settings_of(BenchFlags)),
        ("steps", settings_of(StepsFlags)),
    ],
)
def test_help_lists_every_flag(capsys: pytest.CaptureFixture[str], command: str, items: dict[str, Any]) -> None:
    assert cli.main(["help", command]) == 0
    out = capsys.readouterr().out
    assert cli.main([command, "--help"]) == 0
    assert capsys.readouterr().out == out
    assert all(f"\n{name} " in out for name in items)
    assert cli.COMMANDS[command].usage in out


def test_convert_lists_the_formats_and_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    from rebalance.data.formats import FORMATS

    assert cli.main(["convert"]) == 0
    out = capsys.readouterr().out
    assert all(f"\n{name} " in out for name in (*FORMATS, "to-coco"))
    assert cli.main(["help", "convert"]) == 0
    assert "voc: objects marked as difficult" in " ".join(capsys.readouterr().out.split())
    for args, says in {
        ("ccoo",): "the format is one of voc, coco",
        ("kiti", "source=a"): "got 'kiti' (did you mean kitti?)",
        ("coco", "difficult=drop"): "unknown flag difficult=drop",
        ("Label_Studio", "out=x"): "source= is missing",
        ("to-coco", "out=x"): "data= is missing",
    }.items():
        assert cli.main(["convert", *args]) == 2
        assert says in capsys.readouterr().err


def test_methods_lists_the_registry(capsys: pytest.CaptureFixture[str]) -> None:
    from rebalance.methods import METHODS

    assert cli.main(["methods"]) == 0
    out = capsys.readouterr().out
    assert all(f"\n{name} " in out for name in METHODS)


def test_the_table_keeps_to_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    lines = cli.table([("a", "first"), ("long name", "word " * 30)]).splitlines()
    assert lines[0] == "a          first"
    assert len(lines) == 4
    assert max(map(len, lines)) <= 60
    assert all(line.startswith(" " * 11 + "word") for line in lines[2:])


def test_help_and_errors_load_neither_torch_nor_ultralytics() -> None:
    code = (
        "import sys; from rebalance.cli.main import main\n"
        "codes = [main(a.split()) for a in ('help', 'version', 'hook status', 'sparsify x', 'tarin')]\n"
        "assert codes == [0, 0, 0, 2, 2], codes\n"
        "assert not {'torch', 'ultralytics', 'torchvision'} & set(sys.modules)\n"
        "main(['help', 'train'])  # its flags stand in the classes of the methods\n"
        "assert not {'ultralytics', 'torchvision'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_a_reader_that_has_enough_is_no_error() -> None:
    """As `rebalance help train | head -1`."""
    call = f'{sys.executable} -c \'from rebalance.cli.main import main; raise SystemExit(main(["help", "train"]))\''
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", f"{call} | true"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_an_error_is_one_line_whatever_a_value_in_it_holds(capsys: pytest.CaptureFixture[str]) -> None:
    def fails() -> None:
        raise RebalanceError("x=a\nb\r\x1b[2J\u2028 é")

    assert cli.guarded(fails) == 2
    assert capsys.readouterr().err == "rebalance: error: x=a\\nb\\r\\x1b[2J\\u2028 é\n"


@pytest.mark.parametrize("line", ["steps model=x.pt source=", "report "])
def test_a_name_that_is_too_long_is_told_in_a_line(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(f"{line}{'x' * 5000}".split()) == 2
    told = capsys.readouterr().err
    assert told.startswith("rebalance: error: ")
    assert "xxx… is too long to be the name of a file\n" in told
    assert len(told) < 200
