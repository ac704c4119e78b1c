"""What `hybrid` reports of the labels that it gave."""

from collections.abc import Mapping
from typing import NamedTuple


class LabelReport(NamedTuple):
    """The label of every parameter, by path."""

    labels: Mapping[str, str]
