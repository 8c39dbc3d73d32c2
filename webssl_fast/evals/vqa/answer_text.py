"""How the Cambrian protocol reads an answer out of generated text.

Its rules are kept to the letter, since published figures rest on them; where they do not say what happens (an empty
answer, a number that is none), it is said here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

LETTER_ONLY = "Answer with the option's letter from the given choices directly."
SHORT_ANSWER = "Answer the question using a single word or phrase."


def lettered(options: Sequence[str]) -> str:
    """ "\\nA. first\\nB. second" and so on."""
    return "".join(f"\n{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False))


def after_announcement(text: str) -> str:
    """In lower case, what follows the last "answer is" or "answer:", or everything where neither stands.

    "The answer is: B" leaves ": b", as it does in the protocol.
    """
    text = text.lower().strip()
    for announcement in ("answer is", "answer:"):
        text = text.rpartition(announcement)[2]
    return text.strip()


def option_text(text: str, trailing: str = ".:,") -> str:
    """An announced option without the marks around it, in lower case: "The answer is (B)." -> "b".

    trailing  marks that are taken off its end
    """
    return after_announcement(text).rstrip(trailing).lstrip("(").rstrip(")")


def option_letter(text: str, trailing: str = ".:,") -> str:
    """The first character of an announced option, "" of an empty answer.

    "I think B" gives "i": a letter within a sentence is not looked for.
    """
    return option_text(text, trailing)[:1]


def number(text: str) -> float | None:
    """The number that the whole text is, as Python's float reads it; None for any other text, "12%" and "1,200" too."""
    try:
        return float(text)
    except ValueError:
        return None


def is_within_5_percent(value: float | None, of: float | None) -> bool:
    """|value - of| <= 0.05 |of|; False where either is no finite number."""
    if value is None or of is None or not (math.isfinite(value) and math.isfinite(of)):
        return False
    return abs(value - of) <= 0.05 * abs(of)


def percent_right(flags: Sequence[bool]) -> float:
    """0 where there are none."""
    return 100 * sum(flags) / len(flags) if flags else 0.0
