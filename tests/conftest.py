"""What tests of the programs share. Networks are tiny: one thread is faster than several."""
import pytest
import torch

import data
from toys import tiny_slices

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def h5(tmp_path_factory):
    """A file of slices, for programs that run as processes of their own."""
    path = tmp_path_factory.mktemp("data") / "slices.h5"
    data.write_h5(path, tiny_slices())
    return path
