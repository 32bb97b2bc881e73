"""Jacobian rows of a frozen network: the features of the empirical NTK.

In come network inputs [sample, ...]; out go feature rows [sample, feature] whose inner products are
the kernel, exact for Linear layers and sketched for others, rounded to float16. A self-check
compares them with autograd. ``stages`` and above may import it.
"""
