"""Imports flow one way: a module imports only from its own layer and from earlier ones."""

import ast
from pathlib import Path

import gridlstm

PACKAGE = Path(gridlstm.__file__).parent
LAYERS = [
    ["errors", "options", "files", "machine"],
    ["config", "configured"],
    ["explain"],
    ["command"],
    ["cell"],
    ["cells"],
    ["scan"],
    ["regularizers"],
    ["engine.plan", "engine.pointwise", "engine.build", "engine.memory", "engine.operands"],
    ["engine.mkl", "engine.compiled"],
    ["engine.matmul", "engine.dropout"],
    ["engine.buffers"],
    ["engine.steps", "engine.triton_kernels", "engine.triton_step"],
    ["engine.fused"],
    ["engine.bfloat16", "engine.passes"],
    ["engine.choices", "engine.packed"],
    ["engine.wavefront", "engine.layer_major", "engine.half_step", "engine.chain", "engine.graphs"],
    ["engine.dispatch"],
    ["grid", "mdlstm"],
    ["time_depth"],
    ["layer", "contenders"],
    ["models"],
    ["cost"],
    ["data"],
    ["metrics", "schedules", "bleu"],
    ["tasks"],
    ["decoding"],
    ["translator"],
    ["training"],
    ["multirun"],
    ["report"],
    ["dashboard"],
    ["train", "evaluate", "average", "sample", "bench", "verify", "list", "doctor", "publish", "translate", "__main__"],
    ["look"],
]
LAYER = {name: rank for rank, names in enumerate(LAYERS) for name in names}


def layered(dotted: str) -> str:
    """Return the name in ``LAYERS`` of a module, whose path is relative to the package."""
    parts = dotted.split(".")
    return ".".join(parts[: 2 if parts[0] == "engine" else 1])


def test_gridlstm_lists_the_layer_class_before_importing_it() -> None:
    assert "GridLSTM" in dir(gridlstm)


def imports(path: Path) -> set[str]:
    """Return the name in ``LAYERS`` of every import of the package in a file, including imports inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        found |= {layered(name.removeprefix("gridlstm.")) for name in names if name.startswith("gridlstm.")}
    return found - {"__version__"}


def module(path: Path) -> str:
    return layered(".".join(path.relative_to(PACKAGE).with_suffix("").parts))


FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if path.name != "__init__.py"]


def test_every_module_has_a_layer() -> None:
    assert {module(path) for path in FILES} == set(LAYER)


def test_imports_flow_one_way() -> None:
    against = [
        f"{path.relative_to(PACKAGE)} imports {name}"
        for path in FILES
        for name in imports(path)
        if LAYER[name] > LAYER[module(path)]
    ]
    assert not against


def test_models_and_data_do_not_import_each_other() -> None:
    assert not any("data" in imports(path) for path in (PACKAGE / "models").glob("*.py"))
    assert not any("models" in imports(path) for path in (PACKAGE / "data").glob("*.py"))


def test_one_file_instantiates() -> None:
    assert [p.name for p in FILES if "instantiate(" in p.read_text()] == ["build.py"]
