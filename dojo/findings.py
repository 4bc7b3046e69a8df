"""From a failure to what a learner reads of it: a Finding for each spec, as plain data and as lines of text."""

import inspect
import linecache
import re
import textwrap
import traceback
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

import pytest

from dojo.limits import Hung, Left
from dojo.loading import ROOT, Call, Kata, LoadError, spec_class

WIDTH = 80
FINISHED: pytest.StashKey[set[str]] = pytest.StashKey()


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


def add_finding(report: pytest.TestReport, item: pytest.Item, module, call: pytest.CallInfo, text: bool) -> Finding:
    """Puts a finding on pytest's report, and (unless tracebacks were asked for) its text in place of the traceback."""
    title = _sentence(item)
    finding = Finding(module.kata.folder.name, function_of(item), module.names, title=title)
    if call.excinfo is not None:
        frames = [
            Place(f.f_code.co_filename, line, f.f_code.co_qualname) for f, line in traceback.walk_tb(call.excinfo.tb)
        ]
        learner = [place for place in frames if place.filename == str(module.implementation)]
        if report.skipped and not (call.when == "call" and learner):
            finding.state = "skipped"
            finding.lines = [str(report.longrepr[2]) if isinstance(report.longrepr, tuple) else "skipped"]
        else:
            report.outcome = "failed"  # a skip that the learner's own code raised is no pass
            _explain(finding, item, module, call.excinfo.value, frames, learner)
            finding.printed = [line for line in report.capstdout.splitlines() if line.strip()][-3:]
            if text:
                report.longrepr = "\n".join(block(finding, hint=False))
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
        unwritten = frames[-1].name.split(".")[0]  # of MLP.forward the class
        if not finding.names:  # a benchmark has no class of specs
            finding.function, function = unwritten, getattr(module.recorder.module, unwritten, None)
        finding.lines = [" ".join((inspect.getdoc(function) or "").split("\n\n")[0].split())]
        if unwritten in finding.names and unwritten != finding.function:
            finding.lines = [f"it calls {unwritten}, which is not written yet"]
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


def _call_lines(call: Call | None, specs: list[Place]) -> list[str]:
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


def _callee(call: Call) -> str:
    """The function's name, or the module with its settings where that is short."""
    if call.layer is None:
        return call.function
    try:
        text = repr(call.layer)
    except Exception:  # the learner's own extra_repr
        text = call.function
    return text if len(text) <= 50 and "\n" not in text else f"{call.function}(...)"


def block(finding: Finding, hint: bool = True) -> list[str]:
    """The failure in full."""
    return [text for _, text in parts_of(finding, hint)]


def parts_of(finding: Finding, hint: bool = True) -> list[tuple[str, str]]:
    """The lines of a failure, each with its kind, so that a screen can leave the least important out."""
    number = finding.kata.split("_")[0]
    parts: list[tuple[str, str]] = []
    if finding.state == "not started":
        where = f": {finding.code}" if finding.code else ""
        parts += [("head", f"{finding.function} is not written yet{where}")]
        parts += [("text", f"  {line}") for text in finding.lines for line in wrap(text)]
        own = spec_class(finding.function, finding.names)
        parts += [("spec", f"  {'its specs':<14}pytest katas/{number}::{own}")]
    else:
        parts += [("head", line) for line in wrap(f"{finding.function}: {finding.title}", 0)]
        parts += [("call", f"  {line}") for text in finding.call for line in wrap(text)[:2]]
        parts += [("text", f"  {line}") for text in finding.lines for line in wrap(text)[:3]]
        parts += [("text", f"  {'printed':<14}{line}"[:WIDTH]) for line in finding.printed]
        parts += [("why", f"  {line}") for line in wrap(finding.why)]
        if finding.code:
            parts.append(("code", f"  {'your code':<14}{finding.code}"))
        parts.append(("spec", f"  {'the spec':<14}{finding.spec}"))
        if finding.repeat:
            parts.append(("spec", f"  {'repeat it':<14}pytest katas/{number} {finding.repeat}"))
    if hint:
        parts.append(("hint", f"  {'a hint':<14}pytest katas/{number} --hint"))
    return parts


def wrap(text: str, indent: int = 2) -> list[str]:
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


def finished(config: pytest.Config) -> set[str]:
    """Node ids of the specs that passed, or were skipped for a reason of ours."""
    return config.stash.setdefault(FINISHED, set())
