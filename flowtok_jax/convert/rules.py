"""Tables of the names in released state dicts and of their places in our trees.

A rule is (source names, our path, kind). `{}` stands for the number of a block: our
blocks are stacked on a leading axis. Several source names are joined along our last
axis, in that order (queries, keys, values). Critics are the networks that judge images,
for metrics and for the tokenizer's losses. This module holds data only.
"""

import math
from typing import NamedTuple


class Rule(NamedTuple):
    """Source names, path of a leaf of ours, and the kind of conversion between them.

    Kinds, by their effect on PyTorch's layout:
        same     nothing
        vector   [1, 1, d] -> [d]
        weights  [1, d, 1, 1] -> [d]
        dense    [out, in] -> [in, out]
        dense1x1 [out, in, 1, 1] -> [in, out]
        patch    [out, 3, p, p] -> [p*p*3, out]
        conv     [out, in, kh, kw] -> [kh, kw, in, out]
    """

    sources: tuple[str, ...]
    target: str
    kind: str


def _layer(sources: str | tuple[str, ...], target: str, kind: str = "dense"):
    """Makes the rules of weight and bias of one layer, or of several joined layers."""
    sources = (sources,) if isinstance(sources, str) else sources
    return (
        Rule(tuple(f"{s}.weight" for s in sources), f"{target}/kernel", kind),
        Rule(tuple(f"{s}.bias" for s in sources), f"{target}/bias", "same"),
    )


def _norm(source: str, target: str, scale: str = "weight", bias: str = "bias"):
    """Makes the rules of scale and bias of a normalisation."""
    return (
        Rule((f"{source}.{scale}",), f"{target}/scale", "same"),
        Rule((f"{source}.{bias}",), f"{target}/bias", "same"),
    )


def _dit_and_projector() -> tuple[Rule, ...]:
    """Makes the rules of FlowTok's file (release file `libs/model/flowtok.py`)."""
    block = "blocks.{}"
    ours = "dit/blocks"
    text = "context_encoder.layers.{}"  # libs/model/trans_autoencoder.py
    projector = "projector/blocks"
    return (
        *_layer("x_embedder", "dit/embed"),
        *_layer("t_embedder.mlp.0", "dit/time/fc1"),
        *_layer("t_embedder.mlp.2", "dit/time/fc2"),
        # DiT's table of classes, here of two: conditional and null.
        Rule(("y_embedder.embedding_table.weight",), "dit/indicator/embedding", "same"),
        *_layer(f"{block}.attn.qkv", f"{ours}/attention/qkv"),
        *_layer(f"{block}.attn.proj", f"{ours}/attention/proj"),
        *_layer(f"{block}.mlp.fc1", f"{ours}/mlp/fc1"),
        *_layer(f"{block}.mlp.fc2", f"{ours}/mlp/fc2"),
        *_layer(f"{block}.adaLN_modulation.1", f"{ours}/modulation"),
        *_layer("final_layer.linear", "dit/final/out"),
        *_layer("final_layer.adaLN_modulation.1", "dit/final/modulation"),
        *_layer(
            # Three layers in the release, one fused layer in ours.
            tuple(f"{text}.attn.{name}" for name in ("W_Q", "W_K", "W_V")),
            f"{projector}/attention/qkv",
        ),
        *_layer(f"{text}.attn.W_O", f"{projector}/attention/proj"),
        *_layer(f"{text}.feed_forward.ffn_1", f"{projector}/fc1"),
        *_layer(f"{text}.feed_forward.ffn_2", f"{projector}/fc2"),
        *_norm(f"{text}.norm1", f"{projector}/norm1", "g", "b"),
        *_norm(f"{text}.norm2", f"{projector}/norm2", "g", "b"),
        *_layer("context_encoder.linear", "projector/out"),
        # 1 and 3 are activations.
        *_layer("context_projector.0", "align_head/fc1"),
        *_layer("context_projector.2", "align_head/fc2"),
        *_layer("context_projector.4", "align_head/fc3"),
        Rule(("t2t_temperature",), "align_head/tau", "same"),
    )


def _transformer(side: str) -> tuple[Rule, ...]:
    """Makes the rules that encoder and decoder share."""
    block = f"{side}.transformer.{{}}"
    ours = f"tokenizer/{side}/transformer/blocks"
    return (
        *_norm(f"{side}.ln_pre", f"tokenizer/{side}/transformer/norm_pre"),
        *_norm(f"{block}.ln_1", f"{ours}/norm1"),
        *_layer(f"{block}.attn.qkv", f"{ours}/attention/qkv"),
        *_layer(f"{block}.attn.proj", f"{ours}/attention/proj"),
        *_norm(f"{block}.ln_2", f"{ours}/norm2"),
        *_layer(f"{block}.mlp.w12", f"{ours}/mlp/w12"),
        *_layer(f"{block}.mlp.w3", f"{ours}/mlp/w3"),
        *_norm(f"{side}.ln_post", f"tokenizer/{side}/norm_post"),
        Rule(
            (f"{side}.latent_token_positional_embedding",),
            f"tokenizer/{side}/latent_positions",
            "same",
        ),
    )


def _tokenizer() -> tuple[Rule, ...]:
    """Makes the rules of FlowTiTok's file (`modeling/modules/blocks.py`)."""
    encoder = "tokenizer/encoder"
    decoder = "tokenizer/decoder"
    text_positions = "decoder.text_guidance_positional_embedding"
    return (
        *_transformer("encoder"),
        Rule(("latent_tokens",), f"{encoder}/latent_tokens", "same"),
        *_layer("encoder.patch_embed", f"{encoder}/patch_embed", "patch"),
        # The release's 1x1 convolutions are dense layers of ours.
        *_layer("encoder.conv_out", f"{encoder}/out", "dense1x1"),
        *_transformer("decoder"),
        Rule(("decoder.mask_token",), f"{decoder}/mask_token", "vector"),
        *_layer("decoder.decoder_embed", f"{decoder}/embed"),
        Rule((text_positions,), f"{decoder}/text_positions", "same"),
        *_layer("decoder.text_guidance_proj", f"{decoder}/text_embed"),
        *_layer("decoder.ffn.0", f"{decoder}/pixels", "dense1x1"),
        *_layer("decoder.conv_out", f"{decoder}/smooth", "conv"),
    )


def _clip_blocks(tower: str, ours: str) -> tuple[Rule, ...]:
    """Makes the rules of a CLIP tower's blocks, by their Hugging Face names."""
    block = f"{tower}.encoder.layers.{{}}"
    return (
        *_norm(f"{block}.layer_norm1", f"{ours}/norm1"),
        *_layer(
            tuple(f"{block}.self_attn.{name}_proj" for name in "qkv"),
            f"{ours}/attention/qkv",
        ),
        *_layer(f"{block}.self_attn.out_proj", f"{ours}/attention/proj"),
        *_norm(f"{block}.layer_norm2", f"{ours}/norm2"),
        *_layer(f"{block}.mlp.fc1", f"{ours}/mlp/fc1"),
        *_layer(f"{block}.mlp.fc2", f"{ours}/mlp/fc2"),
    )


def _clip(ours: str) -> tuple[Rule, ...]:
    """Makes the rules of CLIP's text tower."""
    embeddings = "text_model.embeddings"
    positions = f"{embeddings}.position_embedding.weight"
    token = f"{embeddings}.token_embedding.weight"
    return (
        Rule((token,), f"{ours}/embed/embedding", "same"),
        Rule((positions,), f"{ours}/positions", "same"),
        *_clip_blocks("text_model", f"{ours}/blocks"),
        *_norm("text_model.final_layer_norm", f"{ours}/norm"),
    )


def _clip_scorer() -> tuple[Rule, ...]:
    """Makes the rules of both CLIP towers and their projections."""
    embeddings = "vision_model.embeddings"
    patches = f"{embeddings}.patch_embedding.weight"
    positions = f"{embeddings}.position_embedding.weight"
    return (
        *_clip("text"),
        Rule(("text_projection.weight",), "text_projection/kernel", "dense"),
        Rule((f"{embeddings}.class_embedding",), "vision/class_token", "same"),
        Rule((patches,), "vision/patch_embed/kernel", "patch"),
        Rule((positions,), "vision/positions", "same"),
        # "layrnorm" is misspelt in Hugging Face's model too.
        *_norm("vision_model.pre_layrnorm", "vision/norm_pre"),
        *_clip_blocks("vision_model", "vision/blocks"),
        *_norm("vision_model.post_layernorm", "vision/norm"),
        Rule(("visual_projection.weight",), "image_projection/kernel", "dense"),
    )


RULES = {"t2i": _dit_and_projector(), "tokenizer": _tokenizer(), "clip": _clip("clip")}

# Source names that are dropped on purpose: (regex of the whole name, reason).
_OPEN_CLIP = (r"open_clip.*", "frozen CLIP weights: converted from CLIP's own file")
IGNORED = {
    "t2i": (_OPEN_CLIP,),
    "tokenizer": (_OPEN_CLIP,),
    "clip": (
        (r"vision_model\..*", "image tower: the flow needs the text tower only"),
        (r"(visual|text)_projection\.weight", "pooled features are not used"),
        (r"logit_scale", "belongs to CLIP's own loss"),
        (r"text_model\.embeddings\.position_ids", "0, 1, 2, ...: not learned"),
    ),
}

# Fixed tables that the release stores and we compute: compared, then dropped. The
# release's are float32 arithmetic on angles of up to 76, so they may be off by 1e-5.
TABLES = {
    "t2i": ("pos_embed",),
    "tokenizer": tuple(
        f"{side}.positional_embedding.{name}"
        for side in ("encoder", "decoder")
        for name in ("freqs_cos", "freqs_sin")
    ),
    "clip": (),
}
TABLE_TOLERANCE = 1e-5

# Source names that may be absent, and the value that they have before training.
DEFAULTS = {"t2i": {"t2t_temperature": math.log(1 / 0.07)}, "tokenizer": {}, "clip": {}}

# Config key -> template whose blocks are counted.
DEPTHS = {
    "t2i": {
        "dit.depth": "blocks.{}.",
        "projector.depth": "context_encoder.layers.{}.",
    },
    "tokenizer": {
        "tokenizer.encoder.depth": "encoder.transformer.{}.",
        "tokenizer.decoder.depth": "decoder.transformer.{}.",
    },
    "clip": {"clip.depth": "text_model.encoder.layers.{}."},
}

# Config key -> (source name, axis) whose length it is. "dit.mlp", "head_dim" and
# "places" are no keys of the config: groups.py turns them into heads and image size.
_ROPE = "{}.positional_embedding.freqs_cos"
AXES = {
    "t2i": {
        "latent.tokens": ("pos_embed", 1),
        "latent.channels": ("x_embedder.weight", 1),
        "clip.width": ("context_encoder.linear.weight", 1),
        "dit.width": ("x_embedder.weight", 0),
        "dit.mlp": ("blocks.0.mlp.fc1.weight", 0),
        "projector.mlp_width": ("context_encoder.layers.0.feed_forward.ffn_1.bias", 0),
        "align_head.width": ("context_projector.0.weight", 0),
    },
    "tokenizer": {
        "latent.tokens": ("latent_tokens", 0),
        "latent.channels": ("decoder.decoder_embed.weight", 1),
        "clip.width": ("decoder.text_guidance_proj.weight", 1),
        "tokenizer.encoder.width": ("latent_tokens", 1),
        "tokenizer.encoder.head_dim": (_ROPE.format("encoder"), 1),
        "tokenizer.decoder.width": ("decoder.mask_token", 2),
        "tokenizer.decoder.head_dim": (_ROPE.format("decoder"), 1),
        "tokenizer.patch": ("encoder.patch_embed.weight", 2),
        "tokenizer.places": (_ROPE.format("encoder"), 0),
    },
    "clip": {
        "latent.tokens": ("text_model.embeddings.position_embedding.weight", 0),
        "clip.vocab_size": ("text_model.embeddings.token_embedding.weight", 0),
        "clip.width": ("text_model.embeddings.token_embedding.weight", 1),
    },
}

# (width, depth) -> heads, which no shape tells; the DiT's stand in its SIZES.
PROJECTOR_HEADS = {(768, 6): 8}
CLIP_HEAD_DIM = 64  # channels a head of every published text tower


# Names of the convolutions of FID's Inception, by the blocks that have them.
_STEM = ("1a_3x3", "2a_3x3", "2b_3x3", "3b_1x1", "4a_3x3")
_A = ("1x1", "5x5_1", "5x5_2", "3x3dbl_1", "3x3dbl_2", "3x3dbl_3", "_pool")
_C = ("1x1", *(f"7x7_{i}" for i in (1, 2, 3)), *(f"7x7dbl_{i}" for i in range(1, 6)))
_E = ("1x1", "3x3_1", "3x3_2a", "3x3_2b")
_E += ("3x3dbl_1", "3x3dbl_2", "3x3dbl_3a", "3x3dbl_3b", "_pool")
_MIXED = {
    ("5b", "5c", "5d"): _A,
    ("6a",): ("3x3", "3x3dbl_1", "3x3dbl_2", "3x3dbl_3"),
    ("6b", "6c", "6d", "6e"): (*_C, "_pool"),
    ("7a",): ("3x3_1", "3x3_2", *(f"7x7x3_{i}" for i in (1, 2, 3, 4))),
    ("7b", "7c"): _E,
}


def _inception() -> tuple[Rule, ...]:
    """Makes the rules of FID's Inception, by the names of pytorch-fid's file."""
    layers = [f"Conv2d_{name}" for name in _STEM]
    layers += [
        f"Mixed_{block}.branch{branch}"
        for blocks, branches in _MIXED.items()
        for block in blocks
        for branch in branches
    ]
    # Vectors of a batch normalisation, which ours keeps apart.
    vectors = {
        "weight": "scale",
        "bias": "bias",
        "running_mean": "mean",
        "running_var": "var",
    }
    rules = [Rule(("fc.weight",), "fc/kernel", "dense")]
    for layer in layers:
        ours = layer.replace(".", "/")
        rules.append(Rule((f"{layer}.conv.weight",), f"{ours}/conv/kernel", "conv"))
        rules += (
            Rule((f"{layer}.bn.{theirs}",), f"{ours}/{name}", "same")
            for theirs, name in vectors.items()
        )
    return tuple(rules)


# Places of VGG16's convolutions among torchvision's `features`, by layer.
VGG_PLACES = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))


def _lpips() -> tuple[Rule, ...]:
    """Makes the rules of LPIPS and its VGG16."""
    rules = []
    for layer, places in enumerate(VGG_PLACES):
        for i, place in enumerate(places):
            name = f"net.slice{layer + 1}.{place}"
            rules += _layer(name, f"conv{layer}_{i}", "conv")
        source = f"lin{layer}.model.1.weight"  # model.0 is a dropout
        rules.append(Rule((source,), f"weights{layer}", "weights"))
    return tuple(rules)


def _discriminator() -> tuple[Rule, ...]:
    """Makes the rules of TA-TiTok's discriminator (`discriminator.py`)."""
    rules = [*_layer("block_in.0", "conv_in", "conv")]
    for stage in range(3):  # blocks.STAGE.1 is the blur, a fixed table
        rules += _layer(f"blocks.{stage}.0", f"conv{stage}", "conv")
        rules += _norm(f"blocks.{stage}.2", f"norm{stage}")
    rules += _layer("to_logits.0", "fc", "conv")
    rules += _layer("to_logits.2", "conv_out", "conv")
    return tuple(rules)


def _convnext() -> tuple[Rule, ...]:
    """Makes the rules of torchvision's ConvNeXt, whose features begin with the stem."""
    rules = [*_layer("classifier.2", "head"), *_norm("classifier.0", "norm")]
    for stage in range(4):
        # A norm goes before a convolution, but the stem's after it.
        conv, norm = (1, 0) if stage else (0, 1)
        rules += _layer(f"features.{2 * stage}.{conv}", f"down{stage}", "conv")
        rules += _norm(f"features.{2 * stage}.{norm}", f"norm{stage}")
        block = f"features.{2 * stage + 1}.{{}}"
        ours = f"stage{stage}"
        rules += _layer(f"{block}.block.0", f"{ours}/conv", "conv")
        rules += _norm(f"{block}.block.2", f"{ours}/norm")
        rules += _layer(f"{block}.block.3", f"{ours}/dense1")
        rules += _layer(f"{block}.block.5", f"{ours}/dense2")
        rules.append(Rule((f"{block}.layer_scale",), f"{ours}/scale", "scale"))
    return tuple(rules)


CRITICS = {
    "convnext": _convnext(),
    "inception": _inception(),
    "lpips": _lpips(),
    "discriminator": _discriminator(),
    "clip": _clip_scorer(),
}

# Names of critics that are dropped on purpose: (regex of the whole name, reason).
CRITICS_IGNORED = {
    "convnext": (),
    "inception": (
        (r".*\.num_batches_tracked", "counts training steps"),
        (r"fc\.bias", "the logits have none"),
    ),
    "lpips": (
        (r"lins\..*", "the same arrays as lin0 to lin4"),
        (r"classifier\..*", "VGG16's own classifier"),
    ),
    "discriminator": (),
    "clip": (
        (r"logit_scale", "belongs to CLIP's own loss"),
        (r".*\.position_ids", "0, 1, 2, ...: not learned"),
    ),
}
