"""What to do about weights that no place has."""

# Groups that the release or the hub has, and the flag that converts them.
CONVERTED = {
    "clip": "--clip=openai/clip-vit-large-patch14-336",
    "tokenizer": "--tokenizer=FlowTiTok_512.bin",
}


def cure_of(group: str) -> str:
    """Returns what to do where no place has a group, with the command."""
    if group not in CONVERTED:
        return (
            f"train stage {group} first, or set --config.init_from=WORKDIR to where it "
            "was trained"
        )
    converting = (
        "set --config.init_from=DIR to a directory that has them, made by `python "
        f"-m flowtok_jax.convert {CONVERTED[group]} --out=DIR`"
    )
    if group == "clip":
        return (
            f"{converting}, or --config.text.weights=random for a tower never trained"
        )
    return (
        f"{converting} (512 px), or to the workdir of a run that trained it, as by "
        "configs/tokenizer.py"
    )
