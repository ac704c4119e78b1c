"""`python -m manifold_optax`, the same as the command `manifold-optax`."""

from manifold_optax.command_line import main

if __name__ == "__main__":
    main()
