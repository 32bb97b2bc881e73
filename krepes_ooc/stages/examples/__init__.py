"""Stage examples: samples as sums of their landmarks, and samples that are odd."""
