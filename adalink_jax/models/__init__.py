"""The frozen network."""
