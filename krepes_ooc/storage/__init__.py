"""Bytes on disk: store contracts, readers, writers, journals, stage records, locks, checks.

In come arrays and contracts (``stores/*.yaml``); out come sealed Zarr groups whose every file is
checksummed. zarr is imported only here and in ``sources/zarr_arrays``. ``stages`` and above may
import it.
"""
