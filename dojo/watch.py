"""`python -m dojo watch 03`: the specs at every save of a kata, from the warm process.

First come the specs of the functions that were changed: their verdict is there at once. Where they pass, the whole kata
follows. A save in another kata's folder makes the watch follow there.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

from dojo import warm
from dojo.language import preferred, translate
from dojo.loading import ROOT, Kata, kata_of, katas, public_names, spec_class

CLEAR = "\x1b[2J\x1b[H"


def watch(kata: Kata, arguments: list[str]) -> None:
    """Runs the kata now and at each save, until it is interrupted; `arguments` go to pytest."""
    if not warm.FORKS:
        print("this system cannot fork: each run starts a process of its own, which takes longer")
    seen = {each.stub: _text(each.stub) for each in katas()}
    for saved in _saves(kata.stub, seen):
        kata = kata_of(saved)
        before, seen[kata.stub] = seen[kata.stub], _text(kata.stub)
        classes = specs_of(kata, changed(before, seen[kata.stub]))
        if not classes or _show(kata, classes, arguments) == 0:
            _show(kata, [], arguments)


def changed(before: str, after: str) -> list[str]:
    """The functions and classes that two versions of a file differ in; none where anything else differs too."""
    try:
        old, new = (ast.parse(source).body for source in (before, after))
    except SyntaxError:
        return []
    named = (ast.FunctionDef, ast.ClassDef)
    rest = [[ast.dump(node) for node in body if not isinstance(node, named)] for body in (old, new)]
    was, now = ({node.name: ast.dump(node) for node in body if isinstance(node, named)} for body in (old, new))
    return [name for name in now if now[name] != was.get(name)] if rest[0] == rest[1] else []


def specs_of(kata: Kata, names: list[str]) -> list[str]:
    """The classes of specs of these names; none if one has no specs of its own, as a helper that others call."""
    public = public_names(kata.stub)
    classes = [spec_class(name, public) for name in names]
    text = _text(kata.spec)
    return classes if all(f"\nclass {name}" in text for name in classes) else []


def _saves(first: Path, seen: dict[Path, str]) -> Iterator[Path]:
    """The file to begin with, and then each one that is saved: stubs whose text is not the one seen, and specs."""
    from watchfiles import watch as changes

    yield first
    for batch in changes(
        ROOT / "katas", watch_filter=lambda _, path: path.endswith(".py"), debounce=100, step=20,
        rust_timeout=500, yield_on_timeout=True,
    ):  # fmt: skip
        specs = {Path(path) for _, path in batch if kata_of(Path(path)) and Path(path) not in seen}
        # Looked at each time: what is saved before this begins to listen is no event.
        yield from sorted(specs | {stub for stub, text in seen.items() if _text(stub) != text})


def _show(kata: Kata, classes: list[str], arguments: list[str]) -> int:
    """Runs these classes of specs, or all, and puts the screen in the place of the one before."""
    terminal, language = sys.stdout.isatty(), _language(arguments)
    targets = [f"{kata.spec}::{name}" for name in classes] or [str(kata.spec)]
    ended = warm.run([*targets, *(["--color=yes"] if terminal else []), *arguments])
    print(f"{CLEAR if terminal else ''}{ended.output.strip()}\n")
    following = next((each for each in katas() if each.number > kata.number), None)
    if ended.exit_code == 0 and not classes and following:
        done = f"{kata.title} is done. Next: edit {following.stub.relative_to(ROOT)}, and this watch follows."
        print(translate(done, language))
    print(translate(f"watching {kata.stub.relative_to(ROOT)}; ctrl-C ends it", language), flush=True)
    return ended.exit_code


def _language(arguments: list[str]) -> str:
    """What pytest is told, or the environment's."""
    given = next((argument for argument in arguments if argument.startswith("--lang=")), None)
    return given.removeprefix("--lang=") if given else preferred()


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""
