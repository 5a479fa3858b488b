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
        ArgumentError: the layer is itself the model that is traced.
    """
    tracer: Any = input.tracer
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
