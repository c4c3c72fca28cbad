"""The bases of the image world, trained from random weights."""
