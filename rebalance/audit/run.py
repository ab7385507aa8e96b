"""An audit: detectors look at the training images of a data set, and what the labels do not explain is written down.

runs/audit/<name>/
    question.json       what was asked; the same name with another question is refused
    lock                held while an audit works here
    data/, folds/       with folds=: the data set of each training, and the sweep of the trainings
    detections/         what was found, a file for each 64 images; a killed audit goes on after the last one
    suggestions.csv     see `rebalance.audit.table`
    estimate.csv        how many labels of each class are missing
    truth.md, truth.png where withheld boxes are known: how good the audit is, see `rebalance.audit.truth`
    audit.json          all that was found out but the suggestions; written last
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from rebalance.audit import table, truth
from rebalance.audit.detect import Detector, Seen, detect_all
from rebalance.audit.findings import Findings, Image, Look, findings, look
from rebalance.audit.probability import FEW, FEW_IMAGES, Estimate
from rebalance.audit.table import KINDS
from rebalance.data import dataset
from rebalance.data.dataset import DataSet
from rebalance.data.demo.seafloor import built_in
from rebalance.data.labels import read_bytes
from rebalance.data.part import part
from rebalance.data.progress import progress
from rebalance.errors import ConfigError, DataError, RunError, nearest
from rebalance.experiments.machine import versions
from rebalance.experiments.record import load, read_json
from rebalance.experiments.sweep import sweep
from rebalance.files import clear, write_whole
from rebalance.report.figures import audit as picture
from rebalance.settings import AuditFlags, SweepFlags, as_dict, parse, require, settings_of, value_text

ROOT = Path("runs/audit")
ABOUT, SUGGESTIONS, ESTIMATE, QUESTION = "audit.json", "suggestions.csv", "estimate.csv", "question.json"
SCHEMA = 1

_FOLDS = "folds"
_OF_SWEEP = frozenset(settings_of(SweepFlags)) - {"jobs"}


def audit(given: AuditFlags, training: Mapping[str, str] | None = None) -> Path:
    """Audit the training labels of a data set and return the folder; the same name continues a killed audit.

    Args:
        given: `data` and `model` are required.
        training: with folds, flags of the trainings, as those of a sweep.

    Raises:
        ConfigError: a flag is missing, or has no effect.
        DataError, ModelError: the data set cannot be used, or not the model; nothing was made.
        RunError: the folder holds another audit, another process works in it, or a training failed.
    """
    require(given, "data", "model")
    given = parse(AuditFlags, as_dict(given))
    training = _training(given, training or {})
    source = dataset.load(built_in(given.data))
    source.knowledge.require_matched()
    images, skipped = _images(source, "train")
    val, _ = _images(source, "val")
    if not 0 <= given.folds <= len(images) or given.folds == 1:
        raise ConfigError(f"folds={given.folds}: 0, or 2 to {len(images)}, the training images")
    facts = {
        "data": str(source.file.absolute()),
        "data_sha256": labels_hash(source, images),
        "model": given.model,
        "model_sha256": _file_hash(given.model),
        **{key: value for key, value in as_dict(given).items() if key not in ("data", "model", "name", "export")},
        "training": dict(sorted(training.items())),
    }
    if not given.folds:
        _detector(given, source, given.model)  # so that nothing is made where it cannot be
    folder = ROOT / (given.name or default_name(source))
    with _held(folder, facts):
        parts, models = _models(given, training, source, images, folder)
        looks, judged, known, setting = list[Look](), list[list[Look]](), frozenset(source.names), {}
        for number, (chosen, model) in enumerate(zip(parts, models, strict=True)):
            detector = _detector(given, source, model)
            which = f"model {number + 1} of {len(models)}, " if given.folds else ""
            known, setting = known & detector.known, detector.setting
            of_train, of_val = (
                _looks(
                    source,
                    some,
                    detect_all(
                        detector,
                        [image.path for image in some],
                        folder / "detections" / str(number) / split,
                        f"{which}{split}",
                    ),
                )
                for split, some in (("train", chosen), ("val", val))
            )
            looks += of_train
            judged.append(of_val)
        looks.sort(key=lambda one: one.image.name)
        found = findings(source.names, looks, judged, known, given.seed)
        table.write(folder / SUGGESTIONS, found.suggestions)
        shown = {row.image for row in found.suggestions}
        about = _about(
            facts,
            source,
            found,
            images=len(looks),
            images_root=images_root([image.path for image in images]),
            models=models,
            lower_bound=not given.folds,
            settings=setting,
            notes=_notes(facts, found, source.names, len(val), skipped),
            **({"truth": truth.truth(source, looks, found)} if source.has_withheld() else {}),
            suggestions_sha256=hashlib.sha256((folder / SUGGESTIONS).read_bytes()).hexdigest(),
            sizes={one.image.name: list(one.size) for one in looks if one.image.name in shown},
        )
        if "truth" in about:
            write_whole(folder / "truth.md", truth.tables(about["truth"]).encode())
            picture.write(about["truth"], folder / "truth.png")
        write_whole(folder / ESTIMATE, _estimate(about))
        write_whole(folder / ABOUT, (json.dumps(about, indent=1, ensure_ascii=False) + "\n").encode())
    return folder


def summary(folder: Path) -> str:
    """A few lines for the user: what was found, by class."""
    about = read_json(folder / ABOUT) or {}
    rows = [("class", "labels", "suggestions", "missing", "95 %")]
    for found in (*about["classes"], {"name": "all", **about["total"]}):
        span = "" if found["missing"] is None else f"{found['low']:.0f} to {found['high']:.0f}"
        missing = "" if found["missing"] is None else f"{found['missing']:.0f}"
        rows.append((found["name"], str(found["labels"]), str(found["suggestions"]), missing, span))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    kinds = ", ".join(f"{count} {kind}" for kind, count in about["kinds"].items())
    known = [truth.summary(about["truth"])] if "truth" in about else []
    return "\n".join([*lines, *known, *about["notes"], f"suggestions: {kinds}", str(folder / SUGGESTIONS)])


def default_name(source: DataSet) -> str:
    """Name of an audit after its data set: that of the YAML, or of the folder where that says nothing."""
    stem = source.file.stem
    return source.file.absolute().parent.name if stem in ("data", "dataset") else stem


def labels_hash(source: DataSet, images: Iterable[Image] | None = None) -> str:
    """SHA-256 of the training labels: of each label file its place and its bytes."""
    paths = [image.path for image in images] if images is not None else [i.path for i in _images(source, "train")[0]]
    files = sorted({dataset.label_path(path) for path in paths})
    root, total = os.path.commonpath(files) if files else "", hashlib.sha256()
    for file in files:
        data = read_bytes(file)
        digest = "none" if data is None else hashlib.sha256(data).hexdigest()
        total.update(f"{os.path.relpath(file, root)}\0{digest}\n".encode("utf-8", "surrogateescape"))
    return total.hexdigest()


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
    if begun is None and folder.is_dir() and any(path.name != "lock" for path in folder.iterdir()):
        raise RunError(f"{folder} exists and is not an audit's; choose another name=")
    if begun is not None and begun != json.loads(json.dumps(facts)):
        changed = next(key for key in {**facts, **begun} if begun.get(key) != json.loads(json.dumps(facts.get(key))))
        was, now = (str(one.get(changed))[:60] for one in (begun, facts))
        raise RunError(f"{folder} holds another audit: {changed} was {was}, is {now}; choose another name=")
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise RunError(f"another audit works in {folder}") from None
    try:
        clear(folder)
        write_whole(folder / QUESTION, (json.dumps(facts, indent=1) + "\n").encode())
        yield
    finally:
        lock.release()


def _models(
    given: AuditFlags, training: Mapping[str, str], source: DataSet, images: Sequence[Image], folder: Path
) -> tuple[list[list[Image]], list[str]]:
    """The images in parts, and for each part the model that looks at it."""
    if not given.folds:
        return [list(images)], [given.model]
    parts = fold(images, given.folds, given.seed)
    cells = []
    for number, left_out in enumerate(parts):
        place = folder / "data" / str(number)
        if not (place / "manifest.json").is_file():
            out = {image.path for image in left_out}
            part(source, [path for path in source.images("train") if path not in out], place)
        data = str((place / "data.yaml").absolute())
        cells.append({**training, "model": given.model, "data": data, "name": _FOLDS, "seeds": str(given.seed)})
    done = load(sweep(cells, root=folder))
    weights = {
        str(record.host["data"]): str(record.folder / "train" / "weights" / record.weights) for record in done.finished
    }
    if len(weights) < len(parts):
        raise RunError(f"{len(done.failed)} of {len(parts)} trainings failed, the first: {done.failed[0].error}")
    return parts, [weights[cell["data"]] for cell in cells]


def fold(images: Sequence[Image], count: int, seed: int) -> list[list[Image]]:
    """The images in so many parts, by chance; those that share a label file are in one part."""
    files = sorted({dataset.label_path(image.path) for image in images})
    order = np.random.default_rng(seed).permutation(len(files))
    part_of = {files[file]: place % count for place, file in enumerate(order.tolist())}
    return [[image for image in images if part_of[dataset.label_path(image.path)] == i] for i in range(count)]


def _looks(source: DataSet, images: Sequence[Image], found: Sequence[Seen | None]) -> list[Look]:
    """Each image that could be read, held against its labels."""
    looks = []
    for image, seen in zip(images, found, strict=True):
        if seen is None:
            print(f"warning: {image.path} cannot be read; it is passed over", file=sys.stderr)
        else:
            looks.append(look(image, seen.size, seen.found, source.knowledge.unknown_below))
    return looks


def _about(facts: Mapping[str, Any], source: DataSet, found: Findings, **more: Any) -> dict[str, Any]:
    """The content of audit.json."""
    count = Counter(row.number for row in found.suggestions if row.kind == "missing")
    kinds = Counter(row.kind for row in found.suggestions)

    def told(estimate: Estimate | None) -> dict[str, float | None]:
        values = (estimate.missing, estimate.low, estimate.high) if estimate else (None, None, None)
        return {
            key: None if value is None else round(value, 2)
            for key, value in zip(("missing", "low", "high"), values, strict=True)
        }

    classes = [
        {
            "id": number, "name": source.names[number], "labels": row.labels, "suggestions": count[number],
            **told(row.estimate), "how": row.how, "threshold": row.threshold and round(row.threshold, 4),
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


def _notes(facts: Mapping[str, Any], found: Findings, names: Mapping[int, str], of_val: int, skipped: Any) -> list[str]:
    """What a reader of the numbers must know, a line each."""
    notes = []
    by_how: dict[str, list[str]] = {}
    for number, row in found.classes.items():
        by_how.setdefault(row.how, []).append(names[number])
    if by_how.get("threshold"):
        why = f"val has {of_val} images" if of_val < FEW_IMAGES else f"val has fewer than {FEW} labels of them"
        notes.append(
            f"no probability and no estimate for {', '.join(by_how['threshold'])}: {why}; their suggestions are "
            "those of a score near that of their labels"
        )
    if by_how.get("unknown"):
        notes.append(f"the model does not know {', '.join(by_how['unknown'])}: nothing is said of them")
    if not facts["folds"] and found.total:
        notes.append(
            "a lower bound, if the model was trained on these labels: it has learnt that what has none is background; "
            "folds= asks models that have not seen the image"
        )
    if found.silent:
        notes.append(f"{found.silent} detections are where regions or unknown_below say that nothing follows from them")
    return notes + [f"{count} images {why} are passed over" for why, count in skipped.items()]


def _estimate(about: Mapping[str, Any]) -> bytes:
    """estimate.csv: a row a class, and one of all."""
    text = io.StringIO()
    columns = ("id", "name", "labels", "suggestions", "missing", "low", "high", "how", "threshold")
    writer = csv.DictWriter(text, columns, lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows([*about["classes"], {"name": "all", **about["total"]}])
    return text.getvalue().encode()


def _file_hash(model: str) -> str | None:
    """SHA-256 of a checkpoint, None of a model that is only named."""
    path = Path(model)
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
