"""The engine: tasks over blocks through Dask, fixed-order reductions, budget, devices, stopping.

In come functions of blocks; out come their results in block order, the same bits on threads, on a
cluster and after a restart. Nothing here knows a stage. ``stages`` and above may import it.
"""
