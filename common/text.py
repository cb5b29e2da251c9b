"""Checks of text that comes from users and data."""

from __future__ import annotations


def check_text(text: str) -> None:
    """Raise ``ValueError`` for a text with half of a surrogate pair, which no encoding can write."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"the text {shortened(text)} is not valid Unicode: character {error.start} is {text[error.start]!a}, half "
            "of a surrogate pair; write the whole character (an emoji, for example) or remove it"
        ) from None


def shortened(text: str, length: int = 60) -> str:
    """Return the text quoted in ASCII for a message, cut to ``length`` characters."""
    return ascii(text if len(text) <= length else f"{text[:length]}...")
