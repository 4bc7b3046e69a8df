"""The katas as a whole: the reference passes, the untouched stub fails spec by spec, and nothing is missing."""

import ast
import doctest
import os
import re
import sys
import xml.etree.ElementTree as ElementTree

import pytest

from dojo import stubs, warm
from dojo.loading import ROOT, Kata, load, spec_class
from dojo.report import ladder
from tests.support import KATAS, reference, run

pytestmark = pytest.mark.parametrize("kata", KATAS, ids=lambda kata: kata.folder.name)


def public_names(kata: Kata) -> list[str]:
    """The functions and classes of a kata that a learner writes, in order; given dataclasses are not among them."""
    tree = ast.parse(stubs.derive(reference(kata)))
    written = [
        node.name
        for node in tree.body
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and stubs.BODY in ast.unparse(node)
    ]
    return written


def spec_classes(kata: Kata) -> list[str]:
    return [node.name for node in ast.parse(kata.spec.read_text()).body if isinstance(node, ast.ClassDef)]


def rule_names(kata: Kata) -> list[str]:
    """The names in the kata's table of house rules, in order."""
    calls = [node for node in ast.walk(ast.parse(kata.spec.read_text())) if isinstance(node, ast.Call)]
    rules = [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "rule"]
    return [call.args[0].value for call in sorted(rules, key=lambda call: call.lineno)]


def outcomes(kata: Kata, impl, tmp_path, *options: str) -> list[ElementTree.Element]:
    """Every spec of a kata on the code in a folder, or those that the options select, as junit test cases."""
    xml = tmp_path / "junit.xml"
    ended = run(kata.command.split()[1], f"--impl={impl}", f"--junitxml={xml}", *options)
    assert xml.exists(), ended.output
    return list(ElementTree.parse(xml).iter("testcase"))


def test_the_reference_passes_every_spec(kata, tmp_path):
    cases = outcomes(kata, "reference", tmp_path)
    failed = [(case.get("name"), case.find("failure").text) for case in cases if case.find("failure") is not None]
    skipped = {case.find("skipped").get("message") for case in cases if case.find("skipped") is not None}
    assert not failed
    assert skipped <= {"no CUDA device"}
    assert len(cases) > 10 * len(public_names(kata)), "a handful of specs cannot tell right from wrong"


def test_every_spec_fails_on_the_untouched_stub_because_it_is_not_written(kata, untouched, tmp_path):
    """A spec that passes on a stub asks nothing; one that fails for another reason misleads."""
    for case in outcomes(kata, untouched, tmp_path):
        if case.find("skipped") is not None:
            continue
        failure = case.find("failure")
        assert failure is not None, f"{case.get('name')} passes on the untouched stub"
        assert "is not written yet" in failure.text, f"{case.get('name')}: {failure.text}"


def test_every_public_name_has_its_class_of_specs_in_order(kata):
    names = public_names(kata)
    wanted = [spec_class(name, names) for name in names]
    assert [name for name in spec_classes(kata) if name in wanted] == wanted


def test_every_public_name_has_a_line_of_house_rules_in_order(kata):
    assert rule_names(kata) == public_names(kata)


def test_every_public_name_has_at_least_two_hints_in_order(kata):
    markdown = kata.hints.read_text()
    assert re.findall(r"^## (\w+)$", markdown, re.M) == public_names(kata)
    for name in public_names(kata):
        assert len(ladder(markdown, name)) >= 2, f"{name} has too few hints"


def test_the_files_of_a_kata_are_all_there(kata):
    for path in (
        kata.stub,
        kata.spec,
        kata.bench,
        kata.hints,
        *map(kata.folder.joinpath, ("README.md", "experiment.py")),
    ):
        assert path.exists()
    assert (ROOT / "reference" / kata.folder.name / "answers.md").exists()


def test_the_exercise_asks_the_three_questions_that_the_answers_answer(kata):
    exercise = (kata.folder / "README.md").read_text()
    answers = (ROOT / "reference" / kata.folder.name / "answers.md").read_text()
    assert exercise.startswith(f"# {kata.title}\n")
    headings = re.findall(r"^## (.*)$", exercise, re.M)
    assert headings == ["Read first", "The exercise", "Questions", "Try next"]
    section = exercise.split("## Questions")[1].split("## ")[0]
    asked = [" ".join(text.split()) for text in re.findall(r"^\d\. (.*?)(?=^\d\. |\Z)", section, re.M | re.S)]
    answered = re.findall(r"^## \d\. (.*)$", answers, re.M)
    assert len(asked) == 3
    assert answered == asked


@pytest.mark.parametrize("document", ["docstrings", "answers.md"])
def test_the_examples_run_on_the_reference(kata, document, monkeypatch):
    path = ROOT / "reference" / kata.folder.name / kata.stub.name
    module = load(path, kata.name)
    monkeypatch.setitem(sys.modules, kata.name, module)
    if document == "docstrings":
        tests = doctest.DocTestFinder(exclude_empty=True).find(module)
        examples = {test.name.split(".")[-1] for test in tests if test.examples}
        assert examples >= set(public_names(kata)), "every docstring shows an example"
    else:
        text = (path.parent / document).read_text()
        tests = [doctest.DocTestParser().get_doctest(text, {}, document, str(path.parent / document), 0)]
        assert tests[0].examples, "the answers show no evidence"
    runner = doctest.DocTestRunner(verbose=False)
    for test in tests:
        runner.run(test)
    assert runner.summarize(verbose=False).failed == 0


def test_the_benchmarks_pass_as_plain_specs_on_the_reference(kata):
    ended = run(kata.bench, "--impl=reference", "--tb=short")
    assert ended.exit_code == 0, ended.output


def test_a_benchmark_names_what_is_not_written_yet_and_its_specs(kata, untouched):
    """A class is named by its own name, not by the method that was called."""
    ended = run(kata.bench, f"--impl={untouched}")
    assert ended.exit_code == 1
    name = re.search(r"^(\w+) is not written yet", ended.output, re.MULTILINE)[1]
    assert name in public_names(kata)
    assert f"{kata.command}::{spec_class(name, public_names(kata))}\n" in ended.output


def test_neither_the_untouched_nor_the_finished_kata_imports_what_is_slow(kata, untouched, tmp_path):
    """torch._dynamo costs as much as torch again, sympy and what torch.testing imports a third of it."""
    probe = tmp_path / "probe.py"
    probe.write_text(
        "import sys\n"
        "def pytest_sessionfinish():\n"
        "    slow = {'torch._dynamo', 'sympy', 'torch.distributed.tensor', 'torch._inductor'} & set(sys.modules)\n"
        "    print('slow imports:', sorted(slow), file=sys.__stderr__)\n"
    )
    for impl in (untouched, "reference"):
        # cold: the warm process may have loaded more
        arguments = [kata.command.split()[1], f"--impl={impl}", "-p", "probe", "-p", "no:cacheprovider"]
        env = {**os.environ, "PYTHONPATH": str(tmp_path)}
        assert "slow imports: []" in warm.cold(arguments, env=env).output
