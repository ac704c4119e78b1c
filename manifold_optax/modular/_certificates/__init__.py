"""What is proved of a network with the weights that it has: bounds that hold."""
