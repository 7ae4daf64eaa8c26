"""Find idioms that read as translated, in code, comments, messages and pages.

python tools/dev/check_english.py

Prints each place with a better wording; exits with status 1 if there is any. Part of `make lint`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = (
    '.github',
    'benchmarks',
    'configs',
    'docs',
    'overlock_mm',
    'requirements',
    'tests',
    'tools',
)
SUFFIXES = ('.cfg', '.cpp', '.cu', '.cuh', '.h', '.md', '.py', '.sh', '.toml', '.txt', '.yml')

#: Idiom -> what to write. Case does not matter.
IDIOMS = {
    r'(?<!stand-)(?<!let )\balone\b': 'only; bare',
    r'\b(anew|afresh)\b': 'again; new',
    r'\blikewise\b': 'as for ...; in the same way',
    r'\btold\b': 'reported; printed',
    r'\breckon\w*': 'compute; estimate',
    r'\bcommonest\b': 'most common',
    r'\bnobody[ _]watches\b': 'nothing intercepts',
    r'\btwice is once\b': 'idempotent',
    r'\bat the door\b': 'on entry; first',
    r'\bof no concern\b': 'irrelevant',
    r'\bin the place of\b': 'instead of; replaces',
    r'\b(whole|complete\w*) or not at all\b': 'atomically',
    r'\bwithout a word\b': 'silently',
    r'\bwhat else\b': 'other ...',
    r'\bspar(e|es|ed)\b': 'save; exclude',
    r'\bas (it|they) (stands?|comes?)\b': 'unmodified; verbatim',
    r'\bof use (without|for|to)\b': 'useful',
    r'\ba wish\b': 'a request; an option',
    r'\basked for\b': 'requested; needed',
    r'\bgo(es)? on\b': 'continue; resume',
    r'\bin force\b': 'active; set',
    r"\bone's own\b": 'your own',
    r'\bwhatever the\b': 'regardless of the; for every',
    r'\bat hand\b': 'available; installed',
    r'\bin vain\b': 'unused; without effect',
    r'\bembedded data set\b': 'synthetic data set',
}


def find_idioms(text: str) -> Iterator[tuple[int, str, str]]:
    """Line number, idiom and better wording of each idiom in a text."""
    for number, line in enumerate(text.splitlines(), start=1):
        for pattern, better in IDIOMS.items():
            for match in re.finditer(pattern, line, re.IGNORECASE):
                yield number, match[0], better


def written_files() -> Iterator[Path]:
    """Files that people write, of this project."""
    yield from (path for path in ROOT.iterdir() if path.suffix in SUFFIXES)
    yield ROOT / 'Makefile'
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob('*')):
            if path.suffix in SUFFIXES and path.is_file() and not path.is_symlink():
                yield path


def main() -> None:
    """Check every file."""
    count = 0
    for path in written_files():
        if path == Path(__file__).resolve():
            continue
        for number, idiom, better in find_idioms(path.read_text(encoding='utf-8')):
            print(f'{path.relative_to(ROOT)}:{number}: "{idiom}"; write: {better}')
            count += 1
    if count:
        sys.exit(f'{count} idioms to replace.')


if __name__ == '__main__':
    main()
