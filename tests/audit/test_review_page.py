"""The review page in a browser: clicked, typed at, reloaded, and given names that would do harm."""

from __future__ import annotations

import json
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from audits import HOSTILE, Audit, Maker, about_label, missing

from rebalance.audit import decisions, review

Open = Callable[..., Any]
PICTURE = "() => document.querySelector('#view img')?.naturalWidth === 128"  # it has been decoded
MIDDLE = "0 0.5 0.5 0.2 0.4\n"  # a label of 40 by 40 pixels


class Tab:
    """One tab for all tests, because each costs a process; what goes wrong in it fails the test that is at it."""

    def __init__(self, browser: Any) -> None:
        self.context = browser.new_context(accept_downloads=True)
        self.context.set_default_timeout(300_000)
        self.wrong: list[str] = []
        self.page = self.another()

    def another(self) -> Any:
        """A further tab."""
        page = self.context.new_page()
        page.on("pageerror", lambda error: self.wrong.append(str(error)))
        page.on("console", lambda told: self.wrong.append(told.text) if told.type in ("error", "warning") else None)
        page.on("dialog", lambda dialog: (self.wrong.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda sent: self.wrong.append(sent.url) if is_foreign(sent.url) else None)
        return page


def is_foreign(url: str) -> bool:
    return not url.startswith(("file:", "data:", "blob:", "http://127.0.0.1:"))


@pytest.fixture(scope="module")
def shared_tab(browser: Any) -> Iterator[Tab]:
    tab = Tab(browser)
    yield tab
    tab.context.close()


@pytest.fixture
def tab(shared_tab: Tab) -> Iterator[Tab]:
    shared_tab.page.set_viewport_size({"width": 1400, "height": 900})
    yield shared_tab
    if shared_tab.page.url != "about:blank":  # a test that was skipped opened nothing
        shared_tab.page.evaluate("localStorage.clear()")
    shared_tab.page.goto("about:blank")
    wrong, shared_tab.wrong[:] = [*shared_tab.wrong], []
    assert wrong == []


@pytest.fixture
def open_page(tab: Tab) -> Open:
    """Opens an audit's page, or an address."""

    def opened(made: Audit | str, page: Any = tab.page) -> Any:
        page.goto(made if isinstance(made, str) else (made.folder / "review.html").as_uri())
        return page

    return opened


@pytest.fixture
def six(maker: Maker) -> Audit:
    """Three missing fish, a missing crab without a probability, a wrong class, a label that nobody finds."""
    maker.image("a.jpg", labels=MIDDLE)
    maker.image("b.jpg")
    rows = [missing("a.jpg", 10, 0.9), missing("b.jpg", 10, 0.6), missing("b.jpg", 60, 0.5),
            missing("b.jpg", 120, None, number=1, name="crab"),
            about_label("a.jpg", "wrong_class"), about_label("a.jpg", "spurious", number=0, name="fish")]  # fmt: skip
    made = maker.audit(rows)
    made.page()
    return made


def until(page: Any, holds: str, argument: Any = None) -> None:
    """Wait until a function in the page returns true; Playwright's own waiting needs `eval`, which the page forbids."""
    end = time.monotonic() + 300
    while not page.evaluate(holds, argument):
        assert time.monotonic() < end, holds
        time.sleep(0.02)


def progress_is(page: Any, start: str) -> None:
    until(page, "start => document.querySelector('#progress').textContent.startsWith(start)", start)


def heading(page: Any) -> str:
    return page.text_content("#what")


def decided(page: Any, made: Audit) -> dict[str, str]:
    """What decisions.json says, downloaded and read by the package."""
    with page.expect_download() as waiting:
        page.click("#download")
    path = made.folder / waiting.value.suggested_filename
    assert path.name == "decisions.json"
    waiting.value.save_as(path)
    return decisions.read(path, made.rows)


def test_keys_decide_and_go_on_and_are_downloaded(open_page: Open, six: Audit) -> None:
    page = open_page(six)
    assert page.text_content("#lead") == "6 suggestions in 2 images"
    assert heading(page) == "missing: fish"
    said = []
    for key in "arsaAr":
        page.keyboard.press(key)
        said.append(page.text_content("#said"))
    assert said == [
        "✓ accepted: missing fish",
        "✗ rejected: missing fish",
        "– skipped: missing fish",
        "✓ accepted: missing crab",
        "✓ accepted: wrong class crab",
        "✗ rejected: spurious label fish; all of those shown are decided",
    ]
    assert page.text_content("#progress") == "5 of 6: 3 accepted, 2 rejected, 1 skipped"
    expected = {row.id: word for row, word in zip(six.rows, "ar aar", strict=True) if word != " "}
    assert decided(page, six) == {name: {"a": "accept", "r": "reject"}[key] for name, key in expected.items()}
    content = json.loads((six.folder / "decisions.json").read_text("utf-8"))
    assert content["suggestions_sha256"] == six.about["suggestions_sha256"]


def test_buttons_do_what_keys_do_and_say_what_it_means(open_page: Open, six: Audit) -> None:
    page = open_page(six)
    assert page.text_content("#means") == "Accept: a label is added. Reject: it is verified that there is none."
    page.click("#accept")
    page.click("#reject")
    page.click("#skip")
    assert page.text_content("#progress") == "2 of 6: 1 accepted, 1 rejected, 1 skipped"
    page.click(f"[data-id='{six.rows[5].id}']")
    assert heading(page) == "spurious label: fish"
    assert page.text_content("#means") == "Accept: the label is taken away. Reject: the label stays."
    page.click(
        f"[data-id='{six.rows[4].id}'] button[aria-label='reject this one']"
    )  # of a card that is not the current one
    assert heading(page) == "spurious label: fish"
    assert page.text_content("#progress") == "3 of 6: 1 accepted, 2 rejected, 1 skipped"
    page.click(f"[data-id='{six.rows[0].id}']")
    assert heading(page) == "missing: fish (✓ accepted)"
    page.click("#clear")
    assert heading(page) == "missing: fish"
    assert decided(page, six) == {six.rows[1].id: "reject", six.rows[4].id: "reject"}


def test_undo_takes_back_one_after_the_other_and_many_at_once(open_page: Open, six: Audit) -> None:
    page = open_page(six)
    assert page.is_disabled("#undo")
    page.keyboard.press("r")
    page.fill("#threshold", "0.5")
    assert page.text_content("#bulk") == "Accept 2"  # 0.6 and 0.5; not the one that is rejected, nor one without
    page.click("#bulk")
    assert page.text_content("#progress") == "3 of 6: 2 accepted, 1 rejected"
    assert page.is_disabled("#bulk")
    page.click("#undo")
    assert page.text_content("#progress") == "1 of 6: 0 accepted, 1 rejected"
    page.click("h1")
    page.keyboard.press("u")
    assert page.text_content("#progress") == "0 of 6: 0 accepted, 0 rejected"
    assert heading(page) == "missing: fish"
    page.keyboard.press("u")
    assert page.text_content("#said") == "nothing to undo"


def test_many_are_accepted_by_score_where_there_is_no_probability(open_page: Open, six: Audit) -> None:
    page = open_page(six)
    page.select_option("#class", "1")
    assert page.text_content("#bulk") == "Accept 0"
    page.select_option("#measure", "score")
    page.fill("#threshold", "0.5")
    page.click("#bulk")
    assert decided(page, six) == {row.id: "accept" for row in six.rows if row.number == 1}
    page.fill("#threshold", "")
    assert page.is_disabled("#bulk")


def test_filters_show_a_class_a_kind_and_what_is_not_decided(open_page: Open, six: Audit) -> None:
    page = open_page(six)

    def shown() -> list[str]:
        places = page.eval_on_selector_all("article", "all => all.map(a => [Number(a.ariaPosInSet), a.dataset.id])")
        assert [place for place, _ in sorted(places)] == [*range(1, len(places) + 1)]
        return [name for _, name in sorted(places)]

    ids = [row.id for row in six.rows]
    assert shown() == ids
    assert page.eval_on_selector_all("#class option", "all => all.map(o => o.textContent)") == [
        "all", "fish (4)", "crab (2)",
    ]  # fmt: skip
    page.select_option("#class", "1")
    assert shown() == ids[3:5]
    assert heading(page) == "missing: crab"
    page.select_option("#kind", "wrong_class")
    assert shown() == ids[4:5]
    page.select_option("#kind", "spurious")
    assert shown() == []
    assert heading(page) == "Nothing is shown"
    assert page.text_content(".empty") == "Nothing of this kind is left."
    page.click("h1")
    page.keyboard.press("a")  # decides nothing
    page.select_option("#class", "all")
    page.select_option("#kind", "all")
    page.select_option("#state", "")
    page.click("h1")
    page.keyboard.press("Home")
    page.keyboard.press("a")
    assert shown() == ids[1:]
    assert page.get_attribute("[aria-current=true]", "data-id") == ids[1]
    page.keyboard.press("u")
    assert shown() == ids
    page.select_option("#order", "image")
    assert shown() == [row.id for name in ("a.jpg", "b.jpg") for row in six.rows if row.image == name]


def test_decisions_stay_in_the_browser_under_the_table_they_belong_to(
    open_page: Open, six: Audit, maker: Maker
) -> None:
    page = open_page(six)
    page.keyboard.press("a")
    page.keyboard.press("s")
    page = open_page(six)
    assert page.text_content("#progress") == "1 of 6: 1 accepted, 0 rejected, 1 skipped"
    assert page.get_attribute("[aria-current=true]", "data-id") == six.rows[2].id  # on with the first that is open
    other = maker.audit(six.rows[:3])
    other.page()
    page = open_page(other)
    assert page.text_content("#progress") == "0 of 3: 0 accepted, 0 rejected"


def test_two_tabs_of_a_page_know_of_one_another(tab: Tab, open_page: Open, six: Audit) -> None:
    one, two = open_page(six), open_page(six, tab.another())
    one.keyboard.press("a")
    progress_is(two, "1 of 6")
    two.keyboard.press("r")
    progress_is(one, "1 of 6: 0 accepted, 1 rejected")
    assert decided(one, six) == {six.rows[0].id: "reject"}
    two.close()


def test_a_browser_that_keeps_nothing_says_so(open_page: Open, six: Audit) -> None:
    page = open_page(six)
    page.evaluate("() => { Storage.prototype.setItem = () => { throw new DOMException('full', 'QuotaError'); }; }")
    assert not page.is_visible("#notice")
    page.keyboard.press("a")
    assert "does not keep the decisions" in page.text_content("#notice")
    assert decided(page, six) == {six.rows[0].id: "accept"}


def test_a_file_of_decisions_is_loaded_and_what_does_not_belong_is_told(open_page: Open, six: Audit) -> None:
    gone = missing("a.jpg", 150, 0.5)
    file = decisions.write(
        six.folder / "d.json", [*six.rows, gone], {six.rows[0].id: "reject", gone.id: "accept"}, "0" * 64
    )
    page = open_page(six)
    page.set_input_files("#load", file)
    progress_is(page, "1 of 6")
    assert page.text_content("#notice") == "d.json: 1 of 2 decisions are about suggestions that are not on this page."
    assert decided(page, six) == {six.rows[0].id: "reject"}
    page.click("#undo")
    assert decided(page, six) == {}
    bad = [
        "{", "[]", "null", '{"schema": 2, "decisions": []}',
        '{"schema": 1, "decisions": [{"id": 1, "decision": "accept"}]}',
        json.dumps({"schema": 1, "decisions": [{"id": six.rows[0].id, "decision": "<b>"}]}),
    ]  # fmt: skip
    for text in bad:
        file.write_text(text, "utf-8")
        page.evaluate("document.querySelector('#notice').textContent = ''")
        page.set_input_files("#load", file)
        until(page, "() => document.querySelector('#notice').textContent.includes('nothing was loaded')")
        assert page.text_content("#progress") == "0 of 6: 0 accepted, 0 rejected"


def test_the_estimate_follows_the_decisions(open_page: Open, six: Audit) -> None:
    # fish: 0.9 + 0.6 + 0.5 = 2, interval 1 to 3; crab: none
    page = open_page(six)
    cells = "Array.from(document.querySelectorAll('#classes tr'), row => row.innerText.split('\\t').map(t => t.trim()))"
    assert page.text_content("#estimate") == "2 (1 to 3)"
    assert page.evaluate(cells) == [["fish", "0", "0", "3", "2 (1 to 3)"], ["crab", "0", "0", "1", "none"]]
    page.keyboard.press("a")  # 1 is there; of the estimate 1.1 ÷ 2 is open: 1 + 0.55 · (2, 1, 3)
    assert page.text_content("#estimate") == "2 (2 to 3)"
    page.keyboard.press("r")  # 0.5 ÷ 2 is open: 1 + 0.25 · (2, 1, 3) = 1.5, 1.25, 1.75
    assert page.evaluate(cells)[0] == ["fish", "1", "1", "1", "2 (1 to 2)"]
    assert page.text_content("#agreed") == "Of 2 missing ones you accepted 1; their probabilities expect 2."
    page.keyboard.press("s")
    assert page.evaluate(cells)[0][3] == "1"  # skipped is not decided
    page.keyboard.press("a")
    assert page.text_content("#estimate") == "2 (1 to 2), and 1 accepted of classes without an estimate"
    page.click(f"[data-id='{six.rows[2].id}']")
    page.keyboard.press("r")  # all of it is decided: what is there is what was accepted
    assert page.evaluate(cells)[0] == ["fish", "1", "2", "0", "1 (1 to 1)"]


def test_a_lower_bound_is_called_so_and_no_estimate_none(open_page: Open, maker: Maker) -> None:
    maker.image("a.jpg")
    made = maker.audit([missing("a.jpg", 10, 0.9)], lower_bound=True)
    made.page()
    assert open_page(made).text_content("#estimate") == "at least 1 (0 to 1)"
    made = maker.audit([missing("a.jpg", 10, None)], lower_bound=True)
    made.page()
    assert open_page(made).text_content("#estimate") == "no estimate"


def test_boxes_lie_where_they_are_in_the_image_and_can_be_switched_off(open_page: Open, six: Audit) -> None:
    page = open_page(six)
    page.click(f"[data-id='{six.rows[4].id}']")  # a wrong class: the label is 40 pixels wide at 80, the box at 82
    view = page.locator("#view .crop").bounding_box()
    scale = view["width"] / 128  # the window is 128 pixels wide, from 37 on, and the image's 100 high

    def left(kind: str) -> float:
        return page.locator(f"#view g.{kind} rect.{kind}").first.bounding_box()["x"] - view["x"]

    assert left("label") == pytest.approx((80 - 37) * scale, abs=3)
    assert left("suggested") == pytest.approx((82 - 37) * scale, abs=3)
    assert view["height"] == pytest.approx(100 * scale, abs=1)
    assert page.inner_text("#view .tag.label") == "fish"
    assert page.eval_on_selector("#view img", "img => img.complete && img.naturalWidth") == 128
    assert page.locator("#view g.other").count() == 0  # the missing one is out of sight, the spurious one is the label
    page.keyboard.press("l")
    assert not page.locator("#view g.label").is_visible()
    assert not page.locator("#view .tag.label").is_visible()
    assert page.locator("#view g.suggested").is_visible()
    assert not page.is_checked("#labels")
    page.check("#labels")
    assert page.locator("#view g.label").is_visible()
    page.click(f"[data-id='{six.rows[1].id}']")
    others = page.locator("#view g.other")
    assert [others.nth(i).is_visible() for i in range(others.count())] == [True, True]  # of the same image
    page.keyboard.press("o")
    assert [others.nth(i).is_visible() for i in range(others.count())] == [False, False]


def test_arrows_move_and_the_keys_can_be_switched_off(open_page: Open, six: Audit) -> None:
    page = open_page(six)

    def at() -> int:
        return [row.id for row in six.rows].index(page.get_attribute("[aria-current=true]", "data-id"))

    columns = len({box["x"] for box in (page.locator("article").nth(i).bounding_box() for i in range(6))})
    seen = []
    for key in ("ArrowRight", "ArrowDown", "ArrowUp", "ArrowLeft", "ArrowLeft", "End", "Home"):
        page.keyboard.press(key)
        seen.append(at())
    assert seen == [1, 1 + columns, 1, 0, 0, 5, 0]
    assert page.evaluate("document.activeElement.dataset.id") == six.rows[0].id  # the focus goes along
    page.uncheck("#keys")
    page.keyboard.press("a")
    assert page.text_content("#progress") == "0 of 6: 0 accepted, 0 rejected"
    page.check("#keys")
    page.fill("#threshold", "0.4")
    page.keyboard.press("a")  # typed into a field
    page.keyboard.press("Control+a")
    assert page.text_content("#progress") == "0 of 6: 0 accepted, 0 rejected"


def test_hostile_names_are_shown_and_not_run(open_page: Open, maker: Maker) -> None:
    image = maker.image(HOSTILE.replace("/", "∕") + ".jpg", labels=MIDDLE)
    made = maker.audit(
        [missing(image, 10, 0.75, name=HOSTILE), about_label(image, "wrong_class", name="=1+1")], (HOSTILE, "=1+1")
    )
    made.page()
    page = open_page(made)
    assert heading(page) == f"missing: {HOSTILE}"
    assert "suggestions to review" in page.title()
    assert page.evaluate("document.scripts.length") == 2
    assert page.locator("#facts dd").all_text_contents()[-2] == image
    page.keyboard.press("a")
    page.keyboard.press("r")
    assert decided(page, made) == {made.rows[0].id: "accept", made.rows[1].id: "reject"}
    assert page.evaluate("document.querySelectorAll('img[src=x], script:not([type]):not(:last-of-type)').length") == 0


def test_what_is_smuggled_into_the_page_does_not_run(tab: Tab, open_page: Open, six: Audit) -> None:
    page_file = six.folder / "review.html"
    text = page_file.read_text("utf-8")
    page_file.write_text(
        text.replace("<main>", "<main><script>window.hit = 1</script><img src=x onerror='window.hit = 1'>")
    )
    page = open_page(six)
    assert page.evaluate("window.hit") is None
    assert len([told for told in tab.wrong if "violates the following Content Security Policy" in told]) >= 2
    tab.wrong.clear()


def test_ten_thousand_open_and_only_what_is_seen_is_built(
    open_page: Open, maker: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(review, "_WITHIN", 0)
    maker.image("a.jpg", labels=MIDDLE)
    rows = [missing("a.jpg", i % 180 + (i // 180) / 100, (i + 1) / 10001) for i in range(10_000)]
    made = maker.audit(rows)
    monkeypatch.setattr(review.crops, "_of_image", one_crop_for_all)
    made.page()
    page = open_page(made)
    assert page.text_content("#lead") == "10000 suggestions in 1 image"
    assert page.locator("article").count() < 60
    assert page.locator("#view g.other").count() == 20  # of hundreds
    for place in (0.25, 0.5, 1):
        page.evaluate(
            "place => { const list = document.querySelector('#list'); list.scrollTop = place * list.scrollHeight; }",
            place,
        )
        until(
            page,
            """place => {
                const list = document.querySelector('#list').getBoundingClientRect();
                const seen = [...document.querySelectorAll('article')].filter(card => {
                    const box = card.getBoundingClientRect();
                    return box.bottom > list.top && box.top < list.bottom;
                });
                const places = seen.map(card => Number(card.ariaPosInSet));
                return seen.length >= 6 && Math.max(...places) > place * 9900
                    && seen.every(card => card.querySelector('img').complete);
            }""",
            place,
        )
        assert page.locator("article").count() < 80
    assert page.locator(f"[data-id='{made.rows[0].id}']").count() == 1  # the current one stays, and with it the focus
    page.keyboard.press("End")
    assert heading(page) == "missing: fish"
    assert page.get_attribute("[aria-current=true]", "aria-posinset") == "10000"
    page.click("#bulk")
    assert page.text_content("#progress") == "1 000 of 10 000: 1 000 accepted, 0 rejected"
    assert len(decided(page, made)) == 1000


def one_crop_for_all(rows: list[Any], file: str, size: Any, folder: Path) -> str:
    """A picture for each suggestion, without ten thousand crops."""
    for row in rows:
        os.link(file, folder / f"{row.id}.jpg")
    return ""


def test_pictures_beside_the_page_are_shown_from_a_static_host_and_missing_ones_are_told(
    tab: Tab, open_page: Open, six: Audit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(review, "_WITHIN", 0)
    six.page()

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(six.folder)))
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        socket.create_connection(server.server_address[:2]).close()
    except OSError as error:
        pytest.skip(f"nothing reaches a server here: {error}")
    try:
        page = open_page(f"http://127.0.0.1:{server.server_port}/review.html")
        until(page, PICTURE)
        page.keyboard.press("a")
        assert len(decided(page, six)) == 1
    finally:
        server.shutdown()
        server.server_close()
    page = open_page(six)
    until(page, PICTURE)
    (six.folder / "review.html").rename(six.folder.parent / "moved.html")
    page = open_page((six.folder.parent / "moved.html").as_uri())
    page.wait_for_selector("#notice:has-text('must lie beside it')")
    assert page.inner_text("#view .missing") == "no picture"
    tab.wrong[:] = [told for told in tab.wrong if "ERR_FILE_NOT_FOUND" not in told]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_and_everything_has_a_name(tab: Tab, open_page: Open, six: Audit, scheme: str) -> None:
    tab.page.emulate_media(color_scheme=scheme)
    page = open_page(six)
    for key in "ars":
        page.keyboard.press(key)
    found = page.evaluate(CONTRAST)
    assert len(found) > 60
    assert [one for one in found if one["contrast"] < 4.5] == []
    nameless = page.evaluate("""[...document.querySelectorAll('button, select, input')].filter(element =>
        !(element.ariaLabel || element.textContent.trim() || element.labels?.[0]?.textContent.trim())).length""")
    assert nameless == 0
    assert page.get_attribute("#list", "role") == "feed"
    words = page.eval_on_selector_all("article", "all => all.map(card => card.ariaLabel)")
    assert "missing: fish, probability 0.90, score 0.90, accepted" in words  # not by colour alone
    assert page.inner_text(f"[data-id='{six.rows[1].id}'] .foot span") == "✗ rejected"
    page.emulate_media(color_scheme="light")


CONTRAST = """() => {
    const parse = colour => {
        const [r, g, b, a = 1] = colour.match(/[\\d.]+/g).map(Number);
        return [r, g, b, a];
    };
    const over = (top, below) => [0, 1, 2].map(i => top[i] * top[3] + below[i] * (1 - top[3])).concat(1);
    const light = ([r, g, b]) => {
        const [x, y, z] = [r, g, b].map(v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
        return 0.2126 * x + 0.7152 * y + 0.0722 * z;
    };
    const found = [];
    for (const element of document.querySelectorAll('body *')) {
        const own = [...element.childNodes].some(node => node.nodeType === 3 && node.textContent.trim());
        if (!own || !element.checkVisibility() || element.disabled || element.closest('script, svg')) continue;
        let ground = [0, 0, 0, 0];
        for (let at = element; at && ground[3] < 1; at = at.parentElement) {
            const below = parse(getComputedStyle(at).backgroundColor);
            ground = ground[3] ? over(ground, below[3] ? below : [0, 0, 0, 0]) : below;
        }
        const ink = over(parse(getComputedStyle(element).color), ground);
        const [a, b] = [light(ink), light(ground)].sort((x, y) => y - x);
        found.push({ text: element.textContent.trim().slice(0, 30), contrast: (a + 0.05) / (b + 0.05) });
    }
    return found;
}"""


def test_the_page_works_on_a_narrow_screen(tab: Tab, open_page: Open, six: Audit) -> None:
    tab.page.set_viewport_size({"width": 390, "height": 800})
    page = open_page(six)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.click("#accept")
    assert page.text_content("#progress") == "1 of 6: 1 accepted, 0 rejected"


def test_the_policy_of_the_page_has_no_hole_for_styles(six: Audit) -> None:
    text = (six.folder / "review.html").read_text("utf-8")
    assert not re.search(r"<[^>]+\sstyle=", text)  # the policy would drop it
