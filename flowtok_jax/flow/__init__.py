"""Paths, losses and samplers; a network appears here only as a velocity function."""
