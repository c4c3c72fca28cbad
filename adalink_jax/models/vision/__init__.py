"""Frozen image encoders: pictures in, image tokens out."""
