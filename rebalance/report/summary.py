"""Records -> one row per setting and split: mean, spread and interval over seeds, and the change from its baseline.

A *setting* is everything that makes a run but its seed. Its *baseline* is, where it removes predictions, the *0 % run*:
the setting that differs from it only in removing nothing; else the first loss of the sweep with the same model, head,
labels and budget. Runs are compared with it seed by seed, because a seed moves both alike. Intervals are half-widths of
95 % intervals from Student's t. A single run has no spread, hence no interval.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any, TypeVar

from rebalance.errors import ConfigError, nearest
from rebalance.experiments.record import METRICS, SPLITS, Record, Sweep
from rebalance.report.papers import ON_HEADS, base_head, labels_key, loss_name, loss_of, same_value
from rebalance.report.student import quantile
from rebalance.settings import value_text

AXES = ("obj_drop", "box_drop")
LABELS = ("protocol", "rate", "label_seed")
# Ultralytics' flags that say where and how a run is carried out, not what is trained
INCIDENTAL = frozenset(
    {
        *("seed", "name", "project", "save_dir", "exist_ok", "device", "workers", "verbose", "plots", "resume", "save"),
        *("save_period", "cache", "val", "mode", "task"),
    }
)
T = TypeVar("T")
LEAST_GAP = 0.001  # a tenth of a point of mAP: the last digit shown


@dataclass(frozen=True)
class Setting:
    """Flag to value, for all flags of a run; two are equal where the flags that have a say are."""

    key: frozenset[tuple[str, Any]]  # what it is compared by
    values: Mapping[str, Any] = field(compare=False)  # every flag; lists are tuples
    loss_flags: frozenset[str] = field(compare=False)  # those that some run of the sweep names as settings of its loss
    idle: frozenset[str] = field(compare=False)  # those of `loss_flags` that have no say here

    @staticmethod
    def of(
        values: Mapping[str, Any], loss_flags: frozenset[str] = frozenset(), idle: frozenset[str] = frozenset()
    ) -> Setting:
        """A setting from a mapping of whatever JSON holds."""
        values = {name: _hashable(value) for name, value in values.items()}
        key = frozenset((name, value) for name, value in values.items() if name not in idle)
        return Setting(key, values, loss_flags, idle)

    def get(self, name: str) -> Any:
        """Value of one flag, None where the setting has none of this name."""
        return self.values.get(name)

    def change(self, without: Iterable[str] = (), /, **values: Any) -> Setting:
        """The setting without some flags, and with some values replaced."""
        left_out = {*without}
        kept = {name: value for name, value in self.values.items() if name not in left_out}
        return Setting.of({**kept, **values}, self.loss_flags, self.idle)

    def removal(self, axis: str) -> float:
        """The fraction removed on `obj_drop` or `box_drop`, 0 where the flag is absent."""
        return float(self.get(axis) or 0)

    @property
    def removes(self) -> bool:
        """Whether it removes predictions."""
        return any(map(self.removal, AXES))

    def owns(self, name: str) -> bool:
        """Whether a flag does anything here."""
        return name not in self.idle


@dataclass(frozen=True)
class Stat:
    """Mean of n values, their standard deviation (n - 1) and the half-width of the mean's 95 % interval."""

    n: int
    mean: float
    std: float | None  # None for a single value, as `half`
    half: float | None

    @property
    def evidence(self) -> bool:
        """Whether the 95 % interval leaves out 0."""
        return self.half is not None and abs(self.mean) > self.half


@dataclass(frozen=True)
class Row:
    """One setting on one split."""

    setting: Setting
    split: str
    records: tuple[Record, ...]  # by seed
    stats: Mapping[str, Stat]  # metric -> over the seeds
    base: Setting | None  # the baseline; None for a baseline itself and where there is none
    change: Mapping[str, Stat]  # metric -> setting minus baseline, over the seeds that both have
    # metric -> (setting - baseline) / (baseline on all labels - baseline), on withheld labels only; None where that gap
    # is too small to divide by
    gap: Mapping[str, float | None]


@dataclass(frozen=True)
class Group:
    """Settings that differ in one thing alone: rising removal on one axis, a *series*, or the loss and its settings."""

    key: Setting  # what they share; of a series, with the axis at 0
    rows: Mapping[Setting, Mapping[str, Row]]  # the row on each split; of a series by removal, the 0 % run first
    base: Setting | None  # what the others are compared with; None where it has not finished
    axis: str = ""  # obj_drop or box_drop; '' for losses

    @property
    def splits(self) -> tuple[str, ...]:
        """Those that some setting was evaluated on; the last, test where there is one, is the one it is judged by."""
        return tuple(split for split in SPLITS if any(split in by_split for by_split in self.rows.values()))


@dataclass(frozen=True)
class Results:
    """A sweep and what its records come to."""

    sweep: Sweep
    runs: Mapping[Setting, tuple[Record, ...]]  # finished, by seed, one a seed; in the order of their first run
    rows: tuple[Row, ...]  # of each setting on each split, val before test
    series: tuple[Group, ...]  # objectness removal first, each with at least one removal above 0
    compared: tuple[Group, ...]  # of at least two losses, or settings of a loss


def results(sweep: Sweep) -> Results:
    """Return what a sweep comes to; its losses are compared with the baseline chosen, else the first asked for.

    Raises:
        ConfigError: no run has the baseline chosen, or several do that differ in a loss's flags.
    """
    seeds: dict[Setting, dict[int, Record]] = {}
    for setting, record in zip(settings_of(sweep.finished), sweep.finished, strict=True):
        seeds.setdefault(setting, {}).setdefault(record.seed, record)
    runs = {setting: tuple(r for _, r in sorted(by_seed.items())) for setting, by_seed in seeds.items()}
    told = (
        sweep.baseline,
        sweep.written.get("baseline"),
        sweep.study.get("baseline"),
        *as_list(sweep.asked.get("loss")),
    )
    rows = _rows(runs, str(next(filter(None, told), "")))
    if sweep.baseline:
        _check_baseline(sweep.baseline, [setting for setting in runs if not setting.removes])
    return Results(sweep, runs, tuple(rows), *_groups(rows))


def grouped(items: Iterable[T], key: Callable[[T], Any]) -> dict[Any, list[T]]:
    """Return what each key is shared by, in order."""
    groups: dict[Any, list[T]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups


def as_list(value: Any) -> list[Any]:
    """What a sweep was asked for under a key, as the list that it should be."""
    return list(value) if isinstance(value, (list, tuple)) else [] if value is None else [value]


def stat(values: Sequence[float]) -> Stat:
    """Mean, standard deviation and 95 % interval of at least one value."""
    n, mean = len(values), statistics.fmean(values)
    if n == 1:
        return Stat(1, mean, None, None)
    std = statistics.stdev(values)
    return Stat(n, mean, std, quantile(n - 1) * std / math.sqrt(n))


def settings_of(records: Sequence[Record]) -> list[Setting]:
    """Return everything that makes a run but its seed, for each of the records, which are compared with one another.

    A flag of ours has a say where a run of the same loss and head names it among the settings that it ran with, or
    where none names it at all. One that a record lacks, for it came later, has the value that the others agree on.
    """
    named: dict[tuple[str, ...], set[str]] = {}
    known: dict[str, set[Any]] = {}
    for record in records:
        if isinstance(record.loss_ran.get("settings"), Mapping):
            named.setdefault(_kind(record), set()).update(record.loss_ran["settings"])
        for name, value in record.train.items():
            known.setdefault(name, set()).add(_hashable(value))
    agreed = {name: values.pop() for name, values in known.items() if len(values) == 1}
    loss_flags = frozenset(set().union(*named.values()) & known.keys())
    withheld_from = [record for record in records if record.labels.get("protocol") not in (None, "normal")]
    moves = all(record.labels.get("seed") == record.seed for record in withheld_from)  # the label seed, with the seed
    settings = []
    for record in records:
        later = {name: value for name, value in agreed.items() if name not in record.train}
        host = {name: value for name, value in record.host.items() if name not in INCIDENTAL}
        labels = {"protocol": "normal", "rate": 0.0, "seed": 0} | {**record.labels}
        label_seed = 0 if moves else labels["seed"]
        withheld = {"protocol": labels["protocol"], "rate": labels["rate"], "label_seed": label_seed}
        values = {**record.train, **later, **host, **withheld}
        settings.append(Setting.of(values, loss_flags, loss_flags - named.get(_kind(record), loss_flags)))
    return settings


def _kind(record: Record) -> tuple[str, ...]:
    return str(record.train.get("loss")), str(record.train.get("head"))


def _hashable(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return tuple(map(_hashable, value))
    return json.dumps(value, sort_keys=True) if isinstance(value, Mapping) else value


def _reference_key(setting: Setting) -> Setting:
    """What two settings share that have the same 0 % run: the flags of `drop` do nothing at 0, so they are left out."""
    of_drop = (name for name in setting.values if name in (*AXES, "neg_iou") or name.startswith("drop_"))
    parts = loss_name(str(setting.get("loss") or "")).split("+")
    return setting.change(of_drop, loss="+".join(part for part in parts if part not in ("", "drop")))


def loss_key(setting: Setting) -> Setting:
    """What two settings share whose losses are compared: all but the loss and its settings."""
    return setting.change({"loss", "obj_base", *setting.loss_flags}, head=base_head(setting.values))


def _rows(runs: Mapping[Setting, Sequence[Record]], first: str) -> list[Row]:
    """A row for each setting and split; `first` is the loss that others are compared with, as in `_chosen`."""
    references: dict[Setting, Setting] = {}
    firsts: dict[Setting, Setting] = {}
    for setting in runs:
        if not setting.removes:
            references.setdefault(_reference_key(setting), setting)
            if not first or _chosen(setting, first):
                firsts.setdefault(loss_key(setting), setting)

    def baseline(setting: Setting) -> Setting | None:
        if setting.removes:
            own = setting.change(**dict.fromkeys(AXES, 0.0))
            # of several 0 % runs, the one with the same flags of drop
            return own if own in runs else references.get(_reference_key(setting))
        first = firsts.get(loss_key(setting))
        # two 0 % runs that differ in the flags of drop only are the same run
        return None if first is None or _reference_key(first) == _reference_key(setting) else first

    def on_all_labels(base: Setting) -> Setting | None:
        if labels_key(base.get("protocol"), base.get("rate"))[0] == "normal":
            return None
        normal = base.change(protocol="normal", rate=0.0, label_seed=0)
        return references.get(_reference_key(normal)) or references.get(_reference_key(base.change(rate=0.0)))

    def values(setting: Setting | None, split: str, metric: str) -> dict[int, float]:
        found = runs.get(setting, ()) if setting else ()
        return {r.seed: r.metrics[split][metric] for r in found if split in r.metrics}

    rows = []
    for setting, records in runs.items():
        base = baseline(setting)
        full = on_all_labels(base) if base else None
        for split in SPLITS:
            kept = tuple(r for r in records if split in r.metrics)
            if not kept:
                continue
            stats, change, gap = {}, {}, {}
            for metric in METRICS:
                mine, theirs, all_labels = (values(s, split, metric) for s in (setting, base, full))
                stats[metric] = stat(list(mine.values()))
                gained = {seed: mine[seed] - theirs[seed] for seed in mine if seed in theirs}
                if gained:
                    change[metric] = stat(list(gained.values()))
                if seeds := [seed for seed in gained if seed in all_labels]:
                    mean = math.fsum(gained[seed] for seed in seeds) / len(seeds)
                    gap[metric] = _gap_closed(mean, stat([all_labels[seed] - theirs[seed] for seed in seeds]))
            rows.append(Row(setting, split, kept, stats, base, change, gap))
    return rows


def _gap_closed(gained: float, gap: Stat) -> float | None:
    """None where the gap is smaller than what is shown of it, or within its interval: the ratio would be of noise."""
    if gap.mean < LEAST_GAP or (gap.half is not None and not gap.evidence):
        return None
    return gained / gap.mean


def _chosen(setting: Setting, baseline: str) -> bool:
    """Whether a setting is the baseline asked for: 'brl', or 'brl brl_t=0.5' where several have that loss."""
    loss, *given = baseline.split() or [""]
    pairs = (word.partition("=") for word in given)
    return loss_of(setting.values) == loss_name(loss) and all(same_value(v, setting.get(k)) for k, _, v in pairs)


def _check_baseline(baseline: str, settings: Sequence[Setting]) -> None:
    names = dict(zip(settings, loss_texts(settings), strict=True))
    chosen = [setting for setting in settings if _chosen(setting, baseline)]
    if not chosen:
        choices = dict.fromkeys(names.values())
        raise ConfigError(f"baseline={baseline} is not one of {', '.join(choices)}{nearest(baseline, choices)}")
    most = max((grouped(own, _reference_key) for own in grouped(chosen, loss_key).values()), key=len)
    if len(most) > 1:
        told = ", ".join(repr(names[own[0]]) for own in most.values())
        raise ConfigError(f"baseline={baseline} is several settings; give one of {told}")


def _groups(rows: Sequence[Row]) -> tuple[tuple[Group, ...], tuple[Group, ...]]:
    """The series, and the losses that are compared: those of other reference keys, so a series alone is none."""
    found = {s: {row.split: row for row in own} for s, own in grouped(rows, lambda row: row.setting).items()}

    def base_of(settings: Iterable[Setting]) -> Setting | None:
        return next((row.base for setting in settings for row in found[setting].values() if row.base), None)

    series = []
    for axis, other in (AXES, AXES[::-1]):
        removing = [s for s in found if s.removal(axis) > 0 and not s.removal(other)]
        for key, own in grouped(removing, lambda s: s.change(**dict.fromkeys(AXES, 0.0))).items():
            base = base_of(own)
            ordered = sorted([*own, *[base] * bool(base)], key=lambda s: s.removal(axis))
            series.append(Group(key, {s: found[s] for s in ordered}, base, axis))
    losses = [(k, own) for k, own in grouped(found, loss_key).items() if len(set(map(_reference_key, own))) > 1]
    return tuple(series), tuple(Group(key, {s: found[s] for s in own}, base_of(own)) for key, own in losses)


def varying(settings: Iterable[Setting]) -> list[str]:
    """Return the flags that differ between settings, the losses' in the order of a record; with none, an empty list.

    What an objectness stands on differs only among those that have one.
    """
    settings = list(dict.fromkeys(settings))
    names = dict.fromkeys(name for setting in settings for name in setting.values)
    of = {"obj_base": [setting for setting in settings if setting.get("head") in ON_HEADS]}
    first = (*AXES, "protocol", "rate", "model", "data", "head", "loss")
    ordered = [*first, *(n for n in names if any(n in s.loss_flags for s in settings)), *sorted(names)]
    return [name for name in dict.fromkeys(ordered) if len({s.get(name) for s in of.get(name, settings)}) > 1]


def apart(settings: Iterable[Setting], besides: Collection[str] = LABELS) -> list[str]:
    """Return the flags, other than those, that differ between settings."""
    return [name for name in varying(settings) if name not in besides]


def value_of(setting: Setting, name: str) -> str:
    """A flag's value in words: the loss without what goes without saying, with a head that is part of it."""
    return value_text(loss_of(setting.values) if name == "loss" else setting.get(name))


def cell_text(setting: Setting, name: str) -> str:
    """A flag's value in a table: as `value_of`, but a data set is named by its folder, and an idle flag is empty."""
    if name == "data":
        path = PurePath(str(setting.get("data")))  # of data/aquarium/data.yaml, aquarium; else the file's name
        return path.parent.name if path.stem in ("data", "dataset") and path.parent.name else path.name
    return (value_of(setting, name) or "the host's" * (name == "loss")) if setting.owns(name) else ""


def describe(setting: Setting, names: Sequence[str]) -> str:
    """Return those of the named flags that do anything here, as the user types them: 'obj_drop=0.75 box_drop=0'.

    'all runs' where none is named.
    """
    return " ".join(f"{name}={value_of(setting, name)}" for name in names if setting.owns(name)) or "all runs"


def loss_text(setting: Setting, names: Sequence[str]) -> str:
    """Return what a setting is called among others that differ in `names`: 'brl brl_t=0.3 model=yolov8n.yaml'.

    Its loss first, then those of the flags that do anything here, the loss's own before others; not the labels.
    """
    rest = [name for name in names if name not in ("loss", "head", *LABELS) and setting.owns(name)]
    rest.sort(key=lambda name: name not in setting.loss_flags)
    return " ".join([loss_of(setting.values) or "the host's loss", *(f"{n}={cell_text(setting, n)}" for n in rest)])


def loss_texts(settings: Sequence[Setting], among: Sequence[Setting] = ()) -> list[str]:
    """Return each setting's loss and the flags of losses in which settings differ: these, or others that are given."""
    names = varying(among or settings)
    return [loss_text(setting, [name for name in names if name in setting.loss_flags]) for setting in settings]


def to_csv(rows: Sequence[Row]) -> str:
    """Return summary.csv: fractions, `_ci95` are half-widths, `pairs` is the number of seeds behind `_diff`."""
    import pandas  # half a second, which whoever only reads results need not wait

    names = ["model", "head", "loss", *AXES, "protocol", "drop_rate", "epochs", "imgsz"]
    extra = apart((row.setting for row in rows), (*names, "rate"))
    parts = ("mean", "std", "ci95", "diff", "diff_ci95", "gap_closed")
    head = [*names, *extra, "split", "n", "seeds", "pairs", *(f"{m}_{part}" for m in METRICS for part in parts)]
    lines = []
    for row in rows:
        ran, values = row.records[0].loss_ran, {**row.setting.values, "drop_rate": row.setting.get("rate")}
        values |= {name: ran[name] for name in ("head", "loss") if ran.get(name)}
        cells = [values.get(name) for name in names]
        cells += [values.get(name) if row.setting.owns(name) else None for name in extra]
        pairs = row.change[METRICS[0]].n if row.change else None
        cells += [row.split, len(row.records), " ".join(str(r.seed) for r in row.records), pairs]
        numbers: list[float | None] = []
        for metric in METRICS:
            own, change = row.stats[metric], row.change.get(metric)
            paired = (change.mean, change.half) if change else (None, None)
            numbers += [own.mean, own.std, own.half, *paired, row.gap.get(metric)]
        texts = ["" if cell is None else value_text(cell) for cell in cells]
        lines.append([*texts, *(None if x is None else round(x, 6) + 0.0 for x in numbers)])  # + 0.0: no minus zero
    table = pandas.DataFrame(lines, columns=head)
    return str(table.to_csv(index=False, float_format="%.6f", lineterminator="\n"))
