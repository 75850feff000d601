"""Makes the links of a release work outside the repository: on an index of packages, say.

    python .github/release_links.py https://github.com/OWNER/NAME COMMIT

README.md links to files beside it; these become addresses in the repository at that commit.
pyproject.toml gets the project's addresses. The repository itself names none, since a fork's are
others. The release workflow runs this in its own checkout before it builds.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

#: A Markdown link or image whose target is a file of the repository.
LINK = re.compile(r"(!?)(\[[^\]]*\])\((?!https?://|#|mailto:)([^)\s]+)\)")


def absolute(text: str, repository: str, commit: str) -> str:
    """The text with addresses in the place of relative links. Code blocks have no links."""

    def address(found: re.Match[str]) -> str:
        # An image is fetched as it is; a document is shown as a page.
        kind = "raw" if found[1] else "blob"
        return f"{found[1]}{found[2]}({repository}/{kind}/{commit}/{found[3]})"

    return LINK.sub(address, text)


def urls(repository: str, commit: str) -> str:
    """The table of pyproject.toml with the project's addresses."""
    changes = f"{repository}/blob/{commit}/CHANGELOG.md"
    return (
        "\n[project.urls]\n"
        f'Repository = "{repository}"\nDocumentation = "{repository}/blob/{commit}/docs/index.md"\n'
        f'Issues = "{repository}/issues"\nChangelog = "{changes}"\n'
    )


def main(repository: str, commit: str) -> None:
    readme, project = Path("README.md"), Path("pyproject.toml")
    readme.write_text(absolute(readme.read_text("utf-8"), repository, commit), encoding="utf-8")
    with project.open("a", encoding="utf-8") as file:
        file.write(urls(repository, commit))


if __name__ == "__main__":
    main(*sys.argv[1:])
