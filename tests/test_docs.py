"""README and the documentation against the code: commands, flags, defaults, links, figures, and the site."""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import itertools
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pandas
import pytest
from ultralytics.utils import DEFAULT_CFG_DICT

from rebalance.data.formats import FORMATS, TO_COCO, to_coco
from rebalance.data.formats.record import ConvertFlags
from rebalance.experiments.grid import read_grid, split
from rebalance.experiments.record import load
from rebalance.experiments.space import read_space
from rebalance.hosts.torchvision.zoo import ZOO
from rebalance.report.summary import results, stat
from rebalance.report.summary import settings_of as settings
from rebalance.settings import settings_of as flags_of

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
if not (ROOT / "README.md").is_file() or not DOCS.is_dir():
    pytest.skip("no README.md and docs/ beside the package", allow_module_level=True)
sys.path.insert(0, str(DOCS))
import package  # noqa: E402
import pictures  # noqa: E402

sys.path.remove(str(DOCS))

PAGES = [
    ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "patches/README.md", "data/README.md")
]
PAGES += sorted(DOCS.rglob("*.md"))
CARDS = package.cards()
FIELDS = {**package.general_flags(), **{key: field for card in CARDS.values() for key, field in card.flags.items()}}
HOST = {*DEFAULT_CFG_DICT, "half", "int8", "nms", "cfg"}
COMMANDS = package.command_flags()
MODES = ("train", "val", "predict", "export")


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


# Commands -------------------------------------------------------------------------------------------------------------


def blocks(text: str, language: str) -> list[str]:
    found = re.findall(rf"^( *)```{language}\n(.*?)^\1```", text, re.MULTILINE | re.DOTALL)
    return [block for _, block in found]


def words_of(block: str) -> Iterator[list[str]]:
    """The words of each command of a block, with its own variables filled in."""
    variables: dict[str, str] = {}
    for line in block.replace("\\\n", " ").splitlines():
        text = re.sub(r"\$([A-Z]+)\b", lambda found: variables.get(found[1], found[0]), line)
        words = shlex.split(text, comments=True)
        if words and (found := re.fullmatch(r"([A-Z]+)=(.*)", words[0], re.DOTALL)):
            variables[found[1]] = found[2]
        elif words:
            yield words


def commands() -> Iterator[Any]:
    for page in PAGES:
        text = page.read_text("utf-8")
        found = [words for block in blocks(text, "bash") for words in words_of(block)]
        prose = re.sub(r"^ *```.*?^ *```", "", text, flags=re.MULTILINE | re.DOTALL)
        found += [shlex.split(code) for code in re.findall(r"`((?:yolo|rebalance|\./benchmark\.sh) [^`]+)`", prose)]
        for words in found:
            yield pytest.param(words, id=f"{name_of(page)}: {' '.join(words)[:60]}")
    for name, _, usage, _ in package.commands():
        yield pytest.param(shlex.split(usage), id=f"help {name}")


Fields = Mapping[str, "dataclasses.Field[Any]"]


def check_flag(name: str, text: str, fields: Fields = FIELDS, others: Iterable[str] = HOST) -> None:
    """A flag, its value one or a list: known, and in its range."""
    assert name in fields or name in others, f"{name} is a flag of nobody"
    if name not in fields:
        return
    default, facts = fields[name].default, fields[name].metadata
    for value in split(name, text):
        if name == "loss":
            check_loss(value)
        elif facts["choices"]:
            assert value in facts["choices"]
        elif isinstance(default, bool):
            assert value in ("True", "False")
        elif isinstance(default, (int, float)):
            assert facts["low"] <= float(value) <= facts["high"]


def check_loss(text: str) -> None:
    parts = ["bce" if part == "ce" else part for part in text.split("+")]
    if any(part.startswith("<") for part in parts):  # a place for the reader's own
        return
    assert set(parts) <= set(CARDS), f"loss={text} is not there"
    kinds = {CARDS[part].kind: part for part in parts}
    assert len(kinds) == len(parts)
    if {"element", "weighting"} <= set(kinds):
        assert kinds["element"] in CARDS[kinds["weighting"]].joins


@pytest.mark.parametrize("words", commands())
def test_every_command_is_one_that_the_program_takes(words: list[str]) -> None:
    program, *rest = [word for word in words if "…" not in word]
    if program in ("yolo", "rebalance") and rest and rest[0] in MODES:
        check_training([word for word in rest[1:] if word != "resume"])
    elif program == "rebalance":
        check_own(*rest)
    elif program == "./benchmark.sh":
        check_own("benchmark", *rest)
    elif program == "yolo":
        check_training(rest)
    elif program.startswith(("./", ".ci/")):
        assert os.access(ROOT / program, os.X_OK)
    else:
        assert program in ("source", "pip", "ray", "cp", "sed", "mkdocs", "patch", "python", "git")


def check_training(words: list[str]) -> None:
    for word in words:
        name, equals, value = word.partition("=")
        assert equals, f"{word} is not key=value"
        check_flag(name, value)


def check_own(name: str = "help", *rest: str) -> None:
    assert name in COMMANDS
    if name == "help":
        assert not rest or rest[0].strip("[]") == "COMMAND" or rest[0] in COMMANDS
    elif name == "hook":
        assert not rest or set(rest[0].split("|")) <= {"install", "remove", "status"}
    elif name == "report":
        given = [word for word in rest if not word.startswith(("baseline=", "reference="))]
        assert len(given) <= 1
        assert not given or not given[0].startswith("runs/reference") or (ROOT / given[0]).is_dir()
    elif name == "convert":
        formats = {TO_COCO: to_coco.ToCocoFlags} | {key: row.flags for key, row in FORMATS.items()}
        words = [word for word in rest if "=" not in word and word != "FORMAT"]
        assert len(words) <= 1
        fields = flags_of(formats[words[0]] if words else ConvertFlags)
        for key, _, value in (word.partition("=") for word in rest if "=" in word):
            check_flag(key, value, fields, ())
    elif name in ("sweep", "benchmark", "paper"):
        check_sweep(name, list(rest))
    elif name == "tune":
        assert not rest or read_space(dict(word.split("=", 1) for word in rest)).corners()
    else:
        trains = name == "rounds" or (name == "audit" and any(word.startswith("folds=") for word in rest))
        for word in rest:
            key, _, value = word.partition("=")
            training = trains and key not in COMMANDS[name]
            check_flag(key, value, FIELDS if training else COMMANDS[name], HOST if training else ())


def check_sweep(name: str, rest: list[str]) -> None:
    if name == "paper" and rest and "=" not in rest[0]:
        assert rest[0] in ("KEY", "numbers") or rest[0] in [key for key, *_ in package.papers()]
        rest = rest[1:]
    given = dict(word.split("=", 1) for word in rest)
    presets = given.pop("preset", "").split("|")
    assert set(presets) <= ({"", "cpu", "gpu"} if name == "paper" else {"", "cpu", "full"})
    for key, value in given.items():
        if key not in COMMANDS["sweep"]:
            check_flag(key, value)
    if name == "sweep" and "model" in given and "<" not in given.get("loss", ""):
        assert read_grid(given).runs


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_python_snippet_compiles_and_knows_its_flags(page: Path) -> None:
    for block in blocks(page.read_text("utf-8"), "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in (
                "train", "trainer",
            ):  # fmt: skip
                for word in node.keywords:
                    if word.arg != "trainer":
                        check_flag(str(word.arg), str(getattr(word.value, "value", "")))


def test_the_example_of_contributing_is_the_file_itself() -> None:
    file = ROOT / "rebalance" / "methods" / "varifocal.py"
    shown = blocks((ROOT / "CONTRIBUTING.md").read_text("utf-8"), "python")[0]
    empty = "# BEGIN rebalance/methods/varifocal.py\n# END rebalance/methods/varifocal.py\n"
    assert shown == (file.read_text("utf-8") if file.is_file() else empty)


# Tables that are written by hand --------------------------------------------------------------------------------------


def tables(page: str, heading: str = "") -> list[list[list[str]]]:
    """The tables of a page, or of one of its sections, as rows of cells, without the line of dashes."""
    text = (ROOT / page).read_text("utf-8")
    if heading:
        level, _, _ = heading.partition(" ")
        text = text.partition(f"\n{heading}\n")[2]
        text = re.split(rf"\n{level} ", text)[0]
    found = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    rows = [[re.split(r"(?<!\\)\|", line.strip("| ")) for line in block.splitlines()] for block in found]
    return [[[cell.strip() for cell in row] for row in block if not set(row[0]) <= set("-: ")] for block in rows]


def ticked(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def test_readme_names_no_method_that_there_is_not() -> None:
    header, *rows = tables("README.md", "## Which method for which gap in the labels")[0]
    named = {name for row in rows for name in ticked(row[header.index("`loss=`")])}
    assert {"bce", "brl", "drop"} < named <= set(CARDS)


def test_the_page_of_detectors_lists_the_zoo_and_the_heads() -> None:
    heads, detectors = tables("docs/detectors.md")
    assert [ticked(row[0])[0] for row in heads[1:]] == list(FIELDS["head"].metadata["choices"])
    assert sorted(name for row in detectors[1:] for name in ticked(row[0])) == sorted(ZOO)


def test_the_page_of_data_lists_the_protocols() -> None:
    _, *rows = tables("docs/data.md", "## Withhold labels: sparsify")[0]
    assert [ticked(row[0])[0] for row in rows] == list(COMMANDS["sparsify"]["protocol"].metadata["choices"])


def test_the_page_of_formats_lists_them() -> None:
    _, *rows = tables("docs/formats.md")[0]
    assert [ticked(row[0])[0] for row in rows] == [*FORMATS]


def test_the_page_of_dropping_lists_its_scopes() -> None:
    _, *rows = tables("docs/methods/drop.md")[0]
    assert [ticked(row[0])[0] for row in rows] == list(FIELDS["drop_scope"].metadata["choices"])


def test_the_built_in_data_s_flags_have_these_defaults() -> None:
    _, *rows = next(table for table in tables("data/README.md") if table[0][:2] == ["flag", "default"])
    found = {name: value for row in rows for name, value in zip(ticked(row[0]), row[1].split(", "), strict=True)}
    assert {name: str(field.default) for name, field in COMMANDS["seafloor"].items()} == found


def test_the_patches_have_the_defaults_of_the_flags() -> None:
    _, *rows = next(table for table in tables("patches/README.md") if table[0][:2] == ["Key", "Default"])
    for key, default, *_ in rows:
        (name,) = ticked(key)
        assert str(FIELDS[name].default) in (default.strip("`"), f"{default}.0")


# Links ----------------------------------------------------------------------------------------------------------------


def anchors(text: str) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_and_picture_leads_somewhere(page: Path) -> None:
    text = re.sub(r"^ *```.*?^ *```", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    for path, anchor in re.findall(r"\]\((?!https?://)([^)#\s]*)(?:#([^)\s]*))?\)", text):
        target = (page.parent / path).resolve() if path else page
        if target.parent == DOCS / "methods" and target.stem in CARDS:
            continue  # made with the site
        assert target.exists(), f"{path} is not there"
        if anchor:
            assert anchor in anchors(target.read_text("utf-8")), f"{path}#{anchor} is not there"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_file_that_is_named_is_there(page: Path) -> None:
    named = re.findall(r"`((?:rebalance|docs|tests|runs/reference|scripts)/[\w./-]+)`", page.read_text("utf-8"))
    missing = [path for path in named if not (ROOT / path).exists()]
    assert [path for path in missing if not path.startswith("rebalance/methods/varifocal")] == []


# Figures --------------------------------------------------------------------------------------------------------------


@cache
def commanded(text: str) -> list[tuple[str, list[str]]]:
    """The folders of which a text says how they are reported, each with those named as references."""
    found = re.findall(r"report runs/reference/([\w-]+)(?: reference=(\S+))?", text)
    return [(folder, re.findall(r"runs/reference/([\w-]+)", others)) for folder, others in found]


def reported(folder: str, others: Sequence[str] = ()) -> list[tuple[float, float]]:
    """Every mean of a sweep's settings and every difference of two of them, with its interval; mAP in points.

    Of the others the runs on complete labels are taken too.
    """
    values: dict[Any, dict[int, float]] = {}
    beside = [record for other in others for record in load(package.REFERENCE / other).finished]
    finished = [
        *load(package.REFERENCE / folder).finished,
        *(record for record in beside if record.labels["protocol"] == "normal"),
    ]
    for (setting, record), part, metric in itertools.product(
        zip(settings(finished), finished, strict=True), ("test", "val"), ("mAP50", "mAP50-95")
    ):
        values.setdefault(((part, metric), setting), {})[record.seed] = 100 * record.metrics[part][metric]
    series = list(values.values())
    series += [
        {seed: one[seed] - other[seed] for seed in one if seed in other}
        for (a, one), (b, other) in itertools.permutations(values.items(), 2)
        if a[0] == b[0]
    ]
    stats = [stat(list(found.values())) for found in series if found]
    return [(found.mean, found.half or 0.0) for found in stats]


def sections(page: str, pattern: str) -> dict[str, str]:
    text = (ROOT / page).read_text("utf-8")
    return {part.partition("\n")[0]: part for part in re.split(pattern, text, flags=re.MULTILINE)[1:]}


SECTIONS = sections("docs/results.md", "^## ")
TABLES = {heading: part for heading, part in SECTIONS.items() if "python scripts/" in part}  # of a table.csv
FIGURES = {heading: part for heading, part in SECTIONS.items() if heading not in ("Speed", "Plans", *TABLES)}


@pytest.mark.parametrize("heading", [heading for heading, text in FIGURES.items() if " ± " in text])
def test_every_interval_is_that_of_the_records(heading: str) -> None:
    text = FIGURES[heading]
    named = {*re.findall(r"runs/reference/([\w-]+)", text), *re.findall(r"\bname=([\w-]+)", text)}
    folders = [name for name in named if (package.REFERENCE / name).is_dir()]
    known = [pair for folder, others in [*((one, []) for one in folders), *commanded(text)] for pair in
             reported(folder, others)]  # fmt: skip
    found = re.findall(r"([+−]?\d+\.\d) ± (\d+\.\d)", text)
    assert len(found) > 2
    for mean, half in found:
        value = float(mean.replace("−", "-"))
        near = [1 for m, h in known if abs(m - value) < 0.0501 and abs(h - float(half)) < 0.0501]
        assert near, f"{mean} ± {half} is in no record of {', '.join(folders)}"


@pytest.mark.parametrize("heading", [heading for heading, text in FIGURES.items() if "gap closed" in text])
def test_every_correction_and_gap_is_that_of_the_report(heading: str) -> None:
    text = FIGURES[heading].replace("−", "-")
    ((folder, others),) = commanded(text)
    sweeps = [load(package.REFERENCE / name) for name in (folder, *others)]
    rows = [row for row in results(sweeps[0], sweeps[1:]).rows if row.split == "test"]
    gaps = {f"{gap.share:.2f} ({gap.low:.2f} to {gap.high:.2f})" for row in rows if (gap := row.gap.get("mAP50"))}
    halves = {f"± {100 * row.test.half:.1f}" for row in rows if row.test}
    found = [cell.strip() for cell in re.findall(r"[^|\n]+", text)]
    told = [cell for cell in found if re.fullmatch(r"-?\d\.\d\d \(.*\)", cell)]
    assert len(told) > 3
    assert {*told} <= gaps
    assert {cell for cell in found if re.fullmatch(r"± \d+\.\d", cell)} <= halves


@pytest.mark.parametrize("heading", TABLES)
def test_every_figure_of_a_script_is_that_of_its_table(heading: str) -> None:
    text = TABLES[heading].replace("−", "-")
    rows = [
        row
        for name in {*re.findall(r"out=runs/reference/([\w-]+)", text)}
        for row in pandas.read_csv(package.REFERENCE / name / "table.csv").to_dict("records")
    ]
    means = {f"{row[name]:.1f} ± {row[f'{name} ±']:.1f}" for row in rows for name in row if f"{name} ±" in row}
    shares = {
        "{:.2f} ({:.2f} to {:.2f})".format(*(row[f"{metric} {end}"] for end in ("gap closed", "from", "to")))
        for row in rows
        for metric in ("mAP50", "mAP50-95")
        if f"{metric} from" in row
    }
    found = re.findall(r"-?\d+\.\d ± \d+\.\d", text)
    assert len(found) > 5
    assert {*found} <= means
    assert {*re.findall(r"-?\d\.\d\d \(-?\d\.\d\d to -?\d\.\d\d\)", text)} <= shares


def test_the_figures_of_the_built_in_benchmark_are_those_of_its_runs() -> None:
    text = FIGURES["The built-in benchmark"]
    single = {f"{mean:.1f}" for mean, half in reported("seafloor") if half == 0}
    found = re.findall(r"\d+\.\d", text.partition("Single runs")[0])
    assert len(found) > 5
    assert set(found) <= single


def test_the_ratios_of_speed_are_those_of_the_benchmarks() -> None:
    records = [json.loads(file.read_text("utf-8")) for file in sorted(package.REFERENCE.glob("bench-*.json"))]
    known = {f"{row['ratio']['median']:.2f}" for record in records for row in record["rows"]}
    cells = [cell for table in tables("docs/results.md", "## Speed") for row in table[1:] for cell in row]
    ratios = [cell for cell in cells if re.fullmatch(r"\d\.\d\d", cell)]
    assert len(ratios) > 20
    assert set(ratios) <= known


# The site -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CARDS)
def test_every_method_has_an_equation_and_a_plot(name: str) -> None:
    assert pictures.equation(CARDS[name].equation).startswith('<div class="equation"><svg ')
    assert pictures.plot(name).startswith('<div class="plot"><svg ')


def test_the_site_builds_strictly_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    for needed in ("mkdocs", "material"):
        if importlib.util.find_spec(needed) is None:
            pytest.skip(f"{needed} is not installed (requirements.txt has mkdocs-material)")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for name, card in CARDS.items():
        text = (tmp_path / "site" / "methods" / f"{name}.html").read_text("utf-8")
        assert all(f"<code>{flag}</code>" in text for flag in card.flags)
        assert card.source in text.replace("&amp;", "&")
    for page in (tmp_path / "site").rglob("*.html"):
        text = page.read_text("utf-8")
        assert not re.search(r'<(?:script|img|iframe)[^>]* src="(?:https?:)?//', text)
        assert not re.search(r'<link[^>]* rel="(?:stylesheet|preconnect)"[^>]* href="(?:https?:)?//', text)
        assert "<!-- made:" not in text
