"""The words of messages about a scenario."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

WORDS = {
    "int": "a whole number", "float": "a number", "str": "a text", "bool": "true or false",
    "array": "a list", "object": "a table", "null": "nothing",
}  # fmt: skip


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown word: what it may have meant, and all there is."""
    names = list(known)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.5)  # two-letter names too
    return (f", did you mean {close[0]!r}?" if close else ".") + f" There is: {', '.join(names)}"
