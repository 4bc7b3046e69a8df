"""The learner's screen: what is done, the first thing that is not, and what to do about it."""

import io
import itertools
import re
import textwrap
from pathlib import Path

import pytest
from _pytest.config import create_terminal_writer
from _pytest.terminal import TerminalReporter

from dojo import states
from dojo.findings import WIDTH, Finding, finished, parts_of, short, wrap
from dojo.language import page, translate
from dojo.loading import ROOT, Kata, kata_of, katas
from dojo.ratios import ratios

HEIGHT = 15
# Least important first: what is left out of a screen that would be too high.
EXPENDABLE = ("why", "spec", "more", "rest")


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    """Puts the learner's screen in place of pytest's terminal output, for a run of katas and unless more was asked."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None or hasattr(config, "workerinput"):
        return
    targets = [Path(argument.partition("::")[0]) for argument in config.args]
    targets = [path if path.is_absolute() else config.invocation_params.dir / path for path in targets]
    if not all(path.resolve().is_relative_to(ROOT / "katas") for path in targets):
        return
    option = config.option
    if option.collectonly or option.tbstyle != "auto" or option.verbose > 0:
        config.pluginmanager.register(Summary(config), "katas-summary")
        return
    config.pluginmanager.unregister(reporter)
    config.pluginmanager.register(Screen(config), "terminalreporter")


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
        for state in ("passed", "not started", "failed"):  # the later decides; a skip decides nothing
            for finding in findings:
                if finding.state == state and finding.function in states:
                    states[finding.function] = state
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


def headline(progress: Progress, kata: str, language: str = "en") -> str:
    """`03 views   4 of 12 done   same_storage element_offset ...`"""
    title = kata.replace("_", " ")
    if any(f.state == "unreadable" for f in progress.of(kata)):
        return f"{title}   cannot be loaded"
    states = progress.states(kata)
    if not states:
        return f"{title}   {sum(f.state == 'passed' for f in progress.of(kata))} benchmarks passed"
    done = [name for name, state in states.items() if state == "passed"]
    left = sum(state == "not run" for state in states.values())
    rest = f" ({left} not run)" if left else ""
    counted = translate(f"{title}   {len(done)} of {len(states) - left} done{rest}", language)
    return _list(f"{counted}   ", done).rstrip()


def overview(progress: Progress, katas: list[str], language: str = "en") -> list[str]:
    """A line for each kata; of many, those in a row that are all done or not started share one."""
    if len(katas) <= 6:
        return [headline(progress, kata, language) for kata in katas]
    lines = []
    for word, group in itertools.groupby(katas, lambda kata: _word(progress, kata)):
        alike = list(group)
        if word and len(alike) > 2:
            first, last = (kata.replace("_", " ") for kata in (alike[0], alike[-1]))
            lines.append(f"{first} to {last}   {word}")
        else:
            lines += [headline(progress, kata, language) for kata in alike]
    return lines


def remember(config: pytest.Config, progress: Progress) -> None:
    """Keeps how far the learner's own files are; what `--impl` was given is not theirs."""
    cache = getattr(config, "cache", None)
    if cache is None or config.option.impl:
        return
    known = cache.get(states.KEY, {})
    for kata in progress.katas():
        found = progress.states(kata)
        if found:
            known = states.remembered(known, kata_of_name(kata), found)
    cache.set(states.KEY, known)


def _word(progress: Progress, kata: str) -> str:
    """All done, or not started: what can be said of a kata in a word, if anything can."""
    states = set(progress.states(kata).values())
    return "all done" if states == {"passed"} else "not started" if states == {"not started"} else ""


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
        remember(self.config, self.progress)
        for line in self.lines(session.exitstatus):
            for part in wrap(translate(line, self.config.option.lang), 0) or [""]:
                self.write_line(part)
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
        lines = overview(progress, titles, self.config.option.lang)
        session = getattr(self.config, "_benchmarksession", None)
        if session and session.benchmarks:
            lines += ["", "yours, and how many times as long the others take:", *ratios(session.benchmarks)]
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
            return [*wrap(finding.title, 0), *finding.lines]
        rungs = int(self.config.option.hint or 0)
        parts = parts_of(finding, hint=not rungs)
        if rungs:
            parts += [("hint", line) for line in hints(kata, finding.function, rungs, self.config.option.lang)]
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
                for line in wrap(label[state] + " ".join(names), 0)
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
        remember(self.config, self.progress)
        for kata in self.progress.katas():
            line = headline(self.progress, kata, self.config.option.lang)
            terminalreporter.write_line(translate(line, self.config.option.lang))


# Hints ----------------------------------------------------------------------------------------------------------------


def hints(kata: str, function: str, count: int, language: str) -> list[str]:
    """The first `count` rungs of a function's ladder, wrapped for the screen."""
    rungs = ladder(page(kata_of_name(kata).hints, language).read_text(), function)
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
