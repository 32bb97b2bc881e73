"""Worker processes: site files, connecting, workers, and tasks that survive their loss.

In comes a site file or ``--cluster``; out comes an executor with the semantics of threads.
``stages`` and ``runner`` may import it.
"""
