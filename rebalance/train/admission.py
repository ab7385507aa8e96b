"""Would this training start? The one place that answers, before anything is created."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from ultralytics.data.utils import find_dataset_yaml
from ultralytics.nn.tasks import load_checkpoint
from ultralytics.utils import DEFAULT_CFG_DICT, LOGGER, YAML
from ultralytics.utils.checks import check_yaml
from ultralytics.utils.downloads import GITHUB_ASSETS_NAMES

from rebalance.data import dataset
from rebalance.data.dataset import DataSet
from rebalance.data.demo.seafloor import built_in
from rebalance.data.knowledge import Knowledge
from rebalance.errors import ConfigError, DataError, ModelError, nearest
from rebalance.hosts import FAMILIES, host_of
from rebalance.hosts.host import COCO, Host, head_of, remembered
from rebalance.hosts.state_dict import Weights, is_checkpoint, read_weights
from rebalance.hosts.ultralytics.sites import YoloSites
from rebalance.recipe import TRAIN, Recipe, read
from rebalance.settings import value_text
from rebalance.train.arguments import check_training

FORWARDED = ("half", "int8", "end2end")  # earlier names that Ultralytics still takes, though its defaults lack them
HAVE_EPS = ("adam", "adamax", "adamw", "nadam", "radam", "rmsprop")  # optimizers, as the host compares their names


ReadFile = Callable[[str | Path], Weights | None]  # `read_weights`, or one that remembers


class Admitted(NamedTuple):
    """A training that would start."""

    recipe: Recipe | None  # None: Ultralytics trains by itself
    trainer: Any  # trainer class of the user's own; None: ours, or where there is no recipe the host's
    given: dict[str, Any]  # our flags
    arguments: dict[str, Any]  # Ultralytics' own
    data: DataSet | None  # that it trains on, where it was read: with what it says of its labels


def separate(arguments: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Our training flags, and Ultralytics' own arguments; a `cfg` file that holds flags of ours is spelt out.

    Raises:
        ConfigError: there is no such file.
    """
    cfg = arguments.get("cfg")
    if cfg not in (None, "", "None"):
        if Path(str(cfg)).suffix.lower() not in (".yaml", ".yml"):
            raise ConfigError(f"cfg={cfg} is not a YAML (.yaml or .yml)")
        if not (file := check_yaml(str(cfg), hard=False)):
            raise ConfigError(f"cfg={cfg}: no such file")
        held = YAML.load(file)
        if held.keys() & TRAIN.keys():
            own = {name: value for name, value in arguments.items() if name != "cfg"}
            held.pop("save_dir", None)  # of a run's args.yaml: the folder of that run
            # nothing, where that is the host's default too: it writes device: '', which its command line does not take
            idle = {k for k, v in held.items() if v in (None, "") and DEFAULT_CFG_DICT.get(k) is None} - TRAIN.keys()
            arguments = {**{k: v for k, v in held.items() if k not in idle}, **own}
    ours = {name: value for name, value in arguments.items() if name in TRAIN}
    return ours, {name: value for name, value in arguments.items() if name not in TRAIN}


def run_of(cfg: Any) -> Path | None:
    """The folder of the run whose `args.yaml` a `cfg` is; None where it is another file."""
    file = Path(str(cfg))
    return file.parent if file.name == "args.yaml" and file.is_file() else None


def admit(
    model: Any,
    ours: Mapping[str, Any],
    arguments: Mapping[str, Any],
    trainer: Any = None,
    *,
    strict: bool = False,
    data: bool = True,
) -> Admitted:
    """Check a training as a whole.

    Args:
        model: a `YOLO` of ours.
        ours: our training flags that were given.
        arguments: Ultralytics' own.
        trainer: a trainer class of the user's own.
        strict: check Ultralytics' arguments too where it trains by itself.
        data: look for the data set.

    Raises:
        ConfigError: an unknown flag, a bad value, a flag that would have no effect, or no such data set.
        DataError: the data set cannot be used, or its training images have no label.
        ModelError: the model cannot have the head asked for, or weights that cannot be had.
    """
    given, arguments = dict(ours), dict(arguments)
    read_set, read_file = cache(source_of), cache(read_weights)  # once, whoever asks
    if given or strict:
        check_names(arguments)
        check_training(arguments)
        if isinstance(model.model, (str, Path)):
            raise ModelError(f"model={model.model_name} is neither a checkpoint of Ultralytics (.pt) nor a YAML")
    resume = arguments.get("resume")
    source, begun_with = _resumed(model, resume) if resume else (model.model, None)
    before = remembered(source).get("flags", {})
    head, host = head_of(source), host_of(source)
    plain = model.task == "detect" and not resume and plain_weights(arguments.get("pretrained"), read_file) is not None
    if plain and model.ckpt:
        told = f"pretrained={arguments['pretrained']}"
        raise ConfigError(f"{told} cannot be joined with model={model.model_name}, which has weights")
    plain = plain and trainer is None  # a trainer of one's own has to read it itself
    recipe = found = None
    ours_anyway = not host.own or given or plain or head != "stock" or (before and resume)
    if not ours_anyway and data and not resume and (told := says(arguments, read_set)):
        reason = f"trainer={trainer.__name__} does not know them" if trainer else ""
        if model.task != "detect":
            reason = f"they are for detection, and {model.model_name} is a {model.task} model"
        if reason:
            tell_unused(told, reason)
        ours_anyway = not reason
    if not ours_anyway and data and resume and spoken(read_set(begun_with)):
        tell_unused(begun_with, "the training began without any")
    if ours_anyway:
        if trainer is not None:
            what = ", ".join(given) or (f"head={head}" if host.own else f"model={model.model_name}")
            raise ConfigError(f"trainer={trainer.__name__} cannot be joined with {what}")
        if model.task != "detect":
            raise ConfigError(
                f"{', '.join(given)}: only for detection models, and {model.model_name} is a {model.task} model"
            )
        recipe = read(given, host.sites, head=head, before=before)
        if not ours and not strict:
            check_training(arguments)
        given["head"] = recipe["head"]
    if (recipe or strict) and arguments.get("task") not in (None, model.task):
        told = f"task={arguments['task']}"
        raise ConfigError(f"{told} cannot be joined with model={model.model_name}, which is a {model.task} model")
    if recipe:
        if not resume:
            check_schedule(recipe, arguments)
        host.refuse(source, recipe, arguments, _channels(arguments.get("data")))
    if not resume and (recipe or strict):
        for name in ("pretrained", "distill_model"):
            check_weights(name, arguments.get(name), read_file)
        if recipe:
            what = f"model={model.model_name}"
            _check_architecture(host, source, recipe, arguments.get("pretrained"), what, read_file)
    sets: Any = arguments.get("data")
    if data and isinstance(sets, (str, Path, list, tuple)):
        several = isinstance(sets, (list, tuple))  # last, since the built-in set is made where it is not
        names = [built_in(str(one)) for one in (sets if isinstance(sets, (list, tuple)) else [sets])]
        arguments["data"] = names if several else names[0]
        for one in names if (recipe or strict) and model.task == "detect" else ():
            checked = _check_data({**arguments, "data": one}, read_set, diagnose=bool(recipe and recipe["diagnose"]))
            found = None if several else checked  # of several each run reads its own
    return Admitted(recipe, trainer, given, arguments, found)


def check_names(arguments: Mapping[str, Any], more: Iterable[str] = ()) -> None:
    """Refuse a name that neither we nor Ultralytics know."""
    known = {*DEFAULT_CFG_DICT, *FORWARDED, *more}
    for name, value in arguments.items():
        if name not in known and name not in TRAIN:
            raise ConfigError(f"unknown flag {name}={value}{nearest(name, [*known, *TRAIN])}")


def check_schedule(recipe: Recipe, arguments: Mapping[str, Any]) -> None:
    """Refuse flags of the learning rate and the optimizer that would have no effect with the host's."""
    defaults = DEFAULT_CFG_DICT  # args.yaml spells them out
    other = next((name for name in ("cos_lr", "lrf") if arguments.get(name, defaults[name]) != defaults[name]), "")
    if recipe.lr_steps and other:
        raise ConfigError(f"lr_steps={recipe['lr_steps']} cannot be joined with {other}={arguments[other]}")
    if (start := recipe["warmup_from"]) and arguments.get("warmup_epochs") == 0:
        raise ConfigError(f"warmup_from={value_text(start)} has no effect with warmup_epochs=0")
    name = str(arguments.get("optimizer", "auto"))
    if recipe["optim_eps"] and name.lower() not in HAVE_EPS:
        raise ConfigError(no_eps(recipe, name))


def no_eps(recipe: Recipe, optimizer: str) -> str:
    """That an optimizer has no ε to set."""
    told = f"optim_eps={value_text(recipe['optim_eps'])} has no effect with optimizer={optimizer}"
    return f"{told}; it is for Adam, Adamax, AdamW, NAdam, RAdam and RMSprop"


def check_weights(name: str, weights: Any, read_file: ReadFile = read_weights) -> None:
    """Refuse a file of weights that is not there, or that is none."""
    if not isinstance(weights, (str, Path)) or weights == COCO:
        return
    file, named = Path(weights), f"{name}={weights}"
    if file.is_file():
        if read_file(weights) is None and not _is_checkpoint(file):
            raise ModelError(f"{named} is neither a checkpoint of Ultralytics (.pt) nor a state dict of tensors")
    elif file.name not in GITHUB_ASSETS_NAMES and "://" not in str(weights):
        raise ModelError(f"{named}: no such file, and not a published model")


def _is_checkpoint(file: Path) -> bool:
    """Whether the host can load a file; one that names other code is not tried, as the host would run or fetch it."""
    if not is_checkpoint(file):
        return False
    try:
        load_checkpoint(file)
    except Exception:  # whatever reading a file that is something else, or unpickling a torn one, raises
        return False
    return True


def _check_architecture(
    host: Host, source: Any, recipe: Recipe, pretrained: Any, what: str, read_file: ReadFile
) -> None:
    """Refuse a file of weights of another architecture than the model that is to be trained, built for the purpose."""
    if not isinstance(pretrained, (str, Path)) or not Path(pretrained).is_file():
        return
    if (given := read_file(pretrained)) is None:
        model, _ = load_checkpoint(pretrained)
        given = Weights(model.state_dict(), {})
    cfg = deepcopy(dict(source.yaml))
    with torch.random.fork_rng(devices=[]):
        made = host.build(cfg, recipe, nc=cfg["nc"], ch=cfg.get("channels", 3), verbose=False)
    host.require(made, given, str(pretrained), what)


def check_flags(given: Mapping[str, Any]) -> None:
    """Raise where no model takes these flags; what is wrong with them for YOLO is told."""
    first: ConfigError | None = None
    for sites in (*FAMILIES, YoloSites(on_anchors=True)):  # YOLOv5's models too
        for head in sites.by_head:
            try:
                read(given, sites, head=head)
                return
            except ConfigError as error:
                first = first or error
    if first:
        raise first


def says(arguments: Mapping[str, Any], read_set: Callable[[Any], DataSet | None] | None = None) -> Any:
    """The data set of a training that says something of its labels that the host does not know; None: there is none.

    Args:
        arguments: Ultralytics' own.
        read_set: `source_of`, or one that remembers.

    Raises:
        DataError: what it says of them is wrong.
    """
    data = arguments.get("data")
    if data is None and (cfg := arguments.get("cfg")) not in (None, "", "None"):
        data = YAML.load(check_yaml(str(cfg))).get("data")
    for one in data if isinstance(data, (list, tuple)) else [data]:
        if spoken((read_set or source_of)(one)):
            return one
    return None


def tell_unused(data: Any, reason: str) -> None:
    """Say that the regions of a data set are not used, and why."""
    LOGGER.warning(f"rebalance: the regions of data={data} are not used: {reason}")


def source_of(data: Any) -> DataSet | None:
    """A data set; None where it is for the host to find or refuse."""
    try:
        file = data_yaml(str(data)) if isinstance(data, (str, Path)) else ""
        return dataset.load(file, download=True) if file else None
    except (ConfigError, DataError):
        return None


def spoken(source: DataSet | None) -> Knowledge | None:
    """What a data set says of its labels besides them, None: nothing; DataError where that is wrong."""
    knowledge = source.knowledge if source else None
    return knowledge if knowledge and knowledge.any else None


def data_yaml(data: str) -> str:
    """The YAML of a detection data set, as the host will find it; empty where it has to be fetched first.

    Raises:
        ConfigError: there is no such file.
    """
    path, found = Path(data), data
    if "://" in data:
        return ""
    if path.is_dir():
        try:
            return str(find_dataset_yaml(path))
        except (AssertionError, OSError):
            raise ConfigError(f"data={data} is a folder without a YAML, or with several; name the YAML") from None
    if path.suffix not in (".yaml", ".yml"):
        if path.is_file():
            return ""  # an archive
        found = f"{data}.yaml"  # of those that come with the host, e.g. coco8
    if not (found := check_yaml(found, hard=False)):
        raise ConfigError(f"data={data}: no such file")
    return str(found)


def _check_data(
    arguments: Mapping[str, Any], read_set: Callable[[Any], DataSet | None], *, diagnose: bool
) -> DataSet | None:
    """Refuse a detection data set that cannot be trained on; None: it has to be fetched first, the host's affair.

    Raises:
        ConfigError: there is no such file.
        DataError: as `dataset.load`, or as `DataSet.require_labels` for the `classes` chosen; or a region file
            is wrong.
    """
    if not (file := data_yaml(arguments["data"])):
        return None
    found = read_set(arguments["data"]) or dataset.load(file, download=True)  # which says what is wrong with it
    classes = arguments.get("classes")
    if all(map(os.path.exists, found.splits["train"])):
        if (split := arguments.get("split") or "val") not in found.splits:
            raise ConfigError(f"{found.file} has no '{split}:'")
        chosen = [classes] if isinstance(classes, int) else classes
        found.require_labels(chosen, numbered=not arguments.get("single_cls"))
        if diagnose and not found.has_withheld():
            raise DataError(
                f"diagnose=True has no meaning with data={arguments['data']}: no training image has a withheld label; "
                "rebalance sparsify makes such a data set"
            )
        found.knowledge.require_readable()
    return found


def _channels(data: Any) -> int:
    """Channels of a data set's images; 3 where nobody says, or where the data set is for others to find."""
    try:
        file = data_yaml(str(data or ""))
    except ConfigError:
        return 3
    return dataset.channels(file) if file else 3


def is_state_dict(pretrained: Any) -> bool:
    """Whether `pretrained` names a file of weights that the host would not load, e.g. of an original YOLOv5."""
    return plain_weights(pretrained) is not None


def plain_weights(pretrained: Any, read_file: ReadFile = read_weights) -> Weights | None:
    """What such a file holds, as `read_file` reads it; None where it is none."""
    named = isinstance(pretrained, (str, Path)) and Path(pretrained).is_file()
    return read_file(pretrained) if named else None


def _resumed(model: Any, resume: Any) -> tuple[Any, Any]:
    """The model that a training goes on with, and its data set.

    Raises:
        ConfigError: it is not one of a training that was interrupted.
    """
    source, checkpoint, file = model.model, model.ckpt, model.ckpt_path or model.model_name
    if isinstance(resume, (str, Path)):  # goes on with that file, whatever this model is
        if not Path(resume).is_file():
            raise ConfigError(f"resume={resume}: no such file")
        file = str(resume)
        source, checkpoint = load_checkpoint(file)
    if not checkpoint:
        raise ConfigError(f"resume: model={file} is not a checkpoint; give the last.pt of the interrupted training")
    if checkpoint.get("epoch", -1) < 0 or checkpoint.get("optimizer") is None:
        raise ConfigError(f"resume: the training of {file} is finished; nothing to resume")
    return source, checkpoint.get("train_args", {}).get("data")
