"""What the layers of a model do in a forward pass, put on tape by hooks.

While a layer with an exact rule runs, its parameters do not require gradients, so that autograd never forms a weight
gradient; kept are its input and the edge of its output in the graph. Under activation checkpointing layers run again
while gradients are taken: the same way, but off the tape.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.utils import _pytree as pytree

from privlm.privacy import clipping as clip
from privlm.privacy.inspection import UnsupportedModuleError, exact_rules
from privlm.privacy.shared_rows import share
from privlm.privacy.tape import Call, Output, version


class Recorder:
    """Attached to a model from the start until `detach`; without effect outside `recording`.

    rules: of the parameters of each module. names: of the modules. parameters: the trainable ones. watched: modules
    whose outputs are kept, too; it may grow from pass to pass.

    calls, outputs: the tape. has_run: whether a layer has run in this pass.
    """

    def __init__(
        self,
        model: nn.Module,
        rules: Mapping[nn.Module, Mapping[str, clip.Rule]],
        names: Mapping[nn.Module, str],
        parameters: list[nn.Parameter],
        watched: set[nn.Module],
    ) -> None:
        self.calls: list[Call] = []
        self.outputs: list[Output] = []
        self.has_run = False
        self._rules = rules
        self._names = names
        self._parameters = parameters
        self._watched = watched
        self._exact = {module: exact_rules(rules_of_module) for module, rules_of_module in rules.items()}
        self._is_recording = False
        self._is_taping = False
        self._batch_size: int | None = None  # of the forward pass under way
        self._handles: list[Any] = [model.register_forward_pre_hook(self._see_batch, with_kwargs=True)]
        self._hook_ids: dict[nn.Module, tuple[int, int]] = {}
        self._stand_innermost()

    def detach(self) -> None:
        for handle in self._handles:
            handle.remove()

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Around a forward pass and what is made of it."""
        self._stand_innermost()
        self._is_recording = self._is_taping = True
        try:
            yield
        finally:
            self._is_recording = self._is_taping = self.has_run = False
            self.calls, self.outputs = [], []
            self._batch_size = None
            for parameter in self._parameters:  # of layers that an exception or a checkpoint's recomputation has left
                parameter.requires_grad_(True)

    def end_of_forward(self) -> None:
        """What runs from here on is recomputed."""
        self._is_taping = False

    def end_of_backward(self) -> None:
        """No layer runs for the model any more."""
        self._is_recording = False
        self.calls, self.outputs = [], []

    def _see_batch(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._is_taping:
            self.has_run = True
            tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor) and value.ndim]
            self._batch_size = len(tensors[0]) if tensors else None

    def _stand_innermost(self) -> None:
        """Nothing may stand between our hooks and the forward function, whoever registered his first."""
        for module in {*self._rules, *self._watched}:
            if module not in self._hook_ids:
                before = module.register_forward_pre_hook(self._before, with_kwargs=True)
                after = module.register_forward_hook(self._after, with_kwargs=True, prepend=True)
                self._handles += [before, after]
                self._hook_ids[module] = before.id, after.id
            else:
                before_id, after_id = self._hook_ids[module]
                pre_hooks: Any = module._forward_pre_hooks  # ordered
                hooks: Any = module._forward_hooks
                pre_hooks.move_to_end(before_id)
                hooks.move_to_end(after_id, last=False)

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not self._is_recording:
            return
        self.has_run = self.has_run or self._is_taping
        exact = self._exact.get(module, {})
        before_id, after_id = self._hook_ids[module]
        if next(reversed(module._forward_pre_hooks)) != before_id or next(iter(module._forward_hooks)) != after_id:
            raise UnsupportedModuleError({self._names[module]: "a hook was registered during the forward pass"})
        if exact and "forward" in vars(module):
            raise UnsupportedModuleError(
                {self._names[module]: "its forward function was replaced: attach the engine last"}
            )
        if _only_input(args, kwargs) is not None:
            for name in exact:
                getattr(module, name).requires_grad_(False)

    def _after(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        if not self._is_recording:
            return None
        exact = self._exact.get(module, {})
        for name in exact:
            getattr(module, name).requires_grad_(True)
        x = _only_input(args, kwargs)
        if not torch.is_grad_enabled():
            return None
        if exact and x is not None and not output.requires_grad:  # a first layer: nothing before it is trained
            output.requires_grad_(True)
        output = pytree.tree_map_only(Tensor, partial(self._with_edge, module), output)
        if x is not None and module in self._rules and isinstance(output, Tensor) and output.requires_grad:
            call = Call(module, x.detach(), get_gradient_edge(output), version(x))
            if exact and isinstance(module, nn.Embedding) and self._is_shared(x):
                copied = partial(self._copied, call, output.detach(), output._version)
                return share(output, copied, escapes=partial(self._tape_once, call))
            self._tape(call)
        return output

    def _tape(self, call: Call) -> None:
        if self._is_taping:
            self.calls.append(call)

    def _tape_once(self, call: Call) -> None:
        if not any(call is taped for taped in self.calls):
            self._tape(call)

    def _with_edge(self, module: nn.Module, output: Tensor) -> Tensor:
        """The same memory under a node of its own.

        Models may change an output in place; on a leaf that is an error, and on a view (what Linear returns for 3D
        inputs) it would cut the recorded edge out of the graph.
        """
        if not output.requires_grad:
            return output
        output = torch.ops.aten._unsafe_view(output, output.shape)
        if self._is_taping and module in self._watched:
            self.outputs.append(Output(module, get_gradient_edge(output)))
        return output

    def _is_shared(self, ids: Tensor) -> bool:
        """Whether a table is asked once for all records."""
        if ids.ndim == 0 or self._batch_size == 1:
            return False
        return len(ids) == 1 or (ids.ndim == 1 and self._batch_size not in (None, len(ids)))

    def _copied(self, shared: Call, rows: Tensor, version_of_rows: int, num_records: int, is_row: bool) -> Tensor:
        """`rows`, which the call gave, once for each record, as the output of a call of its own.

        is_row: their first dimension is the one row of all records.
        """
        if rows._version != version_of_rows:
            raise UnsupportedModuleError(
                {self._names[shared.module]: "what all records share is changed in place: change a copy"}
            )
        ids, rows = (shared.input, rows) if is_row else (shared.input[None], rows[None])
        copies = rows.expand(num_records, *rows.shape[1:]).detach()
        if not torch.is_grad_enabled():
            return copies
        copies = torch.ops.aten._unsafe_view(copies.requires_grad_(True), copies.shape)
        ids = ids.expand(num_records, *ids.shape[1:])
        self._tape(Call(shared.module, ids, get_gradient_edge(copies), shared.version, is_copy=True))
        return copies


def _only_input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """Of a layer; None where it is called with more than one tensor."""
    values = [*args, *kwargs.values()]
    return values[0] if len(values) == 1 and isinstance(values[0], Tensor) else None
