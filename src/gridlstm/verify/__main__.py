"""python -m gridlstm.verify --seconds 3600: compare every sweep on random networks with a loop of their equations.

With --device cuda the sweeps compute on a GPU, most often with the Triton step and often in CUDA graphs, and the loop
on the CPU.

Values and gradients must agree: in float64 to 1e-11, in float32 and under bfloat16 autocast as closely as the loop
itself agrees with float64. Dimensions, cells, sizes, tied and shared weights, priorities, directions, masks, frozen
parameters, carried states, NaN, threads and the engine's choices are random. A case that differs is printed with its
seed.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime

from gridlstm.command import device_at_hand, prepare
from gridlstm.engine.matmul import without_tf32
from gridlstm.verify.cases import draw
from gridlstm.verify.compare import differences


def seed_of_today() -> int:
    """Return a seed that changes each day, with room for a million cases before the next day's."""
    return datetime.now(UTC).date().toordinal() * 1_000_000


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare until the time or the number of cases is used up; exit with status 1 at the first case that differs."""
    parser = argparse.ArgumentParser(
        prog="python -m gridlstm.verify", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=60.0, help="time limit; the current case is finished")
    parser.add_argument("--cases", type=int, help="largest number of cases (as many as the time allows)")
    parser.add_argument("--seed", type=int, default=seed_of_today(), help="seed of the first case (one per day)")
    parser.add_argument("--device", type=device_at_hand, default="cpu", metavar="cpu|cuda", help="sweeps' device (cpu)")
    options = parser.parse_args(arguments)
    if options.seed < 0 or options.seconds <= 0 or (options.cases is not None and options.cases < 1):
        parser.error("the seed must be at least 0, seconds above 0 and cases at least 1")
    prepare()
    with without_tf32():
        _compare(options)


def _compare(options: argparse.Namespace) -> None:
    """Compare with parsed options."""
    start, count, said = time.monotonic(), 0, 0.0
    while count != options.cases and (count == 0 or time.monotonic() - start < options.seconds):
        case = draw(options.seed + count, options.device)
        if found := differences(case):
            print(f"{case}\n\n" + "\n".join(found))
            where = "" if case.device == "cpu" else f" --device {case.device}"
            command = f"python -m gridlstm.verify --cases 1 --seed {case.seed}{where}"
            sys.exit(f"\nerror: a case differs. Repeat it with {command}")
        count += 1
        if (passed := time.monotonic() - start) - said > 60:
            said = passed
            print(f"{count:,} cases in {passed / 60:.0f} minutes, none differs", flush=True)
    print(f"{count:,} cases starting at seed {options.seed}, none differs")


if __name__ == "__main__":
    main()
