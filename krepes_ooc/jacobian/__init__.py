"""Jacobian rows of a frozen network: the features of the empirical NTK.

In come network inputs [sample, ...]; out go feature rows [sample, feature] whose inner products are
the kernel, exact for Linear layers and sketched for others, rounded to float16, and the cost of a
row. Each parameter's gradient is reached by a rule (``gradients``) that was compared with autograd;
a self-check repeats the comparison in float64. ``stages`` and above may import it; it imports
``network``, ``core`` and ``errors``.
"""
