"""Questions for the cells of a column."""

from __future__ import annotations

from sqlora.demo_data.conditions import attributes, clauses, modifiers, row_phrase, verb_phrase
from sqlora.demo_data.logical_forms import LogicalForm
from sqlora.demo_data.tables import DemoTable
from sqlora.demo_data.voice import REQUESTS, Voice, is_about_people, label, open_question, row_noun, value


def ask_value(voice: Voice, table: DemoTable, form: LogicalForm) -> str:
    """A question for a form without aggregate."""
    conds, column = form.conds, table.columns[form.sel]
    noun = label(voice, table, form.sel)
    if not conds:
        return voice.pick(
            (
                f"list every {noun}",
                f"what are all the values of {noun}",
                f"show every {noun} in the table",
                f"name each {noun}",
                f"!which values does {noun} take",
            )
        )
    if column.kind == "name":
        return _ask_row(voice, table, form)
    row = row_phrase(voice, table, conds)
    if column.asks.common and voice.chance(0.5 - 0.3 * voice.formality):
        return voice.form(column.asks).format(e=row)
    opening, be, when = open_question(voice, noun), voice.be(noun), clauses(voice, table, conds)
    having, which = attributes(voice, table, conds), voice.pick(("what", "which"))
    if voice.held and voice.chance(0.3):
        return voice.rng.choice(
            (
                f"looking at {row}, what does the table give as the {noun}",
                f"under {noun}, what is listed for {row}",
                f"regarding {row}: {noun}",
                f"any idea what the {noun} of {row} {be}",
            )
        )
    options = [
        f"{opening} {noun} of {row}",
        f"{opening} {noun} for {row}",
        f"{opening} {noun} {voice.pick(('when', 'where', 'if'))} {when}",
        f"{voice.pick(('when', 'if', 'where'))} {when}, what {be} the {noun}",
        f"{which} {noun} {voice.have()} {having}",
        f"with {having}, what {be} the {noun}",
        f"{row} {voice.have()} {which} {noun}",
    ]
    if column.kind == "person":
        options.append(f"who {voice.be()} the {noun} {voice.pick(('of', 'for'))} {row}")
    if column.kind == "count":
        options += [f"how many {voice.form(column.nouns)} {voice.do()} {row} have"] * 3
    if _stands_alone(table, form):
        first = table.columns[conds[0][0]]
        text = value(voice, first, conds[0][2])
        options += [f"{opening} {noun} for {text}", f"{opening} {noun} of {text}"]
        if first.kind == "name" and text[-1].isalpha() and not text.endswith("s"):
            options += [f"what {be} {text}'s {noun}"] * 3
    return voice.rng.choice(options)


def _ask_row(voice: Voice, table: DemoTable, form: LogicalForm) -> str:
    """A question for the row's name: 'Which player attended Ashford State'."""
    conds, row = form.conds, row_noun(voice, table)
    noun = label(voice, table, form.sel, noun_only=True)
    described = f"{row} {modifiers(voice, table, conds, False)}"
    does = verb_phrase(voice, table, conds, False)
    if voice.held and voice.chance(0.3):
        return f"{voice.rng.choice(('identify', 'point out', 'pick out'))} the {described}"
    options = [
        f"which {row} {does}",
        f"what {row} {does}",
        f"{voice.pick(REQUESTS)} the {described}",
        f"what {voice.be()} the name of the {described}",
        f"{open_question(voice, noun)} {noun} when {clauses(voice, table, conds)}",
        f"the {described} is called what",
    ]
    if is_about_people(table):
        options += [f"who {does}", f"who {voice.be()} the {described}"]
    return voice.rng.choice(options)


def _stands_alone(table: DemoTable, form: LogicalForm) -> bool:
    """Whether the only condition's value says by itself which column it belongs to."""
    if len(form.conds) != 1:
        return False
    index, _, cell = form.conds[0]
    column = table.columns[index]
    if not isinstance(cell, str) or column.kind not in ("name", "person", "place"):
        return False
    return sum(other.make is column.make for other in table.columns) == 1
