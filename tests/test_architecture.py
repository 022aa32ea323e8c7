"""Promises about the code itself: who imports whom, what is public, and under which name."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import unlearnbench
from unlearnbench.plugin import hookspecs
from unlearnbench.records import code_digest

ROOT = Path(__file__).parent.parent
FOLDERS = {"harness": "unlearnbench", "methods": "unlearnbench.methods", "benchmarks": "unlearnbench.benchmarks",
           "attacks": "unlearnbench.attacks", "leaderboard": "unlearnbench.leaderboard"}  # fmt: skip
# A room is a folder, or a module at the harness's root. Each imports from its own and from lower floors alone.
FLOORS = (
    ("errors", "_compat"),
    ("domain",),
    ("storage",),
    ("plugin", "metrics"),
    ("data",),
    ("engine", "records"),
    ("contracts",),
    ("training",),
    ("worker", "planning"),
    ("running",),
    ("results",),
    ("authoring",),
    ("methods", "benchmarks", "attacks", "leaderboard"),
    ("api",),
    ("cli",),
    ("__main__",),
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
# What the leaderboard may know of the harness, whatever lies below it: results as values, and how to read numbers.
SHOWN = {"_compat", "errors", "domain", "storage", "plugin", "metrics", "records"}
TARGET = re.compile(r"^unlearnbench\.[a-z_.]+(:\w+)?$")


def sources():
    """Every module of ours by its absolute name, with its file."""
    for folder, package in FOLDERS.items():
        for path in (ROOT / folder).rglob("*.py"):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            yield ".".join((package, *parts)).removesuffix(".__init__"), path


MODULES = dict(sources())


def imports(module):
    """Absolute names of modules of ours that one imports, at the top or later, and that its texts name as targets."""
    path = MODULES[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            parent = parts[: len(parts) - node.level + 1] if node.level else []
            base = ".".join((*parent, node.module) if node.module else parent)
            found = [name if (name := f"{base}.{alias.name}") in MODULES else base for alias in node.names]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and TARGET.match(node.value):
            found = [node.value.partition(":")[0]]
        else:
            continue
        yield from (name for name in found if name in MODULES)


def room(module):
    return module.split(".")[1] if "." in module else "unlearnbench"


ARROWS = {module: set(imports(module)) - {module} for module in MODULES}


def test_the_harness_has_few_rooms_and_few_modules_at_its_root():
    inside = [entry for entry in (ROOT / "harness").iterdir() if not entry.name.startswith("__pycache__")]
    assert len([entry for entry in inside if entry.suffix == ".py"]) <= 8
    assert len([entry for entry in inside if entry.is_dir()]) <= 12
    assert {room(module) for module in MODULES} - {"unlearnbench"} <= set(FLOOR)


@pytest.mark.parametrize("module", sorted(MODULES))
def test_no_arrow_points_upwards(module):
    mine = room(module)
    for other in ARROWS[module]:
        theirs = room(other)
        if mine != theirs and "unlearnbench" not in (mine, theirs):
            assert FLOOR[theirs] < FLOOR[mine], f"{module} imports {other}"


def test_no_modules_import_each_other_in_a_circle():
    done, path = set(), []

    def visit(module):
        assert module not in path, " → ".join([*path[path.index(module) :], module])
        if module not in done:
            path.append(module)
            for other in sorted(ARROWS[module]):
                visit(other)
            done.add(path.pop())

    for module in sorted(MODULES):
        visit(module)


@pytest.mark.parametrize("folder", ["methods", "benchmarks", "attacks"])
def test_what_is_built_in_uses_what_any_plugin_may(folder):
    """Public names of ``unlearnbench`` alone, so that a stranger could have written it."""
    for module in (name for name in MODULES if room(name) == folder):
        for other in ARROWS[module]:
            assert other == "unlearnbench" or room(other) == folder, f"{module} imports {other}"


def test_the_leaderboard_knows_results_as_values_alone():
    for module in (name for name in MODULES if room(name) == "leaderboard"):
        for other in ARROWS[module]:
            assert room(other) in {"leaderboard", *SHOWN}, f"{module} imports {other}"


def test_the_leaderboard_reads_records_and_never_models():
    code = (
        "import sys, unlearnbench.leaderboard.render, unlearnbench.leaderboard.terminal\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_the_folders_are_not_imported_under_their_bare_names():
    assert not set(FOLDERS) & set(sys.modules)
    bare = re.compile(r"^\s*(?:from|import) (harness|methods|benchmarks|attacks|leaderboard)\b", re.MULTILINE)
    for path in [file for folder in (*FOLDERS, "tests") for file in (ROOT / folder).rglob("*.py")]:
        assert not bare.search(path.read_text()), path


def test_what_is_public_is_importable_and_sorted():
    names = unlearnbench.__all__
    assert names == sorted(names)
    assert all(getattr(unlearnbench, name) is not None for name in names)
    with pytest.raises(AttributeError, match="Nonsense"):
        unlearnbench.Nonsense  # noqa: B018


def closure(module):
    """All modules of ours that are imported with one."""
    found, left = set(), [module]
    while left:
        name = left.pop()
        if name not in found:
            found.add(name)
            # A package is imported before its modules.
            left += [*ARROWS[name], *([name.rpartition(".")[0]] if "." in name else [])]
    return found


def test_every_module_that_a_cell_imports_changes_its_content_key(tmp_path, monkeypatch):
    """A byte in any of them: numbers of other code must not be taken for those of this."""
    copy = tmp_path / "harness"
    shutil.copytree(ROOT / "harness", copy)
    monkeypatch.setattr(code_digest, "HARNESS", copy)
    digest = code_digest.engine_digest.__wrapped__
    before = digest()
    cell = {name for name in closure("unlearnbench.worker.worker") if room(name) not in FOLDERS}
    for module in cell - {"unlearnbench"}:
        path = copy / MODULES[module].relative_to(ROOT / "harness")
        kept = path.read_bytes()
        path.write_bytes(kept + b"#")
        assert digest() != before, module
        path.write_bytes(kept)
    assert digest() == before
    assert len(cell) > 40


def test_every_hook_says_when_it_is_called():
    hooks = [value for name, value in vars(hookspecs).items() if name.startswith("unlearnbench_")]
    assert len(hooks) == 9
    assert all("Called" in hook.__doc__ for hook in hooks)


def test_the_readme_names_every_hook_method_benchmark_and_attack(command):
    readme = (ROOT / "README.md").read_text()
    for name in vars(hookspecs):
        if name.startswith("unlearnbench_"):
            assert f"`{name}`" in readme
    for kind in ("methods", "benchmarks", "attacks"):
        for entry in command("list", kind, "--json").json[kind]:
            assert f"`{entry['name']}`" in readme


def test_the_method_in_the_readme_works(command, tmp_path):
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (tmp_path / "my_method.py").write_text(block)
    study = command.study("-m", "halfway", "-b", "tofu-forget05", "--name", "readme", "--plugin", "my_method.py")
    done = command(*study, "--json")
    assert done.code == 0, done.err
    losses = {r["identity"]["method"]: r["scores"]["forget_probability"]["value"] for r in done.json["records"]}
    assert losses["halfway"] < losses["original"]


def test_the_study_in_the_readme_is_a_study():
    import tomllib

    from unlearnbench.planning.study import check_study

    blocks = re.findall(r"```toml\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    whole, sweep = (check_study(tomllib.loads(block)) for block in blocks)
    assert whole.seeds == (0, 1, 2)
    assert whole.data.source == "local"
    assert sweep.repeats == (0, 1)
    assert sweep.sweep.settings == 8


def test_the_readme_s_test_command_is_the_one_that_ci_runs():
    readme, ci = (ROOT / "README.md").read_text(), (ROOT / ".ci" / "run").read_text()
    assert "tox run" in readme
    assert '/bin/tox" run' in ci
    assert "demo --quick" in readme
    assert "demo --quick" in ci
