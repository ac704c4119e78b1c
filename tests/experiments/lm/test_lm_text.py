import numpy as np
import pytest

from manifold_optax.experiments.lm.text import (
    encode_text,
    load_text,
    standard_library,
    UNKNOWN,
)


def test_parts_are_contiguous_and_decode_to_the_text():
    source = "".join(chr(97 + i % 26) for i in range(200))
    text = encode_text(source, context=9)
    assert [len(part) for part in text.parts] == [180, 10, 10]
    assert "".join(text.decode(np.asarray(part)) for part in text.parts) == source
    assert text.characters == "abcdefghijklmnopqrstuvwxyz" + UNKNOWN


def test_characters_outside_the_training_part_are_unknown():
    source = 180 * "a" + 10 * "b" + 10 * "c"
    text = encode_text(source, context=9)
    assert text.characters == "a" + UNKNOWN
    assert text.decode(np.asarray(text.parts.validation)) == 10 * UNKNOWN
    assert text.decode(np.asarray(text.parts.test)) == 10 * UNKNOWN


def test_digest_tells_texts_apart():
    digests = {encode_text(200 * c, context=9).digest for c in "aab"}
    assert len(digests) == 2


def test_default_text_is_python_and_has_a_limit():
    text = standard_library(limit=50_000)
    assert len(text) == 50_000
    assert "\ndef " in text
    assert text == standard_library(limit=60_000)[:50_000]


def test_default_text_is_long_enough_for_the_default_model():
    text = load_text(None, context=128)
    assert sum(map(len, text.parts)) > 1_000_000


def test_a_file_is_read(tmp_path):
    path = tmp_path / "own.txt"
    path.write_text(100 * "äö", encoding="utf-8")
    assert load_text(str(path), context=9).characters == "äö" + UNKNOWN


def test_wrong_texts_are_explained(tmp_path):
    with pytest.raises(ValueError, match=r"have \(90, 5, 5\); each must have .* 9"):
        encode_text(100 * "a", context=8)
    path = tmp_path / "own.txt"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="is not text in UTF-8"):
        load_text(str(path), context=8)
    with pytest.raises(FileNotFoundError):
        load_text(str(tmp_path / "absent.txt"), context=8)
