"""CIFAR-10 from its official binary files, verified before they are parsed.

The binary version needs no pickle. Every file is pinned by its SHA-256; a file that
differs is an error and is left as it is.
"""

import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int32, UInt8

from manifold_optax.experiments.mlp import download

CLASSES = 10
_CHANNELS = 3
_PIXELS = _CHANNELS * 32 * 32
_RECORD_BYTES = 1 + _PIXELS

# Exact statistics of the 50,000 training images, on the scale [0, 1].
_MEAN = np.array([0.49139968, 0.48215841, 0.44653091], np.float32)
_DEVIATION = np.array([0.24703223, 0.24348513, 0.26158784], np.float32)


class Records(NamedTuple):
    """Images as stored (channel by channel, row by row) and their labels."""

    pixels: UInt8[np.ndarray, "examples 3072"]
    labels: Int32[np.ndarray, " examples"]


@dataclasses.dataclass(frozen=True)
class Release:
    """A set of binary files, as published.

    Attributes:
        archive: The archive that holds them.
        train: SHA-256 of each training file, by name, in order.
        test: SHA-256 of each test file, by name.
        records: Records per file.
    """

    archive: download.Archive
    train: Mapping[str, str]
    test: Mapping[str, str]
    records: int


# Source of the MD5: https://www.cs.toronto.edu/~kriz/cifar.html (binary version). The
# SHA-256 are those of the files inside that archive.
OFFICIAL = Release(
    archive=download.Archive(
        url="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        md5="c32a1d4ab5d03f1284b67883e8d87530",
        folder="cifar-10-batches-bin",
    ),
    train={
        "data_batch_1.bin": (
            "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5"
        ),
        "data_batch_2.bin": (
            "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed"
        ),
        "data_batch_3.bin": (
            "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67"
        ),
        "data_batch_4.bin": (
            "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48"
        ),
        "data_batch_5.bin": (
            "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add"
        ),
    },
    test={
        "test_batch.bin": (
            "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b"
        ),
    },
    records=10_000,
)


def load(
    directory: str | os.PathLike[str], *, release: Release = OFFICIAL
) -> tuple[Records, Records]:
    """Reads the binary files, after downloading those that are missing.

    Args:
        directory: Holds the files, or the folder of the archive that holds them.
        release: Names, hashes and sizes of the files, and where they come from.

    Returns:
        Training and test records.

    Raises:
        ValueError: if a file, or a downloaded archive, is not the published one.
        FileNotFoundError: if files are missing and cannot be downloaded.
    """
    hashes = {**release.train, **release.test}
    folder = _find(pathlib.Path(directory), hashes, release.archive.folder)
    contents = {
        name: _read_verified(folder / name, digest)
        for name, digest in hashes.items()
        if (folder / name).exists()
    }
    missing = [name for name in hashes if name not in contents]
    if missing:
        download.fetch_members(
            release.archive, missing, folder, size=release.records * _RECORD_BYTES
        )
        for name in missing:
            contents[name] = _read_verified(folder / name, hashes[name])
    return (
        _parse([contents[name] for name in release.train]),
        _parse([contents[name] for name in release.test]),
    )


def normalize(pixels: UInt8[np.ndarray, "n 3072"]) -> Float32[np.ndarray, "n 3072"]:
    """Centers and scales each channel by the statistics of the training set.

    Args:
        pixels: Images as stored.

    Returns:
        Flattened images; over the training set each channel has mean 0 and
        standard deviation 1.
    """
    images = pixels.reshape(len(pixels), _CHANNELS, -1).astype(np.float32)
    images /= 255
    images -= _MEAN[:, None]
    images /= _DEVIATION[:, None]
    return images.reshape(len(pixels), _PIXELS)


def _find(
    directory: pathlib.Path, names: Mapping[str, str], folder: str
) -> pathlib.Path:
    """Returns the directory that holds the files, or that should."""
    if any((directory / name).exists() for name in names):
        return directory
    return directory / folder


def _read_verified(path: pathlib.Path, expected: str) -> bytes:
    content = path.read_bytes()
    got = hashlib.sha256(content).hexdigest()
    if got != expected:
        raise ValueError(
            f"{path} is not the published file: expected SHA-256 {expected}, got "
            f"{got} ({len(content)} bytes). It was left as it is; delete it and run "
            f"again to download it, or give another data_dir."
        )
    return content


def _parse(contents: list[bytes]) -> Records:
    records = np.frombuffer(b"".join(contents), np.uint8).reshape(-1, _RECORD_BYTES)
    return Records(pixels=records[:, 1:], labels=records[:, 0].astype(np.int32))
