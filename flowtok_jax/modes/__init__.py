"""One file a --mode."""
