"""The grammar of the answers that a table allows, in llguidance's dialect of Lark.

An answer has the form of `sqlora.text.render_sql`, so that whatever the grammar admits is what training showed, and
`sqlora.sql.parse` reads it. It is one regular expression: llguidance's lexer takes the longest token without going
back, and would never end `Home team` where there is a column `Home team score`. That each column is used once at most
would need a rule for every set of columns, so a grammar ends behind ` AND`, and `continuation` is made without the
columns used until then.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence

from sqlora.wikisql.form import AGGREGATES, OPERATORS, Schema

# A quote inside a text is not followed by what could end it; the parser then finds its end in the same place.
_TEXT = r"""TEXT: "'" /([^'\n]|'[^' ;\n]|' [0-9])*'?/ "'" """
_NUMBER = r"NUMBER: /-?[0-9]+(\.[0-9]+)?/"
_CHUNK = re.compile(r"\w+|[^\w\s]|\s+")
# Behind a quote and a blank the parser takes these for the query going on.
_KEYWORDS = frozenset(["and", "or", "order", "group", "limit", "having", "union", "intersect", "except"])
_DIGITS = re.compile(r"-?(?:\d[\d,]*(?:\.\d+)?|\.\d+)")
_THOUSANDS = re.compile(r"-?\d{1,3}(,\d{3})*,?(\.\d+)?")
# Longer questions would make the lexer's states many; no question of WikiSQL is half as long.
_LONGEST_QUESTION = 1_000


def beginning(table: Schema, question: str | None) -> str:
    """The grammar of an answer from its blank in front on: all of it, or all up to and including the first ` AND`.

    Args:
        question: if given, texts are parts of it, whatever their letter case, and numbers occur in it.
    """
    names = _names(table)
    aggregates = " | ".join(json.dumps(word + " ") for word in AGGREGATES if word)
    more = _more(len(names) - 1)
    return "\n".join(
        [
            "start: ANSWER",
            f'ANSWER: " SELECT " AGGREGATE? COLUMN " FROM " ID (" WHERE " CONDITION{more})?',
            f"AGGREGATE: {aggregates}",
            f"COLUMN: {_choice(names)}",
            f"ID: {_literal(table.id)}",
            *_conditions(table, names, question),
        ]
    )


def continuation(table: Schema, question: str | None, used: Collection[str]) -> str:
    """The grammar of what follows ` AND`, from the blank on, as `beginning`; `used`: names of columns used already."""
    names = [name for name in _names(table) if name not in used]
    answer = f'ANSWER: " " CONDITION{_more(len(names) - 1)}'
    return "\n".join(["start: ANSWER", answer, *_conditions(table, names, question)])


def _more(left: int) -> str:
    return ' " AND"?' if left else ""


def _names(table: Schema) -> list[str]:
    # Of two columns of one name the parser takes the first.
    return list(dict.fromkeys(table.header))


def _conditions(table: Schema, names: Sequence[str], question: str | None) -> list[str]:
    type_of = dict(zip(reversed(table.header), reversed(table.types), strict=True))
    texts = [name for name in names if type_of[name] == "text"]
    reals = [name for name in names if type_of[name] == "real"]
    operators = " | ".join(json.dumps(f" {sign} ") for sign in OPERATORS)
    kinds = []
    lines = [f"OPERATOR: {operators}"]
    if texts:
        kinds.append("TEXT_COLUMN OPERATOR TEXT")
        lines += [f"TEXT_COLUMN: {_choice(texts)}", *_text(question)]
    if reals:
        kinds.append("REAL_COLUMN OPERATOR NUMBER")
        lines += [f"REAL_COLUMN: {_choice(reals)}", _number(question)]
    return [f"CONDITION: {' | '.join(kinds)}", *lines]


def _text(question: str | None) -> list[str]:
    """A text in quotes; with a question, one whose words stand there one after another, or an empty one."""
    chunks = _CHUNK.findall(question[:_LONGEST_QUESTION].strip()) if question else []
    if not chunks:
        return [_TEXT]
    # PART3: the part of the question from its third chunk on, to the end of any chunk that is no blank.
    starts, lines = [], []
    for number, chunk in enumerate(chunks):
        following = f"PART{number + 1}" if number + 1 < len(chunks) else ""
        if chunk.isspace():
            if number and chunks[number - 1] == "'" and chunks[number + 1].lower() in _KEYWORDS:
                following = "NOTHING"
            lines.append(f"PART{number}: {_any_case(chunk)} {following}")
        else:
            starts.append(f"PART{number}")
            lines.append(f"PART{number}: {_any_case(chunk)} {following and following + '?'}")
    nothing = ["NOTHING: /[^\\x00-\\U0010ffff]/"] if any(line.endswith("NOTHING") for line in lines) else []
    return [f"""TEXT: "'" ({" | ".join(starts)})? "'" """, *lines, *nothing]


def _number(question: str | None) -> str:
    """A number; with a question that has any, one of them, without commas and as Python would write it."""
    numbers: dict[str, None] = {}
    for found in _DIGITS.findall(question or ""):
        plain = found.replace(",", "")
        # `3,4` may be two numbers.
        apart = [] if _THOUSANDS.fullmatch(found) else found.split(",")
        for text in (plain, plain.lstrip("-"), *apart):  # `-6` may be a minus or the end of `2005-06`
            text = re.sub(r"^(-?)\.", r"\g<1>0.", text)
            short = repr(float(text)) if "." in text else re.sub(r"^(-?)0+(?=\d)", r"\1", text)
            numbers |= dict.fromkeys(number for number in (text, short) if re.fullmatch(r"-?\d+(\.\d+)?", number))
    return f"NUMBER: {' | '.join(map(json.dumps, numbers))}" if numbers else _NUMBER


def _any_case(text: str) -> str:
    parts = []
    for char in text:
        forms = sorted({form for form in (char, char.lower(), char.upper()) if len(form) == 1})
        shown = "".join(map(_escaped, forms))
        parts.append(f"[{shown}]" if len(forms) > 1 else shown)
    return f"/{''.join(parts)}/"


def _escaped(char: str) -> str:
    """A character in a regular expression between slashes."""
    if char.isalnum() and char.isascii():
        return char
    return f"\\x{{{ord(char):x}}}"


def _choice(names: Sequence[str]) -> str:
    return " | ".join(map(_literal, names))


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
