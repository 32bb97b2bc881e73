"""Views: seeded augmentations of raw samples, the same under any batching.

In come raw samples [sample, ...], their ids and the recipe key ``views``; out go augmented raw
samples. Every draw is keyed by (seed, view, stream, sample, column). Nothing here imports torch.
``network``, ``stages`` and above may import it.
"""
