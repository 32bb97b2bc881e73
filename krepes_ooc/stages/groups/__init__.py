"""Stage groups: which samples belong to which group, source and kernel -> groups."""
