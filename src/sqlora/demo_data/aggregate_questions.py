"""Questions for a count, an extreme, a sum or an average."""

from __future__ import annotations

from sqlora.demo_data.conditions import attributes, clauses, modifiers, rows_phrase, verb_phrase
from sqlora.demo_data.logical_forms import AVG, MAX, MIN, SUM, LogicalForm
from sqlora.demo_data.tables import DemoTable
from sqlora.demo_data.voice import Voice, label, open_question, row_noun

# "!" marks wordings that only held-out questions use.
_SUPERLATIVES = {
    MAX: ("highest", "largest", "greatest", "maximum", "biggest", "most", "!top", "!uppermost"),
    MIN: ("lowest", "smallest", "minimum", "least", "!very lowest", "!slightest"),
    AVG: ("average", "average", "mean", "!typical"),
    SUM: ("total", "total", "sum of the", "combined", "!overall", "!aggregate"),
}
_LATEST = {MAX: ("latest", "most recent", "last"), MIN: ("earliest", "first", "oldest")}
_CLUMSY_AFTER_SUPERLATIVE = ("total", "top", "average", "avg", "peak", "first", "largest", "mean")


def ask_count(voice: Voice, table: DemoTable, form: LogicalForm) -> str:
    """A question for COUNT: of rows if their names are counted, of the column's entries otherwise."""
    if table.columns[form.sel].kind == "name":
        return _ask_number_of_rows(voice, table, form)
    conds = form.conds
    noun = label(voice, table, form.sel).removeprefix("number of ")
    entries = voice.pick(("entries", "values", "listings", "!rows"))
    when = f"when {clauses(voice, table, conds)}" if conds else "in the table"
    rows = rows_phrase(voice, table, conds)
    return voice.pick(
        (
            f"how many {noun} {entries} are there {when}",
            f"how many {entries} for {noun} are there {when}",
            f"{open_question(voice, 'number', one=True)} number of {noun} {entries} for {rows}",
            f"what is the total number of {noun} {entries} {when}",
            f"how many {entries} of {noun} are shown for {rows}",
            f"!count the {noun} {entries} {when}",
        )
    )


def ask_statistic(voice: Voice, table: DemoTable, form: LogicalForm) -> str:
    """A question for MAX, MIN, SUM or AVG."""
    conds, column, agg = form.conds, table.columns[form.sel], form.agg
    if column.kind == "count" and voice.chance(0.3):
        return _ask_how_many(voice, table, form)
    clumsy = table.header[form.sel].lower().startswith(_CLUMSY_AFTER_SUPERLATIVE)
    noun = label(voice, table, form.sel, noun_only=clumsy or column.kind == "year")
    subject = f"{_superlative(voice, table, form, noun)} {noun}"
    rows = rows_phrase(voice, table, conds)
    opening = open_question(voice, "value", one=True)
    options = [f"{opening} {subject} {voice.pick(('of', 'for', 'among'))} {rows}", f"{opening} {subject} of {rows}"]
    if conds:
        when, having = clauses(voice, table, conds), attributes(voice, table, conds)
        options += [
            f"{opening} {subject} {voice.pick(('when', 'where', 'if'))} {when}",
            f"{voice.pick(('when', 'if'))} {when}, what is the {subject}",
            f"{opening} {subject} with {having}",
        ]
    if agg == AVG and voice.held:
        options.append(f"averaged over {rows}, what is the {noun}")
    if agg == SUM:
        options.append(f"add up the {noun} of {rows}")
    return voice.rng.choice(options)


def _superlative(voice: Voice, table: DemoTable, form: LogicalForm, noun: str) -> str:
    column, agg = table.columns[form.sel], form.agg
    own = column.top if agg == MAX else column.bottom
    if agg in (MAX, MIN) and own.common and voice.chance(0.7):
        word = voice.form(own)
    else:
        word = voice.pick(_LATEST[agg] if column.kind == "year" else _SUPERLATIVES[agg])
    if word in ("most", "least"):  # suits things that are counted, not heights
        return "highest" if word == "most" else "lowest"
    return "total" if word == "sum of the" and noun.startswith("number of") else word


def _ask_how_many(voice: Voice, table: DemoTable, form: LogicalForm) -> str:
    """'How many goals did players from Spain have in total', 'what are the most goals …'."""
    conds, agg = form.conds, form.agg
    things, do, rows = voice.form(table.columns[form.sel].nouns), voice.do(True), rows_phrase(voice, table, conds)
    if agg == SUM:
        return f"how many {things} {do} {rows} have {voice.pick(('in total', 'altogether', '!all told'))}"
    if agg == AVG:
        return f"{voice.pick(('on average', '!typically'))}, how many {things} {do} {rows} have"
    extreme = "most" if agg == MAX else "fewest"
    described = f"{row_noun(voice, table, True)} {modifiers(voice, table, conds, True)}".rstrip()
    options = [f"what is the {extreme} {things} that any of the {described} {voice.have()}"]
    if conds:
        options.append(f"what is the {extreme} {things} when {clauses(voice, table, conds)}")
    return voice.rng.choice(options)


def _ask_number_of_rows(voice: Voice, table: DemoTable, form: LogicalForm) -> str:
    conds, rows = form.conds, row_noun(voice, table, plural=True)
    if not conds:
        return voice.pick(
            (
                f"how many {rows} are there",
                f"how many {rows} are listed",
                f"count all {rows}",
                f"!what does the number of {rows} come to",
            )
        )
    described = f"{rows} {modifiers(voice, table, conds, True)}"
    do = verb_phrase(voice, table, conds, True)
    amount = voice.pick(("number of", "total number of", "count of"))
    return voice.pick(
        (
            f"how many {rows} {do}",
            f"how many {rows} {do}",
            f"how many {rows} are there {modifiers(voice, table, conds, True)}",
            f"{open_question(voice, 'number', one=True)} {amount} {described}",
            f"count the {described}",
            f"tell me how many {rows} {do}",
            f"!of all {rows}, how many {do}",
        )
    )
