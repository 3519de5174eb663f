"""What a command line says when it cannot go on."""

import pytest

from common.errors import UsageError, command


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (UsageError("x=1 is not allowed; give 2"), 2, "error: x=1 is not allowed; give 2\n"),
        (FloatingPointError("the loss is NaN"), 2, "error: the loss is NaN\n"),
        (KeyboardInterrupt(), 130, "stopped\n"),
    ],
)
def test_a_command_ends_in_one_line(capsys, raised, code, said):
    @command
    def main(arguments):
        raise raised

    assert main([]) == code and capsys.readouterr().err == said


def test_what_no_user_did_keeps_its_traceback():
    @command
    def main(arguments):
        raise RuntimeError("ours")

    with pytest.raises(RuntimeError, match="ours"):
        main([])
