"""Trained weights: the workdir of a run, and directories of pretrained weights."""
