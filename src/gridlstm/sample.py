"""Write a text with a trained language model: ``python -m gridlstm.sample ckpt=… prime="The " length=500``."""

import io
import itertools
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from gridlstm.command import Parser, number, packages, run_command, true_or_false, whole
from gridlstm.errors import UserError

PARSER = Parser(
    "sample",
    "Write a text with a language model, streamed to stdout. Needs the checkpoint's run directory, not the corpus.",
    others="none",
)
_add = PARSER.add_argument
_add("--ckpt", required=True, type=Path, help="a file in a run directory, such as outputs/…/checkpoints/best.ckpt")
_add("--prime", help="text that the model reads first, and that begins the output (a symbol drawn uniformly)")
_add(
    "--length",
    type=whole,
    help="symbols to write after the prime: characters, bytes or words (2000); bytes that are not UTF-8 become �",
)
_add(
    "--temperature", type=number,
    help="above 0: below 1 favours likely symbols, above 1 makes all more equal (1)",
)  # fmt: skip
_add("--argmax", type=true_or_false, metavar="true|false", help="always write the most probable symbol (false)")
_add("--top-k", type=whole, help="draw from the k most probable symbols")
_add("--top-p", type=number, help="draw from the most probable symbols that sum to p")
_add("--stop", help="end after this string")
_add("--samples", type=whole, help="number of texts, with the seeds seed, seed + 1, … (1)")
_add("--seed", type=whole, help="the same seed writes the same text (1)")
_add("--device", help="cpu or cuda (cpu)")
_add(
    "--trust", type=packages, metavar="PACKAGE[,…]",
    help="packages besides gridlstm whose code the run may use: your own models",
)  # fmt: skip


def write_samples(
    checkpoint: Path,
    write: Callable[[str], Any],
    prime: str = "",
    length: int = 2000,
    temperature: float = 1.0,
    argmax: bool = False,
    top_k: int | None = None,
    top_p: float | None = None,
    stop: str | None = None,
    samples: int = 1,
    seed: int = 1,
    device: str = "cpu",
    trust: Sequence[str] = (),
) -> None:
    """Write texts piece by piece; the options of ``PARSER`` describe the arguments.

    Raises:
        UserError: if the checkpoint has no language model, the prime has unknown symbols, or a value is out of range.
    """
    # Imported here, so that --help does not wait for torch.
    import torch

    from gridlstm.data.spec import Spec
    from gridlstm.tasks.sampling import next_probabilities, sample
    from gridlstm.training.build import make_sequence_task
    from gridlstm.training.checkpoint import load_config, load_content, load_weights, move, vocabulary

    for name, value in {"length": length, "samples": samples}.items():
        if not 1 <= value < 2**62:
            raise UserError(f"{name} must be at least 1 and below 2^62, got {value}.")
    if not 0 <= seed < 2**63 - samples:
        raise UserError(f"seed must be 0 or more and below 2^63 - samples (samples={samples}), got {seed}.")
    if stop == "":
        raise UserError("stop must not be empty. Remove it to write the full length.")
    if argmax and (temperature, top_k, top_p) != (1.0, None, None):
        raise UserError("argmax=true draws nothing. Remove temperature, top_k and top_p.")
    next_probabilities(torch.zeros(1), temperature, top_k, top_p)  # checks the values before anything is read
    config = load_config(checkpoint, [], trust)
    content = load_content(checkpoint)
    symbols = vocabulary(config, content)
    if symbols is None:
        raise UserError(
            f"{checkpoint} has no text vocabulary: it belongs to a run of task={config.run.task}. "
            f"Expected the checkpoint of a language model."
        )
    ids = symbols.encode(prime, "the prime").tolist()
    if argmax and samples > 1 and prime:
        raise UserError(f"argmax=true draws nothing: all {samples} samples would be the same. Remove samples.")
    if prime and not ids:
        raise UserError(f"prime={prime!r} contains no {symbols.level}. Remove it, or give at least one.")
    task = make_sequence_task(config, Spec(len(symbols), len(symbols), sequence_length=1))
    load_weights(task, content["state_dict"])
    move(task.eval(), device)
    for n in range(samples):
        generator = torch.Generator().manual_seed(seed + n)
        begin = ids or torch.randint(len(symbols), (1,), generator=generator).tolist()
        drawn = sample(task, begin, generator, temperature, top_k, top_p, argmax)
        # Drawn before the prime is written, so that messages of the first pass do not appear inside the text.
        first = next(drawn)
        if n:
            write("\n\n---\n\n")
        count = len(begin) + length
        pieces = symbols.stream(itertools.islice(itertools.chain(begin, [first], drawn), count))
        for piece in pieces if stop is None else _until(stop, len("".join(symbols.stream(ids, ends=False))), pieces):
            write(piece)
    write("\n")


def _until(stop: str, prime: int, pieces: Iterable[str]) -> Iterator[str]:
    """Yield pieces up to the end of the first ``stop`` after the prime, which has ``prime`` characters."""
    written, tail = 0, ""  # the tail may hold the beginning of the string
    for piece in pieces:
        text = tail + piece
        earliest = max(prime - written, 0) + len(tail) - len(stop) + 1
        if (found := text.find(stop, max(earliest, 0))) >= 0:
            yield text[len(tail) : found + len(stop)]
            return
        yield piece
        written, tail = written + len(piece), text[len(text) - min(len(text), len(stop) - 1) :]


def _run(given: dict[str, Any], others: list[str]) -> None:
    checkpoint = given.pop("ckpt").expanduser()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # for terminals that cannot show a symbol

    def write(piece: str) -> None:
        sys.stdout.write(piece)
        sys.stdout.flush()

    write_samples(checkpoint, write, **given)


def main() -> None:
    """Run the command line."""
    run_command(PARSER, _run)


if __name__ == "__main__":
    main()
