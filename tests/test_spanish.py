"""Both languages say the same: the Spanish documents have the headings, commands, names and links of the English."""

import re
from pathlib import Path

import pytest

from dojo.loading import ROOT
from tests.support import KATAS

DOCUMENTS = [
    ROOT / "README.md",
    *(kata.folder / name for kata in KATAS for name in ("README.md", "hints.md")),
    *(ROOT / "reference" / kata.folder.name / "answers.md" for kata in KATAS),
]
pytestmark = pytest.mark.parametrize("english", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))


def spanish(path: Path) -> Path:
    return path.with_suffix(".es.md")


def sections(path: Path) -> list[tuple[str, str]]:
    """Each heading's `##` with what stands below it."""
    text = re.sub(r"^```\n.*?^```\n", "", path.read_text(), flags=re.M | re.S)  # screens are in their own language
    parts = re.split(r"^(#+ .*)$", text, flags=re.M)
    return list(zip(parts[1::2], parts[2::2], strict=True))


def code(text: str) -> list[str]:
    """Commands and examples, as they stand."""
    return re.findall(r"^ {4}[^\n]*|^```sh\n.*?^```", text, re.M | re.S)


def spans(text: str) -> list[str]:
    """Names between backticks: functions, options, files; in order of the alphabet, for word order differs."""
    return sorted(" ".join(span.split()) for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", text))


def links(text: str) -> list[str]:
    text = re.sub(r"^ {4}.*$", "", text, flags=re.M)  # code may have brackets too
    return re.findall(r"\]\((?!#)([^)]+)\)", text) + re.findall(r"(?<!\()https?://[^\s)]+", text)


def pages(text: str) -> list[str]:
    """The links, in either language."""
    return sorted(link.replace(".es.md", ".md") for link in links(text))


def test_the_languages_are_in_step(english):
    ours, theirs = sections(english), sections(spanish(english))
    assert [heading.split()[0] for heading, _ in theirs] == [heading.split()[0] for heading, _ in ours]
    if english.name == "hints.md":
        assert [heading for heading, _ in theirs][1:] == [heading for heading, _ in ours][1:]
    for (heading, said), (_, translated) in zip(ours, theirs, strict=True):
        assert code(translated) == code(said), heading
        assert spans(translated) == spans(said), heading
        assert pages(translated) == pages(said), heading
        for item in (r"^- ", r"^\d+\. ", r"^\| "):
            assert len(re.findall(item, translated, re.M)) == len(re.findall(item, said, re.M)), heading


def test_nothing_was_left_in_english(english):
    def prose(path):
        text = re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.M | re.S)
        lines = [line for line in text.splitlines() if not line.startswith("    ") and "http" not in line]
        return {line.strip() for line in lines if len(re.findall(r"[a-z]{3,}", line)) > 5}

    assert not prose(english) & prose(spanish(english))


def test_lines_are_short_and_links_lead_to_spanish_pages(english):
    text = spanish(english).read_text()
    assert all(len(line) <= 120 or "http" in line or line.startswith("|") for line in text.splitlines())
    for link in [link for link in links(text) if not link.startswith("http")]:
        target = spanish(english).parent / link
        assert target.exists(), link
        assert link.endswith(".es.md") or not spanish(target).exists() or target == english, link
