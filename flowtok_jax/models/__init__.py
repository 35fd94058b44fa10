"""The networks, in Flax Linen: functional `init` and `apply`, no files, no config."""
