"""CUDA graphs of whole sweeps: the kernels of a sweep are recorded once, and then started by one call.

A grid of small blocks starts several kernels for each diagonal, and Python takes longer to start one than a GPU to run
it. A recording has none of that left. Recorded kernels read and write fixed memory, so a recording has its own copies
of the inputs, returns copies of the results, and serves one sweep at a time, from its forward to its backward pass.
Sweeps of one shape that are under way together, such as those from the corners of an image, have a recording each.

Tests compare recordings with the reference on CPUs, where a stand-in computes again what a GPU would replay, but they
were never timed on a GPU. So a sweep is recorded only if the user asks for it:
callbacks.engine_choices.cuda_graphs=true calls ``force_graphs(True)``.
"""

import logging
import threading
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from gridlstm.cell import HiddenMemory
from gridlstm.engine.buffers import Layout
from gridlstm.engine.fused import pointwise_step
from gridlstm.engine.operands import autocast_type
from gridlstm.engine.packed import Packed, as_it_is, check_backward
from gridlstm.engine.plan import Plan
from gridlstm.errors import UserError
from gridlstm.scan import Block, Masks, Weights

log = logging.getLogger(__name__)

OPTION = "callbacks.engine_choices.cuda_graphs=true"
WARM_UPS = 3
"""Runs before a recording: the first ones load kernels and allocate workspaces, which cannot be recorded."""
MOST_SHAPES = 32
"""Shapes with recordings. A recording keeps the memory of a whole sweep, so the least recently used shapes give way."""
RECORDED_ON = {"cuda"}

_wanted = False

Results = Sequence[Tensor | None]


def force_graphs(wanted: bool) -> None:
    """Record sweeps on GPUs from now on, or start each kernel separately."""
    global _wanted
    _wanted = wanted


@contextmanager
def using_graphs(wanted: bool = True) -> Iterator[None]:
    """Record sweeps on GPUs inside the block."""
    before = _wanted
    force_graphs(wanted)
    try:
        yield
    finally:
        force_graphs(before)


def check_graphs(device: torch.device) -> None:
    """Raise UserError unless sweeps can be recorded on this device."""
    if device.type not in RECORDED_ON:
        raise UserError(
            f"{OPTION} cannot work here: the network is on the {device.type}. Only a CUDA device replays recorded "
            f"kernels. Remove the option, or add hardware=gpu."
        )


def records(like: Tensor) -> bool:
    """Return True if sweeps of tensors like this one are recorded: not inside a recording of the user's."""
    if not _wanted or like.device.type not in RECORDED_ON or torch.compiler.is_dynamo_compiling():
        return False
    return not (like.is_cuda and torch.cuda.is_current_stream_capturing())


class Recorder:
    """Records the kernels that a function starts on a GPU."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)
        # The passes of one sweep share their memory: the backward pass runs between two forward passes.
        self.memory = torch.cuda.graph_pool_handle()

    def warm_up(self, run: Callable[[], object]) -> None:
        """Run the function until it starts nothing but kernels that are loaded."""
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream):
            for _ in range(WARM_UPS):
                run()
        torch.cuda.current_stream(self.device).wait_stream(self.stream)

    def record(self, run: Callable[[], Results]) -> tuple[Results, Callable[[], None]]:
        """Return the results of the function, which stay in place, and a function that computes them again."""
        graph = torch.cuda.CUDAGraph()
        # Other threads, such as NCCL's and data loaders', may go on: their calls are not recorded.
        with torch.cuda.graph(graph, self.memory, self.stream, capture_error_mode="thread_local"):
            results = run()
        return results, graph.replay


class Recording:
    """The passes of one sweep on fixed tensors, which stand for the inputs and the gradients of the outputs."""

    def __init__(
        self, sweep: Packed, block: Block, extents: tuple[int, ...], inputs: Sequence[Any], structure: TreeSpec
    ) -> None:
        """
        Args:
            inputs: weights, sides and masks, flat; None where there is none.
            structure: their structure, ``(weights, sides, masks)``.
        """
        trains = torch.is_grad_enabled()

        def fixed(x: Tensor) -> Tensor:
            own = x.detach().clone(memory_format=torch.contiguous_format)
            return own.requires_grad_(trains and x.requires_grad)

        # Tensors made in inference mode could not be refilled outside of it.
        with _explained(), torch.inference_mode(False), torch.set_grad_enabled(trains):
            self.inputs = [None if x is None else fixed(x) for x in inputs]
            weights, sides, masks = tree_unflatten(self.inputs, structure)
            self.plan = _plan(sweep, block, extents, sides)
            trained = [x for x in self.inputs if x is not None and x.requires_grad]
            self.gradients_of = list[Tensor]()
            # Held for the recorded kernels, which know only addresses.
            self.live = live = list[Tensor]()

            def forward() -> Results:
                live[:] = (x for side in sweep(block, weights, sides, extents, masks) for x in side)
                return live

            def backward() -> Results:
                return torch.autograd.grad(live, trained, self.gradients_of, allow_unused=True)

            def both() -> None:
                forward()
                self.gradients_of = [torch.zeros_like(x, requires_grad=False) for x in live]
                if trained:
                    backward()

            recorder = Recorder(sides[0].h.device)
            recorder.warm_up(both)
            self.outputs, self.replay_forward = recorder.record(forward)
            self.gradients, self.replay_backward = recorder.record(backward) if trained else ([], _nothing)

    def forward(self, inputs: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
        """Return the outputs for these inputs."""
        for own, x in zip(self.inputs, inputs, strict=True):
            if own is not None and x is not None:
                own.detach().copy_(x)
        self.replay_forward()
        return tuple(x.detach().clone() for x in self.outputs if x is not None)

    def backward(self, grads: Sequence[Tensor]) -> list[Tensor | None]:
        """Return the gradients of all inputs, None where there is none, given those of the last outputs."""
        for own, x in zip(self.gradients_of, grads, strict=True):
            own.copy_(x)
        self.replay_backward()
        gradients = iter(self.gradients)
        found = [next(gradients) if x is not None and x.requires_grad else None for x in self.inputs]
        return [None if x is None else x.detach().clone() for x in found]


def _nothing() -> None:
    """Stand for the backward pass of a sweep without gradients."""


def _plan(sweep: Packed, block: Block, extents: tuple[int, ...], sides: Sequence[HiddenMemory]) -> Plan:
    """Return the row numbers that the sweep uses. A recording holds them, because the cache of plans may drop them."""
    like = sides[0].h
    return Layout(block, extents, like.shape[-2], like.device, sweep.schedule.order, None).plan


@contextmanager
def _explained() -> Iterator[None]:
    """Report a sweep that cannot be recorded, such as one whose cell reads numbers back, as one sentence."""
    try:
        yield
    except (UserError, torch.OutOfMemoryError):
        raise
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"this network cannot be recorded as a CUDA graph ({reason}). A cell must not read numbers back from the "
            f"GPU. Remove {OPTION}."
        ) from error


@dataclass(frozen=True)
class Shape:
    """Properties that sweeps must have in common to use the same recordings."""

    sweep: Packed
    block: Block
    extents: tuple[int, ...]
    structure: str
    inputs: tuple[tuple[torch.Size, torch.dtype, bool] | None, ...]
    device: torch.device
    stream: int
    product_dtype: torch.dtype | None
    precision: str
    step: str
    trains: bool


class Recordings:
    """The recordings of the process that no sweep uses at the moment."""

    def __init__(self) -> None:
        self._free: OrderedDict[Shape, deque[Recording]] = OrderedDict()
        self._seen: OrderedDict[Shape, None] = OrderedDict()
        self._lock = threading.Lock()

    def clear(self) -> None:
        """Forget all shapes; recordings that a sweep uses are freed after it."""
        with self._lock:
            self._free.clear()
            self._seen.clear()

    def of(self, shape: Shape, record: Callable[[], Recording]) -> "Lease | None":
        """Return a recording for one sweep, or None for a shape that occurs for the first time.

        A shape that occurs once, such as that of an epoch's last batch, is not worth a recording.
        """
        with self._lock:
            if shape not in self._free and shape not in self._seen:
                self._seen[shape] = None
                while len(self._seen) > 100 * MOST_SHAPES:
                    self._seen.popitem(last=False)
                return None
            free = self._free.setdefault(shape, deque())
            self._free.move_to_end(shape)
            while len(self._free) > MOST_SHAPES:
                self._free.popitem(last=False)
            # A sweep may end in any thread and at any allocation by Python, so a deque gets its recording back.
            recording = free.popleft() if free else None
        if recording is None:
            recording = record()
            log.info("CUDA graph: recorded a sweep of %s blocks", " x ".join(map(str, shape.extents)))
        return Lease(recording, free)


class Lease:
    """A recording in use; it is free again after ``give_back``, or when nothing refers to the lease any more."""

    def __init__(self, recording: Recording, free: deque[Recording]) -> None:
        self.recording = recording
        self.give_back = weakref.finalize(self, free.append, recording)
        self.give_back.atexit = False


recordings = Recordings()


@dataclass(frozen=True)
class Recorded:
    """A fast sweep whose kernels are recorded; call it like the sweep."""

    sweep: Packed

    @as_it_is
    def __call__(
        self,
        block: Block,
        weights: Sequence[Weights],
        sides: Sequence[HiddenMemory],
        extents: Sequence[int],
        masks: Sequence[Masks] | None = None,
    ) -> list[HiddenMemory]:
        """Return the outputs of the grid, differentiable with respect to weights and sides.

        Raises:
            UserError: if the network cannot be recorded; for a second derivative, and for a second backward pass
                through the same graph.
        """
        like, extents = sides[0].h, tuple(extents)
        inputs, structure = tree_flatten((list(weights), list(sides), None if masks is None else list(masks)))
        shape = Shape(
            self.sweep,
            block,
            extents,
            str(structure),
            tuple(None if x is None else (x.shape, x.dtype, x.requires_grad) for x in inputs),
            like.device,
            torch.cuda.current_stream(like.device).cuda_stream if like.is_cuda else 0,
            autocast_type(like),
            torch.get_float32_matmul_precision(),
            pointwise_step(),
            torch.is_grad_enabled(),
        )
        lease = recordings.of(shape, lambda: Recording(self.sweep, block, extents, inputs, structure))
        if lease is None:
            return self.sweep(block, weights, sides, extents, masks)
        flat = iter(_Replay.apply(lease, *inputs))
        return [HiddenMemory(h, m) for h, m in zip(flat, flat, strict=True)]


class _Replay(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, lease: Lease, *inputs: Any) -> tuple[Tensor, ...]:
        outputs = lease.recording.forward(inputs)
        # Without gradients, nothing refers to ctx after this call, so the recording is free again.
        ctx.lease = lease
        return outputs

    @staticmethod
    @as_it_is
    def backward(ctx: Any, *grads: Tensor) -> Any:
        check_backward("recorded sweeps have", grads)
        if ctx.lease is None:
            raise UserError(
                f"a recorded sweep has one backward pass: the first one overwrote what another (retain_graph=True) "
                f"would read. Remove {OPTION}."
            )
        lease, ctx.lease = ctx.lease, None
        gradients = lease.recording.backward(grads)
        lease.give_back()
        return None, *gradients
