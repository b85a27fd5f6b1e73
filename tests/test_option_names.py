"""A component refuses values in its own words; the message names the options as the user types them."""

import ast
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

import gridlstm
from gridlstm.data.hub_rows import HubRows
from gridlstm.errors import UserError
from gridlstm.training.build import check_optimizer, check_task, make_data
from gridlstm.training.option_names import in_options

Job = Callable[..., DictConfig]


@pytest.mark.parametrize(
    ("task", "override", "message"),
    [
        ("text", "task.data.window=0", "task.data.window must be at least 1, got 0."),
        (
            "text",
            "task.data.stream_length=35",
            "task.data.stream_length must be a multiple of task.data.window=10, got 35. Use for example "
            "task.data.stream_length=30.",
        ),
        ("text", "task.data.batch_size=0", "task.data.batch_size must be at least 1, got 0."),
        ("text", "task.data.max_words=9", "task.data.max_words must be null at task.data.level=byte, got 9."),
        ("text", "task.path=''", "task.path must name a text file, got ''."),
        ("text", "seed=-1", "seed must be 0 or more, got -1."),
        ("memorization", "task.length=0", "task.length must be at least 1, got 0."),
        ("memorization", "task.data.num_val=0", "task.data.num_val must be from 1 to 10,000,000, got 0."),
        ("hub", "task.max_documents=0", "task.max_documents must be at least 1, got 0."),
    ],
)
def test_a_refused_value_is_named_once_by_its_option(job: Job, task: str, override: str, message: str) -> None:
    named = ["task.name=some/name"] if task == "hub" else []
    with pytest.raises(UserError) as caught:
        check_task(job(*named, override, task=task))
    assert str(caught.value) == message


def test_text_errors_name_full_options(job: Job, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.txt cannot be read: .*: task\.path=…\.$"):
        check_task(job(f"task.path={tmp_path / 'none.txt'}", task="text"))
    (tmp_path / "short.txt").write_text("a few words " * 8)
    with pytest.raises(UserError, match=r"or task\.data\.stream_length=80 task\.data\.window=10\.$"):
        make_data(job(f"task.path={tmp_path / 'short.txt'}", task="text"))


def test_an_option_that_is_called_like_its_node_is_named(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """The source of sentence pairs, task.data.source, has an option source: the language."""
    row = {"translation": {"de": "Hund", "en": "dog"}}
    monkeypatch.setattr(HubRows, "read", lambda _: {"train": iter([row])})
    chosen = ("task.name=some/name", "task.source_language=german")
    with pytest.raises(UserError) as caught:
        make_data(job(*chosen, task="hub_pairs", model="attention_lstm"))
    assert str(caught.value) == (
        "task.source_language=german is not text in some/name. Expected one of: de, en. Name it with "
        "task.source_language=…."
    )


def test_component_errors_without_an_option_name_the_component(job: Job) -> None:
    with pytest.raises(UserError, match=r"^optimizer \(torch\.optim\.Adam\): Invalid learning rate: -1"):
        check_optimizer(job("optimizer.lr=-1"))


def test_paths_and_full_options_in_messages_stay_unchanged() -> None:
    cfg = OmegaConf.create({"path": "x", "task": {"data": {"_target_": "a.b", "path": "${path}", "level": "byte"}}})
    for message in ("/home/path=1/x has no text", "https://x.y/?path=z&level=1", "give task.data.level=char"):
        assert in_options(message, cfg, "task.data") == message
    assert in_options("the path must be level=char", cfg, "task.data") == "the path must be task.data.level=char"
    assert in_options("path must be there", cfg, "task.data") == "path must be there", (
        "a name is an option only if = follows"
    )


def test_data_modules_do_not_mention_options() -> None:
    files = list((Path(gridlstm.__file__).parent / "data").glob("*.py"))
    assert len(files) > 20
    for file in files:
        if file.name != "old_runs.py":
            texts = [node.value for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Constant)]
            assert not [text for text in texts if isinstance(text, str) and "task.data" in text], file
