"""Conversion of released PyTorch state dicts to our parameters and back, and parity."""
