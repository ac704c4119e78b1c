"""The one rule by which a pattern matches a path."""

import pytest

from manifold_optax.trees import check_pattern, matches

PATHS = ("", "head/kernel", "blocks/1/attention/query/kernel", "blocks/11/mlp/kernel")


@pytest.mark.parametrize(
    ("pattern", "matched"),
    [
        ("", [""]),
        ("head", ["head/kernel"]),
        ("ead", []),
        ("kernel", ["head/kernel", *PATHS[2:]]),
        ("blocks/1", [PATHS[2]]),
        (r"blocks/\d+", list(PATHS[2:])),
        ("attention/(query|key)/kernel", [PATHS[2]]),
        ("query|mlp", list(PATHS[2:])),
        ("^kernel", []),
        ("kernel$", ["head/kernel", *PATHS[2:]]),
        ("mlp$", []),
        ("mlp/.*", [PATHS[3]]),
        (".*", list(PATHS)),
    ],
)
def test_a_pattern_matches_whole_components(pattern, matched):
    assert [path for path in PATHS if matches(pattern, path)] == matched


@pytest.mark.parametrize("pattern", ["(", ")(", "a{2,1}", "(?i)a"])
def test_an_invalid_pattern_is_a_value_error(pattern):
    with pytest.raises(ValueError, match="not a regular expression"):
        matches(pattern, "a")
    with pytest.raises(ValueError, match="pattern of this"):
        check_pattern("this", pattern)


@pytest.mark.parametrize("pattern", [None, 3, b"a", ("a",)])
def test_what_is_not_a_string_is_a_type_error(pattern):
    with pytest.raises(TypeError, match="must be a string"):
        check_pattern("this", pattern)
