"""Parts of test runs: map-style data that replaces the memorization data, and callbacks and a logger for ranks."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from gridlstm.data.base import Batch
from gridlstm.data.map_style import MapData
from gridlstm.data.spec import Spec
from gridlstm.metrics import RatioOfSums
from gridlstm.tasks.language_model import LanguageModel
from gridlstm.training.loggers.csv_logger import CSVLogger


class UndirectedLoss(LanguageModel):
    """Language model whose loss may be maximized, so that a test can have its best checkpoint at any step."""

    def make_metrics(self) -> nn.ModuleDict:
        return nn.ModuleDict({"loss": RatioOfSums()})


class Strings(Dataset[Tensor]):
    """Random strings of 1 to ``length`` symbols from 1 to ``alphabet``."""

    def __init__(self, number: int, length: int, alphabet: int) -> None:
        generator = torch.Generator().manual_seed(number)
        draw = lambda size: torch.randint(1, alphabet + 1, (size,), generator=generator)  # noqa: E731
        self.strings = [draw(1 + n % length) for n in range(number)]

    def __len__(self) -> int:
        return len(self.strings)

    def __getitem__(self, index: int) -> Tensor:
        return self.strings[index]


class FiniteMemorization(MapData):
    """Strings whose targets are their inputs; their lengths differ, so ranks count different numbers of terms."""

    def __init__(
        self,
        length: int,
        alphabet: int,
        batch_size: int,
        seed: int,
        num_val: int = 7,
        num_test: int = 7,
        delay: int = 0,
    ) -> None:
        """Accept ``delay`` only because the configuration of memorization has it; it must be 0."""
        assert delay == 0
        super().__init__(batch_size, seed)
        self.alphabet = alphabet
        self.datasets = {"train": Strings(17, length, alphabet), "val": Strings(num_val, length, alphabet)}
        self.datasets["test"] = Strings(num_test, length, alphabet)

    @property
    def spec(self) -> Spec:
        return Spec(input_size=self.alphabet + 1, output_size=self.alphabet + 1, sequence_length=9)

    def dataset(self, split: Literal["train", "val", "test"]) -> Dataset[Any]:
        return self.datasets[split]

    def collate(self, samples: list[Tensor]) -> Batch:
        inputs = pad_sequence(samples, batch_first=True)
        mask = inputs > 0
        return Batch(inputs, inputs, mask, mask, reset=torch.ones(len(inputs), dtype=torch.bool))


class SlowEnd(L.Callback):
    """Makes rank zero sleep when a run ends early."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def on_exception(self, trainer: L.Trainer, module: Any, exception: BaseException) -> None:
        if trainer.is_global_zero:
            time.sleep(self.seconds)


class SlowLogger(CSVLogger):
    """Takes five seconds on rank zero to end a run, as W&B may."""

    @rank_zero_only
    def finish(self, result: Mapping[str, Any]) -> None:
        self.path.with_name("finishing").touch()
        time.sleep(5)


class FailSecond(L.Callback):
    """Makes the other ranks fail while the logger of rank zero ends the run in ``dir``."""

    def __init__(self, dir: str) -> None:
        self.file = Path(dir) / "finishing"

    def on_exception(self, trainer: L.Trainer, module: Any, exception: BaseException) -> None:
        while not trainer.is_global_zero and not self.file.exists():
            time.sleep(0.1)


class FailAlone(L.Callback):
    """Makes every rank except rank zero fail at the first step."""

    def on_train_batch_start(self, trainer: L.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        if not trainer.is_global_zero:
            raise RuntimeError("of its own")


class Seen(L.Callback):
    """Writes the rows of every batch of this rank into ``dir``."""

    def __init__(self, dir: str) -> None:
        self.dir = Path(dir)
        self.rows: dict[str, list[list[str]]] = {"train": [], "validate": [], "test": []}

    def _see(self, stage: str, batch: Batch) -> None:
        tokens = zip(batch.inputs.tolist(), batch.targets.tolist(), batch.loss_mask.tolist(), strict=True)
        self.rows[stage].append(
            [str([pair for *pair, covered in zip(*row, strict=True) if covered]) for row in tokens if any(row[2])]
        )

    def on_train_batch_start(self, trainer: L.Trainer, module: Any, batch: Batch, index: int) -> None:
        self._see("train", batch)

    def on_validation_batch_start(self, trainer: L.Trainer, module: Any, batch: Batch, *_: Any) -> None:
        self._see("validate", batch)

    def on_test_batch_start(self, trainer: L.Trainer, module: Any, batch: Batch, *_: Any) -> None:
        self._see("test", batch)

    def teardown(self, trainer: L.Trainer, module: Any, stage: str) -> None:
        (self.dir / f"seen{trainer.global_rank}.json").write_text(json.dumps(self.rows))
