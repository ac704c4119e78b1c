"""What a framework needs beside the library; each module imports its framework.

The library imports none of them: `from manifold_optax.integrations import flax`.
"""
