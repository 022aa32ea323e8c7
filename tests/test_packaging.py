"""The package as strangers get it: a wheel and a source archive, used outside the checkout."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def run(*words, cwd=None):
    done = subprocess.run([str(word) for word in words], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def fresh_environment(folder):
    """An environment with this one's dependencies, but without the package itself."""
    environment = folder / "env"
    venv.create(environment, with_pip=False)
    dependencies = folder / "dependencies"
    dependencies.mkdir()
    for entry in Path(sysconfig.get_paths()["purelib"]).iterdir():
        if "unlearnbench" not in entry.name:
            (dependencies / entry.name).symlink_to(entry)
    site = next((environment / "lib").glob("python*")) / "site-packages"
    (site / "dependencies.pth").write_text(f"{dependencies}\n")
    return environment, environment / "bin" / "python"


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A wheel built from the source archive, so that both are complete."""
    out = tmp_path_factory.mktemp("dist")
    source = tmp_path_factory.mktemp("source")
    if not (ROOT / ".git").exists():
        pytest.skip("not a checkout")
    for name in run("git", "ls-files", "-co", "--exclude-standard", cwd=ROOT).splitlines():
        if (ROOT / name).is_file():
            target = source / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((ROOT / name).read_bytes())
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, source)
    return next(out.glob("*.whl")), next(out.glob("*.tar.gz"))


def test_the_wheel_holds_one_package_with_its_data(built):
    names = zipfile.ZipFile(built[0]).namelist()
    assert {name.split("/")[0] for name in names} == {"unlearnbench", "unlearnbench-0.1.0.dist-info"}
    needed = (
        "py.typed",
        "__init__.pyi",
        "planning/refusals.txt",
        "planning/presets/demo.toml",
        "methods/flat.py",
        "benchmarks/tofu/metrics.py",
        "benchmarks/hp/tasks/local_trades.jsonl",
        "planning/presets/paper-hp.toml",
        "leaderboard/published.json",
        "authoring/templates/method/loss.py.in",
        "authoring/templates/leaderboard/review.yml.in",
        "leaderboard/templates/style.css",
        "leaderboard/templates/index.html.j2",
        "methods/specs.json",
        "benchmarks/published_rows.json",
    )
    for name in needed:
        assert f"unlearnbench/{name}" in names


def test_the_source_archive_has_what_a_build_needs(built):
    with tarfile.open(built[1]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"LICENSE", "README.md", "pyproject.toml", "harness/cli/main.py", "methods/plugin.py"} <= names


def test_the_wheel_works_in_a_fresh_environment_outside_the_checkout(built, tmp_path):
    environment, python = fresh_environment(tmp_path)
    run(sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-index", built[0])
    where = run(python, "-c", "import unlearnbench; print(unlearnbench.__file__)", cwd=tmp_path)
    assert where.startswith(str(environment))
    command = environment / "bin" / "unlearnbench"
    assert "flat-tv" in run(command, "list", "methods", cwd=tmp_path)
    assert "tofu-forget05" in run(python, "-m", "unlearnbench", "list", "benchmarks", cwd=tmp_path)


def test_an_editable_install_works_outside_the_checkout(tmp_path):
    environment, python = fresh_environment(tmp_path)
    source = tmp_path / "source"
    source.mkdir()
    for name in (
        "harness",
        "methods",
        "benchmarks",
        "attacks",
        "leaderboard",
        "pyproject.toml",
        "README.md",
        "LICENSE",
    ):
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, source / name)
    words = ("--no-deps", "--no-index", "--no-build-isolation", "--force-reinstall", "--editable", source)
    run(sys.executable, "-m", "pip", "--python", python, "install", "-q", *words)
    where = run(python, "-c", "import unlearnbench.methods as m; print(m.__file__)", cwd=tmp_path)
    assert where.startswith(str(source))
    assert "flat-tv" in run(environment / "bin" / "unlearnbench", "list", "methods", cwd=tmp_path)
