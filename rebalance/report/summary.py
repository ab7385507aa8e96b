"""Records -> one row per setting and split: mean, spread and interval over seeds, and the change from its baseline.

A *setting* is everything that makes a run but its seed and the draw of labels that goes with it. Its *baseline* is,
where it removes predictions, the *0 % run*: the setting that differs from it only in removing nothing; else the first
loss of the sweep with the same model, head, labels and budget. Runs are compared with it seed by seed, because a seed
moves both alike. All settings with one baseline are a *family*, whose tests are corrected for their number on the split
that is judged. Its *control* is, where it removes predictions at random, the same expected weights without randomness.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath
from typing import Any, TypeVar

from rebalance.errors import ConfigError, nearest
from rebalance.experiments.record import METRICS, NOISE, SPLITS, Record, Sweep
from rebalance.report.evidence import MOST_SEEDS, Comparison, Gap, Stat, compare, gap_closed, stat
from rebalance.report.papers import ON_HEADS, RATED, base_head, labels_key, loss_name, loss_of, same_value
from rebalance.settings import value_text

AXES = ("obj_drop", "box_drop")
PRIMARY = "mAP50"  # the metric that is tested and judged by: that of the papers' tables, chosen before any run
CONTROL = {"drop_select": "weight"}  # the expected weights of a removal, without its randomness
LABELS = ("protocol", "rate", "label_seed", *NOISE)
# Ultralytics' flags that say where and how a run is carried out, not what is trained
INCIDENTAL = frozenset(
    {
        *("seed", "name", "project", "save_dir", "exist_ok", "device", "workers", "verbose", "plots", "resume", "save"),
        *("save_period", "cache", "val", "mode", "task", "diagnose"),
    }
)
# Ultralytics' own evaluation, which records have that do not say theirs
EVALUATION: Mapping[str, float] = {"iou": 0.7, "conf": 0.001, "max_det": 300}
T = TypeVar("T")


@dataclass(frozen=True)
class Setting:
    """Flag to value, for all flags of a run; two are equal where the flags that have a say are."""

    key: frozenset[tuple[str, Any]]  # what it is compared by
    values: Mapping[str, Any] = field(compare=False)  # every flag; lists are tuples
    # those that some run of the sweep names as settings of its loss, and what losses are divided by
    loss_flags: frozenset[str] = field(compare=False)
    idle: frozenset[str] = field(compare=False)  # those of `loss_flags` that have no say here

    @staticmethod
    def of(
        values: Mapping[str, Any], loss_flags: frozenset[str] = frozenset(), idle: frozenset[str] = frozenset()
    ) -> Setting:
        """A setting from a mapping of whatever JSON holds."""
        values = {name: _hashable(value) for name, value in values.items()}
        # the share that a protocol without a rate came to is no setting
        silent = {*idle, *["rate"] * (values.get("protocol") not in RATED)}
        key = frozenset((name, value) for name, value in values.items() if name not in silent)
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
class Row:
    """One setting on one split."""

    setting: Setting
    split: str
    records: tuple[Record, ...]  # by seed
    stats: Mapping[str, Stat]  # metric -> over the seeds
    base: Setting | None = None  # the baseline; None for a baseline itself and where there is none
    change: Mapping[str, Stat] = field(default_factory=dict)  # setting minus baseline, over the seeds that both have
    # metric -> share of the gap between the baseline and the baseline on all labels, on withheld labels only; None
    # where that gap is too small to divide by
    gap: Mapping[str, Gap | None] = field(default_factory=dict)
    test: Comparison | None = None  # of the change in PRIMARY, on the split that is judged, with two seeds or more
    control: Mapping[str, Stat] = field(default_factory=dict)  # setting minus its control; empty without one
    control_test: Comparison | None = None  # as `test`, among the settings with that baseline that have a control


@dataclass(frozen=True)
class Group:
    """Settings that differ in one thing alone: rising removal on one axis, a *series*, or the loss and its settings."""

    key: Setting  # what they share; of a series, with the axis at 0
    rows: Mapping[Setting, Mapping[str, Row]]  # the row on each split; of a series by removal, the 0 % run first
    base: Setting | None  # what the others are compared with; None where it has not finished
    axis: str = ""  # obj_drop or box_drop; '' for losses
    complete: Mapping[str, Row] = field(default_factory=dict)  # split -> the baseline on all labels, beside it

    @property
    def splits(self) -> tuple[str, ...]:
        """Those that some setting was evaluated on; the last, test where there is one, is the one it is judged by."""
        return tuple(split for split in SPLITS if any(split in by_split for by_split in self.rows.values()))

    @property
    def lines(self) -> dict[str, dict[Setting, Mapping[str, Row]]]:
        """Of a series, the rows of each way to choose what is removed, from the 0 % run on; controls alone, last."""
        found: dict[str, dict[Setting, Mapping[str, Row]]] = {}
        for setting in sorted((s for s in self.rows if s.removes), key=is_control):
            found.setdefault(str(setting.get("drop_select")), {})[setting] = self.rows[setting]
        zero = {setting: own for setting, own in self.rows.items() if not setting.removes}
        return {select: own if select in CONTROL.values() else {**zero, **own} for select, own in found.items()}

    @property
    def records(self) -> list[Record]:
        """Of all settings, without those on all labels."""
        return [record for by_split in self.rows.values() for record in next(iter(by_split.values())).records]


@dataclass(frozen=True)
class Results:
    """A sweep and what its records come to."""

    sweep: Sweep
    runs: Mapping[Setting, tuple[Record, ...]]  # finished, by seed, one a seed; in the order of their first run
    rows: tuple[Row, ...]  # of each setting on each split, val before test
    series: tuple[Group, ...]  # objectness removal first, each with at least one removal above 0
    compared: tuple[Group, ...]  # of at least two losses, or settings of a loss
    known: Mapping[Setting, tuple[Record, ...]]  # `runs` and those of other sweeps that they are judged by
    references: tuple[Path, ...] = ()  # the folders of those


def results(sweep: Sweep, references: Sequence[Sweep] = ()) -> Results:
    """Return what a sweep comes to; its losses are compared with the baseline chosen, else the first asked for.

    The runs of other sweeps, `references`, are in no table, but those on complete labels are looked at too.

    Raises:
        ConfigError: no run has the baseline chosen, or several do that differ in a loss's flags.
    """
    beside = (record for one in references for record in one.finished if not is_drawn(record.labels))
    records = [*sweep.finished, *beside]
    seeds: dict[Setting, dict[int, Record]] = {}
    for setting, record in zip(settings_of(records), records, strict=True):
        seeds.setdefault(setting, {}).setdefault(record.seed, record)
    known = {setting: tuple(r for _, r in sorted(by_seed.items())) for setting, by_seed in seeds.items()}
    mine = set(map(id, sweep.finished))
    runs = {s: own for s, every in known.items() if (own := tuple(r for r in every if id(r) in mine))}
    told = (
        sweep.baseline,
        sweep.written.get("baseline"),
        sweep.study.get("baseline"),
        *as_list(sweep.asked.get("loss")),
    )
    rows, complete = _rows(runs, known, str(next(filter(None, told), "")))
    if sweep.baseline:
        _check_baseline(sweep.baseline, [setting for setting in runs if not setting.removes])
    folders = tuple(one.folder for one in references)
    return Results(sweep, runs, tuple(rows), *_groups(rows, complete), known, folders)


def grouped(items: Iterable[T], key: Callable[[T], Any]) -> dict[Any, list[T]]:
    """Return what each key is shared by, in order."""
    groups: dict[Any, list[T]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups


def as_list(value: Any) -> list[Any]:
    """What a sweep was asked for under a key, as the list that it should be."""
    return list(value) if isinstance(value, (list, tuple)) else [] if value is None else [value]


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
    of_loss = frozenset(set().union(*named.values()) & known.keys())
    # which no record names among them: what losses are divided by, and how often the labels were completed
    loss_flags = of_loss | ({"divisor"} & known.keys())
    rounds = any(r.labels.get("round") for r in records)
    loss_flags |= {"round"} if rounds else set()
    # whether the label seed moves with the seed
    moves = all(r.labels.get("seed", 0) == r.seed for r in records if is_drawn(r.labels))
    noise: dict[str, Any] = {kind: 0.0 for kind in NOISE[:-1] if any(r.labels.get(kind) for r in records)}
    if len({r.labels["jitter_iou"] for r in records if r.labels.get("jitter_iou")}) > 1:
        noise["jitter_iou"] = ""
    settings = []
    for record in records:
        later = {name: value for name, value in agreed.items() if name not in record.train}
        host = {name: value for name, value in record.host.items() if name not in INCIDENTAL}
        labels = {"protocol": "normal", "rate": 0.0, "seed": 0} | {**record.labels}
        label_seed = 0 if moves else labels["seed"]
        withheld = {"protocol": labels["protocol"], "rate": labels["rate"], "label_seed": label_seed}
        withheld |= {name: labels.get(name) or zero for name, zero in noise.items()}
        withheld |= {"round": labels.get("round") or 0} if rounds else {}
        ours = {name: value for name, value in {**record.train, **later}.items() if name not in INCIDENTAL}
        values = {**ours, **host, **withheld, "evaluation": evaluation_text(record)}
        settings.append(Setting.of(values, loss_flags, of_loss - named.get(_kind(record), of_loss)))
    return settings


def evaluation(record: Record) -> dict[str, Any]:
    """Return NMS overlap `iou`, least score `conf` and `max_det` at which the metrics were taken, and their `source`.

    An older record does not say them: they are Ultralytics' own, but for what the run was given.
    """
    if told := record.evaluation:
        return {**EVALUATION, "source": "", **{name: told[name] for name in (*EVALUATION, "source") if name in told}}
    given = {name: record.host[name] for name in EVALUATION if isinstance(record.host.get(name), (int, float))}
    return {**EVALUATION, **given, "source": "as given" if given else "the host's default"}


def evaluation_text(record: Record) -> str:
    """Return these in words: 'iou=0.7 conf=0.001 max_det=300'."""
    told, more = evaluation(record), record.evaluation.get("val_regions")
    text = " ".join(f"{name}={value_text(told[name])}" for name in EVALUATION)
    return text if more is None else f"{text} val_regions={more}"


def _kind(record: Record) -> tuple[str, ...]:
    return str(record.train.get("loss")), str(record.train.get("head"))


def _hashable(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return tuple(map(_hashable, value))
    return json.dumps(value, sort_keys=True) if isinstance(value, Mapping) else value


def _reference_key(setting: Setting) -> Setting:
    """What two settings share that have the same 0 % run: the flags of `drop` do nothing at 0, so they are left out.

    An element loss that a record's `loss` does not name is cross-entropy.
    """
    of_drop = (name for name in setting.values if name in (*AXES, "neg_iou") or name.startswith("drop_"))
    parts = loss_name(str(setting.get("loss") or "")).split("+")
    return setting.change(of_drop, loss="+".join(part for part in parts if part not in ("", "bce", "drop")))


def withholds(setting: Setting) -> bool:
    """Whether its protocol withholds labels, or noise falsifies them."""
    return labels_key(setting.get("protocol"), setting.get("rate"))[0] != "normal" or any(map(setting.get, NOISE))


def is_drawn(labels: Mapping[str, Any]) -> bool:
    """Whether chance has a say in the training labels of a record."""
    return labels.get("protocol", "normal") != "normal" or any(map(labels.get, NOISE))


def without_noise(setting: Setting) -> Setting:
    """The setting with labels that are missing at most."""
    return setting.change(**{name: type(setting.get(name))() for name in NOISE if setting.get(name)})


def withheld_by_nature(record: Record) -> float:
    """The share of boxes that a data set lacks as it comes, where its manifest says so; 0 for none."""
    if is_drawn(record.labels):
        return 0.0
    reached = (record.labels.get("manifest") or {}).get("reached")
    return float(reached) if isinstance(reached, (int, float)) and not isinstance(reached, bool) else 0.0


def loss_key(setting: Setting) -> Setting:
    """What two settings share whose losses are compared: all but the loss and its settings."""
    return setting.change({"loss", "obj_base", *setting.loss_flags}, head=base_head(setting.values))


def _rows(
    runs: Mapping[Setting, Sequence[Record]], known: Mapping[Setting, Sequence[Record]], first: str
) -> tuple[list[Row], dict[Setting, dict[str, Row]]]:
    """A row for each setting and split of `runs`; and of baselines that `known` has on all labels, those rows.

    `first` is the loss that others are compared with, as in `_chosen`.
    """
    references: dict[Setting, Setting] = {}
    firsts: dict[Setting, Setting] = {}
    for setting in known:
        if not setting.removes:
            references.setdefault(_reference_key(setting), setting)
            if setting in runs and (not first or _chosen(setting, first)):
                firsts.setdefault(loss_key(setting), setting)

    def baseline(setting: Setting) -> Setting | None:
        if setting.removes:
            # of several 0 % runs, the one with the same flags of drop; a control has that of what it is the control of
            own = setting.change(**dict.fromkeys(AXES, 0.0))
            if is_control(own):
                own = next((s for s in runs if not is_control(s) and s.change(CONTROL) == own.change(CONTROL)), own)
            found = own if own in runs else references.get(_reference_key(setting))
            return found if found in runs else None
        first = firsts.get(loss_key(setting))
        # two 0 % runs that differ in the flags of drop only are the same run
        return None if first is None or _reference_key(first) == _reference_key(setting) else first

    def on_all_labels(base: Setting) -> Setting | None:
        if not withholds(base):
            return None
        true = without_noise(base)
        whole = references.get(_reference_key(true.change(protocol="normal", rate=0.0, label_seed=0)))
        if whole:
            return None if withheld_by_nature(known[whole][0]) else whole
        return references.get(_reference_key(true.change(rate=0.0))) if base.get("protocol") in RATED else None

    def values(setting: Setting | None, split: str, metric: str) -> dict[int, float]:
        found = known.get(setting, ()) if setting else ()
        return {r.seed: r.metrics[split][metric] for r in found if split in r.metrics}

    def row(setting: Setting, split: str, records: Sequence[Record], base: Setting | None) -> Row:
        full = on_all_labels(base) if base else None
        control = setting.change(**CONTROL) if setting.removes and not is_control(setting) else None
        stats, change, gap, over = {}, {}, {}, {}
        for metric in METRICS:
            mine, theirs, all_labels, other = (values(s, split, metric) for s in (setting, base, full, control))
            stats[metric] = stat(list(mine.values()))
            gained = {seed: mine[seed] - theirs[seed] for seed in mine if seed in theirs}
            if gained:
                change[metric] = stat(list(gained.values()))
            if full != setting and (seeds := [seed for seed in gained if seed in all_labels]):
                missing = [all_labels[seed] - theirs[seed] for seed in seeds]
                gap[metric] = gap_closed([gained[seed] for seed in seeds], missing)
            if both := [mine[seed] - other[seed] for seed in mine if seed in other]:
                over[metric] = stat(both)
        return Row(setting, split, tuple(records), stats, base, change, gap, control=over)

    def on_splits(setting: Setting, records: Sequence[Record], base: Setting | None) -> dict[str, Row]:
        kept = {split: [r for r in records if split in r.metrics] for split in SPLITS}
        return {split: row(setting, split, own, base) for split, own in kept.items() if own}

    rows = [made for s, own in runs.items() for made in on_splits(s, own, baseline(s)).values()]
    bases = dict.fromkeys([*(made.base for made in rows), *(s for s in runs if not s.removes)])
    complete = {base: on_splits(full, known[full], base) for base in bases if base and (full := on_all_labels(base))}
    return _tested(rows), complete


def _tested(rows: Sequence[Row]) -> list[Row]:
    """The rows with the tests of each family on the split that it is judged by: the last of SPLITS that it has."""
    tests: dict[int, Comparison] = {}
    of_controls: dict[int, Comparison] = {}
    bases = ((i, row.base) for i, row in enumerate(rows) if row.base)
    # 0 % runs that differ in the flags of drop only are one baseline
    families = grouped(bases, lambda found: _reference_key(found[1]))
    for family in ([i for i, _ in found] for found in families.values()):
        judged = max((rows[i].split for i in family), key=SPLITS.index)
        there = [i for i in family if rows[i].split == judged]
        for made, stats in (
            (tests, {i: rows[i].change.get(PRIMARY) for i in there}),
            (of_controls, {i: rows[i].control.get(PRIMARY) for i in there}),
        ):
            several = {i: found for i, found in stats.items() if found and found.n > 1}
            made.update(zip(several, compare(list(several.values())), strict=True))
    return [replace(row, test=tests.get(i), control_test=of_controls.get(i)) for i, row in enumerate(rows)]


def is_control(setting: Setting) -> bool:
    """Whether what it removes is taken as a weight, without randomness: the control of a removal."""
    return all(setting.get(name) == value for name, value in CONTROL.items())


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


def _groups(
    rows: Sequence[Row], complete: Mapping[Setting, Mapping[str, Row]]
) -> tuple[tuple[Group, ...], tuple[Group, ...]]:
    """The series, and the losses that are compared: those of other reference keys, so a series alone is none."""
    found = {s: {row.split: row for row in own} for s, own in grouped(rows, lambda row: row.setting).items()}

    def group(key: Setting, settings: Sequence[Setting], base: Setting | None, axis: str = "") -> Group:
        beside = complete.get(base, {}) if base else {}
        return Group(key, {s: found[s] for s in settings}, base, axis, beside)

    def base_of(settings: Iterable[Setting]) -> Setting | None:
        # among losses a removal has a baseline of its own, its 0 % run
        ordered = sorted(settings, key=lambda setting: setting.removes)
        return next((row.base for setting in ordered for row in found[setting].values() if row.base), None)

    series = []
    for axis, other in (AXES, AXES[::-1]):
        removing = [s for s in found if s.removal(axis) > 0 and not s.removal(other)]
        for key, own in grouped(removing, lambda s: s.change(CONTROL, **dict.fromkeys(AXES, 0.0))).items():
            base = base_of(own)
            ordered = sorted([*own, *[base] * bool(base)], key=lambda s: (s.removal(axis), is_control(s)))
            series.append(group(key, ordered, base, axis))
    losses = [(k, own) for k, own in grouped(found, loss_key).items() if len(set(map(_reference_key, own))) > 1]
    return tuple(series), tuple(group(key, own, base_of(own)) for key, own in losses)


def varying(settings: Iterable[Setting]) -> list[str]:
    """Return the flags that differ between settings, the losses' in the order of a record; with none, an empty list.

    What an objectness stands on differs only among those that have one.
    """
    settings = list(dict.fromkeys(settings))
    names = dict.fromkeys(name for setting in settings for name in setting.values)
    of = {"obj_base": [setting for setting in settings if setting.get("head") in ON_HEADS]}
    first = (*AXES, "protocol", "rate", *NOISE, "model", "data", "head", "loss")
    ordered = [*first, *(n for n in names if any(n in s.loss_flags for s in settings)), *sorted(names)]
    found = [name for name in dict.fromkeys(ordered) if len({s.get(name) for s in of.get(name, settings)}) > 1]
    # each detector has its own evaluation: it is said where nothing else tells two settings apart
    rest = [name for name in found if name != "evaluation"]
    told = {tuple(s.get(name) for name in rest) for s in settings}
    return rest if len(told) == len(settings) or "evaluation" not in found else [*rest, "evaluation"]


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
    rest = [name for name in rest if name != "round" or setting.get(name)]  # none: the labels as they are
    rest.sort(key=lambda name: name not in setting.loss_flags)
    told = [*(f"{n}={cell_text(setting, n)}" for n in rest), *["(control)"] * (setting.removes and is_control(setting))]
    return " ".join([loss_of(setting.values) or "the host's loss", *told])


def loss_texts(settings: Sequence[Setting], among: Sequence[Setting] = ()) -> list[str]:
    """Return each setting's loss and the flags of losses in which settings differ: these, or others that are given."""
    names = varying(among or settings)
    return [loss_text(setting, [name for name in names if name in setting.loss_flags]) for setting in settings]


def to_csv(rows: Sequence[Row]) -> str:
    """Return summary.csv: fractions; `pairs` is the number of seeds behind `_diff`; `_ci95` are half-widths.

    `_p`, `_p_holm`, `_diff_ci_holm` and `seeds_needed` are of the metric and the split that is judged, `comparisons` is
    the size of the family that they are corrected for.
    """
    import pandas  # half a second, which whoever only reads results need not wait

    names = ["model", "head", "loss", *AXES, "protocol", "drop_rate", "epochs", "imgsz", "evaluation"]
    extra = apart((row.setting for row in rows), (*names, "rate", "label_seed"))
    parts = ("mean", "std", "ci95", "diff", "diff_ci95", "gap_closed", "gap_closed_low", "gap_closed_high")
    tests = ("p", "p_holm", "diff_ci_holm")
    head = [*names, *extra, "split", "n", "seeds", "label_seeds", "pairs"]
    numeric = [*(f"{m}_{part}" for m in METRICS for part in parts), *(f"{PRIMARY}_{part}" for part in tests)]
    lines = []
    for row in rows:
        ran, values = row.records[0].loss_ran, {**row.setting.values, "drop_rate": row.setting.get("rate")}
        values |= {name: ran[name] for name in ("head", "loss") if ran.get(name)}
        cells = [values.get(name) for name in names]
        cells += [values.get(name) if row.setting.owns(name) else None for name in extra]
        pairs = row.change[METRICS[0]].n if row.change else None
        draws = " ".join(str(r.labels.get("seed", 0)) for r in row.records) if withholds(row.setting) else ""
        cells += [row.split, len(row.records), " ".join(str(r.seed) for r in row.records), draws, pairs]
        numbers: list[float | None] = []
        for metric in METRICS:
            own, change, gap = row.stats[metric], row.change.get(metric), row.gap.get(metric)
            numbers += [own.mean, own.std, own.half, *((change.mean, change.half) if change else (None, None))]
            numbers += [gap.share, gap.low, gap.high] if gap else [None] * 3
        test = row.test
        numbers += [test.p, test.corrected, test.half] if test else [None] * 3
        needed = [str(test.count), f">{MOST_SEEDS}" if test.seeds is None else str(test.seeds)] if test else ["", ""]
        texts = ["" if cell is None else value_text(cell) for cell in cells]
        rounded = [None if x is None else round(x, 6) + 0.0 for x in numbers]  # + 0.0: no minus zero
        lines.append([*texts, *rounded, *needed])
    table = pandas.DataFrame(lines, columns=[*head, *numeric, "comparisons", "seeds_needed"])
    return str(table.to_csv(index=False, float_format="%.6f", lineterminator="\n"))
