"""Axis letters, units and the time convention of the whole package.

Axes
    b  batch
    n  tokens of the shared 1D sequence (77)
    c  channels a token (16)
    e  width of the text features (768)
    d  width of a Transformer
    h  heads;  k  channels a head
    s  side of a square image, pixels
    g  side of the patch grid;  p  side of a patch, pixels
    v  size of the vocabulary

Units
    Images are RGB in [0, 1], channels last. Raw tokens are the image tokenizer's
    output; scaled tokens, on which the flow works, are raw * latent_scale.

Time
    t is 0 at the source and 1 at the target. Text-to-image has text tokens as source
    and image tokens as target; image-to-text the other way round.

Mesh
    Devices form a grid with the axes data (copies of the parameters), fsdp (parts of
    the parameters) and tensor (parts of a layer). Rows of a batch are split over data
    and fsdp.
"""

from typing import Any

from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, UInt32

MESH_AXES = ("data", "fsdp", "tensor")
ROW_AXES = ("data", "fsdp")
ROWS = PartitionSpec(ROW_AXES)

Params = dict[str, Any]
Key = PRNGKeyArray | UInt32[Array, " 2"]  # of jax.random.key, or of PRNGKey
RowKeys = Key | UInt32[Array, "b 2"]  # one for all rows, or one a row

Image = Float[Array, "b s s 3"]
CaptionIds = Int[Array, "b n"]
TextFeatures = Float[Array, "b n e"]
Tokens = Float[Array, "b n c"]
Moments = Float[Array, "b n cc"]  # [mean | logvar], so 2 * c channels
Logits = Float[Array, "b n v"]
# "#b": one row may serve the whole batch.
Time = Float[Array, " #b"]
Rows = Bool[Array, " #b"]
