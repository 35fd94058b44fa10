"""Costs of programs: arithmetic, compiled programs, hardware descriptions, timing."""
