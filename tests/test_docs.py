"""The manual tells the truth: links lead somewhere, and every command in it exists with the options it shows."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
from twisted.application.service import IServiceMaker
from twisted.plugin import getPlugins
from twisted.trial.unittest import SynchronousTestCase

from anbox_tw.cli import cli
from anbox_tw.cli._main import COMMANDS
from tests.support import REPOSITORY

PAGES = [
    REPOSITORY / "README.md",
    *sorted((REPOSITORY / "docs").glob("*.md")),
    *sorted((REPOSITORY / "docs/adr").glob("*.md")),
]

FOREIGN = {
    "adb",
    "busctl",
    "cat",
    "cd",
    "curl",
    "echo",
    "git",
    "ip",
    "kill",
    "ls",
    "make",
    "mkdir",
    "nc",
    "nft",
    "pip",
    "pkill",
    "python",
    "socat",
    "sudo",
    "systemctl",
    "telnet",
    "printf",
    "true",
    "export",
    "ln",
    "lxc-ls",
    "apt",
    "gcc",
    "trial",
    "getprop",
    "setprop",
    "wait",
    "sleep",
    "ss",
    "dig",
}
"""Programs that are not ours; their options are theirs."""

TWISTD_FLAGS = {"-n", "-y", "--pidfile=", "--nodaemon", "--pidfile"}


def commands(page: Path) -> Iterator[str]:
    """Each command line in the page's shell blocks."""
    for block in re.findall(r"^```(?:sh|console|bash)\n(.*?)^```$", page.read_text(), re.S | re.M):
        lines = block.replace("\\\n", " ").splitlines()
        if any(line.startswith("$ ") for line in lines):
            lines = [line for line in lines if line.startswith("$ ")]  # the others are output
        until = ""
        for line in lines:
            if until:  # the body of a here-document
                until = "" if line.strip() == until else until
                continue
            here = re.search(r"<<-?\s*'?\"?(\w+)", line)
            until = here[1] if here else ""
            line = re.sub(r"(^|\s)#.*$", "", line).strip().removeprefix("$ ")
            if line:
                yield from re.split(r"\s+(?:&&|\|\|)\s+", line)


def words_of(line: str) -> list[str]:
    line = re.sub(r"^(?:[A-Z_]+=(?:\$\([^)]*\)|\S*)\s+)+", "", line)
    words = shlex.split(line)
    for end in ("|", ">", ">>", "<", "&", ";"):
        if end in words:
            words = words[: words.index(end)]
    while words and (
        words[0] in ("sudo", "env", "exec", "time") or re.match(r"^[A-Z_]+=", words[0]) or words[0] == "-E"
    ):
        words.pop(0)
    return words


class DocsTests(SynchronousTestCase):
    def test_links_lead_somewhere(self) -> None:
        wrong = []
        for page in [*PAGES, *(REPOSITORY / "protocols").glob("*/README.md"), REPOSITORY / "tap/README.md"]:
            for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
                if "://" not in target and not (page.parent / target).exists():
                    wrong.append(f"{page.relative_to(REPOSITORY)}: {target}")
        self.assertEqual(wrong, [])

    def test_every_page_is_in_the_index(self) -> None:
        index = (REPOSITORY / "docs/index.md").read_text()
        self.assertEqual(
            [
                page.name
                for page in (REPOSITORY / "docs").glob("*.md")
                if f"({page.name})" not in index and page.name != "index.md"
            ],
            [],
        )

    def test_every_command_is_in_the_reference(self) -> None:
        page = (REPOSITORY / "docs/cli.md").read_text()
        missing = [name for name in COMMANDS if f"`anbox {name}`" not in page]
        self.assertEqual(missing, [], "add them to the table in docs/cli.md")

    def test_commands_exist_with_their_options(self) -> None:
        wrong = []
        for page in PAGES:
            for line in commands(page):
                problem = self.problem_with(line)
                if problem:
                    wrong.append(f"{page.relative_to(REPOSITORY)}: {line}: {problem}")
        self.assertEqual(wrong, [])

    def problem_with(self, line: str) -> str:
        words = words_of(line)
        if not words:
            return ""
        program = Path(words[0]).name
        if program == "anbox":
            return anbox_problem(words[1:])
        if program == "twistd":
            return twistd_problem(words[1:])
        if program == "make":
            targets = re.findall(r"^([a-z]+):", (REPOSITORY / "Makefile").read_text(), re.M)
            unknown = [word for word in words[1:] if "=" not in word and word not in targets]
            return f"no target {unknown}" if unknown else ""
        return "" if program in FOREIGN else f"unknown program {program}"

    def test_the_check_finds_what_is_wrong(self) -> None:
        for line in (
            "anbox nosuch",
            "anbox up --nosuch",
            "twistd nosuch",
            "twistd anbox-session --nosuch",
            "make nosuch",
            "nosuch",
        ):
            self.assertTrue(self.problem_with(line), line)


def anbox_problem(words: list[str]) -> str:
    """What is wrong with an ``anbox`` command line; only names are checked, nothing runs."""
    command: click.Command = cli
    context = click.Context(command)
    while isinstance(command, click.Group):
        words = (
            [word for word in words if not word.startswith("-")]
            if not words or words[0].startswith("-")
            else words
        )
        if not words:
            return ""
        found = command.get_command(context, words[0])
        if found is None:
            return f"no command {words[0]}"
        command, context, words = found, click.Context(found, parent=context), words[1:]
    known = {
        name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)
    } | {"--help", "-h"}
    if "--" in words:
        words = words[: words.index("--")]
    if command.ignore_unknown_options:
        words = [
            word for index, word in enumerate(words) if all(w.startswith("-") for w in words[: index + 1])
        ]
    unknown = [
        word for word in words if word.startswith("-") and len(word) > 1 and word.split("=")[0] not in known
    ]
    return f"no option {unknown}" if unknown else ""


def twistd_problem(words: list[str]) -> str:
    """The same for ``twistd``."""
    makers = {
        maker.tapname: maker
        for maker in getPlugins(IServiceMaker)
        if getattr(maker, "module", "").startswith("anbox_tw.")
    }
    if "--reactor" in words:
        del words[words.index("--reactor") : words.index("--reactor") + 2]
    while words and (words[0] in TWISTD_FLAGS or words[0].endswith(".tac")):
        if words[0].endswith(".tac") and not (REPOSITORY / words[0]).exists():
            return f"no file {words[0]}"
        words.pop(0)
    if not words:
        return ""
    if words[0] not in makers:
        return f"no twistd command {words[0]}"
    options = makers[words[0]].options()
    known = {f"--{name.rstrip('=')}" for name in options.longOpt} | {
        f"-{name}" for name in options.shortOpt.replace(":", "")
    }
    unknown = [
        word
        for word in words[1:]
        if word.startswith("-") and len(word) > 1 and word.split("=")[0] not in known
    ]
    return f"no option {unknown}" if unknown else ""
