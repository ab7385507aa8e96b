"""A grid of trainings, from `key=value` texts in which a comma list makes a dimension.

    obj_drop=0,0.5 seeds=0,1 model=yolov5n.yaml data=my.yaml        4 runs, the product
    obj_drop=0,0.5 box_drop=0.5 series=True                         3 runs, one list at a time from the base 0, 0
    protocol=extreme complete=True                                  2 runs, the baseline on complete labels too
    obj_drop=0,0.5,0.9 control=0.5                                  4 runs, one with the weights of 0.5 in its place

In a series the base of a fraction that leaves the loss (`obj_drop`, `box_drop`, `nrd_rate`) is 0, given or not, so one
value of it is a list; the base of another list is 0 where that is in it, else its first value. Any other single value
is the same in all runs.

A value in brackets is one value: `classes=[0,1]`; `freeze=[0],[0,1]` is a dimension of two. `device=0,1` is one value
too: runs do not differ by device. A flag of a method is for the runs that have it: `loss=focal,brl brl_t=0.3,0.5` is
one run with focal loss and two with BRL.
"""

from __future__ import annotations

import ast
import hashlib
import itertools
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Any

from rebalance.data.noise import KINDS, iou_range
from rebalance.data.protocols import uses_rate
from rebalance.errors import ConfigError
from rebalance.experiments.flags import DEFAULTS, HEADS, METHODS_OF, REMOVALS, typed
from rebalance.experiments.record import NOISE
from rebalance.settings import (
    LARGEST_SEED,
    NoiseFlags,
    SparsifyFlags,
    SweepFlags,
    checked,
    convert,
    parse,
    settings_of,
    value_text,
)

LABELS = ("protocol", "rate", *NOISE)
_DETAILS = ("rate", "jitter_iou")  # of a protocol, of a kind of noise
RATED = tuple(p for p in settings_of(SparsifyFlags)["protocol"].metadata["choices"] if uses_rate(p))
DEVICE = "device"  # where a run is trained, and not what it is asked
ONE_VALUE = (DEVICE,)  # keys whose commas belong to the value
SET_BY_SWEEP = {  # host keys that a sweep decides, and what to give instead
    "seed": "give seeds=",
    "project": "give name=",
    "save_dir": "give name=",
    "exist_ok": "give name=; the same name continues a sweep",
    "resume": "the same name= continues a sweep",
    "mode": "a sweep trains, then evaluates on val and test",
    "split": "a sweep evaluates on val and test",
    "save": "a sweep evaluates the checkpoint that training saves",
    "missing": "give protocol=percent rate=",
}

NOT_DRY = "dry=True is for the command line, where it asks what would run; it is no part of a grid"

_SEEDS = {"seeds": "a list of whole numbers such as 0,1,2", "label_seed": "a whole number"}
_OPEN, _CLOSE = "([{", ")]}"
_ABSENT = "\0"  # what no value is
_LONGEST_ID = 120  # characters; file systems end at 255, and a folder name should fit a line


@dataclass(frozen=True, kw_only=True)
class Labels:
    """Which training labels a run sees; `rate` and `seed` are 0 for a protocol that takes none.

    `noise` is that of `rebalance.data.noise`, where there is any: rates above 0, and of `jitter` the range of IoU.
    `round` is how often they were completed after that, see `rebalance.audit.rounds`.
    """

    protocol: str = "normal"
    rate: float = 0.0
    seed: int = 0
    noise: tuple[tuple[str, Any], ...] = ()
    round: int = 0

    @property
    def told(self) -> dict[str, Any]:
        """As a record has them."""
        rounds = {"round": self.round} if self.round else {}
        return {"protocol": self.protocol, "rate": self.rate, "seed": self.seed, **dict(self.noise), **rounds}


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training of a grid.

    Attributes:
        id: readable, unique in the grid, safe as a folder name, e.g. 'obj_drop=0.75,seed=0'.
        train: our flags, all of them.
        given: names of the flags in `train` that were given; only these are passed on, so that what the user left
            out keeps its meaning of 'what the other flags imply'.
        host: Ultralytics' own flags that were given.
        labels: the training labels.
        seed: of the training.
        varied: the values in which this run differs from the others.
    """

    id: str
    train: Mapping[str, Any]
    given: tuple[str, ...]
    host: Mapping[str, Any]
    labels: Labels
    seed: int
    varied: Mapping[str, Any]


@dataclass(frozen=True)
class Grid:
    """What a sweep runs: its own flags, the runs in order, and the values asked for (what a folder was made with)."""

    flags: SweepFlags
    runs: tuple[Run, ...]
    asked: Mapping[str, Any]


def read_grid(given: Mapping[str, str]) -> Grid:
    """Return the runs that `given` asks for, seed by seed.

    Args:
        given: key to text; sweep flags, flags of ours, and any flag of Ultralytics.

    Raises:
        ConfigError: a bad, empty or repeated value, a key that the sweep sets itself, or no model or data.
    """
    return read_grids([given])


def _cell(given: Mapping[str, str]) -> Grid:
    """As `read_grid`, without the runs on complete labels."""
    own = settings_of(SweepFlags)
    sweep = parse(SweepFlags, {key: text for key, text in given.items() if key in own})
    if sweep.plan:
        raise ConfigError(f"plan={sweep.plan} is for rebalance sweep: it has cells of its own")
    if sweep.dry:
        raise ConfigError(NOT_DRY)
    if sweep.name and (sweep.name.startswith(".") or re.search(r'[/\\:*?"<>|\x00-\x1f]', sweep.name)):
        raise ConfigError(f'name={sweep.name} is not a folder name: no slash, no leading dot, none of : * ? " < > |')
    lists = {key: _values(key, str(text)) for key, text in given.items() if key not in own or key in LABELS}
    for key in ("protocol", "rate"):
        lists.setdefault(key, _values(key, getattr(sweep, key)))
    for key in ("model", "data"):
        if not lists.get(key) or lists[key][0] in ("", None):
            raise ConfigError(f"{key}= is missing: a sweep needs model= and data=")
    seeds = _unique("seeds", [_seed("seeds", text) for text in split("seeds", sweep.seeds)])
    label_seed = _seed("label_seed", sweep.label_seed) if sweep.label_seed else None
    _check_labels(given, lists, sweep.series)

    base = {key: _base(values) if sweep.series else values[0] for key, values in lists.items()}
    if sweep.series:
        for key in REMOVALS:
            if key in lists and 0 not in lists[key] and not is_idle(key, base):
                lists[key], base[key] = [0.0, *lists[key]], 0.0
    dimensions = {key: values for key, values in lists.items() if len(values) > 1}
    points = _series(dimensions, base) if sweep.series else _product(dimensions)
    idle = [{key for key in lists if is_idle(key, {**base, **varied})} for varied in points]
    everywhere = set(lists).intersection(*idle)  # stays, so that the check of the runs refuses it
    runs = []
    for seed in seeds:
        for varied, out in zip(points, idle, strict=True):
            values = {key: value for key, value in {**base, **varied}.items() if key not in out - everywhere}
            own = {key: value for key, value in varied.items() if key in values}
            if sweep.series and varied and not own:
                raise _no_point(varied, base)
            runs.append(_run(values, own, seed if label_seed is None else label_seed, seed))
    asked: dict[str, Any] = {**lists, "seeds": seeds, "series": sweep.series}
    if label_seed is not None:
        asked["label_seed"] = [label_seed]
    if sweep.control:
        fraction = settings_of(SparsifyFlags)["rate"]
        asked["control"] = _unique(
            "control", [checked("control", fraction, x) for x in split("control", sweep.control)]
        )
    if sweep.complete:
        asked["complete"] = True
    return Grid(sweep, tuple(_distinct(runs, _key)), asked)


def read_grids(cells: Sequence[Mapping[str, str]]) -> Grid:
    """Return one grid of several, seed by seed, a run that is in two of them once.

    Of several, a run is named by the values in which it differs from any other of them.

    Args:
        cells: as `given` of `read_grid`; `name`, `seeds`, `jobs` and the like are the same in all.

    Raises:
        ConfigError: as `read_grid`.
    """
    grids = [_cell(given) for given in cells]
    flags, asked, runs = grids[0].flags, dict(grids[0].asked), list(grids[0].runs)
    if len(grids) > 1:
        runs = _apart(_distinct([run for grid in grids for run in grid.runs], _content))
        every = [grid.asked for grid in grids]
        asked = {key: value for key, value in asked.items() if all(other.get(key) == value for other in every)}
        asked["cells"] = [
            " ".join(f"{key}={asked_text(value)}" for key, value in own.items() if key not in asked) for own in every
        ]
    if flags.control:
        runs = _distinct([*runs, *_controls(runs, grids[0].asked["control"])], _content)
    if flags.complete:
        runs = _distinct([*runs, *_on_complete_labels(runs)], _content)
    seeds = list(dict.fromkeys(run.seed for run in runs))
    runs.sort(key=lambda run: seeds.index(run.seed))
    return Grid(flags, tuple(_name(runs)), asked)


def as_begun(grid: Grid, asked: Mapping[str, Any]) -> Grid:
    """Return the grid with the label seed of the sweep that it continues, where an earlier version began that.

    Its label seed was the same for all training seeds, 0 where none was given, and is kept as a number, not as a list.

    Args:
        grid: of the same values.
        asked: what the sweep was begun with.
    """
    begun = asked.get("label_seed")
    if not isinstance(begun, int) or grid.asked.get("label_seed", [0]) != [begun]:
        return grid
    runs = (replace(run, labels=replace(run.labels, seed=begun if drawn(run.labels) else 0)) for run in grid.runs)
    return Grid(grid.flags, tuple(runs), {**grid.asked, "label_seed": begun})


def asked_text(value: Any) -> str:
    """Return what was asked for one key as typed: 0,0.5 for a list."""
    return ",".join(value_text(v) for v in value) if isinstance(value, list) else value_text(value)


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Return what differs between the values two grids asked for, '' where nothing does.

    Example: 'epochs was 100, is 14; lr0 was not given, is 0.01'.
    """

    changed = [key for key in {**old, **new} if (old.get(key), key in old) != (new.get(key), key in new)]
    texts = [[asked_text(asked[key]) if key in asked else "not given" for asked in (old, new)] for key in changed]
    return "; ".join(f"{key} was {was}, is {now}" for key, (was, now) in zip(changed, texts, strict=True))


def split(key: str, text: str) -> list[str]:
    """Split at the commas outside brackets and quotes: '0,[1,2]' gives '0' and '[1,2]'.

    Raises:
        ConfigError: an empty part, or a bracket or quote that is not closed.
    """
    parts, part, inside, quote = [], "", "", ""
    for char in text:
        if quote:
            quote = "" if char == quote else quote
        elif char in "\"'":
            quote = char
        elif char in _OPEN:
            inside += _CLOSE[_OPEN.index(char)]
        elif inside and char == inside[-1]:
            inside = inside[:-1]
        elif char == "," and not inside:
            parts.append(part.strip())
            part = ""
            continue
        part += char
    parts.append(part.strip())
    if inside or quote:
        raise ConfigError(f"{key}={text}: a bracket or quote is not closed")
    if len(parts) > 1 and "" in parts:
        raise ConfigError(f"{key}={text}: an empty value in the list")
    return parts


def literal(text: str) -> Any:
    """Return the value a text stands for, as Ultralytics reads its command line: none, true, 0.5, [0,1], else text."""
    words = {"none": None, "true": True, "false": False}
    if text.lower() in words:
        return words[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _values(key: str, text: str) -> list[Any]:
    """The values of one key, converted and distinct."""
    if key in SET_BY_SWEEP:
        raise ConfigError(f"{key}={text}: {SET_BY_SWEEP[key]}")
    if key in ONE_VALUE:
        return [text.strip() if split(key, text)[1:] else literal(text.strip())]
    parts = split(key, text)
    if key in LABELS:
        return _unique(key, [_label_value(key, part) for part in parts])
    return _unique(key, [typed(key, part) if key in DEFAULTS else literal(part) for part in parts])


def _label_value(key: str, text: str) -> Any:
    value = convert(NoiseFlags if key in NOISE else SparsifyFlags, key, text)
    if key == "jitter_iou":
        iou_range(value)
    return value


def _unique(key: str, values: list[Any]) -> list[Any]:
    for index, value in enumerate(values):
        if value in values[:index]:
            raise ConfigError(f"{key}: {value_text(value)} is given twice")
    return values


def _seed(key: str, text: str) -> int:
    if not re.fullmatch(r"[0-9]+", text):
        raise ConfigError(f"{key}={text} is not {_SEEDS[key]}")
    if key == "seeds" and int(text) > LARGEST_SEED:
        raise ConfigError(f"{key}={text} is out of range: 0 to {LARGEST_SEED}")
    return int(text)


def _check_labels(given: Mapping[str, str], lists: Mapping[str, list[Any]], series: bool) -> None:
    """Refuse a rate or a label seed that no run would use."""
    protocols = lists["protocol"]
    if protocols == ["normal"] and "label_seed" in given and not any(any(lists.get(kind, ())) for kind in KINDS):
        raise ConfigError(f"label_seed={given['label_seed']}: protocol=normal withholds nothing")
    jitter = lists.get("jitter", [0.0])
    if "jitter_iou" in given and not (_base(jitter) if series and len(lists["jitter_iou"]) > 1 else any(jitter)):
        raise ConfigError(f"jitter_iou={given['jitter_iou']} has no effect with jitter={asked_text(jitter)}")
    used = uses_rate(_base(protocols)) if series and len(lists["rate"]) > 1 else any(map(uses_rate, protocols))
    if "rate" in given and not used:
        raise ConfigError(
            f"rate={given['rate']} has no meaning with protocol={','.join(protocols)}; it belongs to {', '.join(RATED)}"
        )


def _base(values: list[Any]) -> Any:
    """The value that the other lists see while they vary: 0 where it is among the values, else the first."""
    zeros = [value for value in values if isinstance(value, (int, float)) and value == 0]
    return (zeros or values)[0]


def _product(dimensions: Mapping[str, list[Any]]) -> list[dict[str, Any]]:
    return [dict(zip(dimensions, values, strict=True)) for values in itertools.product(*dimensions.values())]


def _series(dimensions: Mapping[str, list[Any]], base: Mapping[str, Any]) -> list[dict[str, Any]]:
    others = [{key: value} for key, values in dimensions.items() for value in values if value != base[key]]
    return [{key: base[key] for key in dimensions}, *others]


def _no_point(varied: Mapping[str, Any], base: Mapping[str, Any]) -> ConfigError:
    """The error of a point of a series whose flag has no say in it."""
    told = ", ".join(f"{key}={value_text(value)}" for key, value in varied.items())
    loss = ", ".join(f"{key}={value_text(base[key])}" for key in ("head", "loss") if base.get(key))
    return ConfigError(
        f"{told} has no effect with {loss}, from which the series starts; series=False takes the product"
    )


def is_idle(key: str, values: Mapping[str, Any]) -> bool:
    """Whether a flag is of a method that the run's `loss` (or `head`) leaves out; without these a flag chooses it."""
    owners = METHODS_OF.get(key, ())
    loss, head = str(values.get("loss") or ""), values.get("head")
    if not owners or not (loss or (head and "resobj" in owners)):
        return False
    return not {head, *loss.split("+")} & {*owners}


def _run(values: Mapping[str, Any], varied: Mapping[str, Any], label_seed: int, seed: int) -> Run:
    """One run, its id still the plain one."""
    idle = {*["rate"] * (not uses_rate(values["protocol"])), *["jitter_iou"] * (not values.get("jitter"))}
    varied = {key: value for key, value in varied.items() if key not in idle}
    given = tuple(key for key in values if key in DEFAULTS)
    return Run(
        id=_id(varied, seed),
        train={**DEFAULTS, **{key: values[key] for key in given}},
        given=given,
        host={key: value for key, value in values.items() if key not in (*given, *LABELS)},
        labels=_labels(values, label_seed),
        seed=seed,
        varied=varied,
    )


def _labels(values: Mapping[str, Any], seed: int) -> Labels:
    """What has no say in a protocol is 0."""
    protocol, rate = values["protocol"], values["rate"]
    noise = {kind: values[kind] for kind in KINDS if values.get(kind)}
    if "jitter" in noise:
        noise["jitter_iou"] = values.get("jitter_iou", NoiseFlags.jitter_iou)
    labels = Labels(protocol=protocol, rate=rate if uses_rate(protocol) else 0.0, noise=tuple(noise.items()))
    return replace(labels, seed=seed if drawn(labels) else 0)


def drawn(labels: Labels) -> bool:
    """Whether chance has a say in the labels."""
    return labels.protocol != "normal" or bool(labels.noise)


def _controls(runs: Sequence[Run], fractions: Sequence[float]) -> list[Run]:
    """The runs that drop one of the fractions at random, with the expected weights in the place of chance.

    Raises:
        ConfigError: no run drops one of them.
    """
    made = []
    for fraction in fractions:
        dropping = [run for run in runs if run.train["drop_select"] == "random" and fraction in _dropped(run)]
        if not dropping:
            raise ConfigError(f"control={value_text(fraction)}: no run drops that fraction at random")
        for run in dropping:
            varied = {**run.varied, "drop_select": "weight"}
            train, given = {**run.train, "drop_select": "weight"}, tuple(dict.fromkeys([*run.given, "drop_select"]))
            made.append(replace(run, id=_id(varied, run.seed), train=train, given=given, varied=varied))
    return made


def _dropped(run: Run) -> list[float]:
    """The fractions that `drop` takes from the run's loss."""
    return [run.train[key] for key in _removed(run) if METHODS_OF[key] == ("drop",)]


def _on_complete_labels(runs: Sequence[Run]) -> list[Run]:
    """The runs on complete labels that are not there yet: of each detector, budget and seed the baseline.

    The baseline is the first run, one that removes nothing before others, and with nothing removed. A head that is a
    method has that of the head beside it, where there is one.

    Raises:
        ConfigError: no run withholds labels.
    """
    partial = [run for run in runs if withholds(run.labels) or run.labels.noise]
    if not partial:
        raise ConfigError(
            "complete=True has no meaning where nothing is withheld: give protocol=, and data= with complete labels"
        )
    there = {_content(replace(run, labels=Labels())) for run in runs if run not in partial}
    first: dict[tuple[str, str], Run] = {}
    for run in sorted(partial, key=lambda run: (_head(run) in HEADS, bool(_removed(run)))):
        budget = json.dumps([run.seed, run.train["divisor"], dict(run.host)], default=str, sort_keys=True)
        if _head(run) not in HEADS:
            first.setdefault((budget, _head(run)), run)
        elif not any(budget == other for other, _ in first):
            first[budget, ""] = run
    made = []
    for run in first.values():
        none = dict.fromkeys(_removed(run), 0.0)
        labels = {"protocol": "normal", **{key: 0.0 for key in KINDS if key in run.varied}}
        varied = {key: value for key, value in {**run.varied, **none, **labels}.items() if key not in _DETAILS}
        given = tuple(dict.fromkeys([*run.given, *none]))
        whole = replace(
            run, id=_id(varied, run.seed), train={**run.train, **none}, given=given, labels=Labels(), varied=varied
        )
        made += [whole] * (_content(whole) not in there)
    return made


def _head(run: Run) -> str:
    """The head of a run, which its loss may choose."""
    chosen = [part for part in str(run.train["loss"]).split("+") if part in HEADS]
    return (chosen or [str(run.train["head"])])[0]


def withholds(labels: Labels) -> bool:
    """Whether labels are missing that the data set has."""
    return labels.protocol != "normal" and (labels.rate > 0 or not uses_rate(labels.protocol))


def _removed(run: Run) -> list[str]:
    """The fractions that leave the run's loss."""
    return [
        key
        for key in REMOVALS
        if run.train[key] and (key in run.given or {*METHODS_OF[key]} & {*run.train["loss"].split("+")})
    ]


def _apart(runs: Sequence[Run]) -> list[Run]:
    """The same, named by the values in which each differs from any other."""
    values = [values_of(run) for run in runs]
    keys = dict.fromkeys(("model", "data", "head", "loss", *DEFAULTS, *itertools.chain(*values)))  # labels come last
    texts = {key: {json.dumps(own.get(key, _ABSENT), default=str) for own in values} for key in keys}
    texts.get("jitter_iou", set()).discard(json.dumps(_ABSENT))  # it says something where two ranges are compared
    differing = [key for key in keys if len(texts[key]) > 1]
    named = []
    for run, own in zip(runs, values, strict=True):
        varied = {key: own[key] for key in differing if key in own}
        named.append(replace(run, id=_id(varied, run.seed), varied=varied))
    return named


def values_of(run: Run) -> dict[str, Any]:
    """All values of a run that were given, by their flags; of labels what has a say."""
    ours = {key: run.train[key] for key in run.given}
    labels = {"protocol": run.labels.protocol, **({"rate": run.labels.rate} if uses_rate(run.labels.protocol) else {})}
    return {**ours, **labels, **dict(run.labels.noise), **run.host}


def _id(varied: Mapping[str, Any], seed: int) -> str:
    """Values in the letters that every file system takes; of a path, its last part."""
    texts = {
        key: PurePath(value).name if isinstance(value, str) and "/" in value else value_text(value)
        for key, value in {**varied, "seed": seed}.items()
    }
    safe = {key: re.sub(r"[^A-Za-z0-9._+-]+", "_", text).strip("_") or "none" for key, text in texts.items()}
    return ",".join(f"{key}={text}" for key, text in safe.items())


def _key(run: Run) -> str:
    """All that makes a run what it is, as one text: in whatever order it was given, and not where it is trained."""
    host = {key: value for key, value in run.host.items() if key != DEVICE}
    return json.dumps([run.train, sorted(run.given), host, run.labels.told, run.seed], default=str, sort_keys=True)


def _content(run: Run) -> str:
    """The same whichever of its values were given."""
    return json.dumps([run.train, dict(run.host), run.labels.told, run.seed], default=str, sort_keys=True)


def _distinct(runs: Iterable[Run], key: Callable[[Run], str]) -> list[Run]:
    """The first of the runs that are the same, as where a rate varies over protocols that take none."""
    first: dict[str, Run] = {}
    for run in runs:
        first.setdefault(key(run), run)
    return list(first.values())


def _name(runs: list[Run]) -> list[Run]:
    """Give a tail from the content to ids that are too long or shared (two paths with the same last part)."""
    count = Counter(run.id.lower() for run in runs)  # lower: some file systems take a for A
    tails = [hashlib.sha256(_key(run).encode()).hexdigest()[:8] for run in runs]
    return [
        run
        if count[run.id.lower()] == 1 and len(run.id) <= _LONGEST_ID
        else replace(run, id=f"{run.id[:_LONGEST_ID]}~{tail}")
        for run, tail in zip(runs, tails, strict=True)
    ]
