"""Stage moments: means and second moments of kernel rows, kernel -> moments."""
