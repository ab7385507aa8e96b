"""An audit: detectors look at the training images of a data set, and what the labels do not explain is written down.

runs/audit/<name>/
    question.json       what was asked; the same name with another question is refused
    lock                held while an audit works here, as that of a sweep
    data/, folds/       with folds=: the data set of each training, and the sweep of the trainings
    detections/         what was found, a file for each 64 images; a killed audit goes on after the last one
    suggestions.csv     see `rebalance.audit.table`
    estimate.csv        how many labels of each class are missing
    truth.md, truth.png where withheld boxes are known: how good the audit is, see `rebalance.audit.truth`
    review.html         see `rebalance.audit.review`; exports for other tools beside it, see `rebalance.audit.export`
    audit.json          all that was found out but the suggestions; written last
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from rebalance.audit import export, review, table, truth
from rebalance.audit.detect import Detector, Seen, detect_all
from rebalance.audit.findings import Findings, Image, Look, findings, look
from rebalance.audit.probability import Estimate
from rebalance.audit.table import ABOUT, COUNTS, KINDS, SUGGESTIONS
from rebalance.audit.trained import require_auditable, require_folds
from rebalance.data import completed, dataset, items
from rebalance.data.dataset import DataSet
from rebalance.data.demo.seafloor import built_in
from rebalance.data.part import part
from rebalance.data.progress import progress
from rebalance.errors import ConfigError, DataError, RunError, nearest
from rebalance.experiments.grid import read_grid
from rebalance.experiments.record import load, read_json, write_json
from rebalance.experiments.sweep import LOCKS, RUNNER, check, locked, sweep
from rebalance.files import clear, unfinished, write_whole
from rebalance.report.figures import audit as picture
from rebalance.settings import AuditFlags, SweepFlags, as_dict, parse, require, settings_of, value_text
from rebalance.versions import versions

ROOT = Path("runs/audit")
ESTIMATE, QUESTION = "estimate.csv", "question.json"
SCHEMA = 1

_SHOWN = ("data", "model", "name", "export", "review")  # what an audit finds does not depend on them
_FOLDS = "folds"
_OF_SWEEP = frozenset(settings_of(SweepFlags)) - {"jobs"}


def audit(given: AuditFlags, training: Mapping[str, str] | None = None, root: Path = ROOT) -> Path:
    """Audit the training labels of a data set and return the folder; the same name continues a killed audit.

    Args:
        given: `data` and `model` are required.
        training: with folds, flags of the trainings, as those of a sweep.
        root: where the folder `name` is made.

    Raises:
        ConfigError: a flag is missing, has no effect, or is one that no training has.
        DataError, ModelError: the data set cannot be used, or not the model; nothing was made.
        RunError: the folder holds another audit, another process works in it, or a training failed.
    """
    require(given, "data", "model")
    given = parse(AuditFlags, as_dict(given))
    training = _training(given, training or {})
    tools = export.check(given.export)
    asked = dataset.load(built_in(given.data))
    source = completed.given(asked)  # against its own additions nothing is found
    source.knowledge.require_matched()
    images, skipped = _images(source, "train")
    val, _ = _images(source, "val")
    require_folds(given.folds, len(images))
    facts = {
        "data": str(source.file.absolute()),
        "data_sha256": items.labels_sha256(source),
        "regions_sha256": items.regions_sha256(source),
        "model": given.model,
        "model_sha256": _file_hash(given.model),
        **{key: value for key, value in as_dict(given).items() if key not in _SHOWN},
        "training": dict(sorted(training.items())),
    }
    # where no model is trained, before anything is made
    detectors = [] if given.folds else [_detector(given, source, given.model)]
    folder = root / (given.name or dataset.title(source.file))
    if given.folds:
        _check(given, training, source, begun=(folder / QUESTION).is_file())
    with _held(folder, facts):
        parts, models = _models(given, training, asked, images, folder)
        detectors = detectors or [_detector(given, source, model) for model in models]
        known = frozenset(source.names).intersection(*(detector.known for detector in detectors))
        looks, judged = _look(source, parts, val, folder, detectors)
        found = findings(source.names, looks, judged, known, given.seed)
        table.write(folder / SUGGESTIONS, found.suggestions)
        shown = {row.image for row in found.suggestions}
        about = _about(
            facts,
            source,
            found,
            images=len(looks),
            shown=min(given.review, len(found.suggestions)),
            images_root=images_root([image.path for image in images]),
            models=models,
            lower_bound=not given.folds,
            settings=detectors[0].setting,
            notes=_notes(facts, found, source.names, _also_trained(images, val), len(val), skipped),
            **({"truth": truth.truth(source, looks, found)} if source.has_withheld() else {}),
            suggestions_sha256=hashlib.sha256((folder / SUGGESTIONS).read_bytes()).hexdigest(),
            sizes={one.image.name: list(one.size) for one in looks if one.image.name in shown},
        )
        if "truth" in about:
            write_whole(folder / "truth.md", truth.tables(about["truth"]).encode())
            picture.write(about["truth"], folder / "truth.png")
        write_whole(folder / ESTIMATE, _estimate(about))
        files = {image.name: image.path for image in images}
        if given.review:
            review.write(folder, review.first(found.suggestions, given.review), about, files, source.labels)
        for tool in tools:
            print(
                *export.write(tool, folder, found.suggestions, about, files, source.labels), sep="\n", file=sys.stderr
            )
        write_json(folder / ABOUT, about)
    return folder


def looks(folder: Path) -> tuple[DataSet, list[Look]]:
    """The data set of an audit that is there, and its training images as they were seen; no model is loaded.

    Raises:
        RunError: there is none, or its data set has other labels now.
    """
    facts = read_json(folder / QUESTION)
    if facts is None or not (folder / ABOUT).is_file():
        raise RunError(f"{folder} is not the folder of an audit that was finished: it has no {ABOUT}")
    source = completed.given(dataset.load(facts["data"]))
    images, _ = _images(source, "train")
    if items.labels_sha256(source) != facts["data_sha256"]:
        raise RunError(f"{folder}: the labels of {facts['data']} were changed since")
    parts = fold(images, facts["folds"], facts["seed"]) if facts["folds"] else [images]
    return source, _look(source, parts, [], folder, [None] * len(parts))[0]


def summary(folder: Path) -> str:
    """A few lines for the user: what was found, by class."""
    about = read_json(folder / ABOUT) or {}
    rows = [("class", "labels", "suggestions", "missing", "95 %", "with those not found", "95 %")]
    for found in (*about["classes"], {"name": "all", **about["total"]}):
        missing, low, high, every, least, most = (
            "" if found.get(key) is None else f"{found[key]:.0f}" for key in COUNTS
        )
        span, span_of_every = (f"{first} to {last}" if first else "" for first, last in ((low, high), (least, most)))
        counts = str(found["labels"]), str(found["suggestions"])
        rows.append((found["name"], *counts, missing, span, every, span_of_every))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    kinds = ", ".join(f"{count} {kind}" for kind, count in about["kinds"].items())
    known = [truth.summary(about["truth"])] if "truth" in about else []
    page, all_ = folder / review.PAGE, sum(about["kinds"].values())
    some = f" (the first {about['shown']} of {all_} suggestions)" if about["shown"] < all_ else ""
    places = [str(folder / SUGGESTIONS), *[f"decide in a browser: {page}{some}"] * page.is_file()]
    return "\n".join([*lines, *known, *about["notes"], f"suggestions: {kinds}", *places])


def images_root(paths: Sequence[str]) -> str:
    """The folder that all images are below, '' where there is none."""
    try:
        return os.path.commonpath([os.path.dirname(path) for path in paths])
    except ValueError:  # on several drives
        return ""


def _training(given: AuditFlags, training: Mapping[str, str]) -> dict[str, str]:
    """The flags of the trainings of the folds."""
    for key, value in training.items():
        if not given.folds or key in _OF_SWEEP:
            own = settings_of(AuditFlags)
            why = f" of {', '.join(own)}" if not given.folds else "; it belongs to rebalance sweep"
            needs = "" if given.folds else ", nor one of a training, which folds= makes"
            raise ConfigError(f"{key}={value} is no flag{why}{needs}{nearest(key, own)}")
    shared = {key: value_text(getattr(given, key)) for key in ("imgsz", "batch", "device") if getattr(given, key)}
    # val= False: val judges these models, so it shall not choose them too
    return {"val": "False", "plots": "False", **shared, **training} if given.folds else {}


def _check(given: AuditFlags, training: Mapping[str, str], source: DataSet, *, begun: bool) -> None:
    """Refuse trainings of folds that could not be, before anything is made; one that was begun was asked before.

    Raises:
        ConfigError, ModelError: a flag that is none, or a list of settings; a model that cannot be trained so.
    """
    grid = read_grid({**training, **_cell(given, str(source.file))})
    for key in (key for run in grid.runs for key in run.varied):
        raise ConfigError(f"{key}={training[key]}: an audit trains one setting, and takes no list of them")
    if not begun:
        (told,) = check(RUNNER, grid.runs)
        require_auditable(grid.runs[0], told, source)


def _cell(given: AuditFlags, data: str) -> dict[str, str]:
    """What a training of the folds has beside the flags of all; quoted: a comma in a path begins no list."""
    return {"model": repr(given.model), "data": repr(data), "name": _FOLDS, "seeds": str(given.seed)}


def _images(source: DataSet, split: str) -> tuple[list[Image], Counter[str]]:
    """Images of a split, each once, with what is said of them; and how many are passed over, by the reason."""
    paths, found, skipped = sorted(set(source.images(split))), [], Counter[str]()
    root = images_root(paths)
    for path in progress(paths, f"reading labels of {split}"):
        if source.knowledge.skips(path):
            skipped["without a label file (unlabelled: skip)"] += 1
            continue
        name = os.path.relpath(path, root).replace(os.sep, "/") if root else path
        try:
            labels = source.labels(path)
        except DataError:  # the host leaves such an image out
            skipped["with a label file that cannot be read"] += 1
            continue
        found.append(Image(path, name, labels, source.knowledge.of(path)))
    if not found:
        raise DataError(f"{source.file}: no image of {split} has labels that can be read")
    return found, skipped


def _detector(given: AuditFlags, source: DataSet, model: str) -> Detector:
    channels = dataset.channels(source.file)
    return Detector(model, source.names, channels=channels, imgsz=given.imgsz, batch=given.batch, device=given.device)


@contextmanager
def _held(folder: Path, facts: Mapping[str, Any]) -> Iterator[None]:
    """The folder, made or continued, for this process alone.

    Raises:
        RunError: it holds something else, or another process works in it.
    """
    begun = read_json(folder / QUESTION)
    if begun is not None:  # an earlier version did not say of regions
        begun = {"regions_sha256": facts["regions_sha256"], **begun}
    there = [path for path in folder.iterdir() if not unfinished(path)] if folder.is_dir() else []
    if begun is None and any(path.name not in LOCKS for path in there):
        raise RunError(f"{folder} exists and is not an audit's; choose another name=")
    if begun is not None and begun != facts:
        changed = next(key for key in {**facts, **begun} if begun.get(key) != facts.get(key))
        was, now = (str(one.get(changed))[:60] for one in (begun, facts))
        raise RunError(f"{folder} holds another audit: {changed} was {was}, is {now}; choose another name=")
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder, "audit"):
        clear(folder)
        write_json(folder / QUESTION, facts)
        yield


def _models(
    given: AuditFlags, training: Mapping[str, str], asked: DataSet, images: Sequence[Image], folder: Path
) -> tuple[list[list[Image]], list[str]]:
    """The images in parts, and for each part the model that looks at it, trained on the other labels as they are now.

    Of a completed set that is with what was added, or every round would ask the same models again.
    """
    if not given.folds:
        return [list(images)], [given.model]
    parts = fold(images, given.folds, given.seed)
    places = [folder / "data" / str(number) for number in range(given.folds)]
    files = [] if all(place.exists() for place in places) else items.read(asked)
    cells, data = [], []
    for left_out, place in zip(parts, places, strict=True):
        if not place.exists():  # it appears whole or not at all
            out = {os.path.abspath(dataset.label_path(image.path)) for image in left_out}
            part(asked, [item for item in files if item.source not in out], place)
        data.append(str((place / "data.yaml").resolve()))
        cells.append({**training, **_cell(given, data[-1])})
    done = load(sweep(cells, root=folder))
    weights = {
        str(Path(record.host["data"]).resolve()): str(record.folder / "train" / "weights" / record.weights)
        for record in done.finished
    }
    if len(weights) < len(parts):
        raise RunError(f"{len(done.failed)} of {len(parts)} trainings failed, the first: {done.failed[0].error}")
    return parts, [weights[path] for path in data]


def fold(images: Sequence[Image], count: int, seed: int) -> list[list[Image]]:
    """The images in so many parts, by chance; those that share a label file are in one part."""
    files = sorted({dataset.label_path(image.path) for image in images})
    order = np.random.default_rng(seed).permutation(len(files))
    part_of = {files[file]: place % count for place, file in enumerate(order.tolist())}
    return [[image for image in images if part_of[dataset.label_path(image.path)] == i] for i in range(count)]


def _look(
    source: DataSet,
    parts: Sequence[Sequence[Image]],
    val: Sequence[Image],
    folder: Path,
    detectors: Sequence[Detector | None],
) -> tuple[list[Look], list[list[Look]]]:
    """Each training image as the model of its part sees it, and the images of val as each model sees them.

    Without a detector everything is taken as it was kept.
    """
    audited, judged = list[Look](), list[list[Look]]()
    for number, (chosen, detector) in enumerate(zip(parts, detectors, strict=True)):
        which, found = f"model {number + 1} of {len(parts)}, " if len(parts) > 1 else "", list[list[Look]]()
        for split, images in (("train", chosen), ("val", val)):
            paths, place = [image.path for image in images], folder / "detections" / str(number) / split
            seen = detect_all(detector, paths, place, f"{which}{split}")
            found.append(list(_held_against(source, images, seen)))
        audited += found[0]
        judged.append(found[1])
    return sorted(audited, key=lambda one: one.image.name), judged


def _held_against(source: DataSet, images: Sequence[Image], found: Sequence[Seen | None]) -> Iterator[Look]:
    """Each image that could be read, held against its labels."""
    for image, seen in zip(images, found, strict=True):
        if seen is None:
            print(f"warning: {image.path} cannot be read; it is passed over", file=sys.stderr)
        else:
            yield look(image, seen.size, seen.found, source.knowledge.unknown_below)


def _about(facts: Mapping[str, Any], source: DataSet, found: Findings, **more: Any) -> dict[str, Any]:
    """The content of audit.json."""
    count = Counter(row.number for row in found.suggestions if row.kind == "missing")
    kinds = Counter(row.kind for row in found.suggestions)

    def told(estimate: Estimate | None) -> dict[str, float | None]:
        values = (estimate.missing, *estimate.span, estimate.beyond, *estimate.span_beyond) if estimate else (None,) * 6
        return {key: None if value is None else round(value, 2) for key, value in zip(COUNTS, values, strict=True)}

    classes = [
        {
            "id": number, "name": source.names[number], "labels": row.labels, "suggestions": count[number],
            **told(row.estimate), "recall": row.estimate and row.estimate.recall and round(row.estimate.recall, 4),
            "how": row.how,
            "threshold": row.threshold and round(row.threshold, 4),
            **({} if row.right is None else {"right": round(row.right, 4)}),
        }
        for number, row in found.classes.items()
    ]  # fmt: skip
    total = {
        "labels": sum(row.labels for row in found.classes.values()),
        "suggestions": sum(count.values()),
        **told(found.total),
    }
    return {
        "schema": SCHEMA, **facts, "kinds": {kind: kinds[kind] for kind in KINDS}, "classes": classes, "total": total,
        **more, "versions": versions(),
    }  # fmt: skip


def _also_trained(images: Sequence[Image], val: Sequence[Image]) -> int:
    """How many images of val are training images."""
    known = {os.path.realpath(image.path) for image in images}
    return sum(os.path.realpath(image.path) in known for image in val)


def _notes(
    facts: Mapping[str, Any], found: Findings, names: Mapping[int, str], shared: int, of_val: int, skipped: Any
) -> list[str]:
    """What a reader of the numbers must know, a line each; `shared` images of the `of_val` of val are audited too."""
    notes = []
    by_why: dict[str, list[str]] = {}
    for number, row in found.classes.items():
        if row.how == "threshold":
            by_why.setdefault(row.why, []).append(names[number])
    for why, some in by_why.items():
        notes.append(
            f"no probability and no estimate for {', '.join(some)}: {why}; their suggestions are "
            "those of a score near that of their labels"
        )
    if unknown := [names[number] for number, row in found.classes.items() if row.how == "unknown"]:
        notes.append(f"the model does not know {', '.join(unknown)}: nothing is said of them")
    if shared:
        notes.append(
            f"{shared} of {of_val} images of val are training images: what their labels lack counts as false, so that "
            "too little is said to be missing, or nothing; give val images of its own, with complete labels"
        )
    if not facts["folds"] and found.total:
        notes.append(
            "a lower bound, if the model was trained on these labels: it has learnt that what has none is background; "
            "folds= asks models that have not seen the image"
        )
    if found.total and found.total.beyond > found.total.missing:
        low, high = found.total.span_beyond
        notes.append(
            f"{found.total.beyond:.0f} labels missing ({low:.0f} to {high:.0f}) with those that no model finds, if as "
            "many of them are found as of val's"
        )
    if found.silent:
        notes.append(f"{found.silent} detections are where regions or unknown_below say that nothing follows from them")
    return notes + [f"{count} images {why} are passed over" for why, count in skipped.items()]


def _estimate(about: Mapping[str, Any]) -> bytes:
    """estimate.csv: a row a class, and one of all."""
    text = io.StringIO()
    columns = (
        "id", "name", "labels", "suggestions", *COUNTS, "recall", "how", "threshold", "right",
    )  # fmt: skip
    writer = csv.DictWriter(text, columns, lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows([*about["classes"], {"name": "all", **about["total"]}])
    return text.getvalue().encode()


def _file_hash(model: str) -> str | None:
    """SHA-256 of a checkpoint, None of a model that is only named."""
    path = Path(model)
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
