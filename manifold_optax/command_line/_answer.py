"""What a subcommand answers."""

import abc
import dataclasses
from collections.abc import Sequence
from typing import Any


class CommandError(Exception):
    """The subcommand cannot answer; the message says why, and what to do."""


class Answer(abc.ABC):
    """`str` is for people, `as_json` for programs."""

    @property
    def is_good(self) -> bool:
        """Whether the program ends with 0."""
        return True

    @abc.abstractmethod
    def as_json(self) -> Any:
        """The same facts, of lists, dictionaries, strings and numbers."""


@dataclasses.dataclass(frozen=True)
class Options(abc.ABC):
    """The options of a subcommand, filled by tyro."""

    json: bool = dataclasses.field(default=False, kw_only=True)
    """print JSON"""

    @abc.abstractmethod
    def answer(self) -> Answer:
        """Does what is asked.

        Raises:
            CommandError: it cannot.
        """


@dataclasses.dataclass(frozen=True)
class Table:
    """Lines of Markdown with aligned columns."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    def __str__(self) -> str:
        """The table."""
        lines = [self.header, ["-"] * len(self.header), *self.rows]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join(
            f"| {' | '.join(map(self._cell, row, widths))} |" for row in lines
        )

    @staticmethod
    def _cell(text: str, width: int) -> str:
        return text.ljust(width, "-" if text == "-" else " ")
