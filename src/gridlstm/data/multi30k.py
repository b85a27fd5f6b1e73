"""Multi30k: captions of photographs in four languages, found on disk or downloaded."""

import logging
from collections.abc import Mapping
from pathlib import Path

from gridlstm.data.base import Split
from gridlstm.data.download import fetch
from gridlstm.data.files import mismatch, only_process
from gridlstm.data.pairs import PairSource, Sentences, find_file, read_parallel
from gridlstm.errors import UserError

log = logging.getLogger(__name__)

URL = "https://raw.githubusercontent.com/multi30k/dataset/a3d2e0d26b56f3846f66a952536ffed4e401d05a/data/task1/raw/"

# fmt: off
FILES = {
    "test_2016_flickr.cs.gz": (22_572, "200a4a74cc9560f051924abb9803be008d1908d77f747e9141aeb86dfd2797f1"),
    "test_2016_flickr.de.gz": (22_890, "9204244e408ccb38d2a55cfcd344df15005fc42a07a6e55ca6c52b6ababb8cc8"),
    "test_2016_flickr.en.gz": (21_077, "611d361c6334bc7246101d48097c13cf5c4413c5befc793cc629934359d532d9"),
    "test_2016_flickr.fr.gz": (22_310, "6d326e188d259fb1d04ac19eae3af956559b3a0b93d7635e56c90987c40c8b90"),
    "test_2017_flickr.de.gz": (21_471, "a2c89666db00c495cd8513b9d708d5a3acc205d7de312ef2bf5fb7ebc1540aee"),
    "test_2017_flickr.en.gz": (19_138, "76a444ee25172e72695cddb13ae4a3bda59430617be88e0bb46b60504f054074"),
    "test_2017_flickr.fr.gz": (20_434, "3ba671ceb2299f3304ffafefea7a833d08632fbaf0ba18546f8a2ec2391af496"),
    "test_2017_mscoco.de.gz": (10_230, "799e4854c25d601cb6cb6be29eabe5667734c61ace2f495e03e429031a0bc338"),
    "test_2017_mscoco.en.gz": (8_844, "aab300bfb4427697987e02cd0aacd44bfe8aa50456231b6474c08038bbed2b58"),
    "test_2017_mscoco.fr.gz": (9_751, "754f3072ba9f124569ba5258b32730fc1d214bbf8e0c6dfb2b74401676220db0"),
    "test_2018_flickr.cs.gz": (25_181, "7d0a9db904f94c554a8c58049a9f3a5357c27f46cc3d710d70cb0b4a2585b8c2"),
    "test_2018_flickr.de.gz": (26_461, "ddd0130c7d97482dc5197a02141dae8dd79f20f03586c480d675c09a32daf608"),
    "test_2018_flickr.en.gz": (23_514, "ef4f4844037d4c5dea75c9a8ed5fd78905967a26f67c255e230cc9780032654d"),
    "test_2018_flickr.fr.gz": (25_321, "fb2b83fcceb937a4f7e3e93c1c51c22aba92f1e342391e6b5ba392b16a920501"),
    "train.cs.gz": (593_827, "a65adb8b32e3bc664f21ecba7a6e7f6950fd1f405e135f7c312faabdb6255077"),
    "train.de.gz": (637_044, "726e39b2fa9eb9ffb6dc763fb35a179f80fae06ffc5d28b6ace5faa883de28a6"),
    "train.en.gz": (568_929, "d79cfa999dd4c51d2cb42499b6796d5a882c3a8a961923c25a898c90f8bbd56f"),
    "train.fr.gz": (604_242, "622e75069e9f4c577425c4f277116ce66e63a2401c0a2312d90073cb12379a3c"),
    "val.cs.gz": (22_096, "b63226e05c4bd5dd6a42897d74b86a1b9d2c31498252c572b1ea7f7996927fcc"),
    "val.de.gz": (24_681, "f0cba2f995189cf5770f29a8a9a537a3ad3f51657ad873405082ff6863a5e75a"),
    "val.en.gz": (21_650, "14f7d25ddd868909a9213e361768460edcacdd6ab9d1e77b92560dc10c10dc28"),
    "val.fr.gz": (23_001, "ca3106f1a72390591d25f6c45cb4cd39dec4cd3f123e099748a3ce5256c160e9"),
}
# fmt: on
"""Size in bytes and SHA-256 of every published file."""
LANGUAGES = tuple(dict.fromkeys(name.split(".")[1] for name in FILES))


class Multi30k(PairSource):
    """Multi30k, task 1 (Elliott et al. 2016): 29,000 captions to train on and 1,014 to validate, not tokenized.

    ``data_dir`` and ``data_dir``/multi30k are searched for the published files, such as train.de.gz. Missing ones are
    downloaded to ``data_dir``/multi30k. Files of these names with other contents are refused, never replaced.

    Args:
        data_dir: directory of the files. It must be writable only if something is downloaded.
        source, target: two of the languages en, de, fr and cs.
        test: test set: test_2016_flickr (the usual one), test_2017_flickr, test_2017_mscoco or test_2018_flickr.

    Raises:
        ValueError: the languages are equal or not among the four, or the test set does not exist in both.
        UserError: from ``prepare`` and ``read``, if a file can be neither found nor downloaded, or has other contents.
    """

    def __init__(
        self, data_dir: str | Path, source: str = "de", target: str = "en", test: str = "test_2016_flickr"
    ) -> None:
        if source not in LANGUAGES:
            raise ValueError(f"source must be one of {', '.join(LANGUAGES)}, got {source!r}.")
        if target not in LANGUAGES or target == source:
            others = [language for language in LANGUAGES if language != source]
            raise ValueError(f"target must be one of {', '.join(others)}, got {target!r}.")
        tests = [name for name in _sets(source) if name in _sets(target) and name.startswith("test")]
        if test not in tests:
            raise ValueError(f"test must be one of {', '.join(tests)} for {source} and {target}, got {test!r}.")
        self.name = f"Multi30k ({source} to {target})"
        self.home = Path(data_dir).expanduser() / "multi30k"
        self.folders = [Path(data_dir).expanduser(), self.home]
        sets: dict[Split, str] = {"train": "train", "val": "val", "test": test}
        self.files = {split: (f"{name}.{source}.gz", f"{name}.{target}.gz") for split, name in sets.items()}

    def check(self) -> None:
        self._missing()

    def prepare(self) -> None:
        if not self._missing():
            return
        try:
            with only_process(self.home / ".multi30k.lock", f"downloading {self.name}"):
                for name in self._missing():  # another process may have downloaded some meanwhile
                    log.info("downloading %s to %s", URL + name, self.home)
                    fetch(URL + name, self.home / name, *FILES[name])
        except OSError as error:
            raise UserError(
                f"{self.name} is not in {' or '.join(map(str, self.folders))}, and {self.home} cannot be written: "
                f"{error.strerror}. Put its files there (from {URL}), or name another directory with data_dir=…."
            ) from error

    def read(self) -> Mapping[Split, Sentences]:
        return {
            split: read_parallel(self._file(source), [self._file(target)])
            for split, (source, target) in self.files.items()
        }

    def _missing(self) -> list[str]:
        """Return the names of the files to download.

        Raises:
            UserError: a file with one of these names has other contents.
        """
        missing = []
        for name in dict.fromkeys(name for files in self.files.values() for name in files):
            if (found := find_file(name, self.folders)) is None:
                missing.append(name)
            elif reason := mismatch(found, *FILES[name]):
                raise UserError(
                    f"{found} is not Multi30k's file of that name: {reason}. Move it away and run again to "
                    f"download the published one, or name another directory with data_dir=…."
                )
        return missing

    def _file(self, name: str) -> Path:
        if (found := find_file(name, self.folders)) is None:
            raise UserError(
                f"{name} is not in {' or '.join(map(str, self.folders))}. Run again to download it, or put it there "
                f"(from {URL})."
            )
        return found


def _sets(language: str) -> list[str]:
    return [name.split(".")[0] for name in FILES if name.split(".")[1] == language]
