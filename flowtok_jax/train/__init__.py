"""Pure step functions and the one loop that runs them."""
