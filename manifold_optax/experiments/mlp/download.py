"""Downloads files out of a published archive, without trusting its contents."""

import contextlib
import dataclasses
import hashlib
import os
import pathlib
import tarfile
import tempfile
import urllib.request
from collections.abc import Iterator, Sequence
from typing import IO

from tqdm.auto import tqdm

_TIMEOUT_SECONDS = 60
_CHUNK_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True)
class Archive:
    """A published gzipped tar archive.

    Attributes:
        url: Where it is.
        md5: Its published MD5. It finds broken downloads; the files taken out of the
            archive need a stronger hash of their own.
        folder: Folder inside the archive that holds the files.
    """

    url: str
    md5: str
    folder: str


def fetch_members(
    archive: Archive, names: Sequence[str], destination: pathlib.Path, *, size: int
) -> None:
    """Downloads an archive and takes some of its files.

    Files are taken by the given names only, so no name inside the archive can become
    a path. Each appears under its final name only when it is complete, and a file
    that exists is never replaced.

    Args:
        archive: The archive; it is deleted afterwards.
        names: Files to take out of `archive.folder`.
        destination: Directory to put them in, made if it does not exist.
        size: Exact size of each file in bytes.

    Raises:
        FileNotFoundError: if the archive cannot be downloaded.
        ValueError: if the archive or a file in it is not the expected one.
    """
    destination.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=destination, prefix=".download-") as scratch:
        packed = pathlib.Path(scratch) / "archive.tar.gz"
        _download(archive, packed, names, destination)
        try:
            with tarfile.open(packed, "r:gz") as opened:
                for name in names:
                    member = f"{archive.folder}/{name}"
                    _extract(opened, member, pathlib.Path(scratch), size=size)
        except tarfile.TarError as error:
            raise ValueError(f"{archive.url} cannot be unpacked: {error}.") from error
        for name in names:
            _publish(pathlib.Path(scratch) / archive.folder / name, destination / name)


def _download(
    archive: Archive,
    path: pathlib.Path,
    names: Sequence[str],
    destination: pathlib.Path,
) -> None:
    digest = hashlib.md5(usedforsecurity=False)
    try:
        with _open_url(archive.url) as chunks, path.open("wb") as file:
            for chunk in chunks:
                digest.update(chunk)
                file.write(chunk)
    except OSError as error:
        raise FileNotFoundError(
            f"{destination} lacks {', '.join(names)}, and {archive.url} could not be "
            f"downloaded ({error}). Download it elsewhere (MD5 {archive.md5}) and "
            f"unpack it so that {destination / names[0]} exists."
        ) from error
    if digest.hexdigest() != archive.md5:
        raise ValueError(
            f"{archive.url} is not the published archive: expected MD5 {archive.md5}, "
            f"got {digest.hexdigest()} ({path.stat().st_size} bytes). Nothing was "
            f"kept; run again, or unpack a good copy into {destination}."
        )


@contextlib.contextmanager
def _open_url(url: str) -> Iterator[Iterator[bytes]]:
    """Opens a URL as chunks, with a progress bar."""
    with urllib.request.urlopen(url, timeout=_TIMEOUT_SECONDS) as response:
        length = response.headers.get("Content-Length")
        with tqdm(
            desc=f"Downloading {url}",
            total=int(length) if length else None,
            unit="B",
            unit_scale=True,
        ) as bar:
            yield _chunks(response, bar)


def _chunks(response: IO[bytes], bar: tqdm) -> Iterator[bytes]:
    while chunk := response.read(_CHUNK_BYTES):
        bar.update(len(chunk))
        yield chunk


def _extract(
    opened: tarfile.TarFile, name: str, scratch: pathlib.Path, *, size: int
) -> None:
    try:
        member = opened.getmember(name)
    except KeyError as error:
        raise ValueError(
            f"The archive has no file {name!r}; it has {sorted(opened.getnames())}."
        ) from error
    if not member.isreg() or member.size != size:
        raise ValueError(
            f"{name!r} in the archive must be a regular file of {size} bytes, got "
            f"{member.size} bytes of type {member.type!r}."
        )
    opened.extract(member, scratch, filter="data")


def _publish(source: pathlib.Path, target: pathlib.Path) -> None:
    """Moves a complete file to its name, unless the name is taken."""
    if target.exists():
        return
    with source.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(source, target)
