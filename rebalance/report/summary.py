"""Records -> one row per setting and split: mean, spread and interval over seeds, and the change from its baseline.

A *setting* is everything that makes a run but its seed. Its *baseline* is, where it removes predictions, the *0 % run*:
the setting that differs from it only in removing nothing; else the first loss of the sweep with the same model, head,
labels and budget. Runs are compared with it seed by seed, because a seed moves both alike. Intervals are half-widths of
95 % intervals from Student's t. A single run has no spread, hence no interval.
"""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rebalance.errors import ConfigError, nearest
from rebalance.report.papers import METHOD_FLAGS, base_head, labels_key, loss_name, loss_of, same_value
from rebalance.report.records import METRICS, SPLITS, Record, Sweep
from rebalance.report.student import quantile
from rebalance.settings import TrainFlags, flags, value_text

AXES = ("obj_drop", "box_drop")
# Ultralytics' flags that say where and how a run is carried out, not what is trained
INCIDENTAL = frozenset(
    {
        *("seed", "name", "project", "save_dir", "exist_ok", "device", "workers", "verbose", "plots", "resume", "save"),
        *("save_period", "cache", "val", "mode", "task"),
    }
)
_METHODS = {name: field.metadata["method"] for name, field in flags(TrainFlags).items()}
_DROP_FLAGS = tuple(name for name, method in _METHODS.items() if method == "drop")
LEAST_GAP = 0.001  # a tenth of a point of mAP: the last digit shown


@dataclass(frozen=True)
class Setting:
    """Flag to value, for all flags that make a run what it is; hashable."""

    items: tuple[tuple[str, Any], ...]

    @staticmethod
    def of(values: Mapping[str, Any]) -> Setting:
        """A setting from a mapping; lists become tuples."""
        return Setting(tuple(sorted((k, tuple(v) if isinstance(v, list) else v) for k, v in values.items())))

    @property
    def values(self) -> dict[str, Any]:
        """The flags as a dict."""
        return dict(self.items)

    def get(self, name: str) -> Any:
        """Value of one flag, None where the setting has none of this name."""
        return self.values.get(name)

    def change(self, **values: Any) -> Setting:
        """The setting with some values replaced."""
        return Setting.of({**self.values, **values})

    def removal(self, axis: str) -> float:
        """The fraction removed on `obj_drop` or `box_drop`, 0 where the flag is absent."""
        return float(self.get(axis) or 0)

    @property
    def removes(self) -> bool:
        """Whether it removes predictions."""
        return any(self.removal(axis) for axis in AXES)

    def owns(self, name: str) -> bool:
        """Whether a flag does anything here: it is of no method, or of one that the setting has."""
        return _METHODS.get(name, "") in ("", self.get("head"), *loss_of(self.values).split("+"))


@dataclass(frozen=True)
class Stat:
    """Mean of n values, their standard deviation (n - 1) and the half-width of the mean's 95 % interval.

    `std` and `half` are None for a single value.
    """

    n: int
    mean: float
    std: float | None
    half: float | None

    @property
    def evidence(self) -> bool:
        """Whether the 95 % interval leaves out 0."""
        return self.half is not None and abs(self.mean) > self.half


@dataclass(frozen=True)
class Row:
    """One setting on one split.

    Attributes:
        setting: the flags.
        split: val or test.
        records: the runs, by seed.
        stats: metric -> over the seeds.
        base: the baseline; None for a baseline itself and where there is none.
        change: metric -> over the seeds that the baseline has too, setting minus baseline.
        gap: metric -> gap closed, (setting - baseline) / (baseline on all labels - baseline), on withheld labels only;
            None where the gap is too small to divide by.
    """

    setting: Setting
    split: str
    records: tuple[Record, ...]
    stats: Mapping[str, Stat]
    base: Setting | None
    change: Mapping[str, Stat]
    gap: Mapping[str, float | None]

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds, ascending."""
        return tuple(r.seed for r in self.records)


@dataclass(frozen=True)
class Point:
    """One removal fraction of a series, with its row on each split that was evaluated."""

    removal: float
    rows: Mapping[str, Row]


@dataclass(frozen=True)
class Series:
    """Rising removal on one axis, everything else the same: what one of the paper's tables shows.

    Attributes:
        axis: obj_drop or box_drop.
        setting: the flags of the series with the axis at 0.
        points: by removal, the 0 % run first where there is one.
    """

    axis: str
    setting: Setting
    points: tuple[Point, ...]

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that some point was evaluated on."""
        return tuple(s for s in SPLITS if any(s in p.rows for p in self.points))


def stat(values: Sequence[float]) -> Stat:
    """Mean, standard deviation and 95 % interval of at least one value."""
    n, mean = len(values), statistics.fmean(values)
    if n == 1:
        return Stat(1, mean, None, None)
    std = statistics.stdev(values)
    return Stat(n, mean, std, quantile(n - 1) * std / math.sqrt(n))


def setting_of(record: Record) -> Setting:
    """Everything that makes a run but its seed."""
    labels = record.labels
    host = {k: v for k, v in record.host.items() if k not in INCIDENTAL}
    withheld = {"protocol": labels.get("protocol", "normal"), "rate": labels.get("rate", 0.0)}
    return Setting.of({**record.train, **host, **withheld, "label_seed": labels.get("seed", 0)})


def reference_key(setting: Setting) -> Setting:
    """What two settings share that have the same 0 % run: the flags of `drop` do nothing at 0, so they are left out."""
    values = {k: v for k, v in setting.values.items() if k not in _DROP_FLAGS}
    parts = loss_name(str(values.get("loss", ""))).split("+")
    values["loss"] = "+".join(part for part in parts if part not in ("", "drop"))
    return Setting.of(values)


def loss_key(setting: Setting) -> Setting:
    """What two settings share whose losses are compared: all but the loss and the flags of the methods."""
    values = {k: v for k, v in setting.values.items() if k != "loss" and k not in METHOD_FLAGS}
    return Setting.of({**values, "head": base_head(setting.values)})


def summarise(records: Iterable[Record], first: str = "") -> list[Row]:
    """Return a row for each setting and split, settings in the order of their first run, val before test.

    Runs of the same setting and seed are one run (a sweep has none): the first counts.

    Args:
        records: of a sweep, in its order.
        first: the loss that others are compared with, as in `chosen`; default: the first that has finished.
    """
    runs: dict[Setting, dict[int, Record]] = {}
    for record in records:
        if record.finished:
            runs.setdefault(setting_of(record), {}).setdefault(record.seed, record)
    references: dict[Setting, Setting] = {}
    firsts: dict[Setting, Setting] = {}
    for setting in runs:
        if not setting.removes:
            references.setdefault(reference_key(setting), setting)
            if not first or chosen(setting, first):
                firsts.setdefault(loss_key(setting), setting)

    def values(setting: Setting | None, split: str, metric: str) -> dict[int, float]:
        found = runs.get(setting, {}) if setting else {}
        return {seed: r.metrics[split][metric] for seed, r in sorted(found.items()) if split in r.metrics}

    rows = []
    for setting, by_seed in runs.items():
        base = _baseline(setting, runs, references, firsts)
        full = _on_all_labels(base, references) if base else None
        for split in SPLITS:
            kept = tuple(r for _, r in sorted(by_seed.items()) if split in r.metrics)
            if not kept:
                continue
            stats, change, gap = {}, {}, {}
            for metric in METRICS:
                mine, theirs = values(setting, split, metric), values(base, split, metric)
                stats[metric] = stat(list(mine.values()))
                if not mine.keys() & theirs.keys():
                    continue
                change[metric] = stat([mine[seed] - theirs[seed] for seed in mine if seed in theirs])
                everything = values(full, split, metric)
                if seeds := sorted(mine.keys() & theirs.keys() & everything.keys()):
                    gained = math.fsum(mine[s] - theirs[s] for s in seeds) / len(seeds)
                    gap[metric] = _gap_closed(gained, stat([everything[s] - theirs[s] for s in seeds]))
            rows.append(Row(setting, split, kept, stats, base, change, gap))
    return rows


def summary(sweep: Sweep) -> list[Row]:
    """Return the rows of a sweep; its losses are compared with the baseline chosen, else the first asked for.

    Raises:
        ConfigError: no run has the baseline chosen, or several do that differ in a loss's flags.
    """
    asked = sweep.baseline or sweep.study.get("baseline") or (sweep.asked.get("loss") or [""])[0]
    rows = summarise(sweep.records, str(asked))
    if sweep.baseline:
        _check_baseline(sweep.baseline, [row.setting for row in rows if not row.setting.removes])
    return rows


def chosen(setting: Setting, baseline: str) -> bool:
    """Return whether a setting is the baseline asked for: 'brl', or 'brl brl_t=0.5' where several have that loss."""
    loss, *given = baseline.split() or [""]
    pairs = (word.partition("=") for word in given)
    return loss_of(setting.values) == loss_name(loss) and all(same_value(v, setting.get(k)) for k, _, v in pairs)


def _check_baseline(baseline: str, settings: Sequence[Setting]) -> None:
    varied = [name for name in varying(settings) if name in METHOD_FLAGS]
    names = {setting: method_text(setting, varied) for setting in settings}
    groups: dict[Setting, dict[Setting, str]] = {}
    for setting in settings:
        if chosen(setting, baseline):
            groups.setdefault(loss_key(setting), {}).setdefault(reference_key(setting), names[setting])
    if not groups:
        choices = dict.fromkeys(names.values())
        raise ConfigError(f"baseline={baseline} is not one of {', '.join(choices)}{nearest(baseline, choices)}")
    most = max(groups.values(), key=len)
    if len(most) > 1:
        raise ConfigError(
            f"baseline={baseline} is several settings; give one of " + ", ".join(map(repr, most.values()))
        )


def _baseline(
    setting: Setting,
    runs: Mapping[Setting, Any],
    references: Mapping[Setting, Setting],
    firsts: Mapping[Setting, Setting],
) -> Setting | None:
    if setting.removes:
        own = setting.change(**dict.fromkeys(AXES, 0.0))
        # of several 0 % runs, the one with the same idle flags
        return own if own in runs else references.get(reference_key(setting))
    first = firsts.get(loss_key(setting))
    # two 0 % runs that differ in idle flags only are the same run
    return None if first is None or reference_key(first) == reference_key(setting) else first


def _on_all_labels(base: Setting, references: Mapping[Setting, Setting]) -> Setting | None:
    """The baseline with nothing withheld, for one that has labels withheld."""
    protocol = base.get("protocol")
    if labels_key(protocol, base.get("rate"))[0] == "normal":
        return None
    normal = base.change(protocol="normal", rate=0.0, label_seed=0)
    return references.get(reference_key(normal)) or references.get(reference_key(base.change(rate=0.0)))


def _gap_closed(gained: float, gap: Stat) -> float | None:
    """None where the gap is smaller than what is shown of it, or within its interval: the ratio would be of noise."""
    if gap.mean < LEAST_GAP or (gap.half is not None and not gap.evidence):
        return None
    return gained / gap.mean


def series(rows: Sequence[Row]) -> list[Series]:
    """Return the series in the rows: objectness removal first, each with at least one removal above 0."""
    by_setting: dict[Setting, dict[str, Row]] = {}
    for row in rows:
        by_setting.setdefault(row.setting, {})[row.split] = row
    result = []
    for axis, other in (AXES, AXES[::-1]):
        groups: dict[Setting, list[Setting]] = {}
        for setting in by_setting:
            if setting.removal(axis) > 0 and setting.removal(other) == 0:
                groups.setdefault(setting.change(**dict.fromkeys(AXES, 0.0)), []).append(setting)
        zeros: dict[Setting, Setting] = {}
        for setting in by_setting:
            if not setting.removal(axis) and not setting.removal(other):
                zeros.setdefault(reference_key(setting), setting)
        for base, settings in groups.items():
            zero = base if base in by_setting else zeros.get(reference_key(base))
            points = [Point(s.removal(axis), by_setting[s]) for s in settings]
            points += [Point(0.0, by_setting[zero])] if zero else []
            result.append(Series(axis, base, tuple(sorted(points, key=lambda p: p.removal))))
    return result


@dataclass(frozen=True)
class Comparison:
    """Losses on the same model, head, labels and budget.

    Attributes:
        key: what they share.
        rows: by setting in the order of the sweep, each with its row on each split that was evaluated.
        base: the loss that the others are compared with, None where it has not finished.
    """

    key: Setting
    rows: Mapping[Setting, Mapping[str, Row]]
    base: Setting | None

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that some setting was evaluated on."""
        return tuple(s for s in SPLITS if any(s in rows for rows in self.rows.values()))


def comparisons(rows: Sequence[Row]) -> list[Comparison]:
    """Return the groups of at least two losses, or settings of a loss, that differ in nothing else.

    Removal fractions are in the series; a sweep that has only those has no comparison.
    """
    groups: dict[Setting, dict[Setting, dict[str, Row]]] = {}
    for row in rows:
        groups.setdefault(loss_key(row.setting), {}).setdefault(row.setting, {})[row.split] = row
    found = []
    for key, settings in groups.items():
        if len({reference_key(s) for s in settings}) < 2:
            continue
        bases = [row.base for by_split in settings.values() for row in by_split.values() if row.base]
        found.append(Comparison(key, settings, next((base for base in bases if not base.removes), None)))
    return found


def varying(settings: Iterable[Setting]) -> list[str]:
    """Return the flags that differ between settings; with none, an empty list."""
    seen: dict[str, set[Any]] = {}
    settings = list(dict.fromkeys(settings))
    for name in dict.fromkeys(name for setting in settings for name, _ in setting.items):
        seen[name] = {setting.get(name) for setting in settings}
    told_first = (
        *AXES,
        "protocol",
        "rate",
        "model",
        "data",
        "head",
        "loss",
        *METHOD_FLAGS,
    )  # the methods' in the order in which `help` has them
    first = [name for name in dict.fromkeys(told_first) if len(seen.get(name, ())) > 1]
    return first + [name for name, values in seen.items() if len(values) > 1 and name not in first]


def describe(setting: Setting, names: Sequence[str]) -> str:
    """Return those of the named flags that do anything here, as the user types them: 'obj_drop=0.75 box_drop=0'.

    'all runs' where none is named.
    """
    values = {**setting.values, "loss": loss_of(setting.values)}
    return " ".join(f"{name}={value_text(values.get(name))}" for name in names if setting.owns(name)) or "all runs"


def method_text(setting: Setting, names: Sequence[str]) -> str:
    """Return a setting's loss and those of the named flags that do anything here: 'brl brl_t=0.3'."""
    own = [f"{name}={value_text(setting.get(name))}" for name in names if setting.owns(name)]
    return " ".join([loss_of(setting.values) or "the host's loss", *own])


def to_csv(rows: Sequence[Row]) -> str:
    """Return summary.csv: fractions, `_ci95` are half-widths, `pairs` is the number of seeds behind `_diff`."""
    names = ["model", "head", "loss", *AXES, "protocol", "drop_rate", "epochs", "imgsz"]
    known = {*names, "rate"}
    extra = [name for name in varying(row.setting for row in rows) if name not in known]
    parts = ("mean", "std", "ci95", "diff", "diff_ci95", "gap_closed")
    head = [*names, *extra, "split", "n", "seeds", "pairs", *(f"{m}_{part}" for m in METRICS for part in parts)]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    for row in rows:
        ran, values = row.records[0].loss_ran, {**row.setting.values, "drop_rate": row.setting.get("rate")}
        values.update({name: ran[name] for name in ("head", "loss") if ran.get(name)})
        pairs = row.change[METRICS[0]].n if row.change else None
        cells = [values.get(name) for name in names]
        cells += [values.get(name) if row.setting.owns(name) else None for name in extra]
        cells += [row.split, len(row.records), " ".join(map(str, row.seeds)), pairs]
        for metric in METRICS:
            own, change = row.stats[metric], row.change.get(metric)
            cells += [_cell(x) for x in (own.mean, own.std, own.half)]
            cells += [_cell(change.mean if change else None), _cell(change.half if change else None)]
            cells.append(_cell(row.gap.get(metric)))
        writer.writerow(["" if cell is None else value_text(cell) for cell in cells])
    return text.getvalue()


def _cell(value: float | None) -> str | None:
    return None if value is None else f"{round(value, 6) + 0.0:.6f}"  # + 0.0: no minus zero
