"""Grid LSTM (Kalchbrenner, Danihelka, Graves 2015, arXiv 1507.01526)."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gridlstm.layer import GridLSTM

__all__ = ["GridLSTM"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # On demand, so that commands that need no network start without importing torch.
    if name == "GridLSTM":
        from gridlstm.layer import GridLSTM

        return GridLSTM
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
