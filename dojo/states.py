"""How far each kata is, from one run to the next: kept in pytest's cache, read by `python -m dojo`."""

import hashlib
import itertools
import json
from collections.abc import Mapping

from dojo.loading import ROOT, Kata, katas, public_names

KEY = "dojo/states"
CACHE = ROOT / ".pytest_cache" / "v" / KEY  # where pytest keeps what is set under the key


def remembered(before: Mapping, kata: Kata, states: Mapping[str, str]) -> dict:
    """What is known of the katas after a run in which the functions of one had these states."""
    known = before.get(kata.folder.name, {}).get("states", {})
    fresh = {name: state for name, state in states.items() if state != "not run"}
    return {**before, kata.folder.name: {"states": {**known, **fresh}, "source": _source(kata)}}


def overview() -> list[str]:
    """A line for each kata; those in a row that were never run share one."""
    try:
        known = json.loads(CACHE.read_text())
    except (OSError, ValueError):
        known = {}
    lines = []
    for was_run, group in itertools.groupby(katas(), lambda kata: kata.folder.name in known):
        alike = list(group)
        if was_run:
            lines += [_line(kata, **known[kata.folder.name]) for kata in alike]
        else:
            first, last = alike[0].title, alike[-1].title
            lines.append(f"{first} to {last}   not run yet" if len(alike) > 1 else f"{first}   not run yet")
    return lines


def _line(kata: Kata, states: Mapping[str, str], source: str) -> str:
    names = [name for name in states if name in public_names(kata.stub)]
    done = sum(states[name] == "passed" for name in names)
    return f"{kata.title}   {done} of {len(names)} done{'' if source == _source(kata) else ' (edited since)'}"


def _source(kata: Kata) -> str:
    """What tells one version of the learner's file from another."""
    return hashlib.sha256(kata.stub.read_bytes()).hexdigest()[:16] if kata.stub.exists() else ""
