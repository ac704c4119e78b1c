"""What each parameter is, from how the computation uses it."""
