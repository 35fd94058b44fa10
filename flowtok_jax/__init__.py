"""FlowTok in JAX: text and images as one short token sequence, and a flow between."""
