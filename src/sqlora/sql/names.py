"""Recognises a name of the schema in a query, bare as the text format writes it or quoted as SQL does."""

from __future__ import annotations

from collections.abc import Iterator

_QUOTES = (('"', '"'), ("`", "`"), ("[", "]"))


class Name:
    """One name; letter case and the width of blanks do not matter.

    No regular expressions: compiling one for each column of each question would take most of the scorer's time.
    """

    __slots__ = ("_words", "text")

    def __init__(self, text: str) -> None:
        self.text = text.strip()
        # With their own lengths: the lower case of a letter may be longer than the letter.
        self._words = [(word.lower(), len(word)) for word in self.text.split()]

    def match(self, query: str, place: int) -> Iterator[tuple[int, bool]]:
        """Yield (end, whether bare and in the same letters) for each way in which the name stands at `place`."""
        end = self._bare(query, place)
        if end is not None:
            yield end, query[place:end] == self.text
        opening = query[place : place + 1]
        for left, right in _QUOTES:
            if opening == left:
                end = self._bare(query, place + 1)
                if end is not None and query.startswith(right, end):
                    yield end + 1, False

    def _bare(self, query: str, place: int) -> int | None:
        for number, (word, length) in enumerate(self._words):
            if number:
                start = place
                while place < len(query) and query[place].isspace():
                    place += 1
                if place == start:
                    return None
            if query[place : place + length].lower() != word:
                return None
            place += length
        return place
