"""A job that runs in a thread beside the training, one at a time."""

import threading
from collections.abc import Callable


class BackgroundJob:
    """Runs functions in a thread, one after another; an error of one is raised in the thread that asks for it.

    The thread does not keep a process alive: a program that ends without `wait` abandons the job.
    """

    def __init__(self):
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def start(self, job: Callable[[], None]) -> None:
        """Run `job` in the background, after the one before, for which this waits.

        Raises:
            Exception: of the job before, as `wait`.
        """
        self.wait()
        self._thread = threading.Thread(target=self._run, args=(job,), name="mindgpt-background", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise the error of a job that has failed, once. Does not wait."""
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def wait(self) -> None:
        """Wait for the job, and raise its error if it has failed."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()

    def _run(self, job: Callable[[], None]) -> None:
        try:
            job()
        except BaseException as error:
            self._error = error
