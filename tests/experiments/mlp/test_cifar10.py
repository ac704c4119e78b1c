import dataclasses
import hashlib
import io
import tarfile

import numpy as np
import pytest

from manifold_optax.experiments.mlp import cifar10
from manifold_optax.experiments.mlp.cifar10 import load, normalize, Release
from manifold_optax.experiments.mlp.download import Archive

RECORDS = 3
FOLDER = "cifar-10-batches-bin"


def _contents():
    generator = np.random.default_rng(0)
    names = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]
    return {
        name: generator.integers(0, 10, 3073 * RECORDS, np.uint8).tobytes()
        for name in names
    }


def _write_archive(path, members):
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def _release(archive_path, contents):
    """A release of the same layout as the official one, behind a file URL."""
    hashes = {k: hashlib.sha256(v).hexdigest() for k, v in contents.items()}
    test = {"test_batch.bin": hashes.pop("test_batch.bin")}
    md5 = "0" * 32
    if archive_path.exists():
        md5 = hashlib.md5(archive_path.read_bytes(), usedforsecurity=False).hexdigest()
    archive = Archive(url=archive_path.as_uri(), md5=md5, folder=FOLDER)
    return Release(archive=archive, train=hashes, test=test, records=RECORDS)


@pytest.fixture
def contents():
    return _contents()


@pytest.fixture
def published(tmp_path, contents):
    """The archive as published, with a file more than is needed."""
    path = tmp_path / "server" / "archive.tar.gz"
    path.parent.mkdir()
    members = {f"{FOLDER}/{name}": content for name, content in contents.items()}
    _write_archive(path, {**members, f"{FOLDER}/readme.html": b"hello"})
    return _release(path, contents)


def _write_files(directory, contents):
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (directory / name).write_bytes(content)


@pytest.mark.parametrize("folder", [".", FOLDER])
def test_reads_files_beside_or_below_the_directory(tmp_path, contents, folder):
    release = _release(tmp_path / "no archive", contents)
    _write_files(tmp_path / "data" / folder, contents)
    train, test = load(tmp_path / "data", release=release)
    assert train.pixels.shape == (5 * RECORDS, 3072)
    assert test.pixels.shape == (RECORDS, 3072)
    raw = np.frombuffer(contents["data_batch_2.bin"], np.uint8).reshape(-1, 3073)
    np.testing.assert_array_equal(train.labels[RECORDS : 2 * RECORDS], raw[:, 0])
    np.testing.assert_array_equal(train.pixels[RECORDS : 2 * RECORDS], raw[:, 1:])


def _truncate(content):
    return content[:-1]


def _alter(content):
    return bytes([content[0] ^ 1]) + content[1:]


HASHED = pytest.mark.promise(
    "Experiments",
    "Data whose hash differs is not read",
    on="CIFAR-10: SHA-256 of files, MD5 of the archive",
)


@HASHED
@pytest.mark.parametrize("damage", [_truncate, _alter])
def test_damaged_file_is_an_error_and_stays(tmp_path, published, contents, damage):
    damaged = damage(contents["data_batch_3.bin"])
    _write_files(tmp_path / "data", {**contents, "data_batch_3.bin": damaged})
    expected = published.train["data_batch_3.bin"]
    got = hashlib.sha256(damaged).hexdigest()
    message = rf"data_batch_3\.bin .*expected SHA-256 {expected}, got {got}"
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "data", release=published)
    assert (tmp_path / "data" / "data_batch_3.bin").read_bytes() == damaged


def test_downloads_into_a_new_directory(tmp_path, published, contents):
    train, _ = load(tmp_path / "data", release=published)
    assert len(train.labels) == 5 * RECORDS
    assert {p.name for p in (tmp_path / "data").iterdir()} == {FOLDER}
    assert {p.name for p in (tmp_path / "data" / FOLDER).iterdir()} == set(contents)


def test_downloads_only_what_is_missing(tmp_path, published, contents):
    kept = {k: contents[k] for k in ("data_batch_1.bin", "test_batch.bin")}
    _write_files(tmp_path / "data", kept)
    before = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "data").iterdir()}
    load(tmp_path / "data", release=published)
    after = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "data").iterdir()}
    assert set(after) == set(contents)
    assert before.items() <= after.items()


def test_damaged_file_is_found_before_anything_is_downloaded(tmp_path, contents):
    release = _release(tmp_path / "no archive", contents)
    _write_files(tmp_path / "data", {"test_batch.bin": b"partial"})
    with pytest.raises(ValueError, match=r"test_batch\.bin is not the published file"):
        load(tmp_path / "data", release=release)
    assert [p.name for p in (tmp_path / "data").iterdir()] == ["test_batch.bin"]


def test_without_network_the_error_says_what_to_fetch(tmp_path, contents):
    release = _release(tmp_path / "no archive", contents)
    with pytest.raises(FileNotFoundError) as raised:
        load(tmp_path / "data", release=release)
    message = str(raised.value)
    assert release.archive.url in message
    assert release.archive.md5 in message
    assert str(tmp_path / "data" / FOLDER / "data_batch_1.bin") in message
    assert not list((tmp_path / "data" / FOLDER).iterdir())


@HASHED
def test_altered_archive_is_refused(tmp_path, published):
    wrong = dataclasses.replace(published.archive, md5="f" * 32)
    release = dataclasses.replace(published, archive=wrong)
    with pytest.raises(ValueError, match=f"expected MD5 {'f' * 32}, got"):
        load(tmp_path / "data", release=release)
    assert not list((tmp_path / "data" / FOLDER).iterdir())


def test_altered_member_is_refused(tmp_path, published):
    train = {**published.train, "data_batch_1.bin": "e" * 64}
    release = dataclasses.replace(published, train=train)
    with pytest.raises(ValueError, match=r"data_batch_1\.bin .*expected SHA-256 e{64}"):
        load(tmp_path / "data", release=release)


def test_names_in_the_archive_never_become_paths(tmp_path, contents):
    path = tmp_path / "archive.tar.gz"
    members = {f"{FOLDER}/{name}": content for name, content in contents.items()}
    escapes = {"../escaped.bin": b"x", str(tmp_path / "absolute.bin"): b"x"}
    _write_archive(path, {**escapes, **members})
    load(tmp_path / "data", release=_release(path, contents))
    found = {p.name for p in tmp_path.rglob("*") if p.is_file()}
    assert found == {"archive.tar.gz", *contents}


def test_archive_whose_files_lie_elsewhere_is_refused(tmp_path, contents):
    path = tmp_path / "archive.tar.gz"
    _write_archive(path, {f"../{name}": content for name, content in contents.items()})
    with pytest.raises(ValueError, match=rf"has no file '{FOLDER}/data_batch_1\.bin'"):
        load(tmp_path / "data", release=_release(path, contents))
    assert {p.name for p in tmp_path.rglob("*") if p.is_file()} == {"archive.tar.gz"}


def test_link_in_the_archive_is_refused(tmp_path, contents):
    path = tmp_path / "archive.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        link = tarfile.TarInfo(f"{FOLDER}/data_batch_1.bin")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    with pytest.raises(ValueError, match="must be a regular file of 9219 bytes"):
        load(tmp_path / "data", release=_release(path, contents))


def test_file_that_is_no_archive_is_refused(tmp_path, contents):
    path = tmp_path / "archive.tar.gz"
    path.write_bytes(b"<html>not found</html>")
    with pytest.raises(ValueError, match="cannot be unpacked"):
        load(tmp_path / "data", release=_release(path, contents))


def test_normalize_centers_each_channel():
    pixels = np.repeat(np.array([[125, 123, 114]], np.uint8), 1024, axis=1)
    images = normalize(pixels).reshape(3, 1024)
    exact = np.array([125, 123, 114]) / 255 - [0.49139968, 0.48215841, 0.44653091]
    exact /= [0.24703223, 0.24348513, 0.26158784]
    np.testing.assert_allclose(images, exact[:, None].repeat(1024, 1), atol=1e-6)


def test_official_release_names_six_files_of_ten_thousand():
    release = cifar10.OFFICIAL
    assert list(release.train) == [f"data_batch_{i}.bin" for i in range(1, 6)]
    assert list(release.test) == ["test_batch.bin"]
    assert release.records == 10_000
    assert release.archive.url.startswith("https://")
    assert all(len(d) == 64 for d in [*release.train.values(), *release.test.values()])
