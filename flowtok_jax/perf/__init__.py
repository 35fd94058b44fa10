"""What programs cost: arithmetic, compiled programs, hardware descriptions, timing."""
