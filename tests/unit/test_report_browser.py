"""Both pages in a headless Chromium: nothing fails, nothing overflows, the filter filters."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from browser import NAMES, Browser, find_browser
from report_run import load, make_pair, write_made_up_run

from sqlora.report.page import render_page
from sqlora.report.side_by_side.page import render_pair

LONG = "x" * 300  # a word that no line can hold
VISIBLE = "[...document.querySelectorAll('.case')].filter(e => e.checkVisibility()).length"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = find_browser()
    if not path:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is installed (Debian: apt-get install chromium)")
    browser = Browser(path)
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with a hostile model and a first question that is one long word."""
    folder = tmp_path_factory.mktemp("report")
    write_made_up_run(folder)
    run = load(folder)
    first, *others = run.cases
    long = replace(first.example, question=LONG, table_id=LONG, header=(LONG, "Player", "Club"))
    answers = {system: replace(answer, sql=LONG, result=LONG) for system, answer in first.answers.items()}
    case = replace(first, example=long, gold=LONG, gold_result=LONG, answers=answers)
    kind, *kinds = run.failures
    failure = replace(kind.examples[0], question=LONG, gold=LONG, gold_result=LONG, sql=LONG, result=LONG)
    training = replace(run.training, environment=(("Device", LONG),))
    run = replace(run, cases=[case, *others], failures=[replace(kind, examples=(failure,)), *kinds], training=training)
    return _written(folder / "report.html", render_page(run))


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison of two revisions with long names, one of them with a long parameter."""
    pair = make_pair(LONG, f"feature/{LONG}")
    pair = replace(pair, first=replace(pair.first, about=LONG, params={LONG: LONG}))
    return _written(tmp_path_factory.mktemp("comparison") / "comparison.html", render_pair(pair))


def _written(path: Path, page: str) -> Path:
    path.write_text(page, encoding="utf-8")
    return path


@pytest.fixture(params=["report", "comparison"])
def page(request: pytest.FixtureRequest) -> Path:
    path: Path = request.getfixturevalue(request.param)
    return path


def test_loads_nothing_but_itself_and_without_a_word_on_the_console(browser: Browser, page: Path) -> None:
    browser.open(page)
    assert browser.value("document.querySelectorAll('svg').length") >= 5
    assert browser.value("document.querySelectorAll('script, img').length") == 0
    assert browser.problems == []
    assert browser.requests == [page.as_uri()]


def test_the_console_would_be_heard(browser: Browser, tmp_path: Path) -> None:
    browser.open(_written(tmp_path / "bad.html", "<script>console.error('one'); nosuch()</script><img src=nosuch.png>"))
    assert len(browser.problems) >= 2
    assert len(browser.requests) == 2


@pytest.mark.parametrize("width", [320, 390, 800, 1200])
def test_nothing_overflows(browser: Browser, page: Path, width: int) -> None:
    browser.open(page, width=width, height=844)
    browser.value("document.querySelectorAll('details').forEach(e => e.open = true)")
    assert browser.value("document.scrollingElement.scrollWidth") <= width
    # What scrolls inside its own box must be meant to: everything else ends within the window.
    beyond = f"""[...document.querySelectorAll('main *')]
        .filter(e => !e.closest('.scroll table') && e.getBoundingClientRect().right > {width} + 1)
        .map(e => e.outerHTML.slice(0, 80))"""
    assert browser.value(beyond) == []


def test_texts_in_charts_stay_inside(browser: Browser, page: Path) -> None:
    browser.open(page, width=390, height=844)
    beyond = """[...document.querySelectorAll('svg text')].filter(text => {
        const inner = text.getBoundingClientRect(), outer = text.closest('.chart').getBoundingClientRect();
        return inner.left < outer.left || inner.right > outer.right
            || inner.top < outer.top || inner.bottom > outer.bottom;
    }).map(text => text.textContent)"""
    assert browser.value(beyond) == []
    # On a phone, letters of the charts are smaller than the text's, yet can be read.
    sizes = "Math.min(...[...document.querySelectorAll('svg text')].map(t => t.getBoundingClientRect().height))"
    assert browser.value(sizes) >= 9


def test_filter(browser: Browser, report: Path) -> None:
    browser.open(report)

    def choose(name: str) -> int:
        browser.value(f"document.getElementById('{name}').click()")
        shown: int = browser.value(VISIBLE)
        return shown

    assert browser.value(VISIBLE) == 20
    counts = {}
    for mark in ("right", "wrong", "no_stop", "wrong_table"):
        counts[mark] = choose(f"adapter-{mark}")
        assert browser.value(f"document.querySelectorAll('.case[data-adapter={mark}]').length") == counts[mark]
        assert str(counts[mark]) == browser.value(f"document.querySelector('#adapter-{mark} + span b').textContent")
    assert counts == {"right": 13, "wrong": 2, "no_stop": 3, "wrong_table": 2}
    assert choose("base-no_stop") == 2  # both at once
    assert choose("adapter-all") == 20
    assert choose("base-all") == 20


def test_filter_by_keyboard(browser: Browser, report: Path) -> None:
    browser.open(report)
    browser.value("document.getElementById('adapter-all').focus()")
    for kind in ("rawKeyDown", "keyUp"):
        browser.command(
            "Input.dispatchKeyEvent", type=kind, key="ArrowRight", code="ArrowRight", windowsVirtualKeyCode=39
        )
    assert browser.value("document.activeElement.id") == "adapter-right"
    assert browser.value(VISIBLE) == 13


def test_two_outcomes_that_no_question_has_together(browser: Browser, tmp_path: Path) -> None:
    write_made_up_run(tmp_path)
    run = load(tmp_path)
    first, *others = run.cases
    right = replace(first, answers=first.answers | {"base": replace(first.answers["base"], mark="right")})
    browser.open(_written(tmp_path / "report.html", render_page(replace(run, cases=[right, *others]))))
    message = "document.querySelector('.nothing').checkVisibility()"
    browser.value("document.getElementById('base-right').click()")
    assert (browser.value(VISIBLE), browser.value(message)) == (1, False)
    browser.value("document.getElementById('adapter-wrong').click()")
    assert (browser.value(VISIBLE), browser.value(message)) == (0, True)


def test_dark_scheme_changes_colours(browser: Browser, page: Path) -> None:
    def colours() -> list[list[float]]:
        script = """[document.body, document.querySelector('.scroll'), document.querySelector('svg text')].map(e => {
            const style = getComputedStyle(e);
            return (e.tagName == 'text' ? style.fill : style.backgroundColor).match(/[\\d.]+/g).map(Number);
        })"""
        found: list[list[float]] = browser.value(script)
        return found

    browser.open(page, scheme="light")
    light = colours()
    browser.open(page, scheme="dark")
    dark = colours()
    for (red, green, blue), after in zip(light[:2], dark[:2], strict=True):
        assert min(red, green, blue) > 220
        assert max(after) < 60
    assert max(light[2]) < 130 < min(dark[2])
    browser.show_as(scheme="dark", media="print")  # paper is white whatever the screen is
    assert min(colours()[0]) == 255


def test_print_hides_the_filter_and_shows_every_question(browser: Browser, report: Path) -> None:
    browser.open(report)
    shown = "[...document.querySelectorAll('.filter, nav')].filter(e => e.checkVisibility()).length"
    browser.value("document.getElementById('adapter-wrong').click()")
    assert (browser.value(shown), browser.value(VISIBLE)) == (2, 2)
    browser.show_as(media="print")
    assert (browser.value(shown), browser.value(VISIBLE)) == (0, 20)
    # Examples of errors are folded up on the screen only.
    assert browser.value("document.querySelector('.failure').checkVisibility({contentVisibilityAuto: true})")
    assert browser.value("document.querySelector('.failure').getBoundingClientRect().height") > 20
    pdf = browser.pdf()
    assert pdf.startswith(b"%PDF-")
    assert pdf.count(b"/Type /Page\n") + pdf.count(b"/Type /Page ") + pdf.count(b"/Type/Page/") > 3
