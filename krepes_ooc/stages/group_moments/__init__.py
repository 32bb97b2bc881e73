"""Stage group_moments: first and second moments of the kernel rows of every group."""
