"""JSON that every reader takes: the standard has no NaN and no infinity, which Python writes all the same."""

import json
import math
from pathlib import Path
from typing import Any

from gridlstm.errors import UserError


def dumps(value: Any, **options: Any) -> str:
    """``json.dumps`` with null in the place of numbers that are none."""
    return json.dumps(_finite(value), allow_nan=False, **options)


def read_json(path: Path) -> dict[str, Any]:
    """Return an object, or {} where the file is not there.

    Raises:
        UserError: it holds something else. Nothing of ours leaves such a file.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:  # no JSON, or bytes that are no text
        raise UserError(f"{path} is damaged: {error}. Delete it to continue without it.") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is damaged: it holds no object. Delete it to continue without it.")
    return content


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
