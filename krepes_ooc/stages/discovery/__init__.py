"""Stage discovery: concepts found without labels, in the span of the landmarks."""
