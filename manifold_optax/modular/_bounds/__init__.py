"""How large values are, and how much of a change reaches the output."""
