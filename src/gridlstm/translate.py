"""Translate with trained networks: ``python -m gridlstm.translate ckpt=outputs/…/best.ckpt "Ein Hund bellt."``."""

import io
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from gridlstm.command import Parser, checkpoint_paths, from_one, number, packages, run_command
from gridlstm.errors import UserError
from gridlstm.files import check_different, to_json, writable, write_text
from gridlstm.options import TRANSLATION_READS, check_read_by_validation

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from gridlstm.data.words import SentenceVocabulary
    from gridlstm.tasks.translate import Translate
    from gridlstm.translator import Translation, Translator

log = logging.getLogger(__name__)

LEAST_WHOLE = 0.5
"""Least share of the words of an input that a network of its language reads whole.

Measured with vocabularies of whole words and of 2,000 to 12,000 pieces: at least 0.57 of new text in their language,
even from another source, and at most 0.43 of text in another language.
"""

PARSER = Parser(
    "translate",
    """Translate the given sentences, or the lines of a file or of standard input. With --split,
translate a split of the run's own data and print its BLEU and chrF as JSON; key=value are then options of the run, such
as another test: task.data.source.test=test_2017_flickr.

An empty line stays empty. Unknown words are read as unknown and never written; a warning says if most are. A sentence
of more than 200 symbols is translated in parts. A sentence that begins with - must come from a file or standard
input.""",
    others="sentence",
)
_add = PARSER.add_argument
_add(
    "--ckpt", required=True, metavar="CHECKPOINT[,…]",
    help="a file in a run directory, such as outputs/…/checkpoints/best.ckpt. Several form an ensemble, which averages "
    "their probabilities",
)  # fmt: skip
_add("--file", type=Path, help="text file with one sentence per line")
_add("--split", choices=("val", "test"), help="translate this split of the run's data, and score it")
_add("--out", type=Path, metavar="FILE", help="with --split, write sources, translations and references as a table")
_add("--beam", type=from_one(), help="width of the beam (20, the paper's); 1 is greedy")
_add(
    "--best", type=from_one(),
    help="print the best N translations with their log-probabilities: number ||| translation ||| score (1: text only)",
)  # fmt: skip
_add("--length-penalty", type=number, help="p: rank by log-probability / length^p (0)")
_add(
    "--shortest", type=number, metavar="SHARE",
    help="discard translations of fewer than SHARE symbols for each of the source (0.5, the paper's); 0 for any length",
)  # fmt: skip
_add(
    "--batch-size",
    type=from_one(),
    help="sentences that are searched together (32; on a CPU 160 / beam if that is less)",
)
_add("--device", help="cpu or cuda (cpu)")
_add(
    "--trust", type=packages, metavar="PACKAGE[,…]",
    help="packages besides gridlstm whose code the run may use, such as your own models",
)  # fmt: skip


class Opened(NamedTuple):
    """Network of a checkpoint, with the configuration and the state from which its data can be read again."""

    checkpoint: Path
    task: "Translate"
    config: "DictConfig"
    state: dict[str, Any]
    """State of the data: the vocabularies, and a checksum of the training pairs."""


def open_checkpoints(
    checkpoints: Sequence[Path], device: str = "cpu", trust: Sequence[str] = (), overrides: Sequence[str] = ()
) -> list[Opened]:
    """Return the trained networks of checkpoints; their data is not needed.

    Args:
        checkpoints: files in run directories.
        device: "cpu" or "cuda".
        trust: see ``gridlstm.training.trust``.
        overrides: dotted ``key=value`` that change the configuration of the first one, which has the data.

    Raises:
        UserError: a checkpoint cannot be loaded, an option does not exist or affects training only, a checkpoint is
            given twice, is not a translation network, or has other symbols than the first.
    """
    from gridlstm.data.spec import PairSpec
    from gridlstm.data.words import vocabulary_from
    from gridlstm.tasks.translate import Translate
    from gridlstm.training.build import make_task
    from gridlstm.training.checkpoint import data_state, load_config, load_content, load_weights, move

    check_different(checkpoints)
    opened: list[Opened] = []
    for checkpoint in checkpoints:
        config = load_config(checkpoint, [] if opened else overrides, trust)
        content = load_content(checkpoint)
        state = data_state(config, content)
        if "source_vocabulary" not in state:
            raise UserError(
                f"{checkpoint} is of task={config.run.task}, which does not translate. Give the checkpoint of a run of "
                f"task=translation or tatoeba."
            )
        for name in ("source_vocabulary", "target_vocabulary"):
            if opened and state[name] != opened[0].state[name]:
                raise UserError(
                    f"{checkpoint} and {checkpoints[0]} have different {name.replace('_vocabulary', '')} symbols. An "
                    f"ensemble needs checkpoints of the same languages and vocabularies. Remove one."
                )
        source, target = (vocabulary_from(state[f"{side}_vocabulary"]) for side in ("source", "target"))
        task = make_task(config, PairSpec(len(source), len(target), 1, 1))
        assert isinstance(task, Translate), "its data has two vocabularies"
        load_weights(task, content["state_dict"])
        move(task.eval(), device)
        opened.append(Opened(checkpoint, task, config, state))
    return opened


def translator_of(opened: Sequence[Opened], **options: Any) -> "Translator":
    """Return a translator of trained networks for the same symbols.

    Args:
        opened: from ``open_checkpoints``.
        options: see ``gridlstm.translator.Translator``.
    """
    from gridlstm.data.words import vocabulary_from
    from gridlstm.translator import Translator

    source, target = (vocabulary_from(opened[0].state[f"{side}_vocabulary"]) for side in ("source", "target"))
    return Translator([one.task for one in opened], source, target, **options)


def load(checkpoints: Sequence[Path], device: str = "cpu", trust: Sequence[str] = (), **options: Any) -> "Translator":
    """Return a translator of checkpoints: see ``open_checkpoints`` and ``translator_of``."""
    return translator_of(open_checkpoints(checkpoints, device, trust), **options)


def score(translator: "Translator", opened: Opened, split: str, out: Path | None, overrides: Sequence[str] = ()) -> str:
    """Translate a split of a run's data; return its scores as JSON, and write the translations to a file.

    Args:
        translator: the networks.
        opened: checkpoint whose configuration names the data.
        split: "val" or "test".
        out: file of the table; None for none.
        overrides: the options that ``open_checkpoints`` changed.

    Raises:
        UserError: the data is not available.
    """
    from gridlstm.bleu import bleu, check_installed
    from gridlstm.data.translation import TranslationData
    from gridlstm.training.build import make_data
    from gridlstm.training.callbacks.translations import table
    from gridlstm.training.checkpoint import warn_of_change, warn_of_splits

    check_installed()
    data = cast(TranslationData, make_data(opened.config, opened.state))
    warn_of_change(data, overrides)
    warn_of_splits(data, opened.config, opened.checkpoint, overrides)
    which: Any = split
    sources, references = data.sources(which), data.references(which)
    warn_of_unknown(translator.source, sources)
    found = translator.best_texts(sources)
    if out is not None:
        write_text(out, table(sources, found, references))
    scores = {name: value for name, value in bleu(found, references)._asdict().items() if value is not None}
    search = {"beam": translator.beam, "shortest": translator.limits.shortest}
    return to_json({"split": split, "sentences": len(sources), **search, **scores}, indent=2)


def lines_of(given: Sequence[str], file: Path | None) -> Iterator[str]:
    """Yield the sentences to translate: the given ones, or the lines of a file or of standard input.

    Raises:
        UserError: a text cannot be read or is not UTF-8, or sentences and a file are given.
    """
    from gridlstm.data.pairs import decoded_lines, read_lines

    if given and file is not None:
        raise UserError("sentences and file exclude each other. Remove one of them.")
    if given:
        yield from decoded_lines(map(os.fsencode, given), "the command line")
    elif file is not None:
        yield from read_lines(file.expanduser())
    else:
        yield from decoded_lines(sys.stdin.buffer, "standard input")


def warn_of_unknown(vocabulary: "SentenceVocabulary", sentences: Sequence[str]) -> None:
    """Warn if a network with this vocabulary reads most words as unknown or in pieces, as those of another language."""
    whole = list(chain.from_iterable(map(vocabulary.read_whole, sentences)))
    if sum(whole) < LEAST_WHOLE * len(whole):
        log.warning(
            "%s of %s words of the input are unknown to the network, or known only in pieces. Expected at most half. "
            "Give sentences in the language that it was trained to read, or another ckpt.",
            f"{len(whole) - sum(whole):,}",
            f"{len(whole):,}",
        )


def write_translations(
    translator: "Translator", sentences: Iterator[str], write: Callable[[str], Any], at_once: int
) -> None:
    """Write one line for each sentence, or one for each translation if the translator returns several.

    Words that the network does not know are counted in the first ``at_once`` sentences.
    """
    count = 0
    while some := list(islice(sentences, at_once)):
        if count == 0:
            warn_of_unknown(translator.source, some)
        for found in translator.translate(some):
            write(_shown(found, count, translator.best))
            count += 1


def _shown(found: "list[Translation]", number: int, best: int) -> str:
    if best == 1:
        return found[0].text + "\n"
    return "".join(f"{number} ||| {one.text} ||| {one.score:.4f}\n" for one in found)


def _file_to_write(out: Path) -> Path:
    """Return ``out`` after creating its directory, so that no scores are lost after a long translation.

    Raises:
        UserError: it is a directory, or its directory is not writable.
    """
    if out.is_dir():
        raise UserError(f"out={out} is a directory. Expected a file. Give, for example, out={out / 'test.tsv'}.")
    writable(out.parent).mkdir(parents=True, exist_ok=True)
    return out


def _run(given: dict[str, Any], sentences: list[str]) -> None:
    checkpoints = checkpoint_paths(given.pop("ckpt"))
    file, split, out = (given.pop(name, None) for name in ("file", "split", "out"))
    trust = given.pop("trust", [])
    if split is not None and (file is not None or not all("=" in word for word in sentences)):
        raise UserError(f"split={split} translates the run's own data. Remove the sentences, or split.")
    if split is not None and given.get("best", 1) > 1:
        raise UserError(
            f"best={given['best']} has no effect on split={split}, which scores one translation of each sentence. "
            f"Remove best, or translate the sentences of a file: file=…."
        )
    if out is not None and split is None:
        raise UserError("out is the table of a split. Give split=test too, or redirect the output: > FILE.")
    if split is None and (data := [word for word in sentences if word.startswith("data_dir=")]):
        raise UserError(
            f"{data[0]} has no effect on sentences. Remove it, or translate the run's own data: split=test."
        )
    out = None if out is None else _file_to_write(out.expanduser())
    overrides = sentences if split is not None else []
    if unused := [word for word in overrides if not word.lstrip("+~").startswith(TRANSLATION_READS)]:
        raise UserError(
            f"{unused[0]} has no effect on a translation. Expected options of the data (task.…, data_dir=…) or of the "
            f"network (model.…). Remove it."
        )
    if split == "val":
        for word in overrides:
            key, _, value = word.partition("=")
            check_read_by_validation(key, value)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # for terminals that cannot show a symbol
    opened = open_checkpoints(checkpoints, given.pop("device", "cpu"), trust, overrides)
    translator = translator_of(opened, **given)
    if split is not None:
        print(score(translator, opened[0], split, out, overrides))
        return

    def write(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    # On a terminal each line is answered at once; otherwise many are sorted by length together.
    interactive = not sentences and file is None and sys.stdin.isatty()
    write_translations(translator, lines_of(sentences, file), write, 1 if interactive else 2000)


def main() -> None:
    """Run the command line."""
    run_command(PARSER, _run)


if __name__ == "__main__":
    main()
