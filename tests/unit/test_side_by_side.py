"""The page of two revisions, on made-up runs."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from html_page import Page
from report_run import EXAMPLES, HOSTILE, make_pair

from sqlora.report.side_by_side.differences import changed, costs, groups, measures
from sqlora.report.side_by_side.gather import Pair, different_params
from sqlora.report.side_by_side.page import LISTED, render_pair


@pytest.fixture(scope="module")
def pair() -> Pair:
    return make_pair()


@pytest.fixture(scope="module")
def page(pair: Pair) -> Page:
    return Page(render_pair(pair))


def test_headline_with_difference_and_significance(page: Page) -> None:
    assert "Execution accuracy 51.2% → 53.5%" in page.text  # 22 and 23 of 43
    assert "main 0123abc One a-branch 4567def Another" in page.text
    assert "43 common test questions (2 that only one revision has are left out)" in page.text
    verdict = "2 fixed, 1 broken, 21 right in both, 19 wrong in both. p = 1.000: may well be chance"
    assert re.search(r"\+2\.3 points \[-6\.\d, \+10\.\d\]: " + re.escape(verdict), page.text)


def test_measures_are_paired(pair: Pair) -> None:
    by_label = {measure.label: measure for measure in measures(pair.comparison)}
    assert list(by_label)[:4] == ["Execution accuracy", "Logical-form accuracy", "Valid SQL", "Stopped at EOS"]
    assert len(by_label) == 9
    valid = by_label["Valid SQL"]  # question 0 is no SQL any more, question 3 ends
    assert (valid.paired.fixed, valid.paired.broken) == (1, 1)
    assert valid.first[0] == valid.second[0] == 29 / EXAMPLES
    assert valid.change.startswith("+0.0 [")
    assert by_label["Stopped at EOS"].paired.fixed == 1
    values = by_label["Condition values"]
    assert values.first[1] < values.first[0] < values.first[2]


def test_an_unchanged_pair_says_so(pair: Pair) -> None:
    comparison = replace(pair.comparison, second=pair.comparison.first)
    text = Page(render_pair(replace(pair, comparison=comparison))).text
    assert "No answer changed from right to wrong or back." in text
    assert "McNemar's exact test)" not in text
    assert "no answer changed" in text
    assert "0 broken" in text


def test_parameters_that_differ(pair: Pair, page: Page) -> None:
    assert different_params(pair) == [
        ("lora.layers", 8, 4),
        ("gone.key", True, "absent"),
        ("lora.targets", "absent", ["q_proj", "v_proj"]),
    ]
    assert "lora.layers 8 4 gone.key true absent lora.targets absent q_proj, v_proj" in page.text
    assert "train.loss" not in page.text
    same = Page(render_pair(replace(pair, second=replace(pair.second, params=pair.first.params))))
    assert "None: both have the same params.yaml." in same.text
    other = replace(pair.second, params={"train.loss": "completion"})
    assert "train.loss differs: the two losses" in Page(render_pair(replace(pair, second=other))).text


def test_both_losses_are_in_one_chart(page: Page) -> None:
    (label,) = [text for text in page.values("aria-label") if text.startswith("Loss")]
    assert "main: training loss from 4.500 to 0.200, validation loss from 5.200 to 0.250, over 500" in label
    assert "a-branch: training loss from 4.500 to 4.500, validation loss from 5.200 to 5.200, over 10" in label
    assert "main, training main, validation a-branch, training a-branch, validation" in page.text


def test_what_training_cost(pair: Pair) -> None:
    rows = {name: (before, after, change) for name, before, after, change in costs(*(_training(pair)))}
    assert rows["Training steps"] == ("1 min 30 s", "45.0 s", "-50%")
    assert rows["Frozen layers"] == ("not recorded", "not recorded", "")
    assert rows["Peak memory"] == ("0.83 GB", "0.83 GB", "")
    assert rows["mlx"] == ("0.32.4", "0.33.0", "")
    assert "numpy" not in rows  # one of them did not record it
    assert rows["Validation loss, at the end"] == ("0.2519", "0.2519", "")
    assert rows["Published iteration"] == ("not recorded", "not recorded", "")


def test_what_each_published(pair: Pair) -> None:
    first = replace(pair.first.training, published_iteration=300, best_valid_loss=0.2)
    second = replace(first, published_iteration=500)  # as train.keep: last does
    rows = {name: (before, after, change) for name, before, after, change in costs(first, second)}
    assert rows["Published iteration"] == ("300", "500", "+67%")
    assert rows["Validation loss, published"] == ("0.2000", "0.2519", "+26%")


def _training(pair: Pair) -> tuple[object, ...]:
    return pair.first.training, pair.second.training


def test_breakdowns_side_by_side(pair: Pair, page: Page) -> None:
    (conditions,) = groups(pair.comparison)["conditions"]
    group, change = conditions
    assert (group.name, group.examples) == ("2", EXAMPLES)
    assert [round(group.accuracy[side][0], 3) for side in ("first", "second")] == [0.512, 0.535]
    assert change == "+2.3 (2 fixed, 1 broken)"
    assert re.search(r"Number of conditions Questions main a-branch Change in points 2 43 51\.2% ", page.text)
    assert any("2: main 51.2%, a-branch 53.5%" in label for label in page.values("aria-label"))


def test_what_was_fixed_and_broken(pair: Pair, page: Page) -> None:
    count, listed = changed(pair.comparison, fixed=True, most=1)
    assert (count, len(listed)) == (2, 1)
    assert listed[0].question == "Who is seven of club 1 & co?"
    assert [result for _, result in listed[0].answers] == ["returns ann 1-8", "returns ann 1-7"]
    assert LISTED >= 2
    assert sum(tag == "article" for tag, _ in page.elements) == 3
    assert "1 broken Right in main, wrong in a-branch." in page.text
    assert "bad_syntax: is no query of the text format" in page.text
    assert "compare lists all" not in page.text


def test_page_is_safe_and_loads_nothing() -> None:
    html = render_pair(make_pair(HOSTILE, "$x^2$"))
    page = Page(html)
    assert not {tag for tag, _ in page.elements} & {"script", "img", "link", "iframe"}
    assert all(link.startswith("#") for link in page.values("href") + page.values("xlink:href"))
    assert "default-src 'none'" in html
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    assert "$x^2$, validation" in page.text
    assert not re.search(r"[\x00-\x08\x0b-\x1f\u202e]", html)
    assert html == render_pair(make_pair(HOSTILE, "$x^2$"))
