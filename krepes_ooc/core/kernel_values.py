"""Sizes of kernel values that several layers agree on."""

# Largest absolute kernel value of a sample that no landmark is near: rounding. Under the unit
# normalisation equal samples have 1.
FAR = 1e-6
