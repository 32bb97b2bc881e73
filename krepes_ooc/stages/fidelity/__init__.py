"""Stage fidelity: how well the kernel model reproduces the network, with controls -> fidelity."""
