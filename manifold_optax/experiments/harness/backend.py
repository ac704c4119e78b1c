"""How XLA runs the programs of the experiments."""

import os

_CONCURRENT = "xla_cpu_enable_concurrency_optimized_scheduler"


def run_in_order() -> None:
    """Lets XLA's CPU programs run their parts in one order, not several at once.

    With the concurrent order, jaxlib 0.10.2 waits for ever in most runs on two quiet
    cores, all threads idle: `failures --tasks "wide and narrow" --optimizers normuon`
    shows it where this setting is true. Results are the same to the bit.

    XLA reads the setting when it starts, so this comes before the first array. A value
    that the user has set in `XLA_FLAGS` stays.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if _CONCURRENT not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} --{_CONCURRENT}=false".strip()
