"""The base network."""
