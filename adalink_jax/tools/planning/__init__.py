"""Does a training step fit on a TPU slice: compiled for it ahead of time, on a machine without."""
