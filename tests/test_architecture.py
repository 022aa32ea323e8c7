"""Promises about the code itself: who imports whom, what is public, and under which name."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

import unlearnbench
from unlearnbench import hookspecs
from unlearnbench.sources import BESIDE

ROOT = Path(__file__).parent.parent
FOLDERS = {"harness": "unlearnbench", "methods": "unlearnbench.methods", "benchmarks": "unlearnbench.benchmarks",
           "leaderboard": "unlearnbench.leaderboard"}  # fmt: skip
ALLOWED = {"harness": {"harness"}, "methods": {"methods", "harness"}, "benchmarks": {"benchmarks", "harness"},
           "leaderboard": {"leaderboard", "harness"}}  # fmt: skip


def imports(path, package):
    """Absolute names of what a file imports; relative imports stay inside the folder by their dots."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = package.split(".")
                parent = ".".join(parts[: len(parts) - node.level + 1])
                base = f"{parent}.{base}" if base else parent
            yield base


def home(module):
    """The folder that a module of ours lives in."""
    for folder in ("methods", "benchmarks", "leaderboard"):
        if module == FOLDERS[folder] or module.startswith(FOLDERS[folder] + "."):
            return folder
    return "harness" if module.partition(".")[0] == "unlearnbench" else None


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_arrows(folder):
    for path in (ROOT / folder).rglob("*.py"):
        inner = path.relative_to(ROOT / folder).parent.parts
        package = ".".join([FOLDERS[folder], *inner])
        for module in imports(path, package):
            assert home(module) in ALLOWED[folder] | {None}, f"{path} imports {module}"


def test_the_leaderboard_reads_records_and_never_models():
    code = (
        "import sys, unlearnbench.leaderboard.render, unlearnbench.leaderboard.terminal\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_the_folders_are_not_imported_under_their_bare_names():
    assert not set(FOLDERS) & set(sys.modules)
    bare = re.compile(r"^\s*(?:from|import) (harness|methods|benchmarks|leaderboard)\b", re.MULTILINE)
    for path in [file for folder in (*FOLDERS, "tests") for file in (ROOT / folder).rglob("*.py")]:
        assert not bare.search(path.read_text()), path


def test_what_is_public_is_importable_and_sorted():
    names = unlearnbench.__all__
    assert names == sorted(names, key=lambda name: (not name.isupper(), not name[0].isupper(), name))
    assert all(getattr(unlearnbench, name) is not None for name in names)
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        unlearnbench.Nonsense  # noqa: B018


def test_what_is_beside_the_engine_exists_and_no_engine_module_needs_it_to_compute():
    """Everything else is part of the content key: what a module of the engine imports may change a number."""
    assert all(importlib.util.find_spec(f"unlearnbench.{name}") for name in BESIDE)
    harness = Path(unlearnbench.__file__).parent
    for path in harness.glob("*.py"):
        if path.stem not in BESIDE:
            imported = {line.split()[1].lstrip(".") for line in path.read_text().splitlines()
                        if re.match(r"from \.\w+ import", line)}  # fmt: skip
            assert imported & BESIDE <= {"errors", "execution", "plugins", "provenance"}, path.stem


def test_every_hook_says_when_it_is_called():
    hooks = [value for name, value in vars(hookspecs).items() if name.startswith("unlearnbench_")]
    assert len(hooks) == 8
    assert all("Called" in hook.__doc__ for hook in hooks)


def test_the_readme_names_every_hook_method_and_benchmark(command):
    readme = (ROOT / "README.md").read_text()
    for name in vars(hookspecs):
        if name.startswith("unlearnbench_"):
            assert f"`{name}`" in readme
    for kind in ("methods", "benchmarks"):
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

    from unlearnbench.study import check_study

    (block,) = re.findall(r"```toml\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    study = check_study(tomllib.loads(block))
    assert study.seeds == (0, 1, 2)
    assert study.data["source"] == "local"


def test_the_readme_s_test_command_is_the_one_that_ci_runs():
    readme, ci = (ROOT / "README.md").read_text(), (ROOT / ".ci" / "run").read_text()
    assert "tox run" in readme
    assert '/bin/tox" run' in ci
    assert "demo --quick" in readme
    assert "demo --quick" in ci
