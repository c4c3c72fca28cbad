"""Adapters in use: loaded with their base, inspected, joined, folded and exported."""
