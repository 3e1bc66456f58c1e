import pytest

from launch.bench_matching import CASES, main
from research.errors import UserError


def test_the_command_times_every_case(capsys):
    main(batch_sizes=(1,), objects=3, repeats=1)
    table = capsys.readouterr().out
    assert "by optax" in table and table.count("100.0%") == len(CASES)


def test_numbers_have_to_be_positive():
    with pytest.raises(UserError, match="at least 1"):
        main(repeats=0)
