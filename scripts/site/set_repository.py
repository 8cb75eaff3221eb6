"""Set the repository's address: in _config.yml, and in everything that derives from it.

python scripts/site/set_repository.py https://github.com/OWNER/NAME
"""

from __future__ import annotations

import re
import subprocess
import sys

from check_notebooks import ROOT, repository

ADDRESS = re.compile(r"https://github\.com/[A-Za-z0-9][A-Za-z0-9-]*/[A-Za-z0-9._-]+")
SUFFIXES = {".cff", ".ipynb", ".md", ".toml", ".yml"}


def addresses(url: str) -> tuple[str, str]:
    """OWNER/NAME, all that Colab's and the badges' addresses hold, and where GitHub Pages serves it."""
    owner, name = url.removeprefix("https://github.com/").split("/")
    return f"{owner}/{name}", f"{owner.lower()}.github.io/{name}"


def main(arguments: list[str]) -> int:
    new = arguments[0].rstrip("/").removesuffix(".git") if arguments else ""
    if not ADDRESS.fullmatch(new):
        print(f"URL: found {new!r}; give one like https://github.com/OWNER/NAME", file=sys.stderr)
        return 2
    old, _ = repository()
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    for name in listed.stdout.splitlines():
        path = ROOT / name
        if path.suffix in SUFFIXES and path.is_file():
            text = changed = path.read_text(encoding="utf-8")
            for address_old, address_new in zip(addresses(old), addresses(new), strict=True):
                # either ends where a name would
                there = rf"(?<=/){re.escape(address_old)}(?![A-Za-z0-9_-])"
                changed = re.sub(there, address_new, changed)
            if changed != text:
                path.write_text(changed, encoding="utf-8")
                print(f"  {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
