"""The built-in data set: its files, its partial labels, and that it is made once, whole, and the same everywhere."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from rebalance.data import dataset
from rebalance.data.demo import seafloor
from rebalance.errors import ConfigError, DataError
from rebalance.settings import SeafloorFlags, as_dict, parse

ROOT = Path(__file__).resolve().parents[3]
FLAGS = SeafloorFlags(train=9, val=2, test=3, size=72, labelled=0.6, seed=5)
ENSURE = f"""
from pathlib import Path
from rebalance.settings import SeafloorFlags
from rebalance.data.demo.seafloor import ensure
print(ensure(SeafloorFlags(**{as_dict(FLAGS)}), Path("sets")))
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small set; not to be changed."""
    return seafloor.ensure(FLAGS, tmp_path_factory.mktemp("sets")).parent


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def lines(folder: Path) -> dict[str, list[str]]:
    return {file.name: file.read_text().splitlines() for file in sorted(folder.iterdir())}


def test_layout(made: Path) -> None:
    assert made.name == seafloor.folder_name(FLAGS)
    assert made.name.startswith("seafloor-72-")
    assert made.stat().st_mode == (made / "images").stat().st_mode  # not a private folder
    for split, count in (("train", 9), ("val", 2), ("test", 3)):
        stems = [f"{split}_{number:05d}" for number in range(count)]
        assert sorted(p.name for p in (made / "images" / split).iterdir()) == [f"{stem}.jpg" for stem in stems]
        assert sorted(p.name for p in (made / "labels" / split).iterdir()) == [f"{stem}.txt" for stem in stems]
    assert sorted(p.name for p in made.iterdir()) == ["data.yaml", "images", "labels", "manifest.json", "withheld"]
    assert lines(made / "withheld" / "train").keys() == lines(made / "labels" / "train").keys()


def test_val_and_test_are_complete(made: Path) -> None:
    for index, split in ((1, "val"), (2, "test")):
        for number, found in enumerate(lines(made / "labels" / split).values()):
            _, boxes = seafloor.render(np.random.Generator(np.random.PCG64([5, index, number])), 72)
            assert len(found) == len(boxes)
            for line, (label, x1, y1, x2, y2) in zip(found, boxes, strict=True):
                kind, *rest = line.split()
                x, y, w, h = (float(value) * 72 for value in rest)
                assert int(kind) == label
                assert (x - w / 2, y - h / 2, x + w / 2, y + h / 2) == pytest.approx((x1, y1, x2, y2), abs=2e-4)


def test_train_is_partial_and_nothing_is_lost(made: Path) -> None:
    kept, gone = lines(made / "labels" / "train"), lines(made / "withheld" / "train")
    total, withheld = 0, 0
    for number, name in enumerate(kept):
        _, boxes = seafloor.render(np.random.Generator(np.random.PCG64([5, 0, number])), 72)
        full = [
            f"{label} {(x1 + x2) / 144:.6f} {(y1 + y2) / 144:.6f} {(x2 - x1) / 72:.6f} {(y2 - y1) / 72:.6f}"
            for label, x1, y1, x2, y2 in boxes
        ]
        assert sorted(kept[name] + gone[name]) == sorted(full)
        assert [line for line in full if line in kept[name]] == kept[name]  # order kept
        total += len(full)
        withheld += len(gone[name])
    assert withheld == int(total * 0.4 + 1e-9)


@pytest.mark.parametrize(("labelled", "empty"), [(1.0, "withheld"), (0.0, "labels")])
def test_all_or_none_labelled(labelled: float, empty: str, tmp_path: Path) -> None:
    flags = SeafloorFlags(train=2, val=1, test=1, size=64, labelled=labelled)
    made = seafloor.generate(flags, tmp_path / "set").parent
    assert all(found == [] for found in lines(made / empty / "train").values())
    other = {"withheld": "labels", "labels": "withheld"}[empty]
    assert all(len(found) >= 3 for found in lines(made / other / "train").values())


def test_manifest(made: Path) -> None:
    manifest = json.loads((made / "manifest.json").read_text())
    facts = {name: value for name, value in as_dict(FLAGS).items() if name != "out"}
    assert manifest["flags"] == facts
    assert manifest["version"] == seafloor.VERSION
    assert manifest["asked"] == 0.4
    files = contents(made)
    assert set(manifest["files"]) == set(files) - {"data.yaml", "manifest.json"}
    assert all(hashlib.sha256(files[name]).hexdigest() == value for name, value in manifest["files"].items())
    kept, gone = (sum(manifest["boxes"][f"{kind}/train"].values()) for kind in ("labels", "withheld"))
    assert manifest["reached"] == pytest.approx(gone / (gone + kept), abs=1e-6)
    found = [line for of_image in lines(made / "labels" / "val").values() for line in of_image]
    assert sum(manifest["boxes"]["labels/val"].values()) == len(found)
    assert manifest["boxes"]["labels/val"]["squat lobster"] == sum(line.startswith("4 ") for line in found)


def test_reads_as_an_ultralytics_data_set_and_may_be_moved(made: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(made, moved)
    data = dataset.load(moved / "data.yaml")
    assert tuple(data.names.values()) == seafloor.NAMES
    image = data.images("train")[0]
    assert image.startswith(str(moved))
    name = Path(image).with_suffix(".txt").name
    assert len(data.labels(image)) == len(lines(made / "labels" / "train")[name])
    assert len(data.withheld(image)) == len(lines(made / "withheld" / "train")[name])


def test_processes_and_order_do_not_matter(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(seafloor, "SHARE", 4)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2}, raising=False)
    started = []
    popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: started.append(a) or popen(*a, **k))
    again = seafloor.generate(FLAGS, tmp_path / "again").parent
    assert len(started) == 3
    assert contents(again) == contents(made)
    out, err = capfd.readouterr()
    assert out == ""
    assert err.splitlines()[0] == f"seafloor: making 14 images of 72 px in {tmp_path / 'again'}"
    assert err.splitlines()[-1] == "seafloor: 14/14 images"


def test_a_worker_that_fails_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seafloor, "SHARE", 4)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho no memory >&2\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(broken))
    with pytest.raises(DataError, match="no memory"):
        seafloor.ensure(FLAGS, tmp_path / "sets")
    assert list((tmp_path / "sets").iterdir()) == []


def test_second_use_makes_nothing(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seafloor, "generate", None)
    assert seafloor.ensure(FLAGS, made.parent) == made / "data.yaml"


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("disk full")])
def test_an_interrupted_set_leaves_nothing(
    error: BaseException | type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise error

    monkeypatch.setattr(os, "rename", stop)
    with pytest.raises((KeyboardInterrupt, DataError)):
        seafloor.ensure(SeafloorFlags(train=1, val=1, test=1, size=64), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_killed_process_leaves_nothing_at_the_final_name(tmp_path: Path) -> None:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    slow = ENSURE.replace("'train': 9", "'train': 4000")
    process = subprocess.Popen([sys.executable, "-c", slow], cwd=tmp_path, env=env, stderr=subprocess.PIPE)
    assert process.stderr is not None
    assert process.stderr.readline().startswith(b"seafloor: making 4005 images")
    process.kill()
    process.wait()
    process.stderr.close()
    assert {path.name[0] for path in (tmp_path / "sets").iterdir()} == {"."}


def test_two_processes_at_once(made: Path, tmp_path: Path) -> None:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", ENSURE]
    with contextlib.ExitStack() as stack:
        both = [
            stack.enter_context(subprocess.Popen(command, cwd=tmp_path, env=env, stdout=subprocess.PIPE, text=True))
            for _ in range(2)
        ]
        said = [process.communicate()[0].strip() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert said == [f"sets/{made.name}/data.yaml"] * 2
    assert contents(tmp_path / "sets" / made.name) == contents(made)
    assert len(list((tmp_path / "sets").iterdir())) == 1


def test_it_writes_over_nothing(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(DataError, match="mine exists"):
        seafloor.ensure(SeafloorFlags(out=str(tmp_path / "mine")))
    assert list((tmp_path / "mine").iterdir()) == []


def test_out_names_the_folder(tmp_path: Path) -> None:
    flags = SeafloorFlags(train=1, val=1, test=1, size=64, out=str(tmp_path / "mine"))
    assert seafloor.ensure(flags) == tmp_path / "mine" / "data.yaml"
    assert seafloor.folder_name(flags) == seafloor.folder_name(SeafloorFlags(train=1, val=1, test=1, size=64))


def test_every_flag_but_out_has_its_own_folder() -> None:
    changed = {"train": 3, "val": 3, "test": 3, "size": 64, "labelled": 0.1, "seed": 9}
    assert set(changed) == set(as_dict(SeafloorFlags())) - {"out"}
    names = {seafloor.folder_name(parse(SeafloorFlags, {name: value})) for name, value in changed.items()}
    assert len(names | {seafloor.folder_name(SeafloorFlags())}) == 7


@pytest.mark.parametrize(("name", "flags"), seafloor.BUILT_IN.items())
def test_the_yaml_in_the_repository_has_the_flags_of_the_bare_name(name: str, flags: SeafloorFlags) -> None:
    file = ROOT / "data" / name
    content = yaml.safe_load(file.read_text())
    assert seafloor.from_yaml(file) == flags
    assert set(content["seafloor"]) == set(as_dict(flags)) - {"out"}  # all of them are spelled out
    assert content["path"] == f"data/{seafloor.folder_name(flags)}"
    assert tuple(content["names"].values()) == seafloor.NAMES


def test_built_in_makes_the_set_beside_its_yaml(made: Path, tmp_path: Path) -> None:
    facts = {name: value for name, value in as_dict(FLAGS).items() if name != "out"}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"seafloor": facts}))
    found = Path(seafloor.built_in(str(tmp_path / "mine.yaml")))
    assert found == tmp_path / made.name / "data.yaml"
    assert contents(found.parent) == contents(made)


def test_built_in_leaves_other_data_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "coco.yaml").write_text("path: x\ntrain: y\n")
    (tmp_path / "bad.yaml").write_text("a: [")
    (tmp_path / "seafloor.yaml").write_text("train: images\nval: images\n")  # the user's own, of that name
    for name in ("coco.yaml", "bad.yaml", "seafloor.yaml", "coco8.yaml", "", "some/seafloor.yaml", str(tmp_path)):
        assert seafloor.built_in(name) == name


def test_the_bare_name_works_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(seafloor, "generate", lambda flags, out: asked.append((flags, out)))
    monkeypatch.chdir(tmp_path)
    project = tmp_path / "project"
    (project / "data").mkdir(parents=True)
    (project / "data" / "seafloor.yaml").write_text("seafloor: {size: 96}\n")
    monkeypatch.setattr(seafloor, "PROJECT", project)
    small = SeafloorFlags(size=96)
    assert seafloor.built_in("seafloor.yaml") == str(project / "data" / seafloor.folder_name(small) / "data.yaml")
    monkeypatch.setattr(seafloor, "PROJECT", tmp_path / "site-packages")  # installed without the repository
    assert seafloor.built_in("seafloor.yaml") == str(Path("data") / seafloor.folder_name(SeafloorFlags()) / "data.yaml")
    assert [flags for flags, _ in asked] == [small, SeafloorFlags()]
    assert seafloor.built_in("seafloor-complete.yaml").endswith("data.yaml")
    assert asked[2][0] == SeafloorFlags(labelled=1.0)


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        ("seafloor: {sise: 96}", ConfigError, r"unknown flag sise=96 \(did you mean size\?\)"),
        ("seafloor: {labelled: 2}", ConfigError, "labelled=2 is out of range: 0 to 1"),
        ("seafloor: [1]", DataError, "not a mapping"),
    ],
)
def test_bad_flags_in_a_yaml(text: str, error: type[Exception], says: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(error, match=says):
        seafloor.built_in(str(tmp_path / "mine.yaml"))
    assert [path.name for path in tmp_path.iterdir()] == ["mine.yaml"]


def test_from_yaml_wants_its_key(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("train: images\n")
    with pytest.raises(DataError, match="no key 'seafloor'"):
        seafloor.from_yaml(tmp_path / "mine.yaml")


def test_plain_ultralytics_takes_the_yaml(made: Path, tmp_path: Path) -> None:
    content = yaml.safe_load((ROOT / "data" / "seafloor.yaml").read_text())
    content["seafloor"] = {name: value for name, value in as_dict(FLAGS).items() if name != "out"}
    content["path"] = str(tmp_path / "set")
    (tmp_path / "plain.yaml").write_text(yaml.safe_dump(content))
    from ultralytics.data.utils import check_det_dataset

    data = check_det_dataset(str(tmp_path / "plain.yaml"))
    assert contents(tmp_path / "set") == contents(made)
    assert Path(data["train"]) == tmp_path / "set" / "images" / "train"
    assert list(data["names"].values()) == list(seafloor.NAMES)
