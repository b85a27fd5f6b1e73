"""CUDA graphs of whole sweeps: the kernels of a sweep are recorded once, and then started by one call.

A grid of small blocks starts several kernels for each diagonal, and Python takes longer to start one than a GPU to run
it. A recording has none of that left. Recorded kernels read and write fixed memory, so a recording has its own copies
of the inputs, returns copies of the results, and serves one sweep at a time, from its forward to its backward pass.
Sweeps of one shape that are under way together, such as those from the corners of an image, have a recording each.

Tests compare recordings with the reference on CPUs, where a stand-in computes again what a GPU would replay, but they
were never timed on a GPU. So a sweep is recorded only if the user asks for it:
callbacks.engine_choices.cuda_graphs=true calls ``force_graphs(True)``.
"""

import gc
import logging
import threading
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from gridlstm.cell import HiddenMemory
from gridlstm.engine.buffers import Layout
from gridlstm.engine.fused import pointwise_step
from gridlstm.engine.operands import autocast_type
from gridlstm.engine.packed import Packed
from gridlstm.engine.passes import as_it_is, check_backward
from gridlstm.engine.plan import Plan
from gridlstm.errors import UserError
from gridlstm.scan import Block, Masks, Weights

log = logging.getLogger(__name__)

OPTION = "callbacks.engine_choices.cuda_graphs=true"
WARM_UPS = 2
"""Runs before a recording, on its stream: the first ones load kernels, which cannot be recorded."""
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
    """Return True if sweeps of tensors like this one are recorded.

    They are not inside a recording of the user's, under operation counters, which would miss what is replayed, and
    under hooks on saved tensors, such as those of activation checkpointing, because a replay saves none.
    """
    if not _wanted or like.device.type not in RECORDED_ON or torch.compiler.is_dynamo_compiling():
        return False
    counted = torch._C._len_torch_dispatch_stack() > 0
    hooked = torch._C._autograd._top_saved_tensors_default_hooks(False) is not None
    return not (counted or hooked or (like.is_cuda and torch.cuda.is_current_stream_capturing()))


class Recorder:
    """Records the kernels that a function starts on a GPU."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = _stream(device)
        # The passes of one sweep share their memory: the backward pass runs between two forward passes.
        self.memory = torch.cuda.graph_pool_handle()

    def warm_up(self, run: Callable[[], object]) -> None:
        """Run the function until it starts nothing but kernels that are loaded."""
        current = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            for _ in range(WARM_UPS):
                run()
        current.wait_stream(self.stream)

    def record(self, run: Callable[[], Results]) -> tuple[Results, Callable[[], None]]:
        """Return the results of the function, which stay in place, and a function that computes them again."""
        graph = torch.cuda.CUDAGraph()
        with (
            _own_workspaces(),
            _without_collection(),
            # Set here too, because a recording that fails would leave its stream in use.
            torch.cuda.stream(self.stream),
            # Other threads, such as NCCL's and data loaders', may go on: their calls are not recorded.
            torch.cuda.graph(graph, self.memory, self.stream, capture_error_mode="thread_local"),
        ):
            results = run()
        return results, graph.replay


@lru_cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """Return the stream on which all recordings of a device are made."""
    return torch.cuda.Stream(device)


@contextmanager
def _own_workspaces() -> Iterator[None]:
    """Let cuBLAS take its workspace from the recording's memory inside the block.

    Otherwise recordings share one, which PyTorch frees with the first of them that is destroyed.
    """
    torch._C._cuda_clearCublasWorkspaces()
    try:
        yield
    finally:
        torch._C._cuda_clearCublasWorkspaces()


@contextmanager
def _without_collection() -> Iterator[None]:
    """Collect no garbage inside the block: destroying another recording there would make this one invalid."""
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


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
        with torch.inference_mode(False), torch.set_grad_enabled(trains):
            self.inputs = [None if x is None else fixed(x) for x in inputs]
            weights, sides, masks = tree_unflatten(self.inputs, structure)
            self.plan = _plan(sweep, block, extents, sides)
            trained = [x for x in self.inputs if x is not None and x.requires_grad]
            # Held for the recorded kernels, which know only addresses.
            self.live = live = list[Tensor]()

            def forward() -> Results:
                live[:] = (x for side in sweep(block, weights, sides, extents, masks) for x in side)
                return live

            def backward() -> Results:
                return torch.autograd.grad(live, trained, self.gradients_of, allow_unused=True)

            def both() -> None:
                forward()
                if trained:
                    backward()

            device = sides[0].h.device
            # Made by the stream that fills them, as the inputs are.
            self.gradients_of = [torch.zeros_like(x) for x in forward() if x is not None]
            recorder = Recorder(device)
            recorder.warm_up(both)
            with _explained():
                self.outputs, self.replay_forward = recorder.record(forward)
                self.gradients, self.replay_backward = recorder.record(backward) if trained else ([], _nothing)

    def forward(self, inputs: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
        """Return the outputs for these inputs."""
        _refill(self.inputs, inputs)
        self.replay_forward()
        return tuple(x.detach().clone() for x in self.outputs if x is not None)

    def backward(self, grads: Sequence[Tensor]) -> list[Tensor | None]:
        """Return the gradients of all inputs, None where there is none, given those of the last outputs."""
        _refill(self.gradients_of, grads)
        self.replay_backward()
        gradients = iter(self.gradients)
        found = [next(gradients) if x is not None and x.requires_grad else None for x in self.inputs]
        return [None if x is None else x.detach().clone() for x in found]


def _refill(fixed: Results, new: Results) -> None:
    """Copy new numbers into fixed tensors, in few kernels."""
    pairs = [(own, x) for own, x in zip(fixed, new, strict=True) if own is not None and x is not None]
    with torch.no_grad():
        torch._foreach_copy_([own for own, _ in pairs], [x for _, x in pairs])


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
    inputs: tuple[tuple[torch.Size, torch.dtype, bool] | None, ...]
    device: torch.device
    stream: int
    product_dtype: torch.dtype | None
    precision: str
    deterministic: bool
    step: str
    trains: bool


class Recordings:
    """The recordings of the process that no sweep uses at the moment."""

    def __init__(self) -> None:
        self._free: OrderedDict[Shape, deque[Recording]] = OrderedDict()
        self._seen: OrderedDict[Shape, None] = OrderedDict()
        self._lock = threading.Lock()
        self._recording = threading.RLock()  # a thread may not wait for a GPU while another records
        self._warned = False

    def clear(self) -> None:
        """Forget all shapes; recordings that a sweep uses are freed after it."""
        with self._lock:
            self._free.clear()
            self._seen.clear()

    def of(self, shape: Shape, record: Callable[[], Recording]) -> "Lease | None":
        """Return a recording for one sweep, or None for a shape that occurs for the first time.

        A shape that occurs once, such as that of an epoch's last batch, is not worth a recording. Without memory for
        another recording, forget those that are not in use first.
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
                if not self._warned:
                    log.warning(
                        "CUDA graphs: more than %d shapes of sweeps. Each is recorded again when it returns, which may "
                        "take longer than it saves. Remove %s, or use fewer lengths.",
                        MOST_SHAPES,
                        OPTION,
                    )
                self._warned = True
            # A sweep may end in any thread and at any allocation by Python, so a deque gets its recording back.
            recording = free.popleft() if free else None
        if recording is None:
            with self._recording:
                recording = _if_memory_suffices(record)
                if recording is None:
                    log.warning("CUDA graphs: no memory for another recording, so the unused ones are forgotten")
                    with self._lock:
                        for unused in self._free.values():  # the shapes stay: this one's recording goes back to its own
                            unused.clear()
                    recording = record()
            log.info("CUDA graph: recorded a sweep of %s blocks", " x ".join(map(str, shape.extents)))
        return Lease(recording, free)


def _if_memory_suffices(record: Callable[[], Recording]) -> Recording | None:
    try:
        return record()
    except torch.OutOfMemoryError:
        return None


class Lease:
    """A recording in use; it is free again after ``give_back``, or when nothing refers to the lease any more."""

    def __init__(self, recording: Recording, free: deque[Recording]) -> None:
        self.recording = recording
        self.give_back = weakref.finalize(self, free.append, recording)
        self.give_back.atexit = False


recordings = Recordings()


@dataclass(frozen=True)
class Recorded:
    """A fast sweep whose kernels are recorded; call it like the sweep. Cells must not change between calls."""

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
            UserError: if the network cannot be recorded or a cell cannot be hashed; for a second derivative, and for a
                second backward pass through the same graph.
        """
        like, extents = sides[0].h, tuple(extents)
        inputs, structure = tree_flatten((list(weights), list(sides), None if masks is None else list(masks)))
        shape = Shape(
            self.sweep,
            block,
            extents,
            tuple(None if x is None else (x.shape, x.dtype, x.requires_grad) for x in inputs),
            like.device,
            torch.cuda.current_stream(like.device).cuda_stream if like.is_cuda else 0,
            autocast_type(like),
            torch.backends.cuda.matmul.fp32_precision,
            torch.are_deterministic_algorithms_enabled(),
            pointwise_step(),
            torch.is_grad_enabled(),
        )
        try:
            hash(block)
        except TypeError as error:
            raise UserError(
                f"recorded sweeps find their recording by the cells, which must be hashable ({error}). Declare the "
                f"cell with @dataclass(frozen=True), or remove {OPTION}."
            ) from error
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
