"""Everything that touches torch: networks, their Jacobian rows, sources and views."""
