"""Base of data made of a published set of images."""

import zlib
from typing import Any

from gridlstm.data.base import SequenceData
from gridlstm.data.image_files import Images, ImageSource
from gridlstm.errors import UserError


class ImageBased(SequenceData):
    """Data that reads a set of images once and keeps it in memory.

    A checkpoint stores the checksums of the training images and of the test images, so that a run cannot resume with
    other images. Checkpoints of older runs have only the first.

    Subclasses set ``source`` in their constructor and define ``divide``.
    """

    source: ImageSource
    crc32: int | None = None
    """Checksum of all training images and classes; None before they are read."""
    test_crc32: int | None = None
    """The same of the test."""

    @property
    def called(self) -> str:
        return self.source.name

    @property
    def foreign_files(self) -> tuple[str, ...]:
        return self.source.foreign

    def divide(self, train: Images, test: Images) -> None:
        """Store the images in splits, once they have been read."""
        raise NotImplementedError(f"{type(self).__name__} must define divide")

    def check(self) -> None:
        self.source.check()

    def prepare_data(self) -> None:
        self.source.prepare()

    def setup(self, stage: str) -> None:
        self._read()

    def state_dict(self) -> dict[str, Any]:
        self._read()
        return super().state_dict() | {"crc32": self.crc32, "test_crc32": self.test_crc32}

    def check_goes_on(self, state_dict: dict[str, Any]) -> None:
        self._read()
        if state_dict.get("crc32") != self.crc32:
            raise UserError(
                f"the images of {self.called} are not those that the checkpoint was trained on. Restore the original "
                f"files, or start a new run from its weights: init_from=…."
            )
        if self._other_test(state_dict):
            raise UserError(
                f"the test images of {self.called} are not those that the run had when the checkpoint was written. "
                f"Restore the original files, or test it on these images: python -m gridlstm.evaluate ckpt=…."
            )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if self.trainer is not None and self.trainer.state.fn == "fit":
            self.check_goes_on(state_dict)
        else:
            self._read()
            self.changed = state_dict["crc32"] != self.crc32 or self._other_test(state_dict)
        super().load_state_dict(state_dict)

    def _other_test(self, state_dict: dict[str, Any]) -> bool:
        return bool(state_dict.get("test_crc32", self.test_crc32) != self.test_crc32)

    def _read(self) -> None:
        """Read the images unless they have been read."""
        if self.crc32 is not None:
            return
        train, test = self.source.read()
        self.divide(train, test)
        self.crc32, self.test_crc32 = _crc32(train), _crc32(test)


def _crc32(part: Images) -> int:
    checksum = 0
    for x in part:
        checksum = zlib.crc32(x.numpy().data, checksum)
    return checksum
