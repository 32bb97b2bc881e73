"""Stage features: sketched Jacobian rows of every view, source and network -> features."""
