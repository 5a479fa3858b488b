"""What `torch.fx` and `torch.jit.script` find in place of a layer's Python code, which they cannot read."""

from collections.abc import Callable
from typing import Any, NoReturn

from torch import nn
from torch.fx import Proxy

from lstm_fused.errors import bad

PROXY: Any = Proxy  # what symbolic_trace passes instead of tensors, whatever the annotations say


def call_module(module: nn.Module, input: Proxy, *more: Any) -> Any:
    """Record a call of a module, as `torch.fx` does for modules of torch.nn.

    Args:
        module: the layer, which the traced model holds.
        input: its input.
        *more: its other arguments.

    Raises:
        ArgumentError: the layer is itself the model that is traced, or code that is recorded around this call
            would run again in it.
    """
    tracer: Any = input.tracer
    hooked = module._forward_hooks or module._forward_pre_hooks
    if hooked or not type(module).forward.__module__.startswith("lstm_fused."):
        cure = "another layer only by a Tracer whose is_leaf_module returns True for it"
        got = "forward hooks" if hooked else f"{type(module).__name__}, a subclass that overrides forward"
        raise bad("module", f"a layer without hooks and with its own forward; torch.fx traces {cure}", got)
    if tracer.root is module:
        raise bad(
            "input", "a model that holds the layer: symbolic_trace(Sequential(layer))", "the layer alone"
        )
    name = tracer.path_of_module(module)
    return tracer.create_proxy("call_module", name, (input, *more), {})


def call_function(function: Callable[..., Any], input: Proxy, **options: Any) -> Any:
    """Record a call of a function with these arguments, ``input`` among them."""
    tracer: Any = input.tracer
    return tracer.create_proxy("call_function", function, (), {"input": input, **options})


def refuse_script(name: str) -> NoReturn:
    """Raise for `torch.jit.script`, and name the cure."""
    raise RuntimeError(
        f"torch.jit.script cannot compile lstm_fused.{name}, which chooses its engine in Python. Trace "
        "the layer, then compile the model that holds it: "
        "model.layer = torch.jit.trace(model.layer, example_inputs)"
    )
