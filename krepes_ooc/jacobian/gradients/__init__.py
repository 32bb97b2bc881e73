"""Gradients of every sample by class of module, from the tape of a forward pass."""
