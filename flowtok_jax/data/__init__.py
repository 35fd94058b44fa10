"""Captioned images as numpy batches; knows no Flax."""
