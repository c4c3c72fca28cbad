"""Training: state, step, loop, loss and optimizers."""
