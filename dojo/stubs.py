"""Derives a learner's stub from its reference: bodies become `raise NotImplementedError`, private helpers go.

Works on the source text, so that docstrings, comments and layout stay to the letter.
"""

import ast
import difflib
import re
from pathlib import Path

from dojo.loading import ROOT, katas

BODY = "raise NotImplementedError"


def derive(source: str) -> str:
    """The stub of a reference's source."""
    lines = source.splitlines()
    tree = ast.parse(source)
    cuts: list[tuple[int, int, list[str]]] = []  # first line, line after the last, what stands there instead
    for node in tree.body:
        cuts += _cuts(node, lines)
    text = _apply(lines, cuts)
    return _without_unused_imports(text)


def _cuts(node: ast.stmt, lines: list[str]) -> list[tuple[int, int, list[str]]]:
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        return [_removed(node)] if _is_private(node.name) else [_emptied(node, lines)]
    if isinstance(node, ast.ClassDef):
        if _is_private(node.name):
            return [_removed(node)]
        return [cut for member in node.body for cut in _cuts(member, lines)]
    if isinstance(node, (ast.Assign, ast.AnnAssign)):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        if all(isinstance(target, ast.Name) and _is_private(target.id) for target in targets):
            return [_removed(node)]
    return []


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__")


def _first_line(node: ast.stmt) -> int:
    return min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))]) - 1


def _removed(node: ast.stmt) -> tuple[int, int, list[str]]:
    return _first_line(node), node.end_lineno, []


def _emptied(node: ast.FunctionDef, lines: list[str]) -> tuple[int, int, list[str]]:
    if ast.get_docstring(node) is not None:
        kept = node.body[0].end_lineno
    else:  # the signature's last line; comments before the first statement belong to the body
        above = lines[node.lineno - 1 : node.body[0].lineno - 1]
        code = [number for number, line in enumerate(above, node.lineno) if not line.lstrip().startswith("#")]
        kept = max(number for number in code if lines[number - 1].strip())
    return kept, node.end_lineno, [" " * (node.col_offset + 4) + BODY]


def _apply(lines: list[str], cuts: list[tuple[int, int, list[str]]]) -> str:
    for start, end, instead in sorted(cuts, reverse=True):
        if not instead:  # comments and blank lines that lead to what is removed go with it
            while start and (not lines[start - 1].strip() or lines[start - 1].lstrip().startswith("#")):
                start -= 1
            while end < len(lines) and not lines[end].strip():
                end += 1
            instead = [""] * (0 if end == len(lines) else 1 if lines[end].startswith(" ") else 2)
        lines[start:end] = instead
    return "\n".join(lines).rstrip() + "\n"


def _without_unused_imports(text: str) -> str:
    """Drops the imports that signatures, given parts and docstring examples do not need."""
    tree = ast.parse(text)
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    examples = "\n".join(line for line in text.splitlines() if re.match(r"\s*(>>>|\.\.\.) ", line))
    used |= set(re.findall(r"\b[A-Za-z_]\w*", examples))
    cuts = []
    lines = text.splitlines()
    for node in tree.body:
        if not isinstance(node, (ast.Import, ast.ImportFrom)):
            continue
        kept = [a for a in node.names if (a.asname or a.name).split(".")[0] in used]
        if len(kept) < len(node.names):
            node.names = kept
            cuts.append((node.lineno - 1, node.end_lineno, [ast.unparse(node)] if kept else []))
    for start, end, instead in sorted(cuts, reverse=True):
        lines[start:end] = instead
    return re.sub(r"\n{4,}", "\n\n\n", re.sub(r'("""\n\n)\n+', r"\1", "\n".join(lines), count=1)) + "\n"


def write(root: Path = ROOT) -> list[Path]:
    """Writes every stub anew and returns the files that changed."""
    changed = []
    for kata in katas(root):
        text = derive((root / "reference" / kata.folder.name / kata.stub.name).read_text())
        if not kata.stub.exists() or kata.stub.read_text() != text:
            kata.stub.write_text(text)
            changed.append(kata.stub)
    return changed


def differences(root: Path = ROOT) -> str:
    """How the files in katas/ differ from the derived stubs, as a diff; nothing where they do not."""
    found = []
    for kata in katas(root):
        text = derive((root / "reference" / kata.folder.name / kata.stub.name).read_text())
        now = kata.stub.read_text() if kata.stub.exists() else ""
        names = (f"{kata.stub.relative_to(root)} (derived)", str(kata.stub.relative_to(root)))
        found += difflib.unified_diff(text.splitlines(), now.splitlines(), *names, lineterm="")
    return "\n".join(found)
