"""Whether tests of the C++ kernels can run."""

import pytest

from mindgpt.models import acceleration


def skip_without_kernels() -> None:
    """Skip the test on a machine, or of a package, without C++ kernels."""
    if acceleration._room() is None:
        pytest.skip("there is no mindgpt/models/cpu for this device")
    if reason := acceleration.why_no_kernels():
        pytest.skip(reason)
