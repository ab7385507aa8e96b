"""The review page as a file: what is in it, what is beside it, and that a stranger's text stays in its place."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from audits import HOSTILE, Maker, about_label, missing

from rebalance.audit import review
from rebalance.errors import RunError


class Elements(HTMLParser):
    """The elements of a page, as a browser sees them, and the text in each kind."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, str] = {}
        self.feed(page.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        tag = self.tags[-1] if self.tags else ("", {})
        name = f"{tag[0]}#{tag[1].get('id')}" if tag[1].get("id") else tag[0]
        self.texts[name] = self.texts.get(name, "") + data


def data_of(page: Path) -> dict[str, Any]:
    return json.loads(Elements(page).texts["script#data"])


def test_a_page_of_few_suggestions_is_one_file(maker: Maker) -> None:
    made = maker.audit([missing(maker.image("a.jpg"), 10, 0.75), missing("a.jpg", 60, 0.25)])
    page = made.page()
    assert sorted(path.name for path in made.folder.iterdir()) == ["review.html", "suggestions.csv"]
    pictures = [np.frombuffer(base64.b64decode(text), np.uint8) for text in data_of(page)["pictures"]]
    assert [cv2.imdecode(one, cv2.IMREAD_COLOR).shape for one in pictures] == [(100, 128, 3)] * 2
    links = [
        value for _, attributes in Elements(page).tags for key, value in attributes.items() if key in ("src", "href")
    ]
    assert links == ["data:,"]  # nothing is fetched


def test_many_crops_lie_beside_the_page_and_those_of_an_earlier_page_go(
    maker: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(review, "_WITHIN", 100)
    maker.image("a.jpg")
    old = maker.audit([missing("a.jpg", 10, 0.75)])
    old.page()
    new = maker.audit([missing("a.jpg", x, 0.5) for x in (10, 40)])
    page = new.page()
    name = new.about["suggestions_sha256"][:12]
    assert data_of(page)["pictures"] == f"crops/{name}/"
    assert sorted(path.relative_to(new.folder).as_posix() for path in new.folder.rglob("*.jpg")) == sorted(
        f"crops/{name}/{row.id}.jpg" for row in new.rows
    )
    new.page()  # again: the same files
    assert [path.name for path in (new.folder / "crops").iterdir()] == [name]
    monkeypatch.setattr(review, "_WITHIN", 10**9)
    new.page()  # and within the page, once they fit
    assert not (new.folder / "crops").exists()


def test_where_the_page_cannot_be_written_the_earlier_one_stays_with_its_crops(
    maker: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(review, "_WITHIN", 100)
    maker.image("a.jpg")
    old = maker.audit([missing("a.jpg", 10, 0.75)])
    before = old.page().read_bytes()
    new = maker.audit([missing("a.jpg", 50, 0.75)])

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(review, "write_whole", full)
    with pytest.raises(RunError, match="cannot be written: No space left on device"):
        new.page()
    assert (old.folder / "review.html").read_bytes() == before
    assert (old.folder / f"crops/{old.about['suggestions_sha256'][:12]}/{old.rows[0].id}.jpg").is_file()


def test_names_of_files_and_classes_stay_text(maker: Maker) -> None:
    image = maker.image(HOSTILE.replace("/", "∕") + ".jpg")
    made = maker.audit(
        [missing(image, 10, 0.75, name=HOSTILE)], (HOSTILE, "crab"), data=f"/data/{HOSTILE.replace('/', '∕')}.yaml"
    )
    page = made.page()
    found = Elements(page)
    assert [tag for tag, _ in found.tags].count("script") == 2
    assert "img" not in [tag for tag, _ in found.tags]
    assert not [attributes for _, attributes in found.tags if any(key.startswith("on") for key in attributes)]
    data = data_of(page)
    assert data["names"]["0"] == HOSTILE
    assert data["images"][0][0] == image
    assert "<" not in found.texts["script#data"]
    assert HOSTILE.replace("/", "∕") in found.texts["title"]


def test_a_name_that_is_no_utf_8_makes_a_page_all_the_same(maker: Maker) -> None:
    image = maker.image("\udce9t\udce9.jpg")
    made = maker.audit([missing(image, 10, 0.75)], data=f"{maker.folder}/\udce9.yaml")
    assert data_of(made.page())["images"][0][0] == image


def test_only_the_pages_own_script_and_style_may_run(maker: Maker) -> None:
    made = maker.audit([missing(maker.image("a.jpg"), 10, 0.75)])
    text = made.page().read_text("utf-8")
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy
    rules = dict(rule.strip().split(" ", 1) for rule in policy[1].replace("&#39;", "'").split(";"))
    for kind in ("style", "script"):
        inside = re.search(rf"<{kind}>(.*?)</{kind}>", text, re.DOTALL)
        assert inside
        digest = base64.b64encode(hashlib.sha256(inside[1].encode()).digest()).decode()
        assert rules[f"{kind}-src"] == f"'sha256-{digest}'"
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    assert rules["img-src"] == "'self' file: data:"


def test_labels_are_those_in_the_windows_with_their_numbers(maker: Maker) -> None:
    labels = "0 0.05 0.5 0.05 0.1\n1 0.5 0.5 0.2 0.4\n0 0.95 0.5 0.05 0.1\n"  # left, in the middle, at the right end
    made = maker.audit([about_label(maker.image("a.jpg", labels=labels), "wrong_class")])
    assert data_of(made.page())["images"] == [["a.jpg", 200, 100, [[1, 1, 80.0, 30.0, 120.0, 70.0]], ""]]


def test_images_that_cannot_be_read_are_told_in_a_few_lines(maker: Maker, capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"{i}.jpg" for i in range(5)]
    maker.image(names[0], 100, 100)
    made = maker.audit([missing(name, 10, 0.75) for name in names])
    page = made.page()
    told = capsys.readouterr().err.splitlines()
    assert told[0] == "note: no crops of 0.jpg: it has 100×100 pixels, and had 200×100 when it was audited"
    assert told[1:] == ["note: no crops of 1.jpg: it cannot be read", "note: no crops of 2.jpg: it cannot be read",
                        "note: no crops of 2 more images"]  # fmt: skip
    assert data_of(page)["pictures"] == [""] * 5


def test_a_page_of_the_first_ones_has_some_of_each_kind_and_says_so(maker: Maker) -> None:
    maker.image("a.jpg", labels="0 0.5 0.5 0.2 0.4\n")
    rows = [missing("a.jpg", i, (i + 1) / 100) for i in range(30)]
    others = [about_label("a.jpg", kind, number=i) for kind in ("wrong_class", "spurious") for i in range(4)]
    made = maker.audit([*rows, *others], [*"abcdefgh"])

    def kinds(most: int) -> dict[str, int]:
        chosen = review.first(made.rows, most)
        assert [row for row in made.rows if row in chosen] == chosen
        assert chosen[0] == made.rows[0]
        return {kind: sum(row.kind == kind for row in chosen) for kind in ("missing", "wrong_class", "spurious")}

    assert kinds(10) == {"missing": 6, "wrong_class": 2, "spurious": 2}
    assert kinds(36) == {"missing": 28, "wrong_class": 4, "spurious": 4}
    assert kinds(37) == {"missing": 29, "wrong_class": 4, "spurious": 4}
    assert review.first(made.rows, 38) == review.first(made.rows, 10_000) == made.rows
    few = maker.audit([*rows[:3], *others], [*"abcdefgh"])
    assert len(review.first(few.rows, 10)) == 10  # what one kind does not need the others get
    made.rows = review.first(made.rows, 10)
    assert "10 of 38 suggestions in 1 image<" in made.page().read_text("utf-8")


def test_an_audit_without_suggestions_has_a_page(maker: Maker) -> None:
    assert data_of(maker.audit([]).page())["rows"] == []
