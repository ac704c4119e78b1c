"""What a report says of the machine that it was made on."""

from importlib import metadata

import jax


def package_version(name: str) -> str:
    """The version of an installed package, or "not installed"."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:  # A checkout that was not installed, too.
        return "not installed"


def device_kinds() -> list[str]:
    """The devices of this process, one entry for each kind with its number."""
    kinds = [f"{device.platform} ({device.device_kind})" for device in jax.devices()]
    return [f"{kinds.count(kind)} × {kind}" for kind in dict.fromkeys(kinds)]
