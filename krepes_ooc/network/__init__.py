"""The audited network: its factory and weights, freezing, devices of torch, and the demo trainer.

In come the recipe key ``network`` and a checkpoint; out goes a frozen torch module in float32 whose
values are finite. ``zoo`` has small demo networks, ``pretrain`` and ``ssl_losses`` train them.
``jacobian``, ``engine``, ``stages`` and above may import it; it imports ``core`` and ``errors``.
"""
