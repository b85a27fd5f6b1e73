"""Command lines other than train.py's accept options in argparse's form (--key value) and in Hydra's (key=value)."""

from pathlib import Path

import pytest

from gridlstm import dashboard, evaluate, sample, translate
from gridlstm.command import Parser
from gridlstm.errors import UserError
from gridlstm.look import __main__ as look
from gridlstm.report import __main__ as report


@pytest.mark.parametrize(
    "words",
    [
        ["ckpt=a", "dynamic_rate=0.1", "split=val", "task.path=b"],
        ["--ckpt", "a", "--dynamic-rate", "0.1", "task.path=b", "--split", "val"],
        ["--ckpt=a", "--dynamic_rate=0.1", "--split=val", "task.path=b"],
    ],
)
def test_options_are_written_in_either_way(words: list[str]) -> None:
    given, others = evaluate.PARSER.parse(words)
    assert (given["ckpt"], given["dynamic_rate"], given["split"], others) == ("a", 0.1, "val", ["task.path=b"])


def test_a_value_may_look_like_an_option() -> None:
    given, _ = sample.PARSER.parse(["--ckpt", "a", "--prime", "seed=2", "stop=x=y", "--temperature=0.5"])
    assert (given["prime"], given["stop"], given["temperature"]) == ("seed=2", "x=y", 0.5)
    assert look.PARSER.parse(["what=activation", "memory=-2,-1,0"])[0] == {"what": "activation", "memory": [-2, -1, 0]}


def test_a_directory_may_have_an_equals_sign(tmp_path: Path) -> None:
    (directory := tmp_path / "lr=1").mkdir()
    given, others = report.PARSER.parse([str(directory), "out=there"])
    assert (given["out"], others) == (Path("there"), [str(directory)])


@pytest.mark.parametrize(
    ("parser", "words", "message"),
    [
        (evaluate.PARSER, ["split=val"], r"required: --ckpt\. See python -m gridlstm\.evaluate --help"),
        (evaluate.PARSER, ["ckpt=a", "--splits", "val"], "unrecognized arguments: --splits"),
        (evaluate.PARSER, ["ckpt=a", "test"], "expected key=value, got 'test'"),
        (evaluate.PARSER, ["ckpt=a", "dynamic_rate=fast"], r"dynamic_rate must be a number, got 'fast'"),
        (sample.PARSER, ["ckpt=a", "length=1.5"], r"length must be a whole number, got '1\.5'"),
        (sample.PARSER, ["ckpt=a", "argmax=yes"], "argmax must be true or false, got 'yes'"),
        (sample.PARSER, ["ckpt=a", "--ckpt", "b"], "ckpt is given more than once"),
        (sample.PARSER, ["ckpt=a", "task.path=b"], "unrecognized arguments: task.path=b"),
        (report.PARSER, ["multirun", "outs=x"], "there is no option outs"),
        (translate.PARSER, ["ckpt=a", "bem=5", "Ein Hund."], r"there is no option bem\. Did you mean beam\?"),
        (dashboard.PARSER, ["multirun", "upload=1"], "upload must be true or false, got '1'"),
    ],
)
def test_invalid_arguments_are_refused(parser: Parser, words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parser.parse(words)
