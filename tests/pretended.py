"""A CUDA card that is not there: tensors that say `cuda:0`, compute on the CPU, and refuse what a card refuses.

    with pretended.card() as card:
        perform(JobContext.alone(job, store))
    assert card.total("kernel") < 500

Refused, as PyTorch does for a real card: tensors of two devices in one operation (zero-dimensional CPU tensors and CPU
indices into the card's tensors are allowed there too), a CPU generator for an operation on the card, an index on the
card into a tensor of the CPU, `numpy()`, and an operator for which this build of PyTorch has no CUDA kernel.

Counted is what costs time or memory on a card: kernels, copies to it and from it, waits for it, and live bytes. A copy
is a wait too, unless it goes to the card and was asked not to block.

Not seen here is what only a card does: wrong kernels, another rounding, out of memory, time, streams, device-side
asserts, and branches of PyTorch's C++ that look at the device.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

DEVICE = torch.device("cuda:0")
CPU = torch.device("cpu")
Event = Literal["kernel", "upload", "download", "wait"]

_ops = torch.ops.aten
_READS_A_VALUE = {_ops._local_scalar_dense.default, _ops.equal.default, _ops.is_nonzero.default}
_SIZE_FROM_VALUES = {_ops.nonzero.default, _ops.masked_select.default, _ops._unique2.default, _ops.bincount.default}
_INDEX = {_ops.index.Tensor}
_INDEX_PUT = {_ops.index_put_.default, _ops.index_put.default, _ops._index_put_impl_.default}
_NO_KERNEL = {
    _ops.detach.default,
    _ops.alias.default,
    _ops.lift_fresh.default,
    _ops.empty.memory_format,
    _ops.empty_like.default,
    _ops.empty_strided.default,
    _ops.new_empty.default,
    _ops.new_empty_strided.default,
    _ops._unsafe_view.default,
    _ops._reshape_alias.default,
}
"""Operators beside views that launch nothing on a card: they make or rename memory."""


class CardTensor(torch.Tensor):
    """A tensor of the pretended card; `values` is the CPU tensor that it stands for."""

    values: torch.Tensor

    @staticmethod
    def __new__(cls, values: torch.Tensor) -> CardTensor:
        tensor: CardTensor = torch.Tensor._make_wrapper_subclass(
            cls,
            values.size(),
            strides=values.stride(),
            storage_offset=values.storage_offset(),
            dtype=values.dtype,
            device=values.device,
            requires_grad=False,
        )
        tensor.values = values
        return tensor

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"CardTensor({self.values!r})"

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function in (torch.Tensor.numpy, torch.Tensor.__array__):
            raise TypeError("can't convert cuda:0 device type tensor to numpy: copy it to the host first")
        if function == torch.Tensor.device.__get__:  # type: ignore[attr-defined]
            return DEVICE
        if function == torch.Tensor.is_cuda.__get__:  # type: ignore[attr-defined]
            return True
        if function is torch.Tensor.get_device:
            return 0
        if function is torch.Tensor.tolist:
            _current().note("wait", "tolist")
            return args[0].values.tolist()
        if function in (torch.Tensor.to, torch.Tensor.cpu, torch.Tensor.cuda):
            return _move(function, *args, **kwargs)
        with torch._C.DisableTorchFunctionSubclass():
            return function(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with _current():
            return function(*args, **(kwargs or {}))


class Card(TorchDispatchMode):
    """Runs the card's operators on the CPU, and counts them.

    Attributes:
        events: how often, by event and operator.
        moved: bytes copied, by "upload" and "download".
        live: bytes on the card now.
        peak: the most there were at once since `reset`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.events: Counter[tuple[Event, str]] = Counter()
        self.moved: Counter[Event] = Counter()
        self.live = self.peak = 0
        self._storages: dict[int, int] = {}

    def total(self, event: Event) -> int:
        """How often an event happened, over all operators."""
        return sum(count for (kind, _), count in self.events.items() if kind == event)

    def reset(self) -> None:
        """Count from here on; what is on the card stays there."""
        self.events.clear()
        self.moved.clear()
        self.peak = self.live

    def note(self, event: Event, operator: str, size: int = 0) -> None:
        """Count an event of an operator that moved `size` bytes."""
        self.events[event, operator] += 1
        self.moved[event] += size

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is torch.ops.prim.device.default:
            return DEVICE
        leaves, tree = tree_flatten((args, kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        on_card = [tensor for tensor in tensors if isinstance(tensor, CardTensor)]
        target = torch.device(kwargs["device"]).type if kwargs.get("device") is not None else None
        # autograd's C++ makes its constants without naming a device: inside a backward pass they are the card's
        constant_of_backward = not tensors and torch._C._current_graph_task_id() != -1
        if not on_card and target != "cuda" and not constant_of_backward:
            return function(*args, **kwargs)
        name = str(function).removeprefix("aten.")
        if function is _ops._to_copy.default:
            return self._converted(name, args[0], kwargs, target)
        if function is _ops.copy_.default:
            return self._filled(name, *args, **kwargs)
        others = [tensor for tensor in tensors if not isinstance(tensor, CardTensor)]
        _refuse(function, name, args, on_card, others, leaves)
        self._count(function, name, others)
        real_args, real_kwargs = tree_unflatten([_lowered(leaf) for leaf in leaves], tree)
        result = function(*real_args, **real_kwargs)
        if function in _READS_A_VALUE:
            return result
        same = {id(tensor.values): tensor for tensor in on_card}
        return tree_map(lambda leaf: self._lifted(leaf, same) if isinstance(leaf, torch.Tensor) else leaf, result)

    def _lifted(self, values: torch.Tensor, same: dict[int, CardTensor]) -> CardTensor:
        """The card's tensor of these values: the very argument where an operator works in place."""
        if id(values) in same:
            return same[id(values)]
        storage = values.untyped_storage()
        identity, size = storage._cdata, storage.nbytes()
        if identity not in self._storages:
            self._storages[identity] = size
            self.live += size
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._freed, identity)
        return CardTensor(values)

    def _freed(self, identity: int) -> None:
        self.live -= self._storages.pop(identity, 0)

    def _converted(self, name: str, source: torch.Tensor, kwargs: dict[str, Any], target: str | None) -> torch.Tensor:
        """What `to` makes: another dtype, layout or device; a backward pass converts dtypes only, on the card."""
        from_card, backward = isinstance(source, CardTensor), torch._C._current_graph_task_id() != -1
        to_card = target == "cuda" or (from_card and (target is None or backward))
        values: torch.Tensor = _ops._to_copy.default(_lowered(source), **tree_map(_lowered, kwargs))
        self._note_copy(name, from_card, to_card, values, bool(kwargs.get("non_blocking")))
        return self._lifted(values, {}) if to_card else values

    def _filled(
        self, name: str, target: torch.Tensor, source: torch.Tensor, non_blocking: bool = False
    ) -> torch.Tensor:
        """What `target.copy_(source)` does."""
        self._note_copy(name, isinstance(source, CardTensor), isinstance(target, CardTensor), source, non_blocking)
        _lowered(target).copy_(_lowered(source))
        return target

    def _note_copy(self, name: str, from_card: bool, to_card: bool, values: torch.Tensor, non_blocking: bool) -> None:
        size = values.numel() * values.element_size()
        if from_card and to_card:
            self.note("kernel", name)
            return
        self.note("upload" if to_card else "download", name, size)
        if not (to_card and non_blocking):  # what comes from the card is looked at, so it has to be there
            self.note("wait", name)

    def _count(self, function: Any, name: str, others: list[torch.Tensor]) -> None:
        if function in _READS_A_VALUE | _SIZE_FROM_VALUES:
            self.note("wait", name)
        if function in _READS_A_VALUE or function.is_view or function in _NO_KERNEL:
            return
        if function in _INDEX | _INDEX_PUT and any(tensor.dim() for tensor in others):
            self.note("upload", f"{name}, index of the CPU")
            self.note("wait", f"{name}, index of the CPU")
        if not _has_cuda_kernel(function):
            raise NotImplementedError(f"{name}: this build of PyTorch has no CUDA kernel for it")
        self.note("kernel", name)


class _Numbered(TorchFunctionMode):
    """Says `cuda:0` where `cuda` was said, for which PyTorch would ask the driver, and makes tensors by a copy."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if function in (torch.tensor, torch.as_tensor) and _is_card(kwargs.get("device")):
            del kwargs["device"]
            return function(*args, **kwargs).to(DEVICE)
        if function is torch.Tensor.new_tensor and isinstance(args[0], CardTensor):
            return torch.tensor(args[1], dtype=kwargs.get("dtype") or args[0].dtype).to(DEVICE)
        if function is torch.Tensor.to and any(isinstance(arg, CardTensor) for arg in args):
            return _move(function, *args, **kwargs)
        if _is_card(kwargs.get("device")):
            kwargs["device"] = DEVICE
        args = tuple(DEVICE if isinstance(arg, torch.device) and _is_card(arg) else arg for arg in args)
        return function(*args, **kwargs)


def _move(function: Any, tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """What `to`, `cpu` and `cuda` do, by the device that a tensor says it has."""
    wanted: dict[str, Any] = {"device": tensor.device, "dtype": tensor.dtype}
    for arg in args:
        match arg:
            case bool():
                kwargs.setdefault("non_blocking", arg)
            case torch.Tensor():
                wanted |= {"device": arg.device, "dtype": arg.dtype}
            case torch.dtype():
                wanted["dtype"] = arg
            case str() | torch.device():
                wanted["device"] = torch.device(arg)
    wanted |= {name: value for name, value in kwargs.items() if value is not None}
    if function in (torch.Tensor.cpu, torch.Tensor.cuda):
        wanted["device"] = CPU if function is torch.Tensor.cpu else DEVICE
    device, layout = torch.device(wanted["device"]), kwargs.get("memory_format")
    if device.type == tensor.device.type and wanted["dtype"] == tensor.dtype and not kwargs.get("copy"):
        return tensor if layout is None else tensor.contiguous(memory_format=layout)
    options: dict[str, Any] = {} if layout is None else {"memory_format": layout}
    options["non_blocking"] = bool(kwargs.get("non_blocking"))
    goal = DEVICE if device.type == "cuda" else CPU
    converted: torch.Tensor = _ops._to_copy.default(tensor, dtype=wanted["dtype"], device=goal, **options)
    return converted


def _refuse(
    function: Any,
    name: str,
    args: tuple[Any, ...],
    on_card: list[CardTensor],
    others: list[torch.Tensor],
    leaves: list[Any],
) -> None:
    """Raise what a card would raise for these arguments of an operator."""
    if any(isinstance(leaf, torch.Generator) and leaf.device.type == "cpu" for leaf in leaves):
        raise RuntimeError(f"{name}: Expected a 'cuda' device type for generator but found 'cpu'")
    if function in _INDEX | _INDEX_PUT:
        if not isinstance(args[0], CardTensor):
            raise RuntimeError(f"{name}: indices should be on the same device as the indexed tensor (cpu)")
        if function in _INDEX_PUT and not isinstance(args[2], CardTensor) and args[2].dim():
            raise RuntimeError(
                f"{name}: Expected all tensors to be on the same device: values on cpu, tensor on cuda:0"
            )
    elif function is _ops.native_batch_norm_backward.default and args[2] is None and any(args[9][1:]):
        raise RuntimeError(f"{name}: the gradient of a weight that is not there")
    elif function is not _ops.lift_fresh.default and on_card and any(tensor.dim() for tensor in others):
        raise RuntimeError(f"{name}: Expected all tensors to be on the same device, found cuda:0 and cpu")


def _lowered(leaf: Any) -> Any:
    """An argument as the CPU takes it."""
    if isinstance(leaf, CardTensor):
        return leaf.values
    return CPU if isinstance(leaf, torch.device) else leaf


def _is_card(device: Any) -> bool:
    return device is not None and not isinstance(device, int) and torch.device(device).type == "cuda"


def _has_cuda_kernel(function: Any) -> bool:
    """Whether tensors of a card would find a kernel; taken for granted where PyTorch was built without CUDA."""
    keys = ("CUDA", "CompositeExplicitAutograd", "CompositeImplicitAutograd", "CompositeExplicitAutogradNonFunctional")
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    return not torch.backends.cuda.is_built() or any(has(function.name(), key) for key in keys)


_cards: list[Card] = []


def _current() -> Card:
    return _cards[-1]


@contextmanager
def card() -> Iterator[Card]:
    """A card is there inside: `torch.cuda.is_available()`, and what is put on `cuda` is a `CardTensor`."""
    patch = pytest.MonkeyPatch()
    answers = {
        "is_available": lambda: True,
        "_lazy_init": lambda: None,
        "is_initialized": lambda: True,
        "is_current_stream_capturing": lambda: False,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "synchronize": lambda device=None: None,
        "get_device_properties": lambda device=None: _Properties(),
    }
    for name, answer in answers.items():
        patch.setattr(torch.cuda, name, answer)
    patch.setattr(torch.optim.Optimizer, "_accelerator_graph_capture_health_check", lambda self: None, raising=False)
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    _cards.append(Card())
    try:
        with _Numbered(), _cards[-1]:
            yield _cards[-1]
    finally:
        _cards.pop()
        torch.__future__.set_overwrite_module_params_on_conversion(False)
        patch.undo()


class _Properties:
    """What PyTorch says of the pretended card."""

    name, total_memory, uuid = "pretended", 80 << 30, "GPU-00000000-0000-0000-0000-000000000000"
