"""Bytes on disk: contracts, atomic files, journals, seals, readers. The only layer that knows Zarr."""
