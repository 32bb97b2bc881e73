"""Bytes on disk: workspace, contracts, readers, writers, journals, stage records, locks, checks.

In come arrays and contracts (``stores/*.yaml``); out come sealed Zarr groups whose every file is
checksummed, their rows as read-only arrays, copies for other programs, and the damage that a
verification finds. Nothing here knows what a stage computes. zarr is imported only here and in
``sources/arrays/zarr_arrays``. ``stages``, ``runner`` and ``cli`` may import it; it imports only
``core`` and ``errors``.
"""
