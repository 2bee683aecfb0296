"""A thousand damaged checkpoints of all formats; tests/fuzz.py damages more in a night."""

import pytest

from tests import fuzz


def test_every_sample_is_read_without_damage():
    for sample in fuzz.list_samples():
        fuzz.read(sample)


@pytest.mark.matrix(4)
@pytest.mark.parametrize("first", range(0, 1000, 250))
def test_damaged_files_are_read_or_refused_in_one_line(first, caplog):
    failures = []
    ends = fuzz.run(range(first, first + 250), failures.append)
    assert failures == []
    assert ends["read"] > 10 and ends["refused"] > 100
