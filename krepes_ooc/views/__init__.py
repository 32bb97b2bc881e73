"""Views: seeded augmentations of raw samples, the same under any batching.

In come raw samples [sample, ...], their ids and the recipe key ``views``; out go augmented raw
samples and the network inputs of them. Every draw is keyed by (seed, view, stream, sample, column);
view -1 is the sample itself. Nothing here imports torch. ``stages`` and above may import it; it
imports ``sources``, ``core`` and ``errors``.
"""
