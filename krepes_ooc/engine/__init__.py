"""The engine: tasks over blocks through Dask, fixed-order reductions, budget, devices, stopping.

In come functions of blocks, a memory limit and a device; out come results in block order, the same
bits on threads, on a cluster and after a restart, or lazy xarray arrays of them. Nothing here knows
a stage. ``stages``, ``runner`` and ``cli`` may import it; it imports ``network`` (thread limits of
torch), ``core`` and ``errors``. dask and distributed are imported here and in ``storage`` alone.
"""
