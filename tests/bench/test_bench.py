"""`rebalance bench`: what it reports. No figure is asserted: they are the machine's."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from rebalance.bench import clock, contests, growth, hosts_own, run
from rebalance.errors import ConfigError, RunError
from rebalance.hosts import SITES
from rebalance.hosts.torchvision import faster_rcnn, zoo
from rebalance.methods import METHODS
from rebalance.settings import BenchFlags, as_dict, settings_of

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
LOSS_MEASURES = ("criterion", "step", "memory", "criterion memory")
ALL = 10**6  # samples of a detector that then leaves nothing to chance


@pytest.mark.slow
def test_command_prints_a_table_and_writes_every_figure(tmp_path: Path) -> None:
    # In a process of its own: YOLOv5's package, where it is installed, changes settings of OpenCV and PyTorch.
    out = tmp_path / "figures.json"
    given = BenchFlags(only="yolov5,element", batch=2, imgsz=64, repeats=3, device="cpu", out=str(out))
    command = [sys.executable, "-m", "rebalance", "bench", *(f"{k}={v}" for k, v in as_dict(given).items())]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())

    assert found["flags"] == as_dict(given)
    assert found["device"] == "cpu"
    assert found["syncs"] == []
    assert {"machine", "versions", "git", "precision"} <= set(found)
    ours = [
        "ours, loss=bce", "ours, loss=focal", "ours, loss=brl", "ours, loss=drop obj_drop=0.75", "ours, loss=ghm",
        "ours, loss=ohem", "ours, loss=soft", "ours, loss=varifocal",
    ]  # fmt: skip
    hosts = [] if found["skipped"] else ["YOLOv5"]
    expected = {(host, measure, own) for host in hosts for measure in LOSS_MEASURES for own in ours}
    expected |= {("torchvision focal", "element", f"ours, {name}") for name in ("brl", "focal", "bce", "ghm")}
    assert {(row["host"], row["measure"], row["ours"]) for row in found["rows"]} == expected
    for row in found["rows"]:
        assert row["unit"] == ("MiB" if "memory" in row["measure"] else "ms")
        for figures in (row["hosts"], row["own"], row["ratio"]):
            assert 0 < figures["low"] <= figures["median"] <= figures["high"]
        assert row["met"] == (None if row["aim"] is None else row["ratio"]["median"] <= row["aim"])
    for line in found["skipped"]:
        assert line.startswith("yolov5: No module named")
        assert line in done.stdout
    assert done.stdout.count("  ratio ") == len(found["rows"])


def test_without_yolov5_its_rows_are_skipped_with_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "yolov5", None)
    monkeypatch.setitem(sys.modules, "yolov5.utils.loss", None)
    monkeypatch.setattr(run, "_rows", lambda contest, repeats: [])
    found = run.bench(BenchFlags(only="ultralytics,yolov5", batch=1, imgsz=32, repeats=3, device="cpu"))
    assert len(found["skipped"]) == 1
    assert "yolov5" in found["skipped"][0]
    assert "requirements-upstream.txt" in run.table(found)


def test_what_the_gpu_has_no_room_for_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(contest: contests.Contest, repeats: int) -> None:
        raise torch.cuda.OutOfMemoryError

    monkeypatch.setattr(run, "_rows", full)
    found = run.bench(BenchFlags(only="element", batch=1, imgsz=32, repeats=3, device="cpu"))
    assert found["skipped"] == ["element: the GPU's memory is too small for batch=1 imgsz=32"]


def load(batch: int, imgsz: int) -> BenchFlags:
    return BenchFlags(batch=batch, imgsz=imgsz, device="cpu")


def losses(contest: contests.Contest) -> dict[str, float]:
    found = {}
    for side in contest.sides:
        output = (side.model or contest.model)(contest.images)
        found[side.name] = float(side.loss(side.adapt(output)).detach())
    return found


@pytest.mark.parametrize("name", ["ultralytics", "retinanet", "ssd", "fasterrcnn"])
def test_both_sides_compute_the_same_loss_and_every_loss_is_there(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zoo, "Numbers", lambda **n: faster_rcnn.Numbers(**{**n, "anchors": ALL, "rois": ALL}))
    contest = contests.CONTESTS[name][0](load(2, 64))
    found = losses(contest)
    host, *ours = found
    site = SITES[{"ultralytics": "stock"}.get(name, name)]
    assert found[ours[0]] == pytest.approx(found[host], rel=1e-5)
    assert ours[0] == f"ours, loss={site.own}"
    defined = {m for m, row in METHODS.items() if row.kind != "head" and row.defined(site)}
    assert {re.findall(r"loss=(\w+)", own)[0] for own in ours} == defined
    assert 0 < found["ours, loss=drop obj_drop=0.75"] != found[host]


@pytest.mark.parametrize("name", ["retinanet", "ssd", "fasterrcnn"])
def test_only_what_had_a_gradient_gets_one(name: str) -> None:
    output = contests.CONTESTS[name][0](load(1, 64)).model(torch.rand(1, 3, 64, 64))
    found = contests.leaves(output)
    assert found["logits"].requires_grad
    assert found["logits"].is_leaf
    assert not found["anchors"].requires_grad
    assert torch.equal(found["logits"], output["logits"])
    assert tuple(found["size"]) == (64, 64)


def test_torchvision_s_whole_retinanet_has_our_layers_and_our_loss() -> None:
    contest = contests.CONTESTS["retinanet"][1](load(2, 64))
    found = losses(contest)
    assert found["ours, loss=focal"] == pytest.approx(found["torchvision RetinaNet"], rel=1e-4)
    rows = run._rows(contest, 3)
    assert [(row["ours"], row["measure"], row["aim"]) for row in rows] == [
        ("ours, loss=focal", "step", 1.02), ("ours, loss=brl", "step", 1.02)
    ]  # fmt: skip


def test_element_losses_on_one_tensor() -> None:
    contest = contests.element(load(2, 64))
    assert contest.images.shape == (2, 1000, contests.CLASSES)
    found = losses(contest)
    assert found["ours, focal"] == pytest.approx(found["torchvision focal"], rel=1e-5)
    assert found["ours, brl"] < found["ours, focal"] < found["ours, bce"]  # most candidates are confused
    rows = run._rows(contest, 3)
    assert {row["measure"] for row in rows} == {"element"}
    assert {row["ours"]: row["aim"] for row in rows} == {
        "ours, brl": 1.2, "ours, focal": None, "ours, bce": None, "ours, ghm": None
    }  # fmt: skip


def test_inference_rows_tell_what_each_step_adds() -> None:
    races = [build(load(1, 32)) for build in contests.CONTESTS["inference"]]
    rows = {contest.name: run._rows(contest, 3) for contest in races}
    assert list(rows) == ["yolov5n", "yolov8n", "retinanet_tiny", "fasterrcnn_tiny"]
    steps = [f"head=resobj resobj_steps={t}" for t in (1, 2, 3)]
    for name, found in rows.items():
        assert {row["host"] for row in found} == {"head=anchor" if name == "yolov5n" else "head=stock"}
        narrow = ["head=resobj resobj_steps=2 obj_width=0.25"] * (name in ("yolov8n", "retinanet_tiny"))
        assert [row["ours"] for row in found] == ["head=obj", *steps, *narrow]
        assert [row["aim"] for row in found] == [None, None, 1.03, None, *[None for _ in narrow]]
        counts = [row["added_parameters"] for row in found]
        # the anchor head and the RPN have an objectness already
        assert (counts[0] == 0) == (name in ("yolov5n", "fasterrcnn_tiny"))
        assert counts[1] > counts[0] >= 0
        assert counts[3] - counts[2] == counts[2] - counts[1] > 0
        assert all(count < counts[2] for count in counts[4:])
    for contest in races:
        heads = [side.loss.backend.model.model[-1] for side in contest.sides]
        assert [getattr(head, "steps", 0) > 0 for head in heads] == [False, False, *[True for _ in heads[2:]]]
        assert all(head.fused for head in heads[2:])


def test_only_chooses_contests_in_its_order() -> None:
    def names(only: str) -> list[str]:
        return [name for name, _ in contests.chosen(only)]

    assert list(dict.fromkeys(names(""))) == list(contests.CONTESTS)
    assert names("ssd, retinanet,ssd") == ["ssd", "retinanet", "retinanet"]
    assert names("inference") == ["inference"] * 4
    help = settings_of(BenchFlags)["only"].metadata["help"]
    assert all(name in help for name in contests.CONTESTS)
    ((_, build),) = contests.chosen("ssdlite320_mobilenet_v3_large")
    assert build(load(2, 32)).name == "ssdlite320_mobilenet_v3_large"
    assert set(hosts_own.LOSSES) == {*contests.PRESETS, "yolov8n.yaml", "yolov5n.yaml"}
    assert all(zoo.ZOO[name].head.sites.name == host for host, names in contests.PRESETS.items() for name in names)


def test_figures_kept_from_before_can_still_be_read() -> None:
    for name in ("cpu", "gpu", "torchvision-cpu"):
        result = json.loads((ROOT / f"runs/reference/bench-{name}.json").read_text())
        assert run.table(result).count("  ratio ") == len(result["rows"]) > 0
    told = run.table(json.loads((ROOT / "runs/reference/bench-grow-cpu.json").read_text()))
    assert "yolov5n, anchor head" in told


@pytest.mark.upstream
def test_both_sides_compute_the_same_yolov5_loss() -> None:
    code = """
from rebalance.bench import contests
from rebalance.settings import BenchFlags
contest = contests.CONTESTS["yolov5"][0](BenchFlags(batch=2, imgsz=64, device="cpu"))
output = contest.model(contest.images)
sides = [side for side in contest.sides if side.name in ("YOLOv5", "ours, loss=bce", "ours, loss=drop obj_drop=0.75")]
print(*(float(side.loss(side.adapt(output)).detach()) for side in sides))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    if "No module named" in done.stderr:
        pytest.skip("yolov5 is not installed: pip install --no-deps -r requirements-upstream.txt")
    assert done.returncode == 0, done.stderr
    host, ours, dropping = map(float, done.stdout.split())
    assert ours == pytest.approx(host, rel=1e-5)
    assert dropping != pytest.approx(host, rel=1e-3)


def row(ratio: float, aim: float | None, **more: Any) -> dict[str, Any]:
    figures = {"median": 2.0, "low": 1.5, "high": 2.5}
    return {
        "model": "m", "host": "h", "ours": "o", "measure": "step", "unit": "ms", "hosts": figures, "own": figures,
        "ratio": {"median": ratio, "low": 0.9, "high": 1.1}, "aim": aim, "met": None if aim is None else ratio <= aim,
        **more,
    }  # fmt: skip


def test_table_says_which_aims_are_met() -> None:
    rows = [row(1.02, 1.03), row(1.04, 1.03), row(1.5, None, measure="memory", unit="MiB")]
    facts = {"gpu": None, "cpu": "a processor", "threads": 2}
    found = {
        "rows": rows,
        "skipped": [],
        "syncs": [],
        "machine": facts,
        "versions": {"torch": "2"},
        "precision": "float32",
    }
    text = run.table({**found, "flags": as_dict(BenchFlags())})
    lines = [line for line in text.splitlines() if "  ratio " in line]
    assert ["met" in line for line in lines] == [True, False, False]
    assert ["missed" in line for line in lines] == [False, True, False]
    assert "ratio 1.020 [0.900, 1.100]" in lines[0]
    assert text.startswith("a processor, 2 threads")


def test_quartiles_by_hand() -> None:
    assert clock.quartiles([4.0, 1.0, 3.0, 2.0, 5.0]) == {"low": 2.0, "median": 3.0, "high": 4.0}
    assert clock.quartiles([7.0]) == {"low": 7.0, "median": 7.0, "high": 7.0}


def test_turns_reverse_and_the_warm_up_does_not_count() -> None:
    order: list[str] = []
    taken = clock.take_turns({name: lambda name=name: order.append(name) for name in "ab"}, CPU, 4)  # type: ignore[misc]
    assert {name: len(times) for name, times in taken.items()} == {"a": 4, "b": 4}
    assert "".join(order) == ("abba" * 4)[: 2 * (4 + clock.WARM_UP)]


def test_memory_is_the_peak_not_the_sum() -> None:
    def allocate() -> None:
        for _ in range(3):
            torch.zeros(2**18)  # 1 MiB, given back each time
        both = [torch.zeros(2**18) for _ in range(2)]
        del both

    found = clock.memory(allocate, CPU)
    assert found == [] or 2 <= found[0] < 2.1


def test_growth_is_timed_at_every_value_and_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growth, "AXES", {
        "boxes an image": ("count", (1, 70)), "classes": ("nc", (1, 30)), "pixels a side": ("imgsz", (32, 64)),
    })  # fmt: skip
    out = tmp_path / "new" / "grow.json"
    given = BenchFlags(only="ultralytics,ssd", batch=2, imgsz=64, repeats=1, device="cpu", grow=True, out=str(out))
    found = run.bench(given)
    assert json.loads(out.read_text())["rows"] == json.loads(json.dumps(found["rows"]))
    assert (tmp_path / "new" / "grow.png").stat().st_size > 10_000
    at = {(row["host"], row["ours"], row["axis"], row["value"]) for row in found["rows"]}
    losses = [("Ultralytics", "ours, loss=bce"), ("Ultralytics", "ours, loss=drop obj_drop=0.75")]
    losses += [("torchvision SSD", "ours, loss=ohem"), ("torchvision SSD", "ours, loss=drop obj_drop=0.75")]
    assert at == {
        (*pair, axis, value) for pair in losses for axis, (_, values) in growth.AXES.items() for value in values
    }
    text = run.table(found)
    assert "ms at 1, 70 boxes an image" in text
    assert text.count(": grows ") == 4 * 3
    assert text.endswith(str(out.with_suffix(".png")))


def test_growth_by_hand() -> None:
    def at(value: int, hosts: float, own: float) -> dict[str, Any]:
        return {"model": "m", "host": "h", "ours": "o", "axis": "classes", "value": value, "hosts": {"median": hosts},
                "own": {"median": own}}  # fmt: skip

    told = growth.lines({"rows": [at(1000, 9, 9), at(1, 3, 3)]})
    assert "3.00     9.00  x3.0" in told[2]
    assert told[3].endswith("x3.0: grows as the host's or slower")
    assert growth.lines({"rows": [at(1, 3, 3), at(10, 9, 10)]})[3].endswith("x3.3: grows faster than the host's")


def test_many_labels_are_smaller_and_cover_as_much() -> None:
    few, many = (contests._set_up(load(2, 64), "yolov8n.yaml", count=n, nc=3)[2] for n in (contests.CROWD, 1000))
    areas = [x["bboxes"][:, 2:].prod(1).sum() for x in (few, many)]
    assert areas[1] == pytest.approx(areas[0], rel=0.1)
    assert many["most_labels"] == 1000
    assert int(many["cls"].max()) == 2


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"grow": True, "only": "element"}, "with grow element is not one of ultralytics"),
        ({"device": "tpu"}, "device=tpu is not one of cpu"),
        ({"grow": True, "out": "a/b.png"}, "out=a/b.png is for the figures; the plot is written beside"),
        ({"imgsz": 100}, "imgsz=100 is not a multiple of 32"),
        ({"only": "element,retinane"}, r"only=element,retinane: retinane is not one of .*\(did you mean retinanet\?\)"),
    ],
)
def test_bad_flags_are_refused(flags: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run.bench(BenchFlags(**{"device": "cpu", **flags}))


@pytest.mark.parametrize(("out", "why"), [("file/x.json", "File exists"), ("", "Is a directory")])
@pytest.mark.parametrize("grow", [False, True])
def test_figures_that_could_not_be_written_are_not_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str, why: str, grow: bool
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(clock, "take_turns", None)  # nobody times anything
    with pytest.raises(RunError, match=re.escape(f"{tmp_path / out} cannot be written: {why}")):
        run.bench(BenchFlags(only="ssd" if grow else "element", device="cpu", grow=grow, out=f"{tmp_path / out}"))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
