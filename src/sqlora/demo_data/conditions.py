"""How a question describes rows by conditions: 'from Spain', 'had more than 3 goals', 'the year is 1998'."""

from __future__ import annotations

from collections.abc import Sequence

from sqlora.demo_data.schema import Cell, Column
from sqlora.demo_data.tables import DemoTable
from sqlora.demo_data.voice import Voice, is_about_people, label, row_noun, value, with_article

EQUAL, ABOVE, BELOW = 0, 1, 2  # WikiSQL's order
Condition = tuple[int, int, Cell]  # column, operator, value

# "!" marks wordings that only held-out questions use, as in schema.Forms.
_MORE = ("more than", "over", "above", "greater than", "larger than", "higher than", "!in excess of", "!beyond")
_LESS = ("less than", "under", "below", "smaller than", "lower than", "!short of", "!beneath")
_AFTER = ("after", "later than", "!past")
_BEFORE = ("before", "earlier than", "prior to", "!ahead of")


def modifiers(voice: Voice, table: DemoTable, conditions: Sequence[Condition], plural: bool) -> str:
    """The conditions as what follows a row's noun: 'from Spain with more than 3 goals'."""
    parts = [_modifier(voice, table, condition, plural) for condition in conditions]
    # Relative clauses last: "... directed by X that had 3 songs" keeps each one beside the noun it belongs to.
    parts.sort(key=lambda part: part.startswith(("whose", "who ", "that ", "where", "for which", "in which")))
    if len(parts) == 2 and parts[1].startswith("with ") and not parts[0].startswith(("with", "having")):
        return " ".join(parts)
    return _series(voice, parts)


def verb_phrase(voice: Voice, table: DemoTable, conditions: Sequence[Condition], plural: bool) -> str:
    """The conditions as a predicate of the row: 'were directed by X and had more than 3 songs'."""
    return _series(voice, [_predicate(voice, table, condition, plural) for condition in conditions])


def clauses(voice: Voice, table: DemoTable, conditions: Sequence[Condition]) -> str:
    """The conditions as sentences: 'the year is 1998 and the label is X'."""
    return _series(voice, [_clause(voice, table, condition) for condition in conditions])


def attributes(voice: Voice, table: DemoTable, conditions: Sequence[Condition]) -> str:
    """The conditions as nouns: 'a height of 190 and a school of Ashford State'."""
    return _series(voice, [_attribute(voice, table, condition) for condition in conditions])


def row_phrase(voice: Voice, table: DemoTable, conditions: Sequence[Condition]) -> str:
    """The row that the conditions describe: 'Jim Les', 'the film Silver Rain', 'the player from Spain'."""
    name = next((c for c in conditions if table.columns[c[0]].kind == "name"), None)
    row = row_noun(voice, table)
    if name is None:
        return f"the {row} {modifiers(voice, table, conditions, False)}"
    column = table.columns[name[0]]
    text = value(voice, column, name[2])
    # A name alone says which column is meant only if no other column holds names of that sort.
    alone = sum(other.make is column.make for other in table.columns) == 1
    if not alone or voice.chance(0.35):
        text = voice.pick(
            (f"the {row} {text}", f"the {row} {text}", f"the {row} named {text}", f"!the {row} known as {text}")
        )
    others = [condition for condition in conditions if condition is not name]
    if not others:
        return text
    if voice.chance(0.5):
        return f"{text} {voice.pick(('when', 'where'))} {clauses(voice, table, others)}"
    return f"{text} with {attributes(voice, table, others)}"


def rows_phrase(voice: Voice, table: DemoTable, conditions: Sequence[Condition]) -> str:
    """All rows that the conditions describe: 'players from Spain'."""
    rows = row_noun(voice, table, plural=True)
    rows = voice.pick((rows, f"the {rows}", f"all {rows}", f"all the {rows}"))
    return f"{rows} {modifiers(voice, table, conditions, True)}" if conditions else rows


def _series(voice: Voice, parts: Sequence[str]) -> str:
    if len(parts) < 3:
        return " and ".join(parts)
    return ", ".join(parts[:-1]) + voice.pick((", and ", " and ")) + parts[-1]


def _who(table: DemoTable) -> str:
    return "who" if is_about_people(table) else "that"


def _comparison(voice: Voice, column: Column, operator: int) -> str:
    if column.kind == "year":
        return voice.pick(_AFTER if operator == ABOVE else _BEFORE)
    return voice.pick(_MORE if operator == ABOVE else _LESS)


def _amount(voice: Voice, operator: int) -> str:
    """A comparison that can stand before a counted noun."""
    if operator == ABOVE:
        return voice.pick(("more than", "over", "!upwards of"))
    return voice.pick(("fewer than", "less than", "under", "!not even"))


def _is_many(cell: Cell) -> bool:
    return cell != 1


def _attribute(voice: Voice, table: DemoTable, condition: Condition) -> str:
    index, operator, cell = condition
    column, text = table.columns[index], value(voice, table.columns[index], cell)
    if column.kind == "count" and _is_many(cell) and voice.chance(0.6):
        amount = "" if operator == EQUAL else _amount(voice, operator) + " "
        return f"{amount}{text} {voice.form(column.nouns)}"
    noun = label(voice, table, index)
    noun = noun if voice.be(noun) in ("are", "were") else with_article(noun)
    if operator == EQUAL:
        return f"{noun} of {text}"
    return f"{noun} {_comparison(voice, column, operator)} {text}"


def _modifier(voice: Voice, table: DemoTable, condition: Condition, plural: bool) -> str:
    index, operator, cell = condition
    column, text = table.columns[index], value(voice, table.columns[index], cell)
    own = (column.mods, column.over, column.under)[operator]
    if own.common and _is_many(cell) and voice.chance(0.62 - 0.4 * voice.formality):
        return voice.form(own).format(v=text)
    attribute = _attribute(voice, table, condition)
    noun = label(voice, table, index)
    compared = "" if operator == EQUAL else _comparison(voice, column, operator) + " "
    options = [
        f"with {attribute}",
        f"with {attribute}",
        f"whose {noun} {voice.be(noun)} {compared}{text}",
        f"{_who(table)} {voice.have(plural)} {attribute}",
        f"having {attribute}",
        f"where the {noun} {voice.be(noun)} {compared}{text}",
        f"!for which the {noun} {voice.be(noun)} {compared}{text}",
    ]
    if operator == EQUAL and not column.real:
        options += [f"with {text} as the {noun}", f"!showing {text} under {noun}"]
    return voice.pick(options)


def _predicate(voice: Voice, table: DemoTable, condition: Condition, plural: bool) -> str:
    index, operator, cell = condition
    own = (table.columns[index].mods, table.columns[index].over, table.columns[index].under)[operator]
    if own.common and _is_many(cell) and voice.chance(0.75 - 0.4 * voice.formality):
        phrase = voice.form(own).format(v=value(voice, table.columns[index], cell))
        first, _, rest = phrase.partition(" ")
        if first in ("that", "who") and not rest.startswith(str(value(voice, table.columns[index], cell))):
            return rest
        if first == "with":
            return f"{voice.have(plural)} {rest}"
        if first not in ("that", "who") and not phrase.startswith("in which"):
            return f"{voice.be(plural=plural)} {phrase}"
    return f"{voice.have(plural)} {_attribute(voice, table, condition)}"


def _clause(voice: Voice, table: DemoTable, condition: Condition) -> str:
    index, operator, cell = condition
    column, text = table.columns[index], value(voice, table.columns[index], cell)
    noun = label(voice, table, index)
    if column.kind == "count" and _is_many(cell) and voice.chance(0.4):
        return f"there {voice.be(plural=True)} {_attribute_of_count(voice, column, operator, text)}"
    if operator != EQUAL:
        return f"the {noun} {voice.be(noun)} {_comparison(voice, column, operator)} {text}"
    options = [f"the {noun} {voice.be(noun)} {text}"] * 4 + [
        f"{noun} {voice.be(noun)} {text}",
        f"{text} {voice.be()} the {noun}",
        f"!the {noun} reads {text}",
        f"!{text} appears as the {noun}",
    ]
    if column.real:
        options.append(f"the {noun} equals {text}")
    return voice.pick(options)


def _attribute_of_count(voice: Voice, column: Column, operator: int, text: str) -> str:
    amount = "" if operator == EQUAL else _amount(voice, operator) + " "
    return f"{amount}{text} {voice.form(column.nouns)}"
