"""Reads the commands and the Python blocks out of the pages."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r'^```(\w+)\n(.*?)^```$', re.MULTILINE | re.DOTALL)
FILE_NAME = re.compile(r'# (\S+\.py)\n')


def path_of(page: str) -> Path:
    """The file of a page: the README, or one below ``docs``."""
    return ROOT / 'README.md' if page == 'README' else ROOT / 'docs' / f'{page}.md'


def blocks_of(page: str, *languages: str) -> list[str]:
    """Contents of a page's fenced blocks in one of the languages."""
    text = path_of(page).read_text()
    return [content for language, content in BLOCK.findall(text) if language in languages]


def commands_of(page: str) -> list[str]:
    """Shell commands, continued lines joined, comments left out."""
    lines = ''.join(blocks_of(page, 'bash', 'console', 'sh', 'shell')).replace('\\\n', ' ')
    commands = (re.sub(r'\s+', ' ', line).strip() for line in lines.splitlines())
    return [command for command in commands if command and not command.startswith('#')]


def python_of(page: str) -> tuple[dict[str, str], list[str]]:
    """Files, whose first line is a comment with their name, and code to run."""
    files, code = {}, []
    for content in blocks_of(page, 'python', 'py'):
        named = FILE_NAME.match(content)
        if named:
            files[named[1]] = content
        else:
            code.append(content)
    return files, code
