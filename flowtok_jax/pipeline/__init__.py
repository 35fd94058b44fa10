"""A trained FlowTok in one object: text to image and image to text."""

from flowtok_jax.pipeline.flowtok import FlowTok, Images
from flowtok_jax.sampling import SampleOptions

__all__ = ["FlowTok", "Images", "SampleOptions"]
