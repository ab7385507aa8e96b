"""The report as files: complete, self-contained, the same every time, and from whatever a sweep has left."""

from __future__ import annotations

import ast
import base64
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import rebalance.report
from rebalance.errors import RunError
from rebalance.experiments.record import load
from rebalance.report.build import report, terminal_table
from rebalance.report.page import command


class Checker(HTMLParser):
    """Collects what a page refers to, and tags that are left open."""

    def __init__(self) -> None:
        super().__init__()
        self.references: list[str] = []
        self.tags: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.references += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data")]
        if tag not in ("meta", "img", "link", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def check(path: Path) -> str:
    """The text of a report, after making sure that it stands alone."""
    text = path.read_text("utf-8")
    page = Checker()
    page.feed(text)
    assert page.open == []
    assert not {"script", "link", "iframe"} & set(page.tags)
    for reference in page.references:
        assert reference.startswith("data:image/png;base64,")
        assert base64.b64decode(reference.partition(",")[2], validate=True).startswith(b"\x89PNG")
    assert "http:" not in text
    assert "https:" not in text
    assert "url(" not in text
    assert "@import" not in text
    return text


def tree(folder: Path) -> dict[str, bytes]:
    """Every file that the report writes."""
    names = [folder / n for n in ("summary.csv", "report.md", "report.html")]
    return {p.name: p.read_bytes() for p in [*names, *sorted((folder / "plots").iterdir())]}


def test_whole_report(series_sweep: Path) -> None:
    path = report(series_sweep)
    text = check(path)
    assert path == series_sweep / "report.html"
    assert {p.name for p in (series_sweep / "plots").iterdir()} == {
        "change.png",
        "removal.png",
        "training.png",
        "drops.png",
    }
    assert text.count("<img") == 4
    assert "a &lt;cpu&gt;" in text
    assert "a long run of this detector with complete labels (2 times the epochs or more) is missing" in text
    assert "rebalance sweep name=mine-long model=yolov5n.yaml data=d.yaml" in text
    assert text.count("NMS at an IoU of 0.7, score from 0.001, at most 300 boxes an image") == 8  # below every table
    assert "drop obj_drop=0.75 box_drop=0" in text  # which loss ran
    assert "mean over the cells kept" in text  # the divisor
    assert "0123456789ab with local changes" in text
    markdown = (series_sweep / "report.md").read_text("utf-8")
    for file in re.findall(r"\]\(([^)]+)\)", markdown):
        assert (series_sweep / file).is_file()
    assert markdown.count("![") == 4
    assert {p.name for p in series_sweep.iterdir()} == {
        *("runs", "sweep.json", "plots", "summary.csv", "report.md", "report.html")
    }


def test_where_one_loss_of_several_drops_its_counts_alone_are_drawn(make_sweep: Any, make_record: Any) -> None:
    runs = []
    for loss, obj_drop in (("focal", 0.0), ("brl", 0.0), ("focal+drop", 0.5)):
        made = make_record(f"loss={loss},seed=0", 0, loss=loss, obj_drop=obj_drop)
        if not obj_drop:
            for row in made["epochs"]:
                del row["drop/negatives"]
        runs.append(made)
    folder = make_sweep(*runs)
    report(folder)
    assert {"drops.png", "training.png"} <= {p.name for p in (folder / "plots").iterdir()}


def test_twice_gives_the_same_bytes(series_sweep: Path) -> None:
    report(series_sweep)
    first = tree(series_sweep)
    report(series_sweep)
    assert tree(series_sweep) == first


def test_one_run_only(make_sweep: Any, make_record: Any) -> None:
    folder = make_sweep(make_record("only", 0, test=0.4))
    text = check(report(folder))
    assert "1 run: 1 finished" in text
    assert "1 (single runs)" in text
    assert not (folder / "plots" / "removal.png").exists()
    assert "40.0" in terminal_table(folder)


def test_no_test_split(make_sweep: Any, make_record: Any) -> None:
    folder = make_sweep(make_record("a", 0, test=None, val=0.4), make_record("b", 0, test=None, val=0.45, box_drop=0.1))
    text = check(report(folder))
    assert "box_drop=0.1, +5.0 points on val" in text
    assert "test mAP50" not in text


def test_a_grid_of_something_else(make_sweep: Any, make_record: Any) -> None:
    folder = make_sweep(make_record("a", 0, test=0.4), make_record("b", 0, test=0.5, host={"lr0": 0.1}))
    check(report(folder))
    assert (folder / "plots" / "settings.png").exists()
    assert "lr0" in terminal_table(folder)


def test_losses_are_drawn_beside_a_series_too(make_sweep: Any, make_record: Any) -> None:
    given = {"zero": {"loss": "bce"}, "drop": {"obj_drop": 0.75}, "focal": {"loss": "focal"}}
    runs = [make_record(run, 0, test=0.4, protocol="extreme", **flags) for run, flags in given.items()]
    folder = make_sweep(*runs, make_record("complete", 0, test=0.6, loss="bce"))
    check(report(folder))
    assert {"change.png", "settings.png"} <= {p.name for p in (folder / "plots").iterdir()}


def test_failed_missing_and_corrupt_runs_are_told(series_sweep: Path, make_record: Any) -> None:
    runs = series_sweep / "runs"
    failed = {**make_record("obj_drop=0.25,seed=1", 1, obj_drop=0.25), "status": "failed", "error": "loss is <nan>"}
    failed |= {"metrics": None, "loss_ran": None, "log_tail": ["the last line"]}
    (runs / "obj_drop=0.25,seed=1" / "record.json").write_text(json.dumps(failed), "utf-8")
    (runs / "obj_drop=0.75,seed=1" / "record.json").unlink()
    (runs / "box_drop=0.75,seed=1" / "record.json").write_text("{", "utf-8")
    text = check(report(series_sweep))
    table = terminal_table(series_sweep)
    for told in (text, table):
        assert "8 runs: 5 finished, 1 failed, 1 missing, 1 unreadable" in told
        assert "box_drop=0.75,seed=1/record.json is not valid JSON" in told
    assert "loss is &lt;nan&gt;" in text
    assert "the last line" in text
    assert "failed: obj_drop=0.25,seed=1: loss is <nan>" in table


def test_only_failed_runs(make_sweep: Any, make_record: Any) -> None:
    failed = {**make_record("a", 0), "status": "failed", "error": "no memory", "metrics": None, "loss_ran": None}
    folder = make_sweep({**failed, "epochs": []})
    assert "no memory" in check(report(folder))
    assert (folder / "summary.csv").read_text("utf-8").count("\n") == 1
    assert "1 run: 0 finished, 1 failed" in terminal_table(folder)


def test_stale_plots_go(series_sweep: Path) -> None:
    report(series_sweep)
    for run in ("obj_drop=0.25", "obj_drop=0.75", "box_drop=0.75"):
        for seed in (0, 1):
            shutil.rmtree(series_sweep / "runs" / f"{run},seed={seed}")
    (series_sweep / "sweep.json").unlink()
    (series_sweep / "plots" / "mine.png").write_bytes(b"x")  # not ours to remove
    report(series_sweep)
    assert {p.name for p in (series_sweep / "plots").iterdir()} == {"training.png", "drops.png", "mine.png"}


def test_refuses_what_is_no_sweep(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="not the folder of a sweep"):
        report(tmp_path)
    assert list(tmp_path.iterdir()) == []


def sample(image: Path, score: float = 0.9) -> dict[str, Any]:
    boxes = {"labels": [[0, 2, 2, 20, 20]], "withheld": [[1, 30, 10, 60, 40]]}
    detections = [[0, score, 2, 2, 20, 21], [1, 0.5, 30, 10, 60, 40], [0, 0.3, 70, 30, 80, 40], [0, 0.01, 0, 0, 9, 9]]
    return {"image": str(image), "size": [96, 48], **boxes, "detections": detections}


def test_samples(make_sweep: Any, make_record: Any, tmp_path: Path) -> None:
    image = tmp_path / "a frame.jpg"
    cv2.imwrite(str(image), np.full((48, 96, 3), 90, np.uint8))
    folder = make_sweep(
        make_record("a", 0, samples=[sample(image)]), make_record("b", 0, obj_drop=0.5, samples=[sample(image, 0.7)])
    )
    text = check(report(folder))
    assert (folder / "plots" / "samples.png").exists()
    assert "Dashed boxes were withheld from training." in text


def test_samples_beside_the_records(make_sweep: Any, make_record: Any) -> None:
    folder = make_sweep(make_record("a", 0, samples=[sample(Path("gone/frame.jpg"))]))
    (folder / "samples").mkdir()
    cv2.imwrite(str(folder / "samples" / "frame.jpg"), np.full((48, 96, 3), 90, np.uint8))
    report(folder)
    assert (folder / "plots" / "samples.png").exists()


@pytest.mark.parametrize("content", [None, b"", b"not an image"])
def test_sample_images_that_are_gone_are_told(make_sweep: Any, make_record: Any, content: bytes | None) -> None:
    folder = make_sweep(make_record("a", 0, samples=[sample(Path("frame.jpg"))]))
    if content is not None:
        (folder / "frame.jpg").write_bytes(content)
    text = check(report(folder))
    assert "No sample detections: the images are not on this machine (frame.jpg and 0 more)." in text
    assert not (folder / "plots" / "samples.png").exists()


def test_command_makes_the_sweep_again(series_sweep: Path) -> None:
    assert command(load(series_sweep)) == (
        "rebalance sweep name=mine model=yolov5n.yaml data=d.yaml obj_drop=0,0.25,0.75 box_drop=0,0.75 seeds=0,1 "
        "series=True"
    )


def test_command_quotes_and_tells_rates(make_sweep: Any, make_record: Any) -> None:
    asked = {"data": ["my data.yaml"], "protocol": ["normal", "percent"], "rate": [0.25], "seeds": [0], "label_seed": 3}
    folder = make_sweep(make_record("a", 0), asked={**asked, "series": False})
    assert command(load(folder)) == (
        "rebalance sweep name=mine 'data=my data.yaml' protocol=normal,percent rate=0.25 seeds=0 label_seed=3"
    )


def test_command_makes_the_labels_again_whichever_way_their_seed_goes(make_sweep: Any, make_record: Any) -> None:
    asked = {"data": ["d.yaml"], "protocol": ["percent"], "rate": [0.5], "seeds": [0, 1], "series": False}
    begun = {"earlier": {"label_seed": 0}, "given": {"label_seed": [3]}, "moving": {}, "whole": {"complete": True}}
    for name, own in begun.items():
        make_sweep(make_record("a", 0), name=name, asked={**asked, **own})
    told = [command(load(make_sweep(name=name))).partition("seeds=0,1")[2] for name in begun]
    assert told == [" label_seed=0", " label_seed=3", "", " complete=True"]


def test_the_labels_that_were_trained_on_are_told_with_all_their_draws(make_sweep: Any, make_record: Any) -> None:
    drawn = [make_record(f"{s}", s, protocol="percent", rate=0.5, label_seed=s) for s in (0, 1)]
    for run in drawn:
        run["config"]["labels"]["manifest"] = {"asked": 0.5, "reached": 0.4996, "sha256": "0"}
    text = check(report(make_sweep(*drawn, make_record("all", 0))))
    assert (
        "<dd>percent 0.5, 50.0% of the boxes withheld, label seeds 0, 1; normal: as the data set has them</dd>" in text
    )


def test_imports_no_torch_and_no_host() -> None:
    for file in Path(rebalance.report.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {n.split(".")[0] for n in names} & {"torch", "ultralytics", "torchvision"}, file
    code = "import sys, rebalance.report.build; assert 'torch' not in sys.modules and 'ultralytics' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize(
    ("part", "value"),
    [
        (("config", "labels", "manifest"), 5),
        (("config", "labels", "protocol"), {"a": 1}),
        (("config", "host", "lr0"), {"a": [1]}),
        (("config", "train", "neg_iou"), [0.3, {"a": 1}]),
        (("loss_ran", "settings"), 5),
        (("loss_ran", "text"), {"a": 1}),
        (("versions", "torch"), ["a"]),
    ],
)
def test_a_report_is_made_whatever_stands_where_a_mapping_or_a_name_belongs(
    make_sweep: Any, make_record: Any, part: tuple[str, ...], value: Any
) -> None:
    odd = make_record("odd", 0, test=0.4)
    inner = odd
    for name in part[:-1]:
        inner = inner[name]
    inner[part[-1]] = value
    folder = make_sweep(odd, make_record("sound", 0, test=0.5, obj_drop=0.5))
    assert "sound" in check(report(folder))
    assert "50.0" in terminal_table(folder)


def test_a_report_is_made_whatever_a_sweep_was_asked_for(make_sweep: Any, make_record: Any) -> None:
    for i, asked in enumerate(({"loss": 5, "data": "d.yaml"}, {"protocol": [{"a": 1}], "seeds": None}, {"loss": []})):
        check(report(make_sweep(make_record("a", 0), name=str(i), asked=asked)))
