"""Replace a component's argument names in its messages by the options that set them."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from omegaconf import DictConfig, OmegaConf

from gridlstm.errors import UserError


def in_options(message: str, cfg: DictConfig, path: str) -> str:
    """Return a message with arguments replaced by options: "window must be …" becomes "task.data.window must be …".

    An argument is recognized by the text after it: "=" anywhere, or "must" at the start.

    Args:
        message: message of the component.
        cfg: configuration of the run.
        path: path of the component's node.
    """
    options = _options(OmegaConf.to_container(OmegaConf.select(cfg, path)), path)
    names = "|".join(map(re.escape, options))
    if not names:
        return message
    # Skip parts of a path or address, and names that are options already.
    return re.sub(rf"(?<![\w./?&-])(?:{names})(?==)|\A(?:{names})(?= must\b)", lambda found: options[found[0]], message)


def refusal(error: BaseException, cfg: DictConfig, path: str) -> str:
    """Return the error of the component at ``path`` in one line with options, see ``in_options``.

    The line begins with an option or the path of the component.
    """
    line = str(error).partition("\n")[0]
    options = _options(OmegaConf.to_container(OmegaConf.select(cfg, path)), path)
    first = re.match(r"(\w+)(?:=| must\b)", line)
    said = in_options(line, cfg, path)
    return said if first and first[1] in options else f"{path} ({OmegaConf.select(cfg, path)._target_}): {said}"


@contextmanager
def options_named(cfg: DictConfig, path: str) -> Iterator[None]:
    """Replace arguments by options in errors of the component at ``path``.

    Raises:
        UserError: the error of the component, see ``in_options``.
    """
    try:
        yield
    except UserError as error:
        raise UserError(in_options(str(error), cfg, path)) from error


def _options(node: Any, path: str) -> dict[str, str]:
    """Return the option of every argument of a node, unresolved, and of nested nodes."""
    found: dict[str, str] = {}
    for name, value in node.items():
        if isinstance(value, dict):
            found = _options(value, f"{path}.{name}") | found
    return found | {
        name: _typed(value, f"{path}.{name}")
        for name, value in node.items()
        if isinstance(name, str)
        and not name.startswith("_")
        # A node has no value that an argument of its own component could refuse.
        and not (isinstance(value, dict) and name in found)
    }


def _typed(value: Any, path: str) -> str:
    """Return the option that the user types; for a task's reference, the option it refers to (task.path)."""
    reference = re.fullmatch(r"\$\{(\w[\w.]*)\}", value) if isinstance(value, str) else None
    return reference[1] if reference and path.startswith("task.") else path
