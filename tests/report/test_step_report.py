"""What the report shows of an objectness that is refined in steps: its means over training, its detections."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle

from rebalance.errors import RunError
from rebalance.experiments.record import load, read
from rebalance.report.build import report
from rebalance.report.figures import by_epoch, objectness, samples
from rebalance.report.figures.objectness import curve, steps_of
from rebalance.report.figures.style import COLOURS
from rebalance.report.summary import results

Make = Callable[..., dict[str, Any]]
WORDS = "Mean objectness of the candidates"


@pytest.fixture
def run(make_record: Make) -> Make:
    """A function that makes a run with T steps; mean t of a positive is first + t/10 in its first epoch, then more."""

    number = count()  # the order of the runs where a sweep has left no plan is that of their names

    def make(steps: int, seed: int = 0, first: float = 0.2, epochs: int = 2, **more: Any) -> dict[str, Any]:
        flags = {"head": "resobj", "loss": "bce", "resobj_steps": steps, **more}
        content = make_record(f"{next(number):02}", seed, **flags)
        content["epochs"] = [
            {
                "epoch": e,
                **{f"resobj/pos_{t}": first + 0.1 * t + 0.05 * (e - 1) for t in range(steps + 1)},
                **{f"resobj/neg_{t}": 0.01 / (t + 1) / e for t in range(steps + 1)},
            }
            for e in range(1, epochs + 1)
        ]
        return content

    return make


def rows(figure: Any) -> list[tuple[Any, Any]]:
    """The panels of positives and of negatives, row by row."""
    return list(zip(figure.axes[::2], figure.axes[1::2], strict=True))


def values(panel: Any) -> list[list[float]]:
    return [[round(float(y), 6) for y in line.get_ydata()] for line in panel.lines]


# Means over training --------------------------------------------------------------------------------------------------


def test_means_by_epoch_and_their_range(make_sweep: Any, run: Make) -> None:
    one, two, three = (run(1, seed) for seed in range(3))
    for content, own in ((one, (0.1, 0.2, 0.6)), (two, (0.3, 0.6)), (three, (0.2, 0.4))):
        content["epochs"] = [{"epoch": e, "resobj/pos_0": v} for e, v in enumerate(own, 1)]
    three["epochs"][0]["resobj/pos_0"] = None  # as a number that overflowed is written
    two["epochs"].reverse()
    found = curve(load(make_sweep(one, two, three)).finished, "pos", 0)
    assert found.epochs == (1, 2, 3)
    assert found.mean == pytest.approx((0.2, 0.4, 0.6))
    assert found.low == pytest.approx((0.1, 0.2, 0.6))
    assert found.high == pytest.approx((0.3, 0.6, 0.6))
    assert curve(load(make_sweep(run(1), name="other")).finished, "neg", 2).epochs == ()


@pytest.mark.parametrize(
    ("columns", "steps"),
    [((), None), (("pos_0",), 0), (("pos_0", "pos_1", "pos_2"), 2), (("pos_0", "pos_2"), 0), (("neg_0",), None)],
)
def test_number_of_steps_that_a_record_has(
    make_sweep: Any, run: Make, columns: Sequence[str], steps: int | None
) -> None:
    content = run(0)
    content["epochs"] = [{"epoch": 1}, {"epoch": 2, **{f"resobj/{name}": 0.5 for name in columns}}]
    (record,) = load(make_sweep(content)).finished
    assert steps_of(record) == steps


def test_a_line_for_each_step_and_one_for_none(make_sweep: Any, run: Make) -> None:
    runs = [run(T, seed, first=0.2 + 0.2 * seed) for T in (0, 1, 2) for seed in (0, 1)]
    runs.append(run(0, 2, first=0.9))  # a seed that T = 2 has not
    figure, caption = objectness.draw(results(load(make_sweep(*runs))))
    ((positives, negatives),) = rows(figure)
    assert values(positives) == [[0.3, 0.35], [0.4, 0.45], [0.5, 0.55], [0.3, 0.35]]  # the last: T = 0
    assert values(negatives) == [[0.01, 0.005], [0.005, 0.0025], [0.003333, 0.001667], [0.01, 0.005]]
    assert [to_hex(line.get_color()) for line in positives.lines[:3]] == [c.lower() for c in COLOURS[:3]]
    assert positives.lines[3].get_linestyle() == "--"
    assert len(positives.collections) == len(negatives.collections) == 3  # bands, from seed to seed
    band = positives.collections[1].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == pytest.approx((0.3, 0.55))
    assert positives.get_ylabel() == "protocol normal\nT = 2, n = 2"
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["t = 0 (objectness)", "t = 1", "t = 2", "no steps (T = 0)"]
    assert "Figures 2 and 4 of Chen et al." in caption
    assert "bands from the lowest to the highest seed" in caption
    assert "Dashed: the same training with no steps" in caption
    assert "not shown: 1 more" in caption  # T = 1


def test_a_single_run_has_no_band(make_sweep: Any, run: Make) -> None:
    figure, caption = objectness.draw(results(load(make_sweep(run(1)))))
    ((positives, _),) = rows(figure)
    assert not positives.collections
    assert positives.get_ylabel() == "protocol normal\nT = 1, single run"
    for words in ("over seeds", "Dashed", "not shown", "logarithmic"):
        assert words not in caption


def test_one_epoch_is_seen_and_is_a_whole_one(make_sweep: Any, run: Make) -> None:
    runs = [run(0, epochs=1), run(1, epochs=1)]
    for content in runs:
        content["epochs"][0]["train/cls_loss"] = 1.0
    found = results(load(make_sweep(*runs)))
    figure, _ = objectness.draw(found)
    ((positives, _),) = rows(figure)
    low, high = positives.get_xlim()
    assert [x for x in positives.get_xticks() if low <= x <= high] == [1]
    assert [(line.get_marker(), line.get_markersize() > 0) for line in positives.lines] == [
        *(("o", True), ("o", True), ("D", True))
    ]
    assert [line.get_marker() for line in figure.legends[0].get_lines()] == ["o", "o", "D"]
    figure, _ = by_epoch.training(found)
    for panel in figure.axes:
        low, high = panel.get_xlim()
        assert [x for x in panel.get_xticks() if low <= x <= high] == [1]
        assert {line.get_marker() for line in panel.lines} == {"o"}
    for content in runs:
        content["epochs"] = [{"epoch": e, "train/cls_loss": 1.0} for e in range(1, 9)]
    found = results(load(make_sweep(*runs, name="eight")))
    figure, _ = by_epoch.training(found)
    for panel in figure.axes:
        assert sum(1 <= x <= 8 for x in panel.get_xticks()) > 1
        assert {line.get_marker() for line in panel.lines} <= {"", "None"}


def test_an_objectness_without_steps_is_shown_by_itself(make_sweep: Any, run: Make) -> None:
    figure, caption = objectness.draw(
        results(load(make_sweep(run(0, head="obj"), run(0, head="obj", protocol="extreme"))))
    )
    assert [values(positives) for positives, _ in rows(figure)] == [[[0.2, 0.25]], [[0.2, 0.25]]]
    assert [positives.get_ylabel().split("\n")[0] for positives, _ in rows(figure)] == [
        "protocol normal",
        "protocol extreme",
    ]
    assert "not shown" not in caption


def test_head_obj_is_what_steps_stand_beside(make_sweep: Any, run: Make) -> None:
    """Of the same detector, labels and other methods, whatever the flags that only a head with steps has."""
    runs = [run(2, first=0.1, resobj_grad="joint", loss="resobj+drop", obj_drop=0.5)]
    runs += [run(0, first=0.3, head="obj", loss="drop", obj_drop=0.5), run(0, first=0.4, head="obj")]
    figure, _ = objectness.draw(results(load(make_sweep(*runs))))
    (first, _), (second, _) = rows(figure)
    assert values(first)[3] == [0.3, 0.35]
    assert values(second) == [[0.4, 0.45]]
    assert "loss=resobj+drop" in first.get_ylabel()
    assert "loss=obj" in second.get_ylabel()


def test_too_many_settings_leave_one_for_each_detector_and_labels(make_sweep: Any, run: Make) -> None:
    runs = [
        run(T, protocol=protocol, resobj_grad=grad, host={"model": model})
        for model in ("yolov5n.yaml", "yolov8n.yaml")
        for protocol in ("normal", "extreme")
        for grad, T in (("joint", 1), ("isolated", 1), ("isolated", 3))
    ]
    figure, caption = objectness.draw(results(load(make_sweep(*runs))))
    labels = [positives.get_ylabel() for positives, _ in rows(figure)]
    assert labels == [
        f"protocol {protocol},\nmodel=yolov{v}n.yaml\nT = 3, single run"
        for v in (5, 8)
        for protocol in ("normal", "extreme")
    ]
    assert "Shown: 4 with the largest T; not shown: 8 more" in caption
    few = [r for r in runs if r["config"]["host"]["model"] == "yolov5n.yaml"]
    figure, _ = objectness.draw(results(load(make_sweep(*few, name="few"))))
    assert [positives.get_ylabel().split("resobj_grad=")[1] for positives, _ in rows(figure)] == [
        f"{grad}\nT = {T}, single run" for grad, T in (("joint", 1), ("isolated", 3)) * 2
    ]


@pytest.mark.parametrize(("last", "scale"), [(0.0004, "log"), (0.0006, "linear"), (0.0, "linear"), (None, "linear")])
def test_negatives_that_fall_far_are_on_a_logarithmic_axis(
    make_sweep: Any, run: Make, last: float | None, scale: str
) -> None:
    content = run(0)
    for row, negative, positive in zip(content["epochs"], (0.01, last), (0.001, 0.9), strict=True):
        row |= {"resobj/neg_0": negative, "resobj/pos_0": positive}
    figure, caption = objectness.draw(results(load(make_sweep(content))))
    ((positives, negatives),) = rows(figure)
    assert (positives.get_yscale(), negatives.get_yscale()) == ("linear", scale)
    assert ("logarithmic where negatives fall far" in caption) == (scale == "log")


def test_negatives_without_a_number(make_sweep: Any, run: Make) -> None:
    content = run(0)
    for row in content["epochs"]:
        row["resobj/neg_0"] = None
    figure, _ = objectness.draw(results(load(make_sweep(content))))
    assert values(rows(figure)[0][1]) == [[]]


def test_the_page_has_it_among_the_training_curves(make_sweep: Any, run: Make) -> None:
    one = run(1, host={"model": "a<b>_$x$_{.yaml"})  # two dollar signs would be a formula, and no valid one
    folder = make_sweep(one, run(2, host={"model": "plain.yaml"}))
    text = report(folder).read_text("utf-8")
    training = text.partition("<h2>Training</h2>")[2].partition("<h2>What ran</h2>")[0]
    assert "<h3>Objectness after each step</h3>" in training
    assert WORDS in training
    assert "a<b>" not in text
    assert "plots/objectness.png" in (folder / "report.md").read_text("utf-8")
    picture = cv2.imread(str(folder / "plots" / "objectness.png"))
    assert picture.shape[1] < 1300
    labels = [p.get_ylabel() for p, _ in rows(objectness.draw(results(load(folder)))[0])]
    assert labels[0] == "protocol normal,\nmodel=a<b>_\\$x\\$_{.yaml\nT = 1, single run"


def test_other_heads_have_no_such_picture_and_no_word_of_it(series_sweep: Path) -> None:
    assert objectness.draw(results(load(series_sweep))) is None
    text = report(series_sweep).read_text("utf-8")
    assert not {"objectness.png", "steps.png"} & {p.name for p in (series_sweep / "plots").iterdir()}
    assert WORDS not in text
    assert "after each step" not in text


def test_failed_runs_have_no_say(make_sweep: Any, run: Make) -> None:
    failed = {**run(3), "status": "failed", "error": "boom", "metrics": None, "loss_ran": None}
    figure, _ = objectness.draw(results(load(make_sweep(run(1), failed))))
    assert len(rows(figure)[0][0].lines) == 2


# Detections after each step -------------------------------------------------------------------------------------------

FIRST = [[0, 0.42, 2, 2, 20, 20], [1, 0.3, 40, 10, 60, 40]]
SECOND = [[0, 0.6, 2, 2, 20, 20], [1, 0.41, 40, 10, 60, 40]]
LAST = [[0, 0.8, 2, 2, 20, 20], [1, 0.1, 40, 10, 60, 40]]


def looked_at(image: Path, steps: Any = (FIRST, SECOND), last: Any = LAST) -> dict[str, Any]:
    boxes = {"labels": [[0, 2, 2, 20, 20]], "withheld": [], "detections": last}
    return {"image": str(image), "split": "test", "size": [96, 48], **boxes, "steps": list(steps)}


@pytest.fixture
def image(tmp_path: Path) -> Path:
    file = tmp_path / "a frame.jpg"
    cv2.imwrite(str(file), np.full((48, 96, 3), 90, np.uint8))
    return file


def drawn(folder: Path) -> Any:
    return samples.steps(results(load(folder)))


def boxes(panel: Any) -> list[tuple[float, ...]]:
    return [(*p.get_xy(), p.get_width(), p.get_height()) for p in panel.patches if isinstance(p, Rectangle)]


def test_detections_of_each_step_are_read(make_sweep: Any, run: Make) -> None:
    old = looked_at(Path("b.jpg"))
    del old["steps"]
    content = run(2)
    content["samples"] = [looked_at(Path("a.jpg")), old]
    new, before = load(make_sweep(content)).finished[0].samples
    assert [[d.score for d in found] for found in new.steps] == [[0.42, 0.3], [0.6, 0.41]]
    assert new.steps[1][1].box == (40, 10, 60, 40)
    assert new.steps[1][1].cls == 1
    assert before.steps == ()
    content["samples"][0]["steps"][1] = [[0, 0.6, 1]]
    folder = make_sweep(content, name="broken")
    with pytest.raises(RunError, match=r"samples\[0\].steps\[1\]\[0\] has 3 numbers, not 6"):
        read(folder / "runs" / content["run"] / "record.json")


def test_a_picture_for_each_step(make_sweep: Any, run: Make, image: Path) -> None:
    content = run(2)
    content["samples"] = [looked_at(image)]
    figure, caption = drawn(make_sweep(content))
    panels = figure.axes
    assert [boxes(panel) for panel in panels] == [
        [(2, 2, 18, 18)],  # 0.3 is below what the paper shows
        [(40, 10, 20, 30), (2, 2, 18, 18)],
        [(2, 2, 18, 18)],
    ]
    assert [panel.get_title() for panel in panels] == [
        "t = 0 (objectness), mean score 0.42\nfound: 1 labelled, 0 neither",
        "t = 1, mean score 0.51\nfound: 1 labelled, 1 neither",
        "t = 2, mean score 0.80\nfound: 1 labelled, 0 neither",
    ]
    assert f"What {content['run']} finds on the image a frame.jpg" in caption
    assert "(from 0.4; after Figure 5 of Chen et al." in caption


def test_withheld_boxes_are_objects_all_the_same(make_sweep: Any, run: Make, image: Path) -> None:
    content = run(2)
    content["samples"] = [{**looked_at(image), "withheld": [[1, 40, 10, 60, 40]]}]
    figure, _ = drawn(make_sweep(content))
    assert figure.axes[1].get_title().endswith("found: 2 labelled, 0 neither")


@pytest.mark.parametrize(("steps", "panels"), [(1, 2), (3, 4), (4, 6), (5, 6)])
def test_many_steps_go_into_two_lines(make_sweep: Any, run: Make, image: Path, steps: int, panels: int) -> None:
    content = run(steps)
    content["samples"] = [looked_at(image, [FIRST] * steps)]
    figure, _ = drawn(make_sweep(content))
    assert len(figure.axes) == panels
    assert sum(bool(panel.images) for panel in figure.axes) == steps + 1
    assert len({panel.get_subplotspec().rowspan.start for panel in figure.axes}) == (2 if steps > 2 else 1)


def test_low_scores_are_shown_where_there_are_no_others(make_sweep: Any, run: Make, image: Path) -> None:
    content = run(1)
    content["samples"] = [looked_at(image, [[]], [[0, 0.3, 2, 2, 20, 20], [0, 0.2, 2, 2, 20, 20]])]
    figure, caption = drawn(make_sweep(content))
    assert [len(boxes(panel)) for panel in figure.axes] == [0, 1]
    assert figure.axes[0].get_title() == "t = 0 (objectness)\nfound: 0 labelled, 0 neither"
    assert "(from 0.25;" in caption
    content["samples"] = [looked_at(image, [[]], [[0, 0.2, 2, 2, 20, 20]])]
    told = drawn(make_sweep(content, name="lower"))
    assert told == "No detections after each step: nothing was found with a score of 0.25."


def test_the_report_shows_the_run_with_most_steps(make_sweep: Any, run: Make, image: Path) -> None:
    one, late, two = run(1), run(2, seed=1, loss="bce"), run(2, seed=0, resobj_on="cls")
    one["samples"], late["samples"], two["samples"] = (
        [looked_at(image, [FIRST])],
        [looked_at(image)],
        [looked_at(image)],
    )
    folder = make_sweep(one, late, two)
    text = report(folder).read_text("utf-8")
    part = text.partition("<h2>Sample detections</h2>")[2].partition("<h2>Training</h2>")[0]
    assert "What resobj_steps=2 resobj_on=cls, seed 0 finds on the image a frame.jpg" in part
    assert (folder / "plots" / "steps.png").exists()
    image.unlink()
    text = report(folder).read_text("utf-8")
    assert f"No detections after each step: the image is not on this machine ({image})." in text
    assert not (folder / "plots" / "steps.png").exists()


def test_names_are_escaped(make_sweep: Any, run: Make, image: Path) -> None:
    content = run(1)
    content["run"], file = "<b>run", image.with_name("<i>_a.jpg")
    image.rename(file)
    content["samples"] = [looked_at(file, [FIRST])]
    folder = make_sweep(content)
    text = report(folder).read_text("utf-8")
    assert "What &lt;b&gt;run finds on the image &lt;i&gt;_a.jpg" in text
    assert "What &lt;b&gt;run finds on the image &lt;i&gt;\\_a.jpg" in (folder / "report.md").read_text("utf-8")
    assert "<b>run" not in text
