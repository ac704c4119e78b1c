"""The text: where it comes from, its characters, its parts."""

import dataclasses
import hashlib
import os
import pathlib
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Int32

UNKNOWN = "\N{REPLACEMENT CHARACTER}"
"""Stands for a character that the training part does not have."""

# A run of the default size reads about 1.2 million characters. More text than this
# would only take time to encode.
_CHARACTERS_OF_THE_LIBRARY = 2_000_000

# Shares of the text, in its order: training first, then validation, then test.
_VALIDATION_SHARE = 0.05
_TEST_SHARE = 0.05

Tokens = Int32[np.ndarray | jax.Array, " characters"]


class Parts(NamedTuple):
    """The parts of an encoded text."""

    train: Tokens
    validation: Tokens
    test: Tokens


@dataclasses.dataclass(frozen=True)
class Text:
    """An encoded text.

    Attributes:
        characters: The vocabulary; a character's place is its number.
        parts: The encoded parts.
        digest: Identifies the whole text.
    """

    characters: str
    parts: Parts
    digest: str

    def decode(self, tokens: Int32[np.ndarray, " n"]) -> str:
        """Returns the characters of some numbers."""
        return "".join(self.characters[token] for token in tokens)


def standard_library(limit: int = _CHARACTERS_OF_THE_LIBRARY) -> str:
    """Returns the sources of Python's standard library, which every machine has.

    The text joins the modules that are single files, in the order of their names. It
    differs between versions of Python, and so do the numbers of an experiment on it.

    Args:
        limit: Largest number of characters to return.

    Returns:
        The text.
    """
    sources: list[str] = []
    for path in sorted(pathlib.Path(os.__file__).parent.glob("*.py")):
        if limit <= 0:
            break
        # A few sources hold bytes that are not UTF-8, on purpose.
        sources.append(path.read_text(encoding="utf-8", errors="replace")[:limit])
        limit -= len(sources[-1])
    return "".join(sources)


def load_text(path: str | None, *, context: int) -> Text:
    """Reads and encodes a text.

    Args:
        path: A file in UTF-8; None: the `standard_library`.
        context: Length of the sequences to be cut from each part.

    Returns:
        The text: 90 % training, then 5 % validation and 5 % test, without shuffling.

    Raises:
        ValueError: if the file is not UTF-8, or a part is too short.
        OSError: if it cannot be read.
    """
    if path is None:
        return encode_text(standard_library(), context=context)
    try:
        text = pathlib.Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8: {error}.") from error
    return encode_text(text, context=context)


def encode_text(text: str, *, context: int) -> Text:
    """Encodes a text by the characters of its training part.

    Args:
        text: The text.
        context: Length of the sequences to be cut from each part.

    Returns:
        The encoded text. Characters that only the other parts have are `UNKNOWN`.

    Raises:
        ValueError: if a part is shorter than a sequence and the character after it.
    """
    held_out = int(_VALIDATION_SHARE * len(text)), int(_TEST_SHARE * len(text))
    ends = len(text) - sum(held_out), len(text) - held_out[1]
    parts = text[: ends[0]], text[ends[0] : ends[1]], text[ends[1] :]
    if min(map(len, parts)) < context + 1:
        raise ValueError(
            f"The text has {len(text)} characters, so that its parts have "
            f"{tuple(map(len, parts))}; each must have at least the context and one, "
            f"{context + 1}. Take a longer text or a shorter context."
        )
    characters = "".join(sorted(set(parts[0]) | {UNKNOWN}))
    numbers = {character: number for number, character in enumerate(characters)}
    unknown = numbers[UNKNOWN]

    def encode(part: str) -> Int32[np.ndarray, " characters"]:
        return np.array([numbers.get(c, unknown) for c in part], np.int32)

    return Text(
        characters=characters,
        parts=Parts(*map(encode, parts)),
        digest=hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest(),
    )
