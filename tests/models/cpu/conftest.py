import pytest

from tests.models.cpu.kernel_calls import Libraries


@pytest.fixture(scope="session")
def libraries(tmp_path_factory):
    return Libraries(tmp_path_factory.mktemp("kernels"))
