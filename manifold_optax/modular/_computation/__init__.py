"""A traced computation as a graph of values and operations."""
