"""Bytes on disk: contracts, whole files, journals, seals, readers. Only this layer knows Zarr."""
