"""Failures around a run."""

import contextlib
import resource

import pytest


@pytest.fixture
def full_disk():
    """Within `full_disk(n)` no file of this process grows beyond n bytes; writing fails as on a disk that is full."""

    @contextlib.contextmanager
    def limit(size):
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limit
