"""Keys: whatever can change a number changes the key of what it changes, and nothing else does."""

from __future__ import annotations

import pytest

from unlearnbench.errors import ModelError, UnknownName, UsageError
from unlearnbench.planning.overrides import assigned
from unlearnbench.planning.plan import make_plan
from unlearnbench.planning.study import check_study, selected_by
from unlearnbench.plugin.registry import load_plugins
from unlearnbench.records.code_digest import source_digest

BASE = {
    "study": {"methods": ["npo", "po"], "benchmarks": ["tofu-forget05"], "models": ["tiny"]},
    "data": {"source": "generated"},
    "run": {"device": "cpu"},
}
REGISTRY = load_plugins()


def keys(*assignments):
    plan = make_plan(check_study(assigned(BASE, assignments)), REGISTRY)
    found = {}
    for node in plan.nodes:
        name = node.id.method if node.kind == "cell" else f"{node.spec.role} model"
        found[name] = node.content
    return found


def changed(*assignments):
    before, after = keys(), keys(*assignments)
    return {name for name in before if before[name] != after[name]}


EVERYTHING = {"original model", "retained model", "original", "retained", "npo", "po"}
CELLS = {"original", "retained", "npo", "po"}


@pytest.mark.parametrize(
    ("assignment", "affected"),
    [
        ("methods.npo.beta=0.5", {"npo"}),
        ("methods.unlearnbench/npo.beta=0.5", {"npo"}),
        ("methods.*.epochs=1", {"npo", "po"}),
        ("recipe.epochs=3", EVERYTHING),
        ("models.tiny.lora_rank=4", EVERYTHING),
        ("models.unlearnbench/tiny.lora_rank=4", EVERYTHING),
        ("models.*.lora_rank=4", EVERYTHING),
        ('models.tiny.dtype="bfloat16"', EVERYTHING),
        ("models.tiny.prompt_format=llama2", EVERYTHING),
        ("models.tiny.system_prompt=Be brief.", EVERYTHING),
        ('models.tiny.template_date="2025-04-10"', EVERYTHING),
        ("models.tiny.enable_thinking=true", EVERYTHING),
        ("models.tiny.allow_missing_weights=true", EVERYTHING),
        ("models.tiny.trust_remote_code=true", EVERYTHING),
        ("run.device=cuda", EVERYTHING),
        ("run.optimiser=adamw-8bit", EVERYTHING),
        ("run.optimiser=lora", EVERYTHING),
        ("run.deterministic=true", EVERYTHING),
        ("data.seed=1", EVERYTHING),
        ("data.scale=quick", EVERYTHING),
        ("study.seeds=[1]", EVERYTHING),
        ("benchmarks.tofu-forget05.limit=8", CELLS),
        ("benchmarks.unlearnbench/tofu-forget05.limit=8", CELLS),
        ("benchmarks.*.max_new_tokens=8", CELLS),
        ("benchmarks.*.retain_limit=40", EVERYTHING),
        ("study.edition=as-released", set()),
        ("study.name=other", set()),
        ("run.jobs=4", set()),
        ("run.timeout=9", set()),
    ],
)
def test_a_setting_changes_the_keys_of_what_it_changes(assignment, affected):
    assert changed(assignment) == affected


@pytest.mark.parametrize("package", ["torch", "transformers", "tokenizers", "rouge-score"])
def test_another_version_of_a_library_changes_the_keys(package, monkeypatch):
    from unlearnbench.records import code_digest as sources
    from unlearnbench.records import provenance

    before = keys()
    known = provenance._version
    monkeypatch.setattr(provenance, "_version", lambda name: "99.0" if name == package else known(name))
    sources.engine_digest.cache_clear()
    try:
        after = keys()
    finally:
        monkeypatch.undo()
        sources.engine_digest.cache_clear()
    assert {name for name in before if before[name] != after[name]} == EVERYTHING


def test_every_setting_of_a_model_is_in_its_key_or_known_to_change_nothing(tmp_path):
    """A setting that is added later must be put on one side or the other."""
    from dataclasses import fields

    from unlearnbench.plugin.specs import ModelSpec

    plan = make_plan(check_study(BASE), REGISTRY)
    nodes = [node for node in plan.nodes if node.kind == "model"]
    (node,) = {node.id.model: node for node in nodes}.values()
    in_key = node.spec.model.content.keys()
    beside = {"name", "summary", "citation", "api_version", "shape", "path", "revision", "allow_pickle", "recipe",
              "method_defaults", "original", "retained", "checkpoints_of"}  # fmt: skip
    assert {item.name for item in fields(ModelSpec)} - beside == in_key - {"fingerprint"}


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "generation_config.json",
                                  "chat_template.jinja", "modeling_own.py", "weights.pt"])  # fmt: skip
def test_every_file_of_a_model_s_folder_is_in_its_key(name, tmp_path):
    for file in ("config.json", "model.safetensors", "tokenizer.json", name):
        (tmp_path / file).write_text("{}")

    def key():
        study = check_study(assigned(BASE, [f'study.models=["{tmp_path}"]']))
        return {node.content for node in make_plan(study, REGISTRY).nodes if node.kind == "model"}

    before = key()
    (tmp_path / name).write_text("{ }")
    assert not key() & before


def test_a_template_s_date_is_a_day():
    with pytest.raises(UsageError, match=r"models.tiny.template_date = 'today': expected a day, YYYY-MM-DD"):
        keys("models.tiny.template_date=today")


def test_other_templates_change_the_methods_that_read_them(tmp_path):
    (tmp_path / "mine.txt").write_text("No comment.\n")
    assert changed(f"data.templates={tmp_path / 'mine.txt'}") == {"po"}
    (tmp_path / "latin.txt").write_bytes("Café?\n".encode("latin-1"))
    with pytest.raises(UsageError, match="not UTF-8"):
        keys(f"data.templates={tmp_path / 'latin.txt'}")


def test_a_published_folder_is_known_by_its_files(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"one")
    published = f"models.tiny.original={tmp_path}"
    before = keys(published)
    (tmp_path / "model.safetensors").write_bytes(b"two")
    after = keys(published)
    assert {name for name in before if before[name] != after[name]} == {"original model", *CELLS}
    with pytest.raises(ModelError, match="does not exist"):
        keys("models.tiny.original=./nowhere")


@pytest.mark.parametrize(
    ("data", "source", "given", "published"),
    [
        ("tofu-forget05", "hub", "", {"original": "locuslab/tofu_ft_llama2-7b", "retained": ""}),
        ("muse-news", "hub", "", {"original": "", "retained": ""}),
        ("tofu-forget05", "generated", "", {"original": "", "retained": ""}),
        ("muse-news", "hub", "models.llama2-7b.original=a/b", {"original": "a/b", "retained": ""}),
        ("tofu-forget05", "generated", "models.llama2-7b.original=a/b", {"original": "a/b", "retained": ""}),
    ],
)
def test_a_registered_model_s_checkpoints_are_used_for_the_data_they_were_trained_on_alone(
    data, source, given, published
):
    """A model that never saw what is to be forgotten would stand as the original, and nothing would say so."""
    study = {"methods": ["npo"], "benchmarks": [data], "models": ["llama2-7b"]}
    raw = {"study": study, "data": {"source": source}, "run": {"device": "cpu"}}
    plan = make_plan(check_study(assigned(raw, [given] if given else [])), REGISTRY)
    assert {node.spec.role: node.spec.published for node in plan.nodes if node.kind == "model"} == published


@pytest.mark.parametrize(
    ("assignment", "complaint"),
    [
        ("benchmarks.*.limt=8", "unknown key of benchmarks.* 'limt'; did you mean 'limit'"),
        ("models.*.lora_rnk=8", "unknown key of models.* 'lora_rnk'; did you mean 'lora_rank'"),
        ("methods.*.betta=1.0", "unknown key of methods.* 'betta'; did you mean 'beta'"),
        ("data.foo.seed=3", "has plain keys only, so write data.key=value"),
        ("run.device=gpu", "must be auto, cpu, cuda or cuda:N"),
    ],
)
def test_a_setting_that_would_change_nothing_is_refused(assignment, complaint):
    with pytest.raises(UsageError) as caught:
        keys(assignment)
    assert complaint in str(caught.value)


@pytest.mark.parametrize("raw", [{"benchmarks": ["tofu-forget01"]}, {"study": "x"}])
def test_a_section_that_is_no_table_is_named(raw):
    with pytest.raises(UsageError, match="expected a table"):
        assigned(raw, ["benchmarks.*.limit=5", "study.name=x"])


def test_the_defaults_of_a_model_suit_every_method_that_has_them():
    plan = make_plan(check_study(assigned(BASE, ["methods.npo.batch_size=4"])), REGISTRY)
    values = {node.id.method: node.spec.method.values for node in plan.cells}
    assert values["po"]["batch_size"] == 8  # tiny's own
    assert values["npo"]["batch_size"] == 4
    assert values["original"] == {}


def test_every_node_follows_those_it_needs():
    plan = make_plan(check_study(BASE), REGISTRY)
    seen = set()
    for node in plan.nodes:
        assert set(node.needs) <= seen
        seen.add(node.key)


def test_a_plugin_is_known_by_what_it_imports(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "minex.py").write_text("from minex_helper import f\nfrom unlearnbench.methods.npo import NPO\n")
    (tmp_path / "minex_helper.py").write_text("f = 1\n")
    before = source_digest("minex:X")
    (tmp_path / "minex_helper.py").write_text("f = 2\n")
    assert source_digest("minex:X") != before
    assert source_digest("unlearnbench.methods.flat:FLAT") != source_digest("unlearnbench.methods.npo:NPO")


def test_unknown_names_are_refused():
    with pytest.raises(UnknownName, match="did you mean 'npo'"):
        keys('study.methods=["npoo"]')


@pytest.mark.parametrize(("section", "kept"), [("methods", "whp"), ("benchmarks", "tofu-forget05")])
def test_what_the_command_line_leaves_out_keeps_its_settings_in_the_file(section, kept):
    file = {
        **BASE,
        "study": {**BASE["study"], "methods": ["npo", "po", "whp"], "benchmarks": ["tofu-forget05", "muse-news", "hp"]},
        "recipe": {"muse-news": {"epochs": 1}},
        "benchmarks": {"*": {"chunk_tokens": 64}, "muse-news": {"answer_tokens": 4}},
        "methods": {"*": {"beta": 0.1}, "npo": {"epochs": 1}},
        "sweep": {"methods": {"npo": {"beta": [0.1, 0.2]}, "po": {"epochs": [1, 2]}, "whp": {"alpha": [1.0, 2.0]}}},
    }
    narrowed = {**file, "study": {**file["study"], section: [kept]}}
    plan = make_plan(check_study(narrowed, also=selected_by(file)), REGISTRY)
    assert {node.id.benchmark if section == "benchmarks" else node.id.method for node in plan.cells} == {
        kept, *(() if section == "benchmarks" else ("original", "retained"))
    }  # fmt: skip
    with pytest.raises(UnknownName):
        make_plan(check_study(narrowed), REGISTRY)
