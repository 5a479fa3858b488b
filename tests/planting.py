"""Plants faults in a module, to check that the tests detect them."""

import importlib.util


def planted(module, old, new, tmp_path, name="broken"):
    """Return the module with a piece of its source replaced."""
    with open(module.__file__) as file:
        source = file.read()
    assert old in source
    path = tmp_path / f"{name}.py"
    path.write_text(source.replace(old, new))
    spec = importlib.util.spec_from_file_location(name, path)
    copy = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(copy)
    return copy
