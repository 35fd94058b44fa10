"""FlowTok in JAX: text and images as one short token sequence, and a flow between."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flowtok_jax.pipeline import FlowTok

__version__ = "0.1.0"
__all__ = ["FlowTok", "__version__"]


def __getattr__(name: str):
    """Imports `FlowTok` on first use, so that the package alone loads no JAX."""
    if name != "FlowTok":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from flowtok_jax.pipeline import FlowTok
    from flowtok_jax.runtime.compilation_cache import use_compilation_cache

    use_compilation_cache()
    globals()[name] = FlowTok  # later uses find it without this function
    return FlowTok


def __dir__() -> list[str]:
    """Lists the public names, `FlowTok` also before its first use."""
    return sorted({*globals(), *__all__})
