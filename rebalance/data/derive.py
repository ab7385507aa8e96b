"""Data sets made from others by a rule for the training labels.

    out/data.yaml       train: the folders below; val and test: the source's own, untouched; names as in the source
    out/images/train/   one link an image; never a linked folder, which would lead Ultralytics back to the full labels
    out/labels/train/   the lines that stay, byte-identical
    out/withheld/train/ the lines that went, under the same names (and those that were withheld from the source before)
    out/true/train/     the source's label files, where noise changed one of their labels or added some
    out/regions/train/  the region files, where there are any
    out/manifest.json   what was asked, what was reached, and the SHA-256 of every label file

The source is only read. Everything is written to a hidden folder beside `out` that is renamed at the end, so `out` is
either complete or not there.

A label file that Ultralytics would reject is copied as it is, with a warning: its image is left out of the training on
the new set as on the source, and its boxes do not count. Images that share a label file (`a.jpg`, `a.png`) share one
here too; an image that a list names twice is trained on twice here too (`train.txt` then replaces the folder).

What the source says of its labels goes with them. `annotated` is written so that it means the same images, by their new
paths those of the training split and by absolute ones the others. A withheld box is no longer in a region that says
that there is nothing of its class: nobody who overlooked it would have said so. That class is taken from the region.

The manifest, in this order:

    schema    1
    ...       what the rule says of itself; a protocol: `protocol`, `asked` (the rate, null without), `keep_one`,
              `only` (the classes that lost boxes, where not all could), `seed`
    noise     with noise only: its `jitter_iou`, and of each kind {asked, boxes, reached}: how many it happened to, and
              their share: of the boxes (missing, extra), of those that were not withheld (jitter, class_flip)
    reached   withheld boxes ÷ boxes
    total     {boxes, withheld, reached}
    classes   the same of each class, with its id and name (of `noise` too; a box counts for its true class)
    images    of the training split, each counted once: {total, labelled_before, labelled, unreadable}
    unlabelled, unknown_below   as in data.yaml, where they are not what is meant without
    files     one a label file: label, images (names below labels/ and images/), boxes, withheld, carried (withheld from
              the source before), unreadable (why, or null), sha256 {source, label, withheld} (null: there is no file);
              with a region file: sha256 also of that {source_regions, regions}, and withdrawn, from how many regions a
              class was taken; with `annotated`: annotated, for each image the classes labelled (null: all);
              with noise: noise, a list of {kind, was, now}, a box each, `class x y w h` (null: it was not there)
    sha256    of everything but `origin`: the same labels and rule give the same hash on every machine
    origin    what differs between machines: data, train, images (how they were linked), rebalance (version)
"""

from __future__ import annotations

import hashlib
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rebalance.data import dataset, items, regions
from rebalance.data.dataset import DataSet
from rebalance.data.folder import Manifest, free, new_folder, put
from rebalance.data.items import Item
from rebalance.data.labels import Labels
from rebalance.data.lines import box_text
from rebalance.data.noise import KINDS, File, Noise, Noisy
from rebalance.data.progress import progress
from rebalance.data.protocols import Withhold
from rebalance.data.regions import Regions
from rebalance.errors import ConfigError
from rebalance.settings import NoiseFlags, SparsifyFlags, as_dict, classes_of, parse, require


class _Drawn(NamedTuple):
    """What a rule and errors make of the labels, one entry a label file."""

    rule: Withhold
    errors: Noise
    masks: list[NDArray[np.bool_]]  # which boxes go
    noisy: list[Noisy]


def sparsify(given: SparsifyFlags) -> Manifest:
    """Make a data set with some of the training labels withheld; returns its manifest. `data` and `out` are required.

    Raises:
        ConfigError: a flag is missing, or has no meaning with the protocol.
        DataError: as `derive`.
    """
    from rebalance.data.demo.seafloor import built_in  # which writes through this module

    require(given, "data", "out")
    given = parse(SparsifyFlags, as_dict(given))
    rule = Withhold(protocol=given.protocol, rate=given.rate, keep_one=given.keep_one, seed=given.seed)
    out, source = free(given.out), dataset.load(built_in(given.data))
    named = classes_of(given.classes, source.names.values())
    only = tuple(number for number, name in source.names.items() if name in named)
    return derive(source, replace(rule, classes=only), out)


def noise(given: NoiseFlags) -> Manifest:
    """Make a data set with errors in the training labels; returns its manifest. `data` and `out` are required.

    Raises:
        ConfigError: a flag is missing or has no effect.
        DataError: as `derive`.
    """
    from rebalance.data.demo.seafloor import built_in

    require(given, "data", "out")
    given = parse(NoiseFlags, as_dict(given))
    kinds = {kind: getattr(given, kind) for kind in KINDS}
    if not (given.missing or any(kinds.values())):
        raise ConfigError(f"there is no noise: give a rate above 0 to one of missing, {', '.join(KINDS)}")
    if given.jitter_iou != NoiseFlags.jitter_iou and not given.jitter:
        raise ConfigError(f"jitter_iou={given.jitter_iou} has no effect without jitter=")
    rule = Withhold(protocol="percent", rate=given.missing, seed=given.seed)
    errors = Noise(**kinds, jitter_iou=given.jitter_iou, seed=given.seed)
    out = free(given.out)
    return derive(dataset.load(built_in(given.data)), rule, out, errors)


def derive(source: DataSet, rule: Withhold, out: Path, errors: Noise | None = None) -> Manifest:
    """Make a data set whose training labels are the source's after a rule; returns its manifest.

    Args:
        source: only read.
        rule: which labels are withheld.
        out: folder to make.
        errors: what happens to those that stay, and what is added.

    Raises:
        DataError: the source cannot be used, `out` exists or lies in the source, or writing failed. Nothing is left.
    """
    found = items.read(source)
    items.require_outside(source, found, out)
    with new_folder(out) as folder:
        return _write(folder, source, found, _draw(source, found, rule, errors or Noise()))


def rehearse(source: DataSet, asked: Iterable[tuple[Withhold, Noise, Path]]) -> list[Manifest]:
    """What `derive` would count, of several rules: `reached`, `total`, `classes`, `noise`; errors as there.

    Nothing is made, and the source is read once.
    """
    found, told = items.read(source), []
    for rule, errors, out in asked:
        items.require_outside(source, found, free(out))
        told.append(_counted(source, found, _draw(source, found, rule, errors)))
    return told


def summary(manifest: Manifest) -> str:
    """A few lines for the user: what was asked and reached, overall and per class."""
    total, images = manifest["total"], manifest["images"]
    asked = "" if manifest["asked"] is None else f", asked {manifest['asked']:.1%}{' of these' * ('only' in manifest)}"
    noise = manifest.get("noise", {})
    rows = [*(found for found in manifest["classes"] if found["boxes"]), {"name": "all", **total, "noise": noise}]
    width = max(len(row["name"]) for row in rows)
    kinds = [kind for kind in noise if kind != "missing" and noise[kind]["asked"]]
    only = [row["name"] for row in manifest["classes"] if row["id"] in manifest.get("only", ())]
    lines = [
        f"{manifest['protocol']}, seed {manifest['seed']}{', keep_one' if manifest['keep_one'] else ''}"
        f"{', of ' + ', '.join(only) if only else ''}: "
        f"{total['withheld']} of {total['boxes']} boxes withheld ({total['reached']:.1%}{asked})",
        f"{images['total']} images, {images['labelled']} with boxes ({images['labelled_before']} before)"
        + (f", {images['unreadable']} with an unreadable label file" if images["unreadable"] else ""),
        *(
            f"{kind}: {noise[kind]['boxes']} boxes ({noise[kind]['reached']:.1%}, asked {noise[kind]['asked']:.1%})"
            for kind in kinds
        ),
        f"{'class':<{width}}  {'boxes':>8}  {'withheld':>8}  reached" + "".join(f"  {kind:>10}" for kind in kinds),
        *(
            f"{row['name']:<{width}}  {row['boxes']:>8}  {row['withheld']:>8}  {row['reached']:>7.1%}"
            + "".join(f"  {row['noise'][kind]['boxes']:>10}" for kind in kinds)
            for row in rows
        ),
    ]
    return "\n".join([*lines, f"sha256 {manifest['sha256']}"])


def _draw(source: DataSet, found: Sequence[Item], rule: Withhold, errors: Noise) -> _Drawn:
    """Let the rule and the errors choose."""
    masks = rule.masks([item.labels for item in found])
    given = [File(item.labels, item.carried, item.data is not None and item.error is None) for item in found]
    return _Drawn(rule, errors, masks, errors(given, classes=len(source.names), keypoints=source.keypoints))


def _write(folder: Path, source: DataSet, found: Sequence[Item], drawn: _Drawn) -> Manifest:
    """Write the whole data set below `folder`, the manifest last."""
    rule, errors, masks, noisy = drawn
    files: list[dict[str, Any]] = []
    how: Counter[str] = Counter()
    for item, mask, made in progress(list(zip(found, masks, noisy, strict=True)), "writing"):
        how.update(items.link_images(folder, item))
        file = _write_labels(folder, item, mask, made, told=bool(errors))
        files.append({**file, **items.annotated(source, item)})
    withdrawn = sum(file.get("withdrawn", 0) for file in files)
    if withdrawn:
        print(
            f"warning: regions that no longer say that there is nothing of a class: {withdrawn}; "
            "a box of it was withheld there",
            file=sys.stderr,
        )
    about = {
        **rule.facts,
        **({"jitter_iou": errors.jitter_iou} if errors.jitter else {}),
        **_counted(source, found, drawn),
    }
    labelled = sum(
        len(file["images"])
        for file, made in zip(files, noisy, strict=True)
        if file["boxes"] > file["withheld"] or len(made.extra)
    )
    return items.write(folder, source, found, about, files, labelled, how)


def _counted(source: DataSet, found: Sequence[Item], drawn: _Drawn) -> dict[str, Any]:
    """What happens to how many boxes, of all and of each class: `noise`, `reached`, `total` and `classes`."""
    rule, errors, masks, noisy = drawn
    boxes, withheld, extra, jitter, flip = (
        np.bincount(np.concatenate(found), minlength=len(source.names))
        for found in (
            [item.labels.classes for item in found],
            [item.labels.classes[mask] for item, mask in zip(found, masks, strict=True)],
            [made.extra.classes for made in noisy],
            [item.labels.classes[made.jitter & ~mask] for item, mask, made in zip(found, masks, noisy, strict=True)],
            [
                item.labels.classes[made.class_flip & ~mask]
                for item, mask, made in zip(found, masks, noisy, strict=True)
            ],
        )
    )
    total = _counts(boxes.sum(), withheld.sum())

    def happened(chosen: slice) -> dict[str, Any]:
        """Of each kind, to how many of the boxes of the chosen classes."""
        counts = {"missing": withheld, "extra": extra, "jitter": jitter, "class_flip": flip}
        rates = {"missing": rule.facts["asked"], **{kind: getattr(errors, kind) for kind in KINDS}}
        told = {}
        for kind, found in counts.items():
            of = boxes if kind in ("missing", "extra") else boxes - withheld
            count, among = int(found[chosen].sum()), int(of[chosen].sum())
            told[kind] = {"asked": rates[kind], "boxes": count, "reached": count / among if among else 0.0}
        return {"noise": told} if errors else {}

    return {
        **happened(slice(None)),
        "reached": total["reached"],
        "total": total,
        "classes": [
            {"id": i, "name": n, **_counts(boxes[i], withheld[i]), **happened(slice(i, i + 1))}
            for i, n in source.names.items()
        ],
    }


def _write_labels(folder: Path, item: Item, mask: NDArray[np.bool_], noisy: Noisy, *, told: bool) -> dict[str, Any]:
    """Write what stays and what goes of one label file; a file that nothing happens to is copied as it is."""
    stay, gone = noisy.labels.pick(~mask) + noisy.extra, item.labels.pick(mask)
    kept = item.data if stay is item.labels else stay.data
    lost = (gone + item.carried).data
    changes = _changes(item.labels, noisy, mask)
    true = item.true if item.true is not None else item.data if changes else None
    hashes = {
        "source": None if item.data is None else hashlib.sha256(item.data).hexdigest(),
        # no label file stays no label file; a file that lost everything is an empty one
        "label": None if kept is None else put(folder / "labels" / item.label, kept),
        "withheld": put(folder / "withheld" / item.label, lost) if lost else None,
    }
    if true is not None:
        hashes["true"] = put(folder / "true" / item.label, true)
    withdrawn = {}
    if item.region_data is not None:
        told_of, withdrawn["withdrawn"] = _withdrawn(item.regions, gone + item.carried)
        data = regions.text(told_of) if withdrawn["withdrawn"] else item.region_data
        hashes["source_regions"] = hashlib.sha256(item.region_data).hexdigest()
        hashes["regions"] = put(folder / "regions" / item.label, data)
    return {
        "label": item.label,
        "images": [name for _, name, _ in item.images],
        "boxes": len(item.labels),
        "withheld": len(gone),
        "carried": len(item.carried),
        "unreadable": item.error,
        **({"noise": changes} if told else {}),
        **withdrawn,
        "sha256": hashes,
    }


def _withdrawn(known: Regions, gone: Labels) -> tuple[Regions, int]:
    """The regions without their claim that none of these labels is there, and how many made it."""
    wrong = regions.contradicted(known, gone.classes, gone.boxes_xywh_norm)
    of_class = gone.classes[:, None] == np.arange(known.classes.shape[1])  # (m, C)
    return replace(known, classes=known.classes & ~(wrong @ of_class)), int(wrong.any(1).sum())


def _changes(true: Labels, noisy: Noisy, gone: NDArray[np.bool_]) -> list[dict[str, str | None]]:
    """What happened to the boxes of a file that stay, a row a box, and then what was added."""

    def text(found: Labels, i: int) -> str:
        return box_text(int(found.classes[i]), found.boxes_xywh_norm[i])

    happened = {"jitter": noisy.jitter & ~gone, "class_flip": noisy.class_flip & ~gone}
    rows: list[dict[str, str | None]] = []
    for i in np.flatnonzero(happened["jitter"] | happened["class_flip"]).tolist():
        kind = "+".join(kind for kind, mask in happened.items() if mask[i])
        rows.append({"kind": kind, "was": text(true, i), "now": text(noisy.labels, i)})
    added = (text(noisy.extra, i) for i in range(len(noisy.extra)))
    return [*rows, *({"kind": "extra", "was": None, "now": now} for now in added)]


def _counts(boxes: int | np.int64, withheld: int | np.int64) -> dict[str, Any]:
    boxes, withheld = int(boxes), int(withheld)
    return {"boxes": boxes, "withheld": withheld, "reached": withheld / boxes if boxes else 0.0}
