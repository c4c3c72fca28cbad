"""Shows whether a training step fits on a TPU slice, by compiling it on a machine without TPUs."""
