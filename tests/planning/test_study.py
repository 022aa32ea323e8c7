from __future__ import annotations

import tomllib

import pytest
import tomli_w

from unlearnbench.errors import UnknownName, UsageError
from unlearnbench.planning.overrides import assigned
from unlearnbench.planning.study import check_study, read_study


def checked(text, *assignments):
    return check_study(assigned(tomllib.loads(text), assignments))


def test_every_key_can_be_set_on_the_command_line():
    study = checked(
        "[study]\nname='x'\nmethods=['ga']",
        "study.methods=['npo']", "methods.npo.beta=0.5", 'models."phi-1.5".dtype="float32"', "models.phi-1.5.path=/p",
        "run.jobs=3", "benchmarks.*.limit=5", "study.edition=as-released",
    )  # fmt: skip
    assert study.selected("methods") == ("npo",)
    assert study.overrides("methods") == {"npo": {"beta": 0.5}}
    assert study.overrides("models") == {"phi-1.5": {"dtype": "float32", "path": "/p"}}
    assert study.run.jobs == 3
    assert study.given("benchmarks", "tofu-forget05", ["limit"]) == {"limit": 5}
    assert study.edition == "as-released"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[studdy]\n", "unknown section of the study 'studdy'; did you mean 'study'"),
        ("[study]\nmethod=['ga']", "unknown key of study 'method'; did you mean 'methods'"),
        ("[run]\ntime_out=3", "unknown key of run 'time_out'; did you mean 'timeout'"),
        ("[run]\njobs='two'", "run.jobs = 'two': expected int, got str"),
        ("[run]\njobs=0", "run.jobs = 0: must be at least 1"),
        ("[run]\njobs=true", "run.jobs = True: expected int, got bool"),
        ("[run]\ntimeout=nan", "run.timeout = nan: must be finite"),
        ("[study]\nedition='papper'", "study.edition = 'papper': must be one of 'paper', 'as-released'"),
        ("[study]\nseeds=[1.5]", "study.seeds"),
        ("[study]\nseeds=[-1]", "study.seeds"),
        ("[study]\nmethods=[1]", "study.methods.0 = 1: expected str, got int"),
        ("[study]\nname='a/b'", "names a folder"),
        ("[methods]\nnpo=1", r"methods.npo = 1: expected a table"),
        ("study=3", r"study = 3: expected a table"),
    ],
)
def test_what_cannot_be_used_is_named(text, complaint):
    with pytest.raises(UsageError, match=complaint):
        checked(text)


@pytest.mark.parametrize("assignment", ["npo", "methods=3", "methods.npo=3", "metods.npo.beta=1"])
def test_a_malformed_assignment_is_named(assignment):
    with pytest.raises(UsageError, match=r"--set|unknown section"):
        checked("", assignment)


def test_a_study_file_that_is_absent_or_not_toml_is_refused(tmp_path):
    with pytest.raises(UsageError, match="does not exist"):
        read_study(str(tmp_path / "no.toml"))
    (tmp_path / "bad.toml").write_text("[study\n")
    with pytest.raises(UsageError, match="is not TOML"):
        read_study(str(tmp_path / "bad.toml"))


def test_a_data_folder_implies_local_data():
    assert checked("[data]\ndir='x'").data.source == "local"
    assert checked("").data.source == "hub"


def test_the_stored_study_reads_back():
    raw = {"study": {"name": "x", "seeds": [0, 1]}, "methods": {"npo": {"beta": 0.1}, "*": {"dropout": True}},
           "models": {"phi-1.5": {"path": 'a "quoted" path'}}, "data": {}}  # fmt: skip
    assert tomllib.loads(tomli_w.dumps(raw)) == raw


def test_names_are_suggested():
    with pytest.raises(UnknownName) as caught:
        checked("[data]\nsorce='hub'")
    assert "'source'" in str(caught.value)
