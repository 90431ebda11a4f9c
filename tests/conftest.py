"""What tests of the programs share. Networks are tiny: one thread is faster than several."""
import pytest
import torch

import data
from oracles import tiny_slices

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def h5(tmp_path_factory):
    """A file of slices, for programs that run as processes of their own."""
    path = tmp_path_factory.mktemp("data") / "slices.h5"
    data.write_h5(path, tiny_slices())
    return path


@pytest.fixture
def refused(capsys):
    """Calls what must end in one sentence on stderr and exit code 2 -> that sentence."""
    def call(function, *words, **options):
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            function(*words, **options)
        error = capsys.readouterr().err
        assert stop.value.code == 2 and error.startswith("error: ") and error.count("\n") == 1, error
        return error
    return call
