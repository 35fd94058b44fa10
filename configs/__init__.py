"""Configs: default.py holds every key, the others only their differences."""
