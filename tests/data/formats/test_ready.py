"""The YAMLs of the papers' data: found by name, with the classes that a conversion gives, and what makes them."""

from __future__ import annotations

import ast
import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from converting import picture, write

from rebalance.cli import main as cli
from rebalance.data import dataset
from rebalance.data.demo import seafloor
from rebalance.data.demo.seafloor import READY, built_in
from rebalance.data.formats import FORMATS, dusia, indoor, voc
from rebalance.errors import ConfigError, DataError
from rebalance.experiments import papers
from rebalance.settings import SparsifyFlags, parse

FOLDER = Path(__file__).resolve().parents[3] / "data"
pytestmark = pytest.mark.skipif(not (FOLDER / "voc0712.yaml").is_file(), reason="no data/ beside the package")
VOC = """<annotation><filename>x.jpg</filename><size><width>200</width><height>100</height></size>
<object><name>dog</name><difficult>1</difficult>
<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>100</xmax><ymax>50</ymax></bndbox></object></annotation>"""
STUDIES = [study for study in papers.studies().values() if study.cells]


def content(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((FOLDER / f"{name}.yaml").read_text("utf-8"))
    return found


@pytest.mark.parametrize("study", STUDIES, ids=[study.key for study in STUDIES])
def test_every_study_names_data_that_are_found(
    study: papers.Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # from any folder
    with pytest.raises(ConfigError, match="the paper's own is ") as told:
        papers.arguments(study, {})
    names = str(told.value).rpartition(" ")[2].split(",")
    assert {*names} <= {*READY}
    for name in names:
        assert built_in(name) == built_in(f"{name}.yaml") == str(FOLDER / f"{name}.yaml")
        [first, *_] = papers.arguments(study, {"data": name})
        assert first["data"] == name


@pytest.mark.parametrize("name", READY)
def test_a_set_is_loaded_where_it_was_made_and_else_says_how(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / f"{name}.yaml"
    file.write_bytes((FOLDER / file.name).read_bytes())
    (tmp_path / seafloor.YAML).write_bytes((FOLDER / seafloor.YAML).read_bytes())
    monkeypatch.setattr(seafloor, "data_folder", lambda: tmp_path)
    with pytest.raises(DataError, match=r"images not found: .* made by: rebalance "):
        dataset.load(built_in(name))
    for split in ("train", "val", "test"):
        (tmp_path / content(name)[split]).mkdir(parents=True, exist_ok=True)
    source = dataset.load(built_in(name))
    assert source.root == tmp_path
    assert {*source.splits} == {"train", "val", "test"}


@pytest.mark.parametrize("name", READY)
def test_the_command_that_makes_it_is_one(name: str) -> None:
    program, command, *rest = shlex.split(content(name)["made_by"])
    assert program == "rebalance"
    if command == "sparsify":
        made = parse(SparsifyFlags, cli.pairs(rest, SparsifyFlags))
        assert (made.protocol, made.rate, made.data) == ("per_class", 0.5, "coco2017")
        out = made.out
    else:
        assert command == "convert"
        flags = FORMATS[rest[0]].flags
        out = parse(flags, cli.pairs(rest[1:], flags)).out
    assert out == f"data/{name}"
    assert content(name)["train"].startswith(f"{name}/images/")
    if "download" in content(name):
        ast.parse(content(name)["download"])


def test_classes_are_those_of_a_conversion() -> None:
    for name, names in {
        "voc0712": voc.NAMES,
        "voc2012": voc.NAMES,
        "dusia": dusia.NAMES,
        "indoor": indoor.NAMES,
    }.items():
        assert list(content(name)["names"].values()) == names
    own = dataset.load("coco.yaml", download=True)
    assert content("coco2017")["names"] == content("coco50")["names"] == dict(own.names)


def devkit(folder: Path) -> None:
    """What the archives of VOC hold, one image a list."""
    for year, lists in {"VOC2007": ("trainval", "test"), "VOC2012": ("train", "val", "trainval")}.items():
        for which in lists:
            name = f"{year}_{'train' if which == 'trainval' else which}"
            picture(folder / f"VOCdevkit/{year}/JPEGImages/{name}.jpg")
            write(folder / f"VOCdevkit/{year}/Annotations/{name}.xml", VOC)
            write(folder / f"VOCdevkit/{year}/ImageSets/Main/{which}.txt", f"{name}\n")


def coco(folder: Path) -> None:
    for split in ("train2017", "val2017"):
        picture(folder / split / f"{split}.jpg")
        image = {"id": 1, "file_name": f"{split}.jpg", "width": 200, "height": 100}
        categories = [{"id": i + 1, "name": name} for i, name in content("coco2017")["names"].items()]
        boxes = [{"id": 1, "image_id": 1, "category_id": 17, "bbox": [0, 0, 100, 50]}]
        told = {"images": [image], "categories": categories, "annotations": boxes}
        write(folder / f"annotations/instances_{split}.json", json.dumps(told))
        write(folder / f"annotations/captions_{split}.json", "{}")


@pytest.mark.parametrize(("name", "archives"), [("voc0712", devkit), ("voc2012", devkit), ("coco2017", coco)])
def test_what_ultralytics_fetches_is_converted(
    name: str, archives: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ultralytics.data.utils import check_det_dataset
    from ultralytics.utils import downloads

    asked: list[str] = []

    def fetch(urls: list[str], dir: Path, **_: Any) -> None:
        asked.extend(urls)
        archives(dir)

    monkeypatch.setattr(downloads, "download", fetch)
    file = tmp_path / f"{name}.yaml"
    file.write_bytes((FOLDER / file.name).read_bytes())
    check_det_dataset(str(file))
    source = dataset.load(file)
    assert len(asked) == {"voc0712": 3, "voc2012": 1, "coco2017": 3}[name]
    for split in ("train", "val"):
        labels = [source.labels(image) for image in source.images(split)]
        assert [source.names[number] for found in labels for number in found.classes.tolist()] == ["dog"] * len(labels)
    assert len(source.images("train")) == (2 if name == "voc0712" else 1)
