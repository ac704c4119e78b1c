"""200 random networks, attacked: no certificate is ever exceeded.

Each of four tests takes every network: the ratio of changes of output and input, that
of the differences of two outputs, the change by a step of the parameters, and the
decision of a classifier.
"""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from manifold_optax import modular
from modular.certificates.ascent import (
    attacked_changes,
    attacked_margins,
    attacked_ratios,
    pair_readers,
)
from modular.certificates.domains import EntryBox, Everything
from modular.certificates.drawn_networks import Declared, declared_network
from modular.certificates.steps import steps_of

# Bounds are computed in float32 and hold in real arithmetic; attacks are in float64.
# A chain of 12 layers multiplies 24 numbers of float32, each rounded by 6e-8.
ROUNDING = 2e-6

# Two dense ones, which cost least, stay in the gate.
GATE = (120, 195)


@pytest.fixture(autouse=True)
def _forget_programs(request: pytest.FixtureRequest) -> Iterator[None]:
    """Compiled programs of 500 networks are more than a process can map."""
    yield
    if request.node.get_closest_marker("slow"):
        jax.clear_caches()


each_network = pytest.mark.parametrize(
    "seed",
    [
        pytest.param(seed, marks=[] if seed in GATE else [pytest.mark.slow])
        for seed in range(200)
    ],
)
all_networks = pytest.mark.parametrize("seed", range(200))


@functools.lru_cache(maxsize=1)
def read(seed: int) -> tuple[Declared, Any]:
    """The network of a seed and its certificate."""
    declared = declared_network(seed)
    network = declared.network
    certificate = modular.certificate(
        network.forward, network.params, declared.domain.declared()
    )
    return declared, certificate


@pytest.mark.promise(
    "Certificates",
    "No attack exceeds a certified Lipschitz constant",
    on="200 random networks",
)
@each_network
def test_no_ratio_exceeds_the_bound(seed, measured):
    declared, certificate = read(seed)
    network = declared.network
    bound = float(certificate.lipschitz(network.params))
    # A bound that is infinite would make this test empty.
    assert np.isfinite(bound), declared.description
    (found,) = attacked_ratios(
        network.forward, network.params, declared.domain, seed=seed
    )
    # The description stands in the record of a failure, by the seed.
    measured(found / bound, at_most=1 + ROUNDING)


@pytest.mark.promise(
    "Certificates",
    "No attack exceeds the certified constant of a pair of outputs",
    on="200 random networks",
)
@pytest.mark.slow
@all_networks
def test_no_pair_of_outputs_exceeds_its_bound(seed):
    declared, certificate = read(seed)
    if declared.classes is None:
        pytest.skip("The output has several positions.")
    network = declared.network
    bounds = np.asarray(certificate.pairs(network.params))
    assert bounds.shape == (declared.classes, declared.classes)
    assert np.isfinite(bounds).all(), declared.description
    np.testing.assert_array_equal(bounds, bounds.T)
    np.testing.assert_array_equal(np.diagonal(bounds), 0)
    readers, pairs = pair_readers(declared.classes)
    found = attacked_ratios(
        network.forward, network.params, declared.domain, readers, seed=seed, starts=8
    )
    for pair, ratio in zip(pairs, found, strict=True):
        assert ratio <= bounds[pair] * (1 + ROUNDING), (pair, declared.description)


@pytest.mark.promise(
    "Certificates",
    "No step changes the output by more than was certified",
    on="200 random networks",
)
@pytest.mark.slow
@all_networks
def test_no_change_by_a_step_exceeds_its_bound(seed, measured):
    declared, certificate = read(seed)
    if isinstance(declared.domain, Everything):
        pytest.skip("Inputs without bounds make changes without bounds.")
    network = declared.network
    rng = np.random.default_rng([1, seed])
    x = declared.domain.drawn(rng).astype(np.float32)
    steps = steps_of(network.forward, network.params, x, rng)
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *steps)
    # Not compiled as a whole: most networks find their operations compiled already.
    change = jax.vmap(certificate.change, in_axes=(None, 0))
    bounds = np.asarray(change(network.params, stacked))
    assert np.isfinite(bounds).all(), declared.description
    found = attacked_changes(
        network.forward, network.params, steps, declared.domain, seed=seed
    )
    exceeded = found > bounds * (1 + ROUNDING)
    assert not exceeded.any(), (found, bounds, declared.description)
    measured((found / bounds).max(), at_most=1 + ROUNDING)


@pytest.mark.promise(
    "Certificates",
    "No decision changes inside of its certified radius",
    on="200 random networks",
)
@pytest.mark.slow
@all_networks
def test_no_decision_changes_within_its_radius(seed):
    declared, _ = read(seed)
    domain, network = declared.domain, declared.network
    if declared.classes is None:
        pytest.skip("The output has several positions.")
    box = (domain.low, domain.high) if isinstance(domain, EntryBox) else None
    if box is None and "attention" in network.description:
        pytest.skip("Without a box attention has no bound.")
    rng = np.random.default_rng([2, seed])
    x = np.concatenate([domain.drawn(rng) for _ in range(3)]).astype(np.float32)
    logits = network.forward(network.params, x)
    labels = np.asarray(logits).argmax(axis=-1)
    labels[0] = (labels[0] + 1) % declared.classes
    low, high = (None, None) if box is None else box
    radii = np.asarray(
        modular.certified_radius(
            network.forward,
            network.params,
            jnp.asarray(x),
            jnp.asarray(labels),
            low=low,
            high=high,
        )
    )
    assert radii.shape == (len(x),)
    assert radii[0] == 0, "the label is not the decision"
    assert (radii[1:] >= 0).all(), declared.description
    # A network that is constant has infinite radii.
    radii = np.minimum(radii, 1e3)
    margins = attacked_margins(
        network.forward, network.params, x, labels, radii, box=box, seed=seed
    )
    # Logits of a size of 10 are rounded by 1e-6 in float32, where the margin is read.
    assert (margins[1:] >= -1e-5).all(), (margins, radii, declared.description)
