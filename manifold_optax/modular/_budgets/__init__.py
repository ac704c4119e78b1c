"""Shares of the learning rate, and the optimizer that takes them."""
