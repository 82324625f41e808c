"""What README, CONTRIBUTING and docs tell people to type is what works."""

import re
import runpy
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
import typer

import srrc
from srrc import cli, models_zoo
from srrc.models_zoo import families

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def found(pattern: str) -> list[Any]:
    """(text of each match, named by its page) over all pages."""
    matches = [
        (page, match)
        for page in PAGES
        for match in re.findall(pattern, page.read_text(), re.MULTILINE | re.DOTALL)
    ]
    return [pytest.param(match, id=f"{page.name}-{index}") for index, (page, match) in enumerate(matches)]


SNIPPETS = found(r"^```python\n(.*?)^```")  # what else is Python says so, and has a test of its own
COMMANDS = found(r"^(?:    |[^\n`]*`)(srrc [a-z]+[^`\n]*)")
TARGETS = found(r"^    make ([a-z-]+)")


def test_there_is_something_to_check():
    assert SNIPPETS
    assert len(COMMANDS) >= 6
    assert TARGETS


@pytest.mark.parametrize("code", SNIPPETS)
def test_snippets_run_on_a_tiny_model(
    code: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    letters: Any,
) -> None:
    def load(name: str) -> tuple[torch.nn.Module, Any]:
        assert name in models_zoo.names()
        return families.tiny("llama").model, letters

    torch._dynamo.reset()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(models_zoo, "load", load)
    scope: dict[str, Any] = {}
    exec(compile(code, "snippet", "exec"), scope)
    assert capsys.readouterr().out
    assert (tmp_path / "smollm2.srr").exists()
    ids = torch.arange(3, 20)[None]
    generated = scope["model"].generate(ids, max_new_tokens=4, do_sample=False, pad_token_id=0)
    assert generated.shape == (1, 21)
    assert srrc.stats(scope["model"])["gates"]


@pytest.mark.slow
@pytest.mark.parametrize("code", SNIPPETS)
def test_snippets_run_as_they_are(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch._dynamo.reset()
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "snippet", "exec"), {})


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_have_these_options(line: str) -> None:
    _, name, *arguments = shlex.split(line, comments=True)
    command = typer.main.get_command(cli.app).commands[name]  # type: ignore[attr-defined]
    command.make_context(name, arguments)  # raises for what it does not know


@pytest.mark.parametrize("target", TARGETS)
def test_targets_exist(target: str) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize(
    "script", sorted((ROOT / "docs" / "figures").glob("*.py")), ids=lambda each: each.name
)
def test_scripts_of_figures_find_what_they_import(script: Path) -> None:
    assert callable(runpy.run_path(str(script))["main"])
