"""The stored specs of the built-in methods: fresh, complete, and read without torch."""

from __future__ import annotations

import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest

from unlearnbench import stored_specs, written_specs
from unlearnbench.authoring.component_specs import main
from unlearnbench.methods.catalogue import specs
from unlearnbench.methods.plugin import unlearnbench_methods

CATALOGUE = "unlearnbench.methods.catalogue:specs"
STORED = files("unlearnbench.methods") / "specs.json"


def test_the_stored_specs_are_those_of_the_classes():
    """Where this fails, write them anew: ``methods/catalogue.py`` names the command."""
    assert STORED.read_text(encoding="utf-8") == written_specs(specs())


def test_specs_are_read_as_they_were_written():
    assert unlearnbench_methods() == specs()


def test_the_command_writes_what_is_stored(tmp_path):
    assert main([CATALOGUE, str(tmp_path / "specs.json")]) == ""
    assert stored_specs(tmp_path / "specs.json") == specs()


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [([CATALOGUE], "usage: "), (["nowhere.to:find", "specs.json"], "cannot load nowhere.to:find")],
)
def test_the_command_names_what_is_wrong_with_its_arguments(arguments, fault):
    assert fault in main(arguments)
    assert not Path("specs.json").exists()


def test_every_method_names_its_paper_and_a_field_that_is_fixed_is_no_parameter():
    for spec in specs():
        assert spec.summary
        assert spec.citation or spec.reference
        assert not set(spec.fixed) & {parameter.name for parameter in spec.parameters}


def test_the_plugin_s_specs_come_without_torch():
    code = (
        "import sys\n"
        "from unlearnbench.methods.plugin import unlearnbench_methods\n"
        "assert len(unlearnbench_methods()) > 10\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
