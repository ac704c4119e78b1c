"""How tight Lipschitz bounds are around a point: attacked, local and global.

Run: `OPENBLAS_NUM_THREADS=1 .venv/bin/python benchmarks/local_certificates.py [NAME]`,
with one thread because the matrices are small. Networks have independent normal
weights of variance 1 / inputs, and one normal input. In a ball around it, whose radius
is relative to the norm of the input, the columns are: the norm of the Jacobian at the
center; the largest norm that gradient ascent finds in the ball; `local_lipschitz_bound`
and its ratio to what was found; `lipschitz_bound` on all inputs of the norms in the
ball, which the local bound uses where it is less; seconds for the local bound alone.
The last lines: L2 radii of certified decisions, medians over 16 normal inputs.
"""

import pathlib
import sys
import time

# The networks and the attack of the tests.
sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "tests"))

import jax
import jax.numpy as jnp
import numpy as np

from manifold_optax import modular
from manifold_optax.modular._certificates._local_bound import local_bounds
from modular.local_networks import (
    attacked,
    Case,
    convolutional,
    mlp,
    steepness,
    transformer,
)

RADII = (1e-3, 1e-2, 1e-1)

NETWORKS = {
    "MLP 3072-128-64-10": lambda: mlp([3072, 128, 64, 10]),
    "ConvNet 12x12x3": convolutional,
    "pre-norm block": transformer,
    "4 pre-norm blocks": lambda: transformer(4),
}


def row(name: str, case: Case, relative: float) -> None:
    """Prints one line of the table."""
    size = float(jnp.linalg.norm(case.x))
    radius = relative * size
    start = time.process_time()
    (local,) = local_bounds(case.function, case.params, case.x, radius)
    seconds = time.process_time() - start
    around = modular.L2Ball(case.x, size + radius)
    whole = float(
        modular.certificate(case.function, case.params, around).lipschitz(case.params)
    )
    found = attacked(case, radius, starts=2)
    print(
        f"{name:20} {relative:7.0e} {steepness(case, case.x):9.3g} {found:9.3g} "
        f"{local:9.3g} {local / found:8.2f} {whole:9.3g} {seconds:7.1f}",
        flush=True,
    )


def decisions(orthogonal: bool) -> None:
    """Prints certified radii of one MLP."""
    case = mlp([3072, 128, 64, 10], orthogonal=orthogonal)
    rng = np.random.default_rng(1)
    x = jnp.asarray(rng.normal(size=(16, 3072)), jnp.float32)
    labels = jnp.argmax(case.function(case.params, x), 1)
    given = (case.function, case.params, x, labels)
    whole = np.asarray(modular.certified_radius(*given))
    start = time.process_time()
    local = np.asarray(modular.certified_radius(*given, local=True))
    seconds = (time.process_time() - start) / len(x)
    kind = "orthogonal" if orthogonal else "normal"
    print(
        f"certified radius, {kind} weights: global {np.median(whole):.3f}, local "
        f"{np.median(local):.3f}, ratio {np.median(local / whole):.2f} "
        f"(least {np.min(local / whole):.2f}); {seconds:.2f} s for each input",
        flush=True,
    )


def main() -> None:
    """Prints the table, or the part whose name begins with the argument."""
    wanted = sys.argv[1] if len(sys.argv) > 1 else ""
    print(
        f"{'network':20} {'radius':>7} {'Jacobian':>9} {'attacked':>9} {'local':>9} "
        f"{'ratio':>8} {'global':>9} {'seconds':>7}"
    )
    for name, made in NETWORKS.items():
        if not name.startswith(wanted):
            continue
        case = made()
        for relative in RADII:
            row(name, case, relative)
    if "decisions".startswith(wanted):
        for orthogonal in (False, True):
            decisions(orthogonal)


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    main()
