"""The audited network: its factory and weights, freezing, and the demo trainer.

In come the recipe key ``network`` and a checkpoint; out goes a frozen torch module in float32 whose
values are finite. ``jacobian``, ``stages`` and above may import it.
"""
