"""Turns gin files and flags into the arguments of one call."""
