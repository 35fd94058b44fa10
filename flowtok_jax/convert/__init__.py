"""Released PyTorch state dicts to our parameters."""
