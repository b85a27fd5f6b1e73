"""One table gives the role of every option, and every option of conf/ is in it."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf
from tests.conftest import compose
from tests.test_conf import GROUPED, RUN, choice

from gridlstm.options import ROLES, Role, chosen, find, leaves, role
from gridlstm.train import CONF

MODELS = ("model/grid2d", "model/highway", "model/recurrent_highway")
"""Models that together have all the model options that the table names."""


def test_role_table_names_only_existing_options() -> None:
    files = [file for file in GROUPED if file.split("/")[0] in ("task", "callbacks") or file in MODELS]
    configs = [OmegaConf.to_container(compose(*choice(file), *RUN)) for file in files]
    found = {find(key) for config in configs for key, _ in leaves(config)}
    groups = {"data_dir", "hardware", "debug", "hydra", "experiment"}  # groups that leave no key in the configuration
    assert set(ROLES) - found <= groups | {"trainer"}  # for options of the trainer that conf/ lacks


def test_every_group_of_the_command_line_has_a_role() -> None:
    groups = [path.name for path in CONF.iterdir() if path.is_dir() and path.name != "transform"]
    assert [group for group in groups if find(group) is None] == []
    assert role("transform@model.depth") is Role.NETWORK


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("model.hidden_size", Role.NETWORK),
        ("model.depth.forget_bias", Role.NETWORK),
        ("model.depth.gain", Role.START),
        ("model.sweep", Role.SPEED),
        ("+model.new_option", Role.NETWORK),
        ("task.data.seed", Role.SEED),
        ("task.data.source.path", Role.SOURCE),
        ("optimizer.lr", Role.TRAINING),
        ("callbacks.criterion.at_least", Role.LENGTH),
        ("callbacks.progress.every_seconds", Role.DISPLAY),
        ("hydra.run.dir", Role.RECORD),
        ("somebody.else", Role.NETWORK),
    ],
)
def test_longest_matching_entry_decides_the_role(key: str, expected: Role) -> None:
    assert role(key) is expected


def test_run_directory_names_do_not_count_as_choices() -> None:
    config = {"run.dir": "outputs/a", "run.name": "a-s1", "model.log": "outputs/a/log", "model.name": "a-s1"}
    assert chosen(config | {"model.size": 3, "model.tied": None}, {Role.NETWORK}) == {"model.size": 3}
    assert chosen({"run.name": "3", "model.size": 3}, {Role.NETWORK}) == {"model.size": 3}


def test_leaves_keep_lists_and_empty_nodes(tmp_path: Path) -> None:
    assert dict(leaves({"a": {"b": [1, {"c": 2}], "d": {}}, "e": None})) == {"a.b": [1, {"c": 2}], "a.d": {}, "e": None}
