"""Training: state, step, data, checkpoints, devices, and the loop that ties them together."""
