"""Tests, by the layout of the package."""
