"""Every form that a learner may type, and pytest's own ways."""

import xml.etree.ElementTree as ElementTree

import pytest

from dojo.loading import Kata, katas
from tests.support import reference, run, save

FIRST = katas()[0]


@pytest.mark.parametrize("form", ["katas/03", "03", "3", "katas/3", "katas/03_views", "katas/03_views/test_views.py"])
def test_a_kata_is_found_under_each_of_its_names(form, untouched):
    ended = run(form, f"--impl={untouched}")
    assert ended.exit_code == 1
    assert ended.output.startswith("03 views   0 of 12 done\n")


@pytest.mark.parametrize(
    "inside, forms", [("katas", ["03", "3", "03_views"]), ("katas/03_views", [None, "test_views.py", "katas/03"])]
)
def test_a_kata_is_found_from_inside(inside, forms, house):
    for form in forms:
        ended = run(*([form] if form else []), "--impl=reference", folder=house / inside)
        assert ended.exit_code == 0, ended.output
        assert ended.output.startswith("03 views   12 of 12 done")


@pytest.mark.parametrize(
    "form",
    ["katas/03::TestCenterCrop", "03::TestCenterCrop", "katas/03_views::TestCenterCrop", "katas/03 -k CenterCrop"],
)
def test_one_function_can_be_run_alone(form):
    ended = run(*form.split(), "--impl=reference")
    assert ended.exit_code == 0
    assert ended.output.startswith("03 views   1 of 1 done (11 not run)   center_crop\n")


@pytest.mark.parametrize("form", ["--impl=reference", "--impl reference"])
def test_the_reference_can_be_run_in_the_stubs_place(form):
    assert run("katas/03", *form.split()).exit_code == 0


def test_any_folder_can_stand_in_the_stubs_place_also_a_flat_one(tmp_path):
    views = Kata(FIRST.folder.parent / "03_views")
    (tmp_path / "views.py").write_text(reference(views))
    assert run("katas/03", f"--impl={tmp_path}").exit_code == 0


def test_an_unknown_folder_is_a_usage_error():
    ended = run("katas/03", "--impl=nowhere")
    assert ended.exit_code == 4
    assert "nowhere" in ended.output


def test_a_folder_without_the_kata_is_no_pass(tmp_path):
    ended = run("katas/03", f"--impl={tmp_path}")
    assert ended.exit_code != 0
    assert "views.pydoesnotexist" in "".join(ended.output.split())  # a long path is broken anywhere


def test_a_number_that_does_not_exist_names_those_that_do():
    ended = run("katas/77")
    assert ended.exit_code == 4
    assert all(kata.number in ended.output for kata in katas())


def test_hints_climb_a_ladder_and_may_stand_before_the_path(untouched):
    one, two = (run("katas/03", f"--impl={untouched}", hint).output for hint in ("--hint", "--hint=2"))
    assert one.count("\n  - ") == 1
    assert two.count("\n  - ") == 2
    assert run("--hint", "katas/03", f"--impl={untouched}").output == one


def test_x_stops_at_the_first_failure_and_v_shows_every_one(untouched):
    stopped, verbose = (run("katas/03", f"--impl={untouched}", option) for option in ("-x", "-v"))
    assert stopped.exit_code == verbose.exit_code == 1
    assert verbose.output.count("FAILED") > 200
    assert "TestInterleave" in verbose.output


def test_tb_shows_pytests_own_tracebacks(untouched):
    ended = run("katas/03::TestInterleave", f"--impl={untouched}", "--tb=long")
    assert "NotImplementedError" in ended.output
    assert "raise NotImplementedError" in ended.output


def test_lf_runs_what_failed_last(tmp_path):
    from dojo import warm

    views = Kata(FIRST.folder.parent / "03_views")
    save(tmp_path, views, reference(views).replace("(h - height) // 2", "(h - height + 1) // 2"))
    cache = ["-o", f"cache_dir={tmp_path / 'cache'}"]
    first = warm.run(["katas/03", f"--impl={tmp_path}", *cache])
    again = warm.run(["katas/03", f"--impl={tmp_path}", "--lf", *cache])
    assert first.exit_code == again.exit_code == 1
    assert "not selected" in again.output


@pytest.mark.parametrize("impl, code", [("reference", 0), ("untouched", 1)])
def test_two_processes_give_the_screen_of_one(impl, code, untouched):
    impl = untouched if impl == "untouched" else impl
    one, two = run("katas/03", f"--impl={impl}"), run("katas/03", f"--impl={impl}", "-n", "2")
    assert one.exit_code == two.exit_code == code
    assert two.output.endswith(one.output)


def test_junit_xml_tells_each_spec_with_the_learners_sentence(tmp_path, untouched):
    run("katas/03::TestDiagonal", f"--impl={untouched}", f"--junitxml={tmp_path / 'out.xml'}")
    failures = list(ElementTree.parse(tmp_path / "out.xml").iter("failure"))
    assert failures
    assert all(failure.text.startswith("diagonal is not written yet") for failure in failures)


def test_two_katas_in_one_run_do_not_mix():
    ended = run("katas", "--impl=reference", timeout=240)
    assert ended.exit_code == 0, ended.output
    assert f"{katas()[0].title} to {katas()[-1].title}   all done" in ended.output


def test_a_syntax_error_in_one_kata_hides_no_other(tmp_path):
    for kata in katas():
        save(tmp_path, kata, reference(kata))
    save(tmp_path, FIRST, "def f(:\n")
    ended = run("katas", f"--impl={tmp_path}", timeout=240)
    assert ended.exit_code == 1
    assert f"{FIRST.title}   cannot be loaded" in ended.output
    assert f"02 graph to {katas()[-1].title}   all done" in ended.output


@pytest.mark.parametrize(
    "version, sentence",
    [("2.8.1", "needs torch 2.9 or later, this is torch 2.8.1"), (None, "needs torch, which is not")],
)
def test_a_torch_that_is_missing_or_too_old_gets_one_sentence(version, sentence, monkeypatch):
    from dojo import plugin

    if version:
        monkeypatch.setattr("importlib.metadata.version", lambda name: version)
    else:
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(pytest.UsageError, match=sentence):
        plugin._check_installation()
