"""Bounds are not vacuous: how far above the largest ratio found they are."""

import pytest

from modular.certificates.tightness import CASES, factor_of

# The largest factors that the certificates may have over what the attack finds.
LIMITS = {
    "orthogonal MLP, depth 3": 2.1,
    "orthogonal residual blocks, mixed": 3.0,
    "orthogonal residual blocks, x + f(x)": 3.0,
    "one attention block, 1 or 2 heads": 3.0,
    "ConvNet": 6.0,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LIMITS)
def test_the_bound_is_within_its_limit(name):
    for case in CASES[name]:
        found = factor_of(case)
        # Below 1 the certificate is refuted.
        assert 1 - 1e-6 <= found <= LIMITS[name], case
