"""The learner's screen: what is done, the first thing that is not, and what to do about it."""

import inspect
import io
import linecache
import re
import textwrap
import traceback
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

import pytest
from _pytest.config import create_terminal_writer
from _pytest.terminal import TerminalReporter

from dojo.loading import ROOT, Kata, LoadError, kata_of, katas

WIDTH, HEIGHT = 80, 15
# Least important first: what is left out of a screen that would be too high.
EXPENDABLE = ("why", "source", "spec", "more", "rest")


@dataclass
class Finding:
    """What one spec says about one function, as plain data: it travels with pytest's report, also between processes."""

    kata: str
    function: str
    names: list[str]  # all functions of the kata, in order
    state: str = "passed"  # or failed, not started, skipped
    title: str = ""
    call: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    why: str = ""
    code: str = ""  # file:line in the learner's code
    spec: str = ""  # file:line of the spec
    printed: list[str] = field(default_factory=list)  # the last lines that the learner's code printed
    repeat: str = ""  # the option that repeats a hypothesis example


class Place(NamedTuple):
    """A frame of a traceback."""

    filename: str
    lineno: int
    name: str

    @property
    def line(self) -> str:
        return linecache.getline(self.filename, self.lineno).strip()


def short(path: Path | str) -> str:
    """A path as one would type it here."""
    path = Path(path)
    for base in (Path.cwd(), ROOT):
        if path.is_relative_to(base):
            return str(path.relative_to(base))
    return str(path)


def function_of(item: pytest.Item) -> str:
    """The public name that a spec is about, from its class."""
    line = getattr(getattr(item, "cls", None), "rule", None)
    return line.name if line else getattr(item.cls or item, "__name__", item.name)


# From a failure to a finding ------------------------------------------------------------------------------------------


def add_finding(report: pytest.TestReport, item: pytest.Item, call: pytest.CallInfo, text: bool) -> Finding:
    """Puts a finding on pytest's report, and (unless tracebacks were asked for) its text in place of the traceback."""
    from dojo.plugin import KataModule

    module = item.getparent(KataModule)
    title = _sentence(item)
    finding = Finding(module.kata.folder.name, function_of(item), module.names, title=title)
    if call.excinfo is not None:
        frames = [Place(f.f_code.co_filename, line, f.f_code.co_name) for f, line in traceback.walk_tb(call.excinfo.tb)]
        learner = [place for place in frames if place.filename == str(module.implementation)]
        if report.skipped and not (call.when == "call" and learner):
            finding.state = "skipped"
            finding.lines = [str(report.longrepr[2]) if isinstance(report.longrepr, tuple) else "skipped"]
        else:
            report.outcome = "failed"  # a skip that the learner's own code raised is no pass
            _explain(finding, item, module, call.excinfo.value, frames, learner)
            finding.printed = [line for line in report.capstdout.splitlines() if line.strip()][-3:]
            if text:
                report.longrepr = "\n".join(_block(finding, hint=False))
    if call.when == "call" or finding.state != "passed":
        report.dojo = asdict(finding)
    return finding


def _sentence(item: pytest.Item) -> str:
    name = item.originalname.removeprefix("test_").replace("_", " ")
    variant = item.callspec.id if hasattr(item, "callspec") else ""
    return f"{name} ({variant})" if variant else name


def _explain(finding: Finding, item, module, error: BaseException, frames, learner) -> None:
    finding.state = "failed"
    finding.why = " ".join((inspect.getdoc(item.obj) or "").split())
    line = getattr(item.cls, "rule", None)
    specs = [frame for frame in frames if frame.filename == str(item.path)]
    number = specs[-1].lineno if specs else line.line if line else None
    finding.spec = f"{short(item.path)}:{number}" if number else short(item.path)
    function = getattr(module.recorder.module, finding.function, None)
    if learner:
        finding.code = f"{short(module.implementation)}:{learner[-1].lineno}"
    elif function is not None and hasattr(inspect.unwrap(function), "__code__"):
        finding.code = f"{short(module.implementation)}:{inspect.unwrap(function).__code__.co_firstlineno}"
    elif inspect.isclass(function):
        finding.code = f"{short(module.implementation)}:{_line_of_class(function, module.implementation)}"
    if isinstance(error, NotImplementedError) and not error.args and learner and frames[-1] is learner[-1]:
        finding.state = "not started"
        finding.function = finding.function if finding.names else frames[-1].name  # a benchmark has no class
        finding.lines = [" ".join((inspect.getdoc(function) or "").split("\n\n")[0].split())]
        if frames[-1].name in finding.names and frames[-1].name != finding.function:
            finding.lines = [f"it calls {frames[-1].name}, which is not written yet"]
        return
    if isinstance(error, AttributeError) and error.obj is module.recorder.module and error.name in module.names:
        finding.title = "is missing"
        finding.lines = [f"expected a definition of {error.name}, there is none in {short(module.implementation)}"]
        finding.code, finding.why = short(module.implementation), ""
        return
    finding.call = _call_lines(module.recorder.last, specs)
    finding.lines = _error_lines(error, learner, frames)
    if hasattr(item.obj, "hypothesis"):
        finding.repeat = f"--hypothesis-seed={item.config.option.hypothesis_seed}"


def _line_of_class(cls: type, path: Path) -> int:
    pattern = re.compile(rf"\s*class {cls.__name__}\b")
    lines = path.read_text().splitlines()
    return next((number for number, text in enumerate(lines, 1) if pattern.match(text)), 1)


def _error_lines(error: BaseException, learner, frames) -> list[str]:
    from dojo.compare import Mismatch
    from dojo.plugin import Hung, Left

    if isinstance(error, (Mismatch, Hung, Left)):
        return getattr(error, "lines", None) or [str(error)]
    if isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    text = [part for part in str(error).splitlines() if part.strip() and " at 0x" not in part]
    if isinstance(error, AssertionError) and not (learner and frames[-1] is learner[-1]):
        return text[:4] or ["the spec's assertion does not hold"]
    lines = [f"{type(error).__name__}: {text[0]}" if text else type(error).__name__]
    if learner:
        lines.append(f"raised at   {learner[-1].line}")
    return lines


def _call_lines(call, specs) -> list[str]:
    """The last call of the learner's code as one would type it, with what its tensors are."""
    from torch import Tensor

    from dojo.compare import describe

    if call is None:
        return [f"the spec says   {specs[-1].line}"] if specs and specs[-1].line else []
    written, tensors = [], []
    for name, value in call.arguments.items():
        if isinstance(value, Tensor):
            written.append(name)
            tensors.append(f"{name}: {describe(value)}")
        else:
            written.append(f"{name}={describe(value)}")
    text = f"{_callee(call)}({', '.join(written)})"
    where = "   ".join(tensors)
    if len(text) + len(where) + 6 + 2 <= WIDTH:
        return [f"{text}      {where}".rstrip()]
    return [text, where]


def _callee(call) -> str:
    """The function's name, or the module with its settings where that is short."""
    if call.layer is None:
        return call.function
    try:
        text = repr(call.layer)
    except Exception:  # the learner's own extra_repr
        text = call.function
    return text if len(text) <= 50 and "\n" not in text else f"{call.function}(...)"


def _block(finding: Finding, hint: bool = True) -> list[str]:
    """The failure in full."""
    return [text for _, text in _parts(finding, hint)]


def _parts(finding: Finding, hint: bool = True) -> list[tuple[str, str]]:
    """The lines of a failure, each with its kind, so that a screen can leave the least important out."""
    number = finding.kata.split("_")[0]
    parts: list[tuple[str, str]] = []
    if finding.state == "not started":
        where = f": {finding.code}" if finding.code else ""
        parts += [("head", f"{finding.function} is not written yet{where}")]
        parts += [("text", f"  {line}") for text in finding.lines for line in _wrap(text)]
        class_name = "Test" + "".join(word[:1].upper() + word[1:] for word in finding.function.split("_"))
        parts += [("spec", f"  {'its specs':<14}pytest katas/{number}::{class_name}")]
    else:
        parts += [("head", line) for line in _wrap(f"{finding.function}: {finding.title}", 0)]
        parts += [("call", f"  {line}") for text in finding.call for line in _wrap(text)[:2]]
        parts += [("text", f"  {line}") for text in finding.lines for line in _wrap(text)[:3]]
        parts += [("text", f"  {'printed':<14}{line}"[:WIDTH]) for line in finding.printed]
        parts += [("why", f"  {line}") for line in _wrap(finding.why)]
        if finding.code:
            parts.append(("code", f"  {'your code':<14}{finding.code}"))
        parts.append(("spec", f"  {'the spec':<14}{finding.spec}"))
        if finding.repeat:
            parts.append(("spec", f"  {'repeat it':<14}pytest katas/{number} {finding.repeat}"))
    if hint:
        parts.append(("hint", f"  {'a hint':<14}pytest katas/{number} --hint"))
    return parts


def _wrap(text: str, indent: int = 2) -> list[str]:
    """Lines that fit the screen; runs of spaces stay, they line things up."""
    if len(text) <= WIDTH - indent:
        return [text] if text else []
    return textwrap.wrap(text, WIDTH - indent, subsequent_indent="  ", break_on_hyphens=False)


# A file that cannot be loaded -----------------------------------------------------------------------------------------


def unreadable(kata: Kata, error: LoadError) -> dict:
    """The finding for a kata whose file could not be loaded."""
    lines = explain_load_error(error).splitlines()
    return asdict(Finding(kata.folder.name, "", [], state="unreadable", title=lines[0], lines=lines[1:]))


def explain_load_error(error: LoadError) -> str:
    """One sentence with file and line, and the line itself with a caret."""
    cause, path = error.cause, short(error.path)
    if isinstance(cause, SyntaxError) and cause.filename == str(error.path):
        caret = " " * (max(cause.offset or 1, 1) - 1)
        lines = [f"{path}:{cause.lineno}: {type(cause).__name__}: {cause.msg}"]
        source = (cause.text or "").rstrip("\n")
        stripped = len(source) - len(source.lstrip())
        return "\n".join([*lines, f"    {source.strip()}", f"    {caret[stripped:]}^"])
    if isinstance(cause, FileNotFoundError) and cause.filename == str(error.path):
        return f"{path} does not exist: there is nothing to run the specs on"
    frames = [frame for frame in traceback.extract_tb(cause.__traceback__) if frame.filename == str(error.path)]
    where = f"{path}:{frames[-1].lineno}" if frames else path
    text = next(iter(str(cause).splitlines()), "")
    name = "" if not isinstance(cause, (Exception, SystemExit)) else f"{type(cause).__name__}: "
    lines = [f"{where}: {name}{text}".rstrip(": ")]
    if frames and frames[-1].line:
        lines += [f"    {frames[-1].line}", f"    {'^' * min(len(frames[-1].line), WIDTH - 4)}"]
    return "\n".join(lines)


# The screen -----------------------------------------------------------------------------------------------------------


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    """Puts the learner's screen in place of pytest's terminal output, for a run of katas and unless more was asked."""
    config.stash[FINISHED] = set()
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None or hasattr(config, "workerinput"):
        return
    targets = [Path(argument.partition("::")[0]) for argument in config.args]
    targets = [path if path.is_absolute() else config.invocation_params.dir / path for path in targets]
    if not all(path.resolve().is_relative_to(ROOT / "katas") for path in targets):
        return
    option = config.option
    if option.collectonly or option.tbstyle != "auto" or option.verbose > 0 or getattr(option, "benchmark_only", False):
        config.pluginmanager.register(Summary(config), "katas-summary")
        return
    config.pluginmanager.unregister(reporter)
    config.pluginmanager.register(Screen(config), "terminalreporter")


FINISHED: pytest.StashKey[set[str]] = pytest.StashKey()


def finished(config: pytest.Config) -> set[str]:
    """Node ids of the specs that passed, or were skipped for a reason of ours."""
    return config.stash[FINISHED]


class Progress:
    """Collects the findings of a run and says how each kata stands."""

    def __init__(self):
        self.findings: list[Finding] = []
        self.deselected = 0

    def add(self, report) -> None:
        if hasattr(report, "dojo"):
            self.findings.append(Finding(**report.dojo))

    def katas(self) -> list[str]:
        return sorted({finding.kata for finding in self.findings})

    def of(self, kata: str) -> list[Finding]:
        return [finding for finding in self.findings if finding.kata == kata]

    def states(self, kata: str) -> dict[str, str]:
        """The state of each function of the kata, in its order; "not run" where no spec was."""
        findings = self.of(kata)
        states = dict.fromkeys(next((f.names for f in findings if f.names), []), "not run")
        for state in ("skipped", "passed", "not started", "failed"):  # the later decides
            for finding in findings:
                if finding.state == state and finding.function in states:
                    states[finding.function] = "passed" if state == "skipped" else state
        first = {}
        for finding in findings:
            if finding.state in ("failed", "not started"):
                first.setdefault(finding.function, finding.state)
        return {name: first.get(name, state) for name, state in states.items()}

    def first(self, kata: str) -> Finding | None:
        """The first failing spec of the first function that fails; where none does, of the first not started."""
        findings = self.of(kata)
        broken = next((f for f in findings if f.state == "unreadable"), None)
        if broken:
            return broken
        states = self.states(kata)
        for wanted in ("failed", "not started"):
            for name, state in states.items():
                if state == wanted:
                    return next(f for f in findings if f.function == name and f.state == wanted)
        return next((f for f in findings if f.state in ("failed", "not started")), None)


def headline(progress: Progress, kata: str) -> str:
    """`03 views   4 of 12 done   same_storage element_offset ...`"""
    title = kata.replace("_", " ", 1)
    if any(f.state == "unreadable" for f in progress.of(kata)):
        return f"{title}   cannot be loaded"
    states = progress.states(kata)
    if not states:
        return f"{title}   {sum(f.state == 'passed' for f in progress.of(kata))} benchmarks passed"
    done = [name for name, state in states.items() if state == "passed"]
    left = sum(state == "not run" for state in states.values())
    rest = f" ({left} not run)" if left else ""
    return _list(f"{title}   {len(done)} of {len(states) - left} done{rest}   ", done).rstrip()


def _count(number: int) -> str:
    return f"{number} spec{'s' if number != 1 else ''}"


def _list(start: str, names: list[str]) -> str:
    """Names behind a label, as many as fit one line; the last word says how many more there are."""
    text = start + " ".join(names)
    shown = len(names)
    while len(text) > WIDTH and shown:
        shown -= 1
        text = f"{start}{' '.join(names[:shown])} +{len(names) - shown}"
    return text


class Screen(TerminalReporter):
    """In place of pytest's dots, tracebacks and summary: at most 15 lines that say what to do next."""

    def __init__(self, config: pytest.Config):
        super().__init__(config)
        self._out = self._tw
        self._muted = self._tw = create_terminal_writer(config, io.StringIO())
        self.progress = Progress()
        self.crashes: list[str] = []

    def pytest_collectreport(self, report):
        self.progress.add(report)
        if report.failed and not hasattr(report, "dojo"):
            self.crashes.append(str(report.longrepr))

    def pytest_runtest_logreport(self, report):
        super().pytest_runtest_logreport(report)
        self.progress.add(report)
        if report.failed and not hasattr(report, "dojo"):
            self.crashes.append(str(report.longrepr))
        if (report.when == "call" and report.passed) or report.skipped:
            finished(self.config).add(report.nodeid)

    def pytest_deselected(self, items):
        super().pytest_deselected(items)
        self.progress.deselected += len(items)

    def pytest_internalerror(self, excrepr):
        self._tw = self._out
        return super().pytest_internalerror(excrepr)

    @pytest.hookimpl(wrapper=True)
    def pytest_sessionfinish(self, session, exitstatus):
        result = yield
        self._tw, self.currentfspath = self._out, None
        for line in self.lines(session.exitstatus):
            self.write_line(line)
        for crash in self.crashes:
            self.write_line(crash)
        self.config.hook.pytest_terminal_summary(
            terminalreporter=self, exitstatus=session.exitstatus, config=self.config
        )
        return result

    @pytest.hookimpl(wrapper=True)
    def pytest_terminal_summary(self):
        return (yield)  # only what other plugins add

    def lines(self, exitstatus: int) -> list[str]:
        """The whole screen."""
        progress, titles = self.progress, self.progress.katas()
        if not titles:
            return [] if self.crashes else ["no specs were run"]
        lines = [headline(progress, kata) for kata in titles]
        for kata in titles:
            finding = progress.first(kata)
            if finding:
                return [*lines, "", *self.failure(kata, finding, single=len(titles) == 1)]
        notes = self.notes()
        if exitstatus != 0:
            return [*lines, *notes, "", "the run was ended before every spec had passed"]
        return [*lines, *notes, "", *(self.all_green(titles[0]) if len(titles) == 1 else [])]

    def notes(self) -> list[str]:
        """What was not run, and why."""
        progress = self.progress
        notes = []
        reasons = [f.lines[0].removeprefix("Skipped: ") for f in progress.findings if f.state == "skipped"]
        for reason in dict.fromkeys(reasons):
            notes.append(f"{_count(reasons.count(reason))} skipped: {reason}")
        if progress.deselected:
            notes.append(f"{_count(progress.deselected)} not selected")
        return notes

    def failure(self, kata: str, finding: Finding, single: bool) -> list[str]:
        progress = self.progress
        if finding.state == "unreadable":
            return [*_wrap(finding.title, 0), *finding.lines]
        rungs = int(self.config.option.hint or 0)
        parts = _parts(finding, hint=not rungs)
        if rungs:
            parts += [("hint", line) for line in hints(kata, finding.function, rungs)]
        if single:
            states = progress.states(kata)
            rest = {
                state: [n for n, s in states.items() if s == state and n != finding.function]
                for state in ("failed", "not started")
            }
            label = {"failed": "failing: ", "not started": "not started: "}
            parts.append(("rest", ""))
            parts += [
                ("more", line)
                for state, names in rest.items()
                if names
                for line in _wrap(label[state] + " ".join(names), 0)
            ]
            parts += [("rest", note) for note in self.notes()]
        lines = _fit(parts, HEIGHT - 2)
        return lines

    def all_green(self, kata: str) -> list[str]:
        number = kata.split("_")[0]
        passed = sum(f.state == "passed" for f in self.progress.findings)
        own = kata_of_name(kata)
        lines = [f"all {_count(passed)} passed"]
        if (
            not self.progress.states(kata)
            or self.progress.deselected
            or "not run" in self.progress.states(kata).values()
        ):
            return lines
        lines.append(f"  {'questions':<14}{short(own.folder / 'README.md')}")
        if not self.config.option.impl:
            lines.append(f"  {'compare with':<14}{short(ROOT / 'reference' / kata / own.stub.name)}")
        lines.append(f"  {'measure':<14}pytest katas/{number} --benchmark-only")
        following = [other for other in katas() if other.folder.name > kata]
        if following:
            lines.append(f"  {'next':<14}{following[0].command}")
        return lines


def kata_of_name(name: str) -> Kata:
    """The kata of a folder name."""
    return kata_of(ROOT / "katas" / name / "README.md")


def _fit(parts: list[tuple[str, str]], height: int) -> list[str]:
    """The lines without the least important kinds, as far as needed to fit."""
    for kind in EXPENDABLE:
        if len(parts) <= height:
            break
        parts = [part for part in parts if part[0] != kind]
    lines = [text for _, text in parts]
    while lines and not lines[-1]:
        lines.pop()
    return lines


class Summary:
    """Beside pytest's own output (-v, --tb): one line a kata at the end."""

    def __init__(self, config: pytest.Config):
        self.progress = Progress()
        self.config = config

    def pytest_collectreport(self, report):
        self.progress.add(report)

    def pytest_runtest_logreport(self, report):
        self.progress.add(report)
        if (report.when == "call" and report.passed) or report.skipped:
            finished(self.config).add(report.nodeid)

    def pytest_terminal_summary(self, terminalreporter):
        for kata in self.progress.katas():
            terminalreporter.write_line(headline(self.progress, kata))


# Hints ----------------------------------------------------------------------------------------------------------------


def hints(kata: str, function: str, count: int) -> list[str]:
    """The first `count` rungs of a function's ladder, wrapped for the screen."""
    rungs = ladder(kata_of_name(kata).hints.read_text(), function)
    lines = [f"  hint {min(count, len(rungs))} of {len(rungs)}"] if rungs else ["  there is no hint for it"]
    for rung in rungs[:count]:
        lines += textwrap.wrap(rung, WIDTH, initial_indent="  - ", subsequent_indent="    ", break_on_hyphens=False)
    if count < len(rungs):
        lines.append(f"  {'more':<14}--hint={count + 1}")
    return lines


def ladder(markdown: str, function: str) -> list[str]:
    """The bullets below `## function`, each on one line."""
    section = re.search(rf"^## {re.escape(function)}\n(.*?)(?=^## |\Z)", markdown, re.M | re.S)
    if not section:
        return []
    bullets = re.split(r"^- ", section[1], flags=re.M)[1:]
    return [" ".join(bullet.split()) for bullet in bullets]
