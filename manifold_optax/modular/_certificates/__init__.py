"""What is certain of a network with its parameters as they are."""
