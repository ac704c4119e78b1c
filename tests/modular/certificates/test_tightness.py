"""Bounds are not vacuous: how far above the largest ratio found they are."""

import numpy as np
import pytest

from modular.certificates.tightness import CASES, factor_of

# The largest factors that the certificates may have over what the attack finds.
LIMITS = {
    "orthogonal MLP, depth 3": 2.1,
    "orthogonal residual blocks, mixed": 3.0,
    "orthogonal residual blocks, x + f(x)": 3.0,
    "one attention block, 1 or 2 heads": 3.0,
    "one attention block, 4 heads": 3.0,
    "ConvNet, two convolutions": 6.0,
}


# What float32 may take from a bound; below 1 less this the certificate is refuted.
ROUNDING = 2e-6


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_the_bound_holds_and_is_within_its_limit(name):
    for case in CASES[name]:
        assert 1 - ROUNDING <= factor_of(case) <= LIMITS.get(name, np.inf), case
