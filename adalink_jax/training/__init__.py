"""How a model is adapted: state, step, loop, optimizers."""
