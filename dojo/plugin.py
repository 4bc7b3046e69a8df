"""The pytest plugin: finds a kata by its number and runs its specs on the learner's file, within limits."""

import gc
import importlib.metadata
import importlib.util
import os
import re
from functools import cached_property
from pathlib import Path

import pytest

from dojo import findings
from dojo.language import LANGUAGES, preferred
from dojo.limits import HAS_ALARM, Hung, start_alarm, stays, stop_alarm
from dojo.loading import ROOT, Kata, LoadError, Recorder, kata_of, katas, load

OLDEST_TORCH = (2, 9)
NEEDED = ("torch", "jaxtyping", "hypothesis", "pytest_timeout")

gc.disable()  # a collection over torch's modules while they load costs a third of the whole start


def pytest_addoption(parser):
    group = parser.getgroup("katas")
    group.addoption("--impl", metavar="FOLDER", help="run the specs on `reference`, or on the solutions in a folder")
    group.addoption("--lang", choices=LANGUAGES, help="words and hints in this language; else in the environment's")
    group.addoption("--hint", nargs="?", const="1", metavar="N", help="show the first N hints for what is not done")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config):
    _check_installation()
    _take_back_swallowed_path(config)
    config.args = [_expand(argument, config.invocation_params.dir) for argument in config.args]
    config.option.impl = _implementation(config)
    config.option.lang = config.option.lang or preferred()
    if not config.getoption("hypothesis_seed", None):
        config.option.hypothesis_seed = "0"  # one verdict for one file; another seed explores further
    if config.option.continue_on_collection_errors is False:
        config.option.continue_on_collection_errors = True  # a syntax error in one kata hides no other
    _switch_benchmarks_off(config)
    os.environ.setdefault("HYPOTHESIS_STORAGE_DIRECTORY", str(ROOT / ".pytest_cache" / "hypothesis"))


def _check_installation():
    remedy = "run `pip install -r requirements.txt` in the environment of this pytest"
    for name in NEEDED:
        if importlib.util.find_spec(name) is None:
            raise pytest.UsageError(f"torch-katas needs {name.replace('_', '-')}, which is not installed: {remedy}")
    version = importlib.metadata.version("torch")
    if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < OLDEST_TORCH:
        needed = ".".join(map(str, OLDEST_TORCH))
        raise pytest.UsageError(f"torch-katas needs torch {needed} or later, this is torch {version}: {remedy}")


def _take_back_swallowed_path(config):
    """In `pytest --hint katas/03` argparse takes the path for the number of hints."""
    hint = config.option.hint
    if hint is not None and not hint.isdecimal():
        config.args = [hint] if config.args == config.getini("testpaths") else [*config.args, hint]
        config.option.hint = "1"


def _expand(argument: str, here: Path) -> str:
    """`03`, `katas/3`, `katas/03/bench_views.py`, `katas/03::TestX` with real names; any other argument as it is."""
    path, colons, rest = argument.partition("::")
    match = re.fullmatch(r"(?:.*/)?(\d{1,2})(?:/(.*))?", path)
    if not match or (here / path).exists():
        return _spec_of(argument, here)
    number, inside = match[1].zfill(2), match[2]
    known = katas()
    for kata in known:
        if kata.number == number:
            file = kata.folder / inside if inside else kata.spec if colons else kata.folder
            return f"{file}{colons}{rest}"
    numbers = " ".join(kata.number for kata in known)
    raise pytest.UsageError(f"there is no kata {match[1]}; there are: {numbers}")


def _spec_of(argument: str, here: Path) -> str:
    """`katas/03_views::TestX` means the spec file in that folder."""
    path, colons, rest = argument.partition("::")
    kata = Kata((here / path).resolve())
    if colons and kata.folder.parent == ROOT / "katas" and kata.folder.is_dir():
        return f"{kata.spec}::{rest}"
    return argument


def _implementation(config) -> str | None:
    """The folder of --impl, absolute; None for the learner's own stubs."""
    given = config.option.impl
    if given is None:
        return None
    for folder in (config.invocation_params.dir / given, ROOT / given):
        if folder.is_dir():
            return str(folder.resolve())
    raise pytest.UsageError(
        f"--impl={given}: there is no such folder (`--impl=reference` runs the reference solutions)"
    )


def _benchmarks_asked(config) -> bool:
    return config.getoption("benchmark_only", False) or config.getoption("benchmark_enable", False)


def _switch_benchmarks_off(config):
    """pytest-benchmark refuses --benchmark-only beside --benchmark-disable, so this cannot stand in addopts."""
    if hasattr(config.option, "benchmark_disable") and not _benchmarks_asked(config):
        config.option.benchmark_disable = True
    if getattr(config.option, "benchmark_quiet", None) is False and config.option.verbose <= 0:
        config.option.benchmark_quiet = True  # the screen has a shorter table: dojo/ratios.py
    if getattr(config.option, "benchmark_storage", "") == "file://./.benchmarks":
        config.option.benchmark_storage = f"file://{ROOT / '.benchmarks'}"  # not in whatever folder one stands in


# Collection ----------------------------------------------------------------------------------------------------------


def pytest_ignore_collect(collection_path, config):
    """Specs or benchmarks: whatever was asked for, by an option or by name."""
    if kata_of(collection_path) and collection_path.suffix == ".py":
        named = any(Path(argument.partition("::")[0]).name == collection_path.name for argument in config.args)
        if not named and collection_path.name.startswith("bench_") != bool(_benchmarks_asked(config)):
            return True
    return None


def pytest_pycollect_makemodule(module_path, parent):
    if kata_of(module_path):
        return KataModule.from_parent(parent, path=module_path)
    return None


class KataModule(pytest.Module):
    """A spec or benchmark file; the learner's module is loaded before it, afresh, under its plain name."""

    @cached_property
    def kata(self) -> Kata:
        return kata_of(self.path)

    @cached_property
    def implementation(self) -> Path:
        folder = self.config.option.impl
        return self.kata.implementation(Path(folder) if folder else None)

    def _getobj(self):
        import torch

        from dojo import guards, quick, rules, strategies

        strategies.use_profile()
        guards.set_traps()
        quick.leave_dynamo_out()
        module = self._load()
        spec = super()._getobj()
        self.recorder = spec.__dict__[self.kata.name] = Recorder(module)
        self.recorder.watch_layers()
        self.names = [line.name for line in getattr(spec, "RULES", ())]
        self.unwritten: set[str] = set()
        self.hung: set[str] = set()
        rules.attach(spec, self.recorder)
        torch.set_num_threads(1)  # the tensors are small: more threads only wait for each other
        return spec

    def _load(self):
        """The learner's module, loaded within the time of one spec; what goes wrong is kept for the report."""
        limit = float(self.config.getoption("timeout") or self.config.getini("timeout"))
        if HAS_ALARM:
            start_alarm(limit, lambda: f"loading {self.kata.stub.name} did not end")
        try:
            with stays(str(self.implementation)):
                return load(self.implementation, self.kata.name)
        except LoadError as error:
            self.load_error = error
            raise self.CollectError(str(error)) from error
        finally:
            if HAS_ALARM:
                stop_alarm()


def pytest_collection_finish(session):
    gc.freeze()
    gc.enable()


# Running -------------------------------------------------------------------------------------------------------------


def _kata_module(item) -> KataModule | None:
    return item.getparent(KataModule)


def pytest_runtest_setup(item):
    """A spec that is marked `cuda` is skipped, by name, where there is no such device."""
    if item.get_closest_marker("cuda"):
        from dojo.devices import has_cuda

        if not has_cuda():
            pytest.skip("no CUDA device")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """The refused operations of the function are watched for as long as the spec runs."""
    module = _kata_module(item)
    if module is None:
        return (yield)
    from dojo import guards, strategies

    function = findings.function_of(item)
    if function in module.hung:
        raise Hung(f"not run: an earlier spec of {function} did not end")
    strategies.use_profile("once" if function in module.unwritten else "katas")
    strategies.reseed()
    module.recorder.last = None
    line = getattr(item.cls, "rule", None)
    learner, spec = str(module.implementation), str(item.path)

    def by_learner(frame):
        file = frame.f_code.co_filename
        return True if file == learner else False if file == spec else None

    with stays(learner), guards.refuse(*(line.refused if line else ()), by=by_learner):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    module = _kata_module(item)
    if module is None:
        return (yield)
    text_instead = item.config.option.tbstyle == "auto"
    if text_instead:
        item.repr_failure = lambda excinfo: ""  # rendering a traceback takes longer than the spec
    result = yield
    finding = findings.add_finding(result, item, module, call, text_instead)
    if finding.state == "not started":
        module.unwritten.add(finding.function)
    if call.excinfo and isinstance(call.excinfo.value, Hung):
        module.hung.add(finding.function)
    return result


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    result = yield
    error = getattr(collector, "load_error", None)
    if error is not None:
        result.longrepr = findings.explain_load_error(error)
        result.dojo = findings.unreadable(collector.kata, error)
    return result


@pytest.hookimpl(optionalhook=True)
def pytest_timeout_set_timer(item, settings):
    """pytest-timeout's own alarm is an exception that hypothesis takes for a failing example and runs again."""
    if not HAS_ALARM or not settings.timeout or settings.timeout <= 0:
        return None
    start_alarm(settings.timeout, lambda: f"{findings.function_of(item)} did not end")
    return True


@pytest.hookimpl(optionalhook=True)
def pytest_timeout_cancel_timer(item):
    if not HAS_ALARM:
        return None
    stop_alarm()
    return True


# The end -------------------------------------------------------------------------------------------------------------


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session, exitstatus):
    """0 only if each spec that was collected has passed: code that ends the run early must not look green."""
    if exitstatus == 0 and not hasattr(session.config, "workerinput") and session.testscollected:
        ran = findings.finished(session.config)
        if any(_kata_module(item) and item.nodeid not in ran for item in session.items):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_unconfigure(config):
    gc.freeze()  # the interpreter's last collection would look at every object of torch
