"""The table of clients, in its short form: some rows on every head, and what a cell is made of."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from loaded_script import SCRIPTS, load
from ultralytics.utils.checks import check_imgsz

from rebalance.errors import ConfigError

PAGE = SCRIPTS.parent / "docs" / "works-with.md"
# Rows that take a moment, and what they say where it is not ok
SHORT: dict[str, dict[str, str]] = {
    "predict tensor": {}, "predict list batch=4": {}, "pickle": {}, "COCO libraries": {},
    "track botsort by own features": dict.fromkeys(
        ("anchor", "resobj", "retinanet_tiny", "fasterrcnn_tiny", "ssd_tiny"),
        "tracker=botsort.yaml: with_reid and model: auto take one feature a cell",
    ),
    "export ncnn": dict.fromkeys(("retinanet_tiny", "fasterrcnn_tiny", "ssd_tiny"), "format=ncnn: model=model.pt"),
    "predict visualize": dict.fromkeys(
        ("retinanet_tiny", "fasterrcnn_tiny", "ssd_tiny"), "visualize=True: class activation maps are made from one"
    ),
}  # fmt: skip
REFUSED = ("track botsort by own features", "export ncnn")  # where it is not, the client is needed


@pytest.fixture(scope="module")
def clients() -> ModuleType:
    return load("clients")


@pytest.fixture(scope="module")
def case(clients: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Any]]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    made = clients.Case  # which a test puts another one in the place of
    yield cache(lambda name: made(name, tmp_path_factory.mktemp(name)))
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    "head", ["stock", "YOLO26", "anchor", "resobj", "retinanet_tiny", "fasterrcnn_tiny", "ssd_tiny"]
)
def test_what_a_client_gets_is_what_the_checkpoint_finds_or_one_line(
    clients: ModuleType, case: Callable[[str], Any], head: str
) -> None:
    rows = clients.rows()
    shown = {name: lines for name, lines in SHORT.items() if head in lines or name not in REFUSED}
    # without what the client needs, which comes after the refusal
    told = {name: clients.cell(rows[name]._replace(needs=()), case(head))[0] for name in shown}
    assert {name: told[name] == "ok" for name in shown} == {name: head not in shown[name] for name in shown}
    assert all(told[name].startswith(lines[head]) for name, lines in shown.items() if head in lines)


def test_a_cell_says_what_came_of_it(clients: ModuleType) -> None:
    def cell(run: Any, *needs: str) -> tuple[str, str]:
        found: tuple[str, str] = clients.cell(clients.Client(run, "", needs), SimpleNamespace(folder=Path("there")))
        return found

    def refuses(_: Any) -> None:
        raise ConfigError("model=there/model.pt: not this")

    def differs(_: Any) -> None:
        clients.same([torch.zeros(1, 6)], [torch.zeros(0, 6)])

    def breaks(_: Any) -> None:
        raise KeyError("scores")

    def hosts(_: Any) -> None:
        check_imgsz({})

    assert cell(lambda _: None) == ("ok", "")
    assert cell(lambda _: "said") == ("said", "")
    assert cell(lambda _: None, "no_such_package") == ("not installed: no_such_package", "")
    assert cell(refuses) == ("model=model.pt: not this", "")
    assert cell(hosts)[0].startswith("'imgsz={}' is of invalid type dict. Valid")
    assert cell(hosts)[1] == ""
    assert [bool(trace) for _, trace in map(cell, (differs, breaks))] == [True, True]
    assert cell(breaks)[0] == "FAULT: KeyError: 'scores'"
    assert cell(differs)[0] == "FAULT: no boxes"


def test_boxes_are_the_same_or_are_counted(clients: ModuleType) -> None:
    box = torch.tensor([[10.0, 10, 40, 40, 0.9, 1]])
    near, far, other = box.clone(), box.clone(), box.clone()
    near[0, 0] += 0.4
    far[0, 0] += 0.6
    other[0, 5] = 2
    clients.same([near], [box])
    for wrong in (far, other, box[:0]):
        with pytest.raises(clients.Fault, match="boxes differ"):
            clients.same([wrong], [box])
    clients.same([far], [box], loose=2)
    with pytest.raises(clients.Fault, match="1 results of 2 images"):
        clients.same([box], [box, box])


def test_a_table_is_made_and_keeps_what_was_tried_before(
    clients: ModuleType, case: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(clients, "Case", lambda name, folder: case(name))
    threads = torch.get_num_threads()
    page = tmp_path / "page.md"
    page.write_text(f"# Works with\n{clients.START}\nold\n{clients.END}\nlast\n", "utf-8")
    out = [f"out={tmp_path / 'out'}", f"page={page}"]
    assert clients.main([*out, "only=pickle", "heads=stock,ssd_tiny"]) == 0
    broken = {**clients.rows(), "deepcopy": clients.Client(lambda _: 1 / 0, "nothing")}
    monkeypatch.setattr(clients, "rows", lambda: broken)
    assert clients.main([*out, "only=deepcopy", "heads=ssd_tiny"]) == 1
    assert "ZeroDivisionError" in capsys.readouterr().out
    torch.set_num_threads(threads)
    with (tmp_path / "out" / "table.csv").open(encoding="utf-8") as file:
        found = {row["client"]: row for row in csv.DictReader(file)}
    assert (found["pickle"]["stock"], found["pickle"]["ssd_tiny"], found["deepcopy"]["stock"]) == ("ok", "ok", "")
    assert found["deepcopy"]["ssd_tiny"].startswith("FAULT: ZeroDivisionError")
    text = page.read_text("utf-8")
    assert text.endswith("\nlast\n")
    assert "| pickle | ok | ok |" in text
    assert "| deepcopy | – | [1] | nothing |" in text
    assert "1. FAULT: ZeroDivisionError" in text


@pytest.mark.parametrize("word", ["only=prdict", "heads=ancor", "outt=x", "predict"])
def test_what_it_does_not_know_is_refused(clients: ModuleType, word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert clients.main([word]) == 2
    assert f"clients: error: {word.rpartition('=')[2] if '=' in word and 'outt' not in word else word[:4]}" in (
        capsys.readouterr().err
    )


def test_the_page_has_the_rows_of_the_script_and_no_fault(clients: ModuleType) -> None:
    table = PAGE.read_text("utf-8").partition(clients.START)[2].partition(clients.END)[0]
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("| ")]
    heads = lines[0][1:-1]
    assert heads == [head for head in clients.HEADS if head in heads]
    assert {line[0] for line in lines[1:]} <= clients.rows().keys()
    notes = {line.partition(".")[0] for line in table.splitlines() if line[:1].isdigit()}
    for line in lines[1:]:
        assert line[-1] == clients.rows()[line[0]].compared
        assert len(line) == len(heads) + 2
        for cell in line[1:-1]:
            assert cell == "ok" or cell.startswith("not installed: ") or cell.strip("[]") in notes
    assert "FAULT" not in table
