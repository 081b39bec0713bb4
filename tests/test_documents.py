"""What the documents say can be done: every command is one that minidet understands, every link leads somewhere."""

import json
import re
import shlex
from pathlib import Path
from urllib.parse import unquote

import pytest
import tyro

from minidet.cli import Command

ROOT = Path(__file__).parent.parent
FOLDERS = (".", "docs", "data", "benchmarks", "chapters", "chapters/solutions")
DOCUMENTS = sorted(path for folder in FOLDERS for path in (ROOT / folder).iterdir() if path.suffix in (".md", ".ipynb"))
COMMAND = re.compile(r"(?:^| -m |bin/)minidet (?P<arguments>[a-z].*)")


def text_of(path: Path) -> str:
    """A document as Markdown: of a notebook its prose."""
    if path.suffix != ".ipynb":
        return path.read_text(encoding="utf-8")
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")


def code_of(text: str) -> list[str]:
    """The lines of a document's code blocks, fenced or indented, with continued lines joined."""
    lines, fenced = [], False
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    "):
            lines.append(line.strip())
    return lines


def commands_of(text: str) -> list[list[str]]:
    """The arguments of every whole minidet command in a document's code."""
    found = (COMMAND.search(line) for line in code_of(text))
    arguments = [shlex.split(match["arguments"], comments=True) for match in found if match]
    return [words for words in arguments if "..." not in words and words[0] != "COMMAND"]


def anchors_of(text: str) -> set[str]:
    """The names under which GitHub finds a document's headings."""
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


COMMANDS = {shlex.join(words): words for path in DOCUMENTS for words in commands_of(text_of(path))}


def test_the_documents_hold_commands_of_every_kind():
    assert {words[0] for words in COMMANDS.values()} >= {
        *("models", "data", "train", "eval", "predict", "bench", "grade", "ablate", "import-official"),
    }


@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS)
def test_a_command_of_the_documents_is_understood(words):
    options = tyro.cli(Command, prog="minidet", args=words, config=(tyro.conf.OmitArgPrefixes,))
    assert callable(options.run)


@pytest.mark.parametrize("words", [["train", "data/shapes", "--modell", "yolox-s"], ["grad", "x"]], ids=" ".join)
def test_a_slip_of_the_pen_would_be_found(words):
    with pytest.raises(SystemExit):
        tyro.cli(Command, prog="minidet", args=words, config=(tyro.conf.OmitArgPrefixes,))


def test_continued_and_commented_lines_are_read_as_one_command():
    code = ".venv/bin/minidet train data/x \\\n    --epochs 3   # three\ntorchrun -m minidet eval"
    text = f"```sh\n{code}\n```\n`minidet no`\n"
    assert commands_of(text) == [["train", "data/x", "--epochs", "3"], ["eval"]]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_to_a_file_and_a_heading_that_are_there(path):
    text = re.sub(r"```.*?```|`[^`\n]*`", "", text_of(path), flags=re.DOTALL)  # model[0](x) in code is no link
    lost = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = unquote(target).partition("#")
        there = (path.parent / file).resolve() if file else path
        found = there.exists()
        if found and anchor and there.suffix in (".md", ".ipynb"):
            found = anchor in anchors_of(text_of(there))
        if not found:
            lost.append(target)
    assert not lost
