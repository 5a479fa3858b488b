"""What `torch.fx` and `torch.jit.script` find in place of a layer's Python code, which they cannot read."""

from collections.abc import Callable
from typing import Any, NoReturn

from torch import nn
from torch.fx import Proxy, Tracer
from torch.overrides import has_torch_function

from lstm_fused.errors import bad


def proxy_in(hx: Any, *others: Any) -> Any:
    """The first Proxy among a pair of states and other arguments; None if there is none."""
    given = (*others, *hx) if isinstance(hx, (tuple, list)) else (*others, hx)
    if not has_torch_function(given):  # asks for all in one call
        return None
    return next((each for each in given if isinstance(each, Proxy)), None)


def call_module(module: nn.Module, proxy: Proxy, *arguments: Any) -> Any:
    """Record a call of a module, as `torch.fx` does for modules of torch.nn.

    Args:
        module: the layer, which the traced model holds.
        proxy: a Proxy among the arguments.
        *arguments: those of the call.

    Raises:
        ArgumentError: the layer is itself the model that is traced, code that is recorded around this call
            would run again in it, or no model is traced.
    """
    tracer: Any = proxy.tracer
    if not isinstance(tracer, Tracer):
        cure = "for a node of a graph, graph.call_module with the layer's name"
        raise bad("input", f"a Proxy of a model that is traced; {cure}", "a Proxy of a graph")
    hooked = module._forward_hooks or module._forward_pre_hooks
    if hooked or not type(module).forward.__module__.startswith("lstm_fused."):
        cure = "another layer only by a Tracer whose is_leaf_module returns True for it"
        got = "forward hooks" if hooked else f"{type(module).__name__}, a subclass that overrides forward"
        raise bad("module", f"a layer without hooks and with its own forward; torch.fx traces {cure}", got)
    if tracer.root is module:
        raise bad(
            "input", "a model that holds the layer: symbolic_trace(Sequential(layer))", "the layer alone"
        )
    return tracer.create_proxy("call_module", tracer.path_of_module(module), arguments, {})


def call_function(function: Callable[..., Any], proxy: Proxy, /, **arguments: Any) -> Any:
    """Record a call of a function with these arguments, a Proxy among them."""
    tracer: Any = proxy.tracer
    return tracer.create_proxy("call_function", function, (), arguments)


def refuse_script(name: str) -> NoReturn:
    """Raise for `torch.jit.script`, and name the cure."""
    raise RuntimeError(
        f"torch.jit.script cannot compile lstm_fused.{name}, which chooses its engine in Python. Trace "
        "the layer, then compile the model that holds it: "
        "model.layer = torch.jit.trace(model.layer, example_inputs)"
    )
