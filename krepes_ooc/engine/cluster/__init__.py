"""Worker processes: site files, connecting, workers, and tasks that survive their loss.

In comes the value of ``--cluster``: ``local``, a scheduler's address or a site file; out come
workers, and an executor over them that gives the results of threads, bit by bit. Arrays pass
between client and workers as files in the workspace. ``stages``, ``runner`` and ``cli`` may import
it; distributed and dask-jobqueue are imported here alone, and only when workers are asked for.
"""
