"""How work reaches workers: Distributed hands it to each of them, and to those that join later."""

from __future__ import annotations

from distributed import Worker, WorkerPlugin

from krepes_ooc.engine.station import Work, station


class Lent(WorkerPlugin):
    """Work at the station of a worker, for as long as the client needs it.

    Args:
        folder: of the run.
        key: of the work.
        work: function and items.
    """

    def __init__(self, folder: str, key: str, work: Work) -> None:
        self.name, self.folder, self.work = key, folder, work

    def setup(self, worker: Worker) -> None:
        """Borrow the work."""
        station().enter(self.folder)
        station().borrow(self.name, self.work)

    def teardown(self, worker: Worker) -> None:
        """Give it back."""
        station().give_back(self.name)
