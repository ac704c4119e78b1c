"""`manifold-optax doctor`: whether the numbers are right on this machine."""

import dataclasses
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

import manifold_optax as mo
from manifold_optax._machine import device_kinds, package_version
from manifold_optax.command_line._answer import Answer, Options, Table
from manifold_optax.command_line._oracles import Check, CHECKS

_PACKAGES = (
    *("jax", "jaxlib", "optax", "chex", "jaxtyping", "numpy", "flax"),
    *("orbax-checkpoint", "tyro"),
)
_CONFIG = ("jax_enable_x64", "jax_default_matmul_precision")
_VARIABLES = ("XLA_FLAGS", "JAX_", "XLA_PYTHON_CLIENT", "CUDA_VISIBLE_DEVICES")
"""Names, or starts of names, of the variables that change what a program computes."""


@dataclasses.dataclass(frozen=True)
class Health(Answer):
    """What this machine is, and what it computes.

    Attributes:
        versions: name → version, or "not installed".
        devices: one line for each kind.
        settings: of JAX, and of the environment.
        checks: measured against float64.
    """

    versions: Mapping[str, str]
    devices: Sequence[str]
    settings: Mapping[str, str]
    checks: Sequence[Check]

    @property
    def is_good(self) -> bool:
        """Whether every figure is within its bound."""
        return all(check.is_good for check in self.checks)

    def __str__(self) -> str:
        """Three tables to paste."""
        facts = {
            **self.versions,
            "devices": ", ".join(self.devices),
            **self.settings,
        }
        rows = [
            (check.what, f"{check.error:.1e}", f"{check.bound:.0e}", check.verdict)
            for check in self.checks
        ]
        header = ("check, against NumPy in float64", "error", "at most", "")
        wrong = sum(not check.is_good for check in self.checks)
        verdict = (
            "All numbers are as they should be."
            if self.is_good
            else f"{wrong} of {len(rows)} checks failed. Please report all of this."
        )
        return "\n\n".join(
            map(
                str,
                [Table(("", ""), list(facts.items())), Table(header, rows), verdict],
            )
        )

    def as_json(self) -> Any:
        """The same."""
        return {
            "versions": dict(self.versions),
            "devices": list(self.devices),
            "settings": dict(self.settings),
            "checks": [
                {**dataclasses.asdict(check), "is_good": check.is_good}
                for check in self.checks
            ],
        }


@dataclasses.dataclass(frozen=True)
class Doctor(Options):
    """Says which versions and devices there are, and how exact the numbers are.

    It solves small problems whose answers NumPy knows in float64, on the default device
    and with the default precision of products. Paste what it prints into a bug report.
    It ends with 1 if a number is wrong.
    """

    def answer(self) -> Health:
        """Looks around, and computes."""
        return Health(
            _versions(), device_kinds(), _settings(), [_done(check) for check in CHECKS]
        )


def _done(check: Callable[[], Check]) -> Check:
    """The check, or what it stumbled over as its result."""
    try:
        return check()
    except Exception as error:  # noqa: BLE001 - a report must come to its end.
        name = check.__name__.strip("_").replace("_", " ")
        first = str(error).splitlines()[0] if str(error) else ""
        return Check(f"{name}: {type(error).__name__}: {first}", float("nan"), 0.0)


def _versions() -> dict[str, str]:
    own = {"manifold-optax": mo.__version__, "python": platform.python_version()}
    return {**own, **{name: package_version(name) for name in _PACKAGES}}


def _settings() -> dict[str, str]:
    machine = {"cores": str(os.cpu_count()), "system": platform.platform()}
    config = {name: str(getattr(jax.config, name)) for name in _CONFIG}
    variables = {
        name: value
        for name, value in sorted(os.environ.items())
        if name.startswith(_VARIABLES)
    }
    return {**machine, **config, **variables}


OPTIONS = Doctor
