"""Records of `rebalance rounds` -> its tables: what each round reaches and costs, what it added, and by class."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from rebalance.experiments.record import SPLITS, Record
from rebalance.report.evidence import LEAST_GAP, Stat, gap_closed, stat
from rebalance.report.summary import PRIMARY, Results, is_drawn
from rebalance.report.table import Table, column, gap_text, marked, mean, mean_text, points, points_of
from rebalance.report.tables import SHOWN, draw_note, evaluation_note
from rebalance.report.words import say

GIVEN, COMPLETE = "as labelled", "complete labels"
_Stages = Mapping[str, Mapping[int, Record]]  # what it was trained on -> seed -> record


def rounds_tables(found: Results) -> list[Table]:
    """Return what the rounds reach and what they added; none where the sweep has no rounds."""
    stages = _stages(found.sweep.finished)
    if not stages:
        return []
    return [_levels(found, stages), _added(stages)]


def rounds_classes(found: Results) -> list[Table]:
    """Return mAP50 by class of what each round reaches; none where the sweep has no rounds."""
    stages = _stages(found.sweep.finished)
    split = _split(stages)
    base = stages.get(GIVEN, {})
    names = dict.fromkeys(name for record in base.values() for name in record.per_class.get(split, {}))
    if not names:
        return []

    def values(stage: str, name: str) -> dict[int, float]:
        found = {seed: r.per_class.get(split, {}).get(name, {}).get(PRIMARY) for seed, r in stages[stage].items()}
        return {seed: value for seed, value in found.items() if value is not None}

    columns = [column("class", names, left=True)]
    for stage in stages:
        columns.append(column(stage, (points(_stat(values(stage, name).values())) for name in names)))
        if stage != GIVEN:
            changes = (points(_change(values(stage, name), values(GIVEN, name)), sign=True) for name in names)
            columns.append(column("change", changes))
    return [Table(f"Rounds: mAP50 by class, {split}", tuple(columns), (say("rounds_change"),))]


def _stages(records: Sequence[Record]) -> _Stages:
    """The runs of each stage, in their order: as labelled, the rounds, complete labels."""
    completed = [record for record in records if record.labels.get("round")]
    if not completed:
        return {}
    records = [record for record in records if record.train == completed[0].train]  # not those of other losses
    drawn = any(is_drawn(record.labels) for record in records)
    stages: dict[str, dict[int, Record]] = {GIVEN: {}}
    for number in sorted({int(record.labels.get("round") or 0) for record in records} - {0}):
        stages[_name(number)] = {}
    stages[COMPLETE] = {}
    for record in records:
        number = int(record.labels.get("round") or 0)
        whole = drawn and not number and not is_drawn(record.labels)
        stages[COMPLETE if whole else _name(number) if number else GIVEN].setdefault(record.seed, record)
    return {stage: own for stage, own in stages.items() if own}


def _name(number: int) -> str:
    return f"{number} round{'s' * (number > 1)}"


def _split(stages: _Stages) -> str:
    """The split that all are judged by."""
    records = [record for own in stages.values() for record in own.values()]
    return max((s for s in SPLITS if all(s in r.metrics for r in records)), key=SPLITS.index, default="val")


def _levels(found: Results, stages: _Stages) -> Table:
    split = _split(stages)
    own = {
        metric: {
            stage: {seed: r.metrics[split][metric] for seed, r in of.items() if split in r.metrics}
            for stage, of in stages.items()
        }
        for metric in SHOWN
    }
    several = any(len(of) > 1 for of in stages.values())
    columns = [column("trained on", stages, left=True), column("n", map(len, stages.values()))]
    below = [COMPLETE] * (COMPLETE in stages)
    rest = [stage for stage in stages if stage not in below]
    for metric in SHOWN:
        shown = {stage: _stat(values.values()) for stage, values in own[metric].items()}
        means = [one.mean if (one := shown[stage]) else None for stage in rest]
        texts = (points(shown[stage]) for stage in rest)
        columns.append(marked(f"{split} {metric}", means, texts, (points(shown[stage]) for stage in below)))
    for metric in SHOWN:
        base = own[metric].get(GIVEN, {})
        changes = ("" if s == GIVEN else points(_change(values, base), sign=True) for s, values in own[metric].items())
        columns.append(column(f"{metric} vs {GIVEN}", changes))
    for metric in SHOWN if below else ():
        columns.append(column(f"gap closed, {metric}", (_gap(own[metric], stage) for stage in stages)))
    train = {
        stage: {seed: r.timings.get("train_seconds", 0.0) for seed, r in of.items()} for stage, of in stages.items()
    }
    cost = [_cost(stages, train, stage) for stage in stages]
    once = mean(train.get(GIVEN, {}).values())
    columns.append(column("train s", (mean_text(of.values(), 0) for of in train.values())))
    columns.append(column("in all s", (mean_text(values, 0) for values in cost)))
    times = (f"×{total / once:.1f}" if once and (total := mean(values)) is not None else "" for values in cost)
    columns.append(column("cost", times))
    notes = [say("rounds", several=several), say("rounds_change"), say("rounds_cost", given=GIVEN)]
    notes += [say("gap_closed_rounds", least=f"{100 * LEAST_GAP:g}", given=GIVEN)] * bool(below)
    records = [record for of in stages.values() for record in of.values()]
    kept = tuple(one for one in columns if not one.empty)
    return Table("Rounds", kept, (*notes, *draw_note(records), *evaluation_note(found.rows)))


def _added(stages: _Stages) -> Table:
    """What each round did to the labels, mean over seeds."""
    told = {stage: [made for r in of.values() if (made := r.labels.get("completed"))] for stage, of in stages.items()}
    told = {stage: made for stage, made in told.items() if made}

    def means(key: str, digits: int = 0) -> list[str]:
        return [mean_text([one.get(key) for one in made], digits) for made in told.values()]

    def shares(of: str, among: str) -> list[str]:
        ratios = (
            [one[of] / one[among] for one in made if one.get(among) and one.get("withheld") and of in one]
            for made in told.values()
        )
        return [f"{points_of(sum(own) / len(own))} %" if own else "" for own in ratios]

    def spans(low: str, high: str) -> list[str]:
        return [f"{a} to {b}" if a else "" for a, b in zip(means(low), means(high), strict=True)]

    columns = [
        column("trained on", told, left=True),
        column("boxes added", means("added")),
        column("places unknown", means("unknown")),
        column("labels missing, estimate", means("missing")),
        column("95 %", spans("low", "high")),
        column("with those not found", means("with_unfound")),
        column("its 95 %", spans("with_unfound_low", "with_unfound_high")),
        column("beyond the round before", means("left")),
        column("truly missing", means("withheld") if any(shares("recovered", "withheld")) else [""] * len(told)),
        column("of them added", shares("recovered", "withheld")),
        column("of those added right", shares("recovered", "added")),
    ]
    bound = any(one.get("lower_bound") for made in told.values() for one in made)
    kept = tuple(one for one in columns if not one.empty)
    return Table("What the rounds added", kept, (say("rounds_added", bound=bound),))


def _stat(values: Iterable[float]) -> Stat | None:
    found = list(values)
    return stat(found) if found else None


def _change(mine: Mapping[int, float], base: Mapping[int, float]) -> Stat | None:
    """Seed by seed."""
    return _stat(mine[seed] - base[seed] for seed in mine if seed in base)


def _gap(own: Mapping[str, Mapping[int, float]], stage: str) -> str:
    """The share of the gap that a stage closes, '' of the two that make it."""
    base, whole = own.get(GIVEN, {}), own[COMPLETE]
    seeds = [seed for seed in own[stage] if seed in base and seed in whole]
    if stage in (GIVEN, COMPLETE) or not seeds:
        return ""
    gained = [own[stage][seed] - base[seed] for seed in seeds]
    return gap_text(gap_closed(gained, [whole[seed] - base[seed] for seed in seeds]))


def _cost(stages: _Stages, train: Mapping[str, Mapping[int, float]], stage: str) -> list[float]:
    """Seconds until a stage is reached, of each seed: its trainings, those before it, and the audits between."""
    names = [name for name in stages if name != COMPLETE]
    path = [COMPLETE] if stage == COMPLETE else names[: names.index(stage) + 1]
    totals = []
    for seed in stages[stage]:
        if all(seed in stages[name] for name in path):
            audits = ((stages[name][seed].labels.get("completed") or {}).get("audit_seconds", 0.0) for name in path)
            totals.append(sum(train[name][seed] for name in path) + sum(audits))
    return totals
