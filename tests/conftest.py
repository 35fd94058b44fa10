"""Settings of every test: 8 CPU devices, no silent broadcasts, warnings are errors."""

import jax

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
# Tiny programs take far longer to compile than to run: this saves a third of the time.
jax.config.update("jax_disable_most_optimizations", True)


def pytest_configure(config):
    config.addinivalue_line("filterwarnings", "error")
