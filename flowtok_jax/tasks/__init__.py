"""What each training stage computes."""
