"""Trains bases of real English: raw and instruction-tuned, from text and an open encoder."""
