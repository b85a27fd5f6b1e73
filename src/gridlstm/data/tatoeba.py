"""Mandarin-English sentence pairs of Tatoeba, as manythings.org publishes them."""

from collections.abc import Mapping
from pathlib import Path

from gridlstm.data.base import Split
from gridlstm.data.pairs import Pair, PairSource, Sentences, find_file, read_lines, split_off
from gridlstm.errors import UserError

FILE = "cmn.txt"
PAGE = "https://www.manythings.org/anki/"


class Tatoeba(PairSource):
    """Short everyday sentences in Chinese, to be translated into English: ``cmn.txt`` of manythings.org.

    ``data_dir`` and ``data_dir``/tatoeba_cmn_eng are searched for the file. Its lines are English, TAB, Chinese. Text
    after another TAB is ignored. Exact duplicates are left out.

    Validation and test are ``num_val`` and ``num_test`` Chinese sentences, which a hash of the sentence chooses, with
    all their English translations as references. No Chinese sentence is in two splits.

    Args:
        data_dir: directory with the file.
        num_val, num_test: Chinese sentences for validation and test.

    Raises:
        ValueError: a number is below 1.
        UserError: from ``check`` and ``read``, if the file is missing or not as expected.
    """

    name = "Tatoeba"

    def __init__(self, data_dir: str | Path, num_val: int = 1000, num_test: int = 1000) -> None:
        if num_val < 1:
            raise ValueError(f"num_val must be at least 1, got {num_val}.")
        if num_test < 1:
            raise ValueError(f"num_test must be at least 1, got {num_test}.")
        self.folders = [Path(data_dir).expanduser(), Path(data_dir).expanduser() / "tatoeba_cmn_eng"]
        self.num_val = num_val
        self.num_test = num_test

    def check(self) -> None:
        self._file()

    def read(self) -> Mapping[Split, Sentences]:
        file = self._file()
        pairs = list(dict.fromkeys(_pair(line, file, n) for n, line in enumerate(read_lines(file), 1) if line.strip()))
        pairs, test = split_off(pairs, self.num_test, "num_test")
        pairs, val = split_off(pairs, self.num_val, "num_val")
        return {"train": Sentences.one_each(pairs), "val": val, "test": test}

    def _file(self) -> Path:
        if (found := find_file(FILE, self.folders)) is None:
            raise UserError(
                f"{FILE} is not in {' or '.join(map(str, self.folders))}. It is in cmn-eng.zip of {PAGE}, which only "
                f"browsers may download. Put it there, or name another directory with data_dir=…."
            )
        return found


def _pair(line: str, file: Path, number: int) -> Pair:
    fields = line.split("\t")
    if len(fields) < 2:
        raise UserError(
            f"line {number:,} of {file} has no TAB, expected English, TAB, Chinese. Use {FILE} of cmn-eng.zip as "
            f"{PAGE} publishes it."
        )
    return fields[1].strip(), fields[0].strip()
