r"""When does a classifier know objects well enough for BRL? What it would mirror, by epoch, and how much is background.

Labels of all but one object an image are withheld from training (`protocol=extreme`). After each epoch 128 training
images, without augmentation, go through the model as it trains and through its loss: what is confused (negative, and
far from every label that was given) and mirrored (p >= 1 - t) is then looked up in the complete labels. It is
background where it is far from every one of them as well, by the same overlap, and an object where that is at least
0.5; in between it is near one.

    python scripts/brl_warmup.py data=<complete data set>.yaml out=<folder> [pretrained=<weights>] [runs=anchor,stock] \
        [warmups=12,0]

The base alone is trained (`brl_warmup` = all epochs): what BRL would mirror if it began after that epoch; and BRL from
the first epoch on. Numbers go to <folder>/<run>-<brl_warmup>.csv, a row an epoch, and all that are there are drawn in
<folder>/mirrored.png; a run whose numbers are there is not trained again.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import matplotlib.style
import pandas
import torch
from matplotlib.figure import Figure

from rebalance import YOLO
from rebalance.data.derive import sparsify
from rebalance.hosts.host import objectives
from rebalance.match.candidates import Candidates
from rebalance.methods.brl import confusion
from rebalance.report.figures.style import COLOURS, DPI, STYLE
from rebalance.settings import SparsifyFlags, parse

EPOCHS = 12
HOST: dict[str, Any] = {
    "epochs": EPOCHS, "imgsz": 256, "batch": 16, "nbs": 16, "optimizer": "AdamW", "lr0": 0.002, "mosaic": 0, "seed": 0,
    "device": "cpu", "workers": 0, "cache": "ram", "plots": False, "exist_ok": True, "verbose": False, "val": False,
}  # fmt: skip
YOLOV5 = {"model": "yolov5n.yaml", "freeze": 10}
RUNS: dict[str, dict[str, Any]] = {
    "anchor": {**YOLOV5, "head": "anchor"},
    "stock": {**YOLOV5, "head": "stock"},
    "retinanet": {"model": "retinanet_tiny", "freeze": 1},
}
T = (0.5, 0.7, 0.9)  # brl_t
LOOKED_AT = 128  # images
OBJECT = 0.5  # overlap with a label of the complete set from which a candidate is an object


def seen(criterion: Any, preds: Any, batch: dict[str, Any]) -> Candidates:
    """What a loss sees of predictions and labels."""
    criterion, found = deepcopy(criterion), list[Candidates]()
    (objective,) = objectives(criterion)
    loss = objective.loss

    def spy(candidates: Candidates) -> torch.Tensor:
        found.append(candidates)
        return loss(candidates)

    objective.loss = spy  # type: ignore[method-assign]
    criterion(preds, batch)
    return Candidates(*(torch.cat([getattr(part, name) for part in found]) for name in Candidates._fields[:4]))


def counts(trainer: Any, datasets: list[Any]) -> list[dict[str, Any]]:
    """For each t, of the elements (candidate, class) of the images: confused, mirrored, and what those are in truth."""
    # a copy, which normalizes by its batches, as in training; the running means of the first epochs are of no use
    model, batches = deepcopy(trainer.model), [loaded(trainer, dataset) for dataset in datasets]
    settings: Any = objectives(model.criterion)[0].element
    total = [{"t": t} | dict.fromkeys(("confused", "mirrored", "background", "near", "object"), 0) for t in T]
    with torch.no_grad():
        for given, all_labels in zip(*batches, strict=True):
            assert [Path(x).stem for x in given["im_file"]] == [Path(x).stem for x in all_labels["im_file"]]
            preds = model(given["img"])
            candidates = seen(model.criterion, preds, given)
            truth = seen(model.criterion, preds, all_labels).overlap.unsqueeze(-1)
            confused = confusion(candidates.state, candidates.overlap, settings.brl_iou).unsqueeze(-1)
            far, hit = truth < settings.brl_iou, truth >= OBJECT
            kinds = {"mirrored": far | ~far, "background": far, "near": ~far & ~hit, "object": hit}
            for row in total:
                mirrored = confused & (candidates.logits.sigmoid() >= 1 - row["t"])
                row["confused"] += int(confused.expand_as(mirrored).sum())
                for kind, mask in kinds.items():
                    row[kind] += int((mask & mirrored).sum())
    return total


def loaded(trainer: Any, dataset: Any) -> Iterator[dict[str, Any]]:
    """The batches of a data set, in its order."""
    size = HOST["batch"]
    for start in range(0, LOOKED_AT, size):
        images = [dataset[i] for i in range(start, start + size)]
        yield trainer.preprocess_batch(dataset.collate_fn(images))


def measure(name: str, warmup: int, data: Path, complete: Path, out: Path, pretrained: str) -> list[dict[str, Any]]:
    """Train one run; a row before the first epoch and one after each."""
    rows, datasets = list[dict[str, Any]](), list[Any]()

    def note(trainer: Any, epoch: int) -> None:
        if not datasets:
            folders = (trainer.data["train"], str(complete))
            datasets.extend(trainer.build_dataset(folder, "val", HOST["batch"]) for folder in folders)
        rows.extend({"run": name, "brl_warmup": warmup, "epoch": epoch, **row} for row in counts(trainer, datasets))
        print(*rows[-len(T) :], sep="\n", flush=True)

    given = dict(RUNS[name])
    model = YOLO(given.pop("model"))
    model.add_callback("on_train_start", lambda trainer: note(trainer, 0))
    model.add_callback("on_train_epoch_end", lambda trainer: note(trainer, trainer.epoch + 1))

    if pretrained:
        given["pretrained"] = pretrained
    os.environ |= {"MLFLOW_TRACKING_URI": Path(out, "mlflow").absolute().as_uri(), "MLFLOW_ALLOW_FILE_STORE": "true"}
    model.train(
        data=str(data), loss="brl", brl_warmup=warmup, project=str(out), name=f"{name}-{warmup}", **HOST, **given
    )
    return rows


LINES = {"0": (":", "BRL from the start"), "1": ("--", "after one epoch"), str(EPOCHS): ("-", "base alone")}
FEWEST = 10  # mirrored, of which a share is drawn


def draw(table: Any, out: Path) -> None:
    """For each run how much is mirrored, and which share of that is background; a colour a t, a stroke a warm-up."""
    with matplotlib.style.context(["default", STYLE]):
        names = list(table.run.unique())
        figure = Figure(figsize=(4.2 * len(names) + 1.4, 6.2))
        panels = figure.subplots(2, len(names), sharex=True, sharey="row", squeeze=False)
        for (number, share), name in zip(panels.T, names, strict=True):
            for (warmup, t), rows in table[table.run == name].groupby(["brl_warmup", "t"]):
                stroke, words = LINES[str(warmup)]
                style = {"color": COLOURS[T.index(t)], "linestyle": stroke, "marker": "o", "markersize": 3}
                number.plot(rows.epoch, rows.mirrored, label=f"t = {t:g}, {words}", **style)
                some = rows[rows.mirrored >= FEWEST]
                share.plot(some.epoch, 100 * some.background / some.mirrored, **style)
            number.set_title(name)
            number.set(yscale="symlog")
            share.set(xlabel="epochs", ylim=(0, 102))
        panels[0, 0].set_ylim(bottom=0)
        panels[0, 0].set_ylabel("mirrored, of 128 images")
        panels[1, 0].set_ylabel(f"background among {FEWEST} or more, %")
        panels[0, -1].legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
        figure.savefig(out / "mirrored.png", dpi=DPI, metadata={"Software": None}, bbox_inches="tight")


def main(argv: list[str]) -> None:
    """`data=` and `out=`, see above."""
    given = dict(part.partition("=")[::2] for part in argv)
    wrong = ({"data", "out"} - {*given}) | ({*given} - {"data", "out", "work", "pretrained", "runs", "warmups"})
    if wrong:
        sys.exit(f"missing or unknown: {', '.join(sorted(wrong))}; see the first lines of this file")
    source, out = Path(given["data"]).resolve(), Path(given["out"]).resolve()
    work = Path(given.get("work", "runs/brl-warmup")).resolve()
    out.mkdir(parents=True, exist_ok=True)
    partial = work / "extreme"
    if not partial.exists():
        asked = {"data": str(source), "protocol": "extreme", "seed": 0, "out": str(partial)}
        sparsify(parse(SparsifyFlags, asked))
    complete = source.parent / "images" / "train"
    torch.set_num_threads(1)
    for name in given.get("runs", "anchor,stock").split(","):
        for warmup in map(int, given.get("warmups", f"{EPOCHS},0").split(",")):
            file = out / f"{name}-{warmup}.csv"
            if not file.exists():
                rows = measure(name, warmup, partial / "data.yaml", complete, work, given.get("pretrained", ""))
                pandas.DataFrame(rows).to_csv(file, index=False, lineterminator="\n")
    draw(pandas.concat(map(pandas.read_csv, sorted(out.glob("*-*.csv")))), out)


if __name__ == "__main__":
    main(sys.argv[1:])
