"""Stage minimiser: the damped minimum of a moment objective, beside the one Newton step."""
