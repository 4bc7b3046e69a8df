"""The fixed words of the screen, and which pages are shown, in the learner's language: English or Spanish."""

import os
import re
from pathlib import Path

LANGUAGES = ("en", "es")
LABELS = {
    "its specs": "sus specs",
    "a hint": "una pista",
    "your code": "tu código",
    "the spec": "el spec",
    "repeat it": "repítelo",
    "printed": "imprimió",
    "questions": "preguntas",
    "compare with": "compara con",
    "measure": "mide",
    "next": "siguiente",
    "more": "más",
}
# Whole lines: what stands between the fixed words is a name, a number, or a sentence of the kata's own.
LINES = {
    r"(\d\d .*?) to (\d\d .*?)   all done": r"\1 a \2   todo hecho",
    r"(\d\d .*?) to (\d\d .*?)   not started": r"\1 a \2   sin empezar",
    r"(\d\d .*?)   (\d+) of (\d+) done": r"\1   \2 de \3 hechas",
    r"(\d\d .*?)   (\d+) of (\d+) done \((\d+) not run\)": r"\1   \2 de \3 hechas (\4 sin ejecutar)",
    r"(\d\d .*?)   (\d+) of (\d+) done \(edited since\)": r"\1   \2 de \3 hechas (editada después)",
    r"(\d\d .*?)   cannot be loaded": r"\1   no se puede cargar",
    r"(\d\d .*?)   (\d+) benchmarks passed": r"\1   \2 mediciones correctas",
    r"(\w+) is not written yet(: .*)?": r"\1 aún no está escrita\2",
    r"  it calls (\w+), which is not written yet": r"  llama a \1, que aún no está escrita",
    r"(\w+): is missing": r"\1: falta",
    r"  expected a definition of (\w+), there is none in (.*)": r"  se esperaba una definición de \1, no la hay en \2",
    r"  expected shape (.*?)   ok": r"  se esperaba la forma \1   bien",
    r"  expected shape (.*?), got (.*)": r"  se esperaba la forma \1, llegó \2",
    r"  expected (\w*Error), nothing was raised": r"  se esperaba \1, no se lanzó nada",
    r"  expected (\S+) at (\[.*?\]), got (\S+)      (\d+) of (\d+) values differ":
        r"  se esperaba \1 en \2, llegó \3      difieren \4 de \5 valores",
    r"  expected (\S+) at (\[.*?\]), got (\S+)": r"  se esperaba \1 en \2, llegó \3",
    r"  expected (\S+), got (\S+)": r"  se esperaba \1, llegó \2",
    r"  expected a tensor on (\w+), got one on (\w+)": r"  se esperaba un tensor en \1, llegó uno en \2",
    r"  did not end and was stopped after (\S+) s: a right solution takes milliseconds":
        r"  no terminó y se detuvo a los \1 s: una solución correcta tarda milisegundos",
    r"  (\w+) is refused here: build it from simpler operations":
        r"  \1 no se permite aquí: constrúyela con operaciones más simples",
    r"  os._exit\((.*)\) was called": r"  se llamó a os._exit(\1)",
    r"  raised at   (.*)": r"  lanzado en   \1",
    r"  the spec says   (.*)": r"  el spec dice   \1",
    r"  hint (\d+) of (\d+)": r"  pista \1 de \2",
    r"  there is no hint for it": r"  no hay pista para eso",
    r"failing: (.*)": r"fallan: \1",
    r"not started: (.*)": r"sin empezar: \1",
    r"(\d+) specs? skipped: no CUDA device": r"\1 specs omitidos: no hay dispositivo CUDA",
    r"(\d+) specs? skipped: (.*)": r"\1 specs omitidos: \2",
    r"(\d+) specs? not selected": r"\1 specs sin seleccionar",
    r"all (\d+) specs passed": r"los \1 specs pasan",
    r"all 1 spec passed": r"el spec pasa",
    r"no specs were run": r"no se ejecutó ningún spec",
    r"the run was ended before every spec had passed": r"la ejecución acabó antes de que pasaran todos los specs",
    r"yours, and how many times as long the others take:": r"lo tuyo, y cuántas veces más tardan los demás:",
    r"watching (.*); ctrl-C ends it": r"vigilando \1; ctrl-C lo termina",
    r"(\d\d .*?) is done\. Next: edit (.*), and this watch follows\.":
        r"\1 está hecha. Ahora edita \2: la vigilancia sigue.",
    r"(\d\d .*?) to (\d\d .*?)   not run yet": r"\1 a \2   sin ejecutar aún",
    r"(\d\d .*?)   not run yet": r"\1   sin ejecutar aún",
}  # fmt: skip


def preferred(environment: dict[str, str] | None = None) -> str:
    """The language that the environment asks for, as gettext reads it; English where it asks for any other."""
    environment = os.environ if environment is None else environment
    names = ("LANGUAGE", "LC_ALL", "LC_MESSAGES", "LANG")
    asked = next((environment[name] for name in names if environment.get(name)), "")
    return "es" if re.match(r"es(\W|_|$)", asked) else "en"


def translate(line: str, language: str) -> str:
    """A line of the screen in the language; what has no translation is shown as it is."""
    if language == "en":
        return line
    label = re.match(rf"  ({'|'.join(LABELS)})(?: {{2,}})(?=\S)", line)
    if label:
        rest = line[label.end() :]
        return f"  {LABELS[label[1]]:<14}{str(page(Path(rest), language)) if rest.endswith('README.md') else rest}"
    for pattern, said in LINES.items():
        if re.fullmatch(pattern, line):
            return re.sub(pattern, said, line)
    return line


def page(path: Path, language: str) -> Path:
    """The page in the language: README.es.md for README.md, where there is one."""
    translated = path.with_suffix(f".{language}{path.suffix}")
    return translated if translated.exists() else path
