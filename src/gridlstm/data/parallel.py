"""Parallel text files: any pair of languages, and the layout of the IWSLT BTEC corpus."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from gridlstm.data.base import Split
from gridlstm.data.pairs import NUM_VAL, PairSource, Sentences, read_parallel, split_off
from gridlstm.errors import UserError

log = logging.getLogger(__name__)


class Parallel(PairSource):
    """Parallel files (plain, .gz, .xz, .bz2 or .zip): line n of a split's files is one sentence.

    The first file of a split has the sources, and each other file has translations. Empty lines are ignored where
    another file has a translation, because sentences may have different numbers of them.

    Args:
        train, test: files of the splits, sources first.
        val: the same for validation; None to take ``num_val`` distinct sources of the training files, which a hash of
            the source chooses, with all their translations.
        num_val: see ``val``.

    Raises:
        ValueError: a split has fewer than two files, or ``num_val`` is below 1 or given beside ``val``.
        UserError: from ``check`` and ``read``, if a file is missing, or files differ in their numbers of lines.
    """

    def __init__(
        self,
        train: Sequence[str | Path],
        test: Sequence[str | Path],
        val: Sequence[str | Path] | None = None,
        num_val: int = NUM_VAL,
    ) -> None:
        for split, files in (("train", train), ("test", test), ("val", val)):
            if files is not None and (isinstance(files, str) or len(files) < 2):
                raise ValueError(f"{split} must list a file of sources and one or more of translations, got {files!r}.")
        if num_val < 1:
            raise ValueError(f"num_val must be at least 1, got {num_val}.")
        if val is not None and num_val != NUM_VAL:
            raise ValueError(f"num_val={num_val} has no effect on the files in val. Remove num_val, or val.")
        given: dict[Split, Sequence[str | Path]] = {"train": train, "test": test, **({"val": val} if val else {})}
        self.files = {split: [Path(file).expanduser() for file in files] for split, files in given.items()}
        self.name = " and ".join(map(str, self.files["train"]))
        self.num_val = num_val

    def check(self) -> None:
        missing = [str(file) for files in self.files.values() for file in files if not file.is_file()]
        if missing:
            raise UserError(
                f"there is no file {', '.join(missing)}. Expected text files with one sentence a line. Name the files "
                f"of each split, sources first: train=[…], val=[…], test=[…]."
            )

    def read(self) -> Mapping[Split, Sentences]:
        self.check()
        found = {split: read_parallel(files[0], files[1:]) for split, files in self.files.items()}
        if "val" not in found:
            pairs, found["val"] = split_off(found["train"].pairs(), self.num_val, "num_val")
            found["train"] = Sentences.one_each(pairs)
        return found


class Btec(PairSource):
    """IWSLT BTEC Chinese to English, the corpus of the paper: travel sentences under a licence, not to be downloaded.

    The user's licensed copy is expected in ``data_dir``/btec, as UTF-8 files with one sentence a line. These names are
    assumed, because the distributed files differ from year to year::

        train.zh  train.en                       44,016 pairs
        dev.zh    dev.en.0   …  dev.en.14        15 references of each sentence
        test.zh   test.en.0  …  test.en.14       15 references of each sentence

    Empty lines are ignored where another file has a reference. The Chinese text is expected to be segmented into words
    by white space. Other numbers of sentences than the paper's are used too, with a warning.

    Args:
        data_dir: directory with the folder btec.

    Raises:
        UserError: from ``check`` and ``read``, if files are missing, differ in their numbers of lines, or there are
            more references.
    """

    name = "BTEC"
    references = 15
    """Reference translations of each sentence of dev and test."""
    sizes: ClassVar[Mapping[Split, int]] = {"train": 44_016, "val": 1006, "test": 503}
    """Sentences of the paper's copy."""

    def __init__(self, data_dir: str | Path) -> None:
        self.folder = Path(data_dir).expanduser() / "btec"

    def check(self) -> None:
        missing = [file.name for files in self._files().values() for file in files if not file.is_file()]
        if missing:
            shown = ", ".join(missing[:4]) + (f" and {len(missing) - 4} more" if len(missing) > 4 else "")
            raise UserError(
                f"{self.folder} lacks {shown}. BTEC needs a licence (IWSLT) and cannot be downloaded. Put your copy "
                f"there as train.zh and train.en, dev.zh and dev.en.0 to dev.en.{self.references - 1}, and the same "
                f"for test, one sentence a line, or use task=tatoeba."
            )
        for part in ("dev", "test"):
            if (further := self.folder / f"{part}.en.{self.references}").exists():
                raise UserError(
                    f"{further} would be ignored. Expected {self.references} references, {part}.en.0 to "
                    f"{part}.en.{self.references - 1}. Move it away, or use task=parallel, which has any number."
                )

    def read(self) -> Mapping[Split, Sentences]:
        self.check()
        files = self._files()
        found = {split: read_parallel(own[0], own[1:]) for split, own in files.items()}
        other = [
            f"{len(found[split].sources):,} in {files[split][0].name} instead of {size:,}"
            for split, size in self.sizes.items()
            if len(found[split].sources) != size
        ]
        if other:
            log.warning(
                "this copy of BTEC has other numbers of sentences than the paper's, so results are for other data: %s",
                ", ".join(other),
            )
        return found

    def _files(self) -> Mapping[Split, list[Path]]:
        parts: dict[Split, str] = {"val": "dev", "test": "test"}
        return {
            "train": [self.folder / "train.zh", self.folder / "train.en"],
            **{
                split: [self.folder / f"{part}.zh", *(self.folder / f"{part}.en.{n}" for n in range(self.references))]
                for split, part in parts.items()
            },
        }
