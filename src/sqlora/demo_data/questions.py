"""English questions for logical forms."""

from __future__ import annotations

from random import Random

from sqlora.demo_data.aggregate_questions import ask_count, ask_statistic
from sqlora.demo_data.logical_forms import COUNT, NONE, LogicalForm
from sqlora.demo_data.tables import DemoTable
from sqlora.demo_data.value_questions import ask_value
from sqlora.demo_data.voice import Voice

_QUESTION_WORDS = (
    "what", "what's", "which", "who", "how", "when", "where", "if", "with", "can", "do", "could", "would", "any", "is",
    "on", "in", "of", "under",
)  # fmt: skip


def ask(rng: Random, table: DemoTable, form: LogicalForm, held: bool) -> str:
    """A question whose answer is the form's; `held` allows wordings that training questions never have."""
    voice = Voice.draw(rng, held)
    if form.agg == NONE:
        question = ask_value(voice, table, form)
    elif form.agg == COUNT:
        question = ask_count(voice, table, form)
    else:
        question = ask_statistic(voice, table, form)
    return _finish(voice, table, form, question)


def _finish(voice: Voice, table: DemoTable, form: LogicalForm, question: str) -> str:
    """Capitals and the final mark, as carelessly as people set them."""
    first = question.split(" ")[0].rstrip(",").lower()
    asks = first in _QUESTION_WORDS
    style = voice.rng.random()
    if style < 0.07:
        question = question.lower()
    elif style < 0.08:
        question = question.upper()
    elif style < 0.95:
        question = question[0].upper() + question[1:]
    if 0.08 <= style < 0.16:
        for index, _, cell in form.conds:
            if not table.columns[index].real:
                question = question.replace(str(cell), str(cell).lower())
    mark = voice.rng.random()
    if mark < 0.08:
        return question
    if mark < 0.11:
        return question + " ?"
    if mark < 0.14:
        return question + "? "
    return question + ("?" if asks or mark < 0.5 else ".")
