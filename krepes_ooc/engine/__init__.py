"""Blocks through Dask: tasks, fixed-order reductions, the byte budget, stopping and progress."""
