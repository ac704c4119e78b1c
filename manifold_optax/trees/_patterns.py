"""The one rule by which a pattern matches a path."""

import functools
import re
from typing import Any


def matches(pattern: str, path: str) -> bool:
    r"""Whether `pattern` matches `path`: some whole components of it, anywhere in it.

    A path is `blocks/0/attention/query/kernel`: components joined by `/`. A pattern is
    a regular expression for one component or for several that follow each other:

    | pattern | matches | does not match |
    |---|---|---|
    | `query` | `attention/query/kernel` | `query_norm/scale` |
    | `(query\|key)/kernel` | `attention/key/kernel` | `key/bias` |
    | `blocks/1` | `blocks/1/mlp/kernel` | `blocks/11/mlp/kernel` |
    | `conv\d+` | `conv1/kernel` | `conv/kernel` |
    | `^head` | `head/kernel` | `decoder/head/kernel` |
    | `kernel$` | `head/kernel` | `kernel/scale` |
    | the empty pattern | the path of the whole tree | every other |

    Args:
        pattern: regular expression of Python's `re`.
        path: normalised path.

    Raises:
        ValueError: if `pattern` is not a regular expression.

    Example:
        >>> matches(r"blocks/\d+", "decoder/blocks/0/kernel")
        True
        >>> matches("head", "lm_head/kernel")
        False
    """
    return _compiled(pattern).search(path) is not None


def check_pattern(what: str, pattern: Any) -> None:
    """Raises TypeError or ValueError unless `pattern` is a regular expression.

    Args:
        what: what the pattern is for, for the message.
        pattern: what was given.
    """
    if not isinstance(pattern, str):
        raise TypeError(
            f"The pattern of {what} must be a string, got {pattern!r} of type "
            f"{type(pattern).__name__}."
        )
    try:
        _compiled(pattern)
    except ValueError as error:
        raise ValueError(f"The pattern of {what} is invalid. {error}") from None


# Roles have a pattern for each parameter, and all of them are tried in turn: a cache
# that is smaller than a model forgets each before it is needed again.
@functools.lru_cache(maxsize=65536)
def _compiled(pattern: str) -> re.Pattern[str]:
    # By itself first: ")(" closes the group around it, and would pass inside of it.
    try:
        re.compile(pattern)
        return re.compile(rf"(?:^|/)(?:{pattern})(?:/|$)")
    except re.error as error:
        raise ValueError(f"{pattern!r} is not a regular expression: {error}.") from None
