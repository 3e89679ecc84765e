"""Instructions of the Dockerfile."""

import shlex

from tests.support.commands import ROOT


def instructions() -> list[tuple[str, str]]:
    """Return keyword and arguments of each instruction."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [(keyword, rest) for keyword, _, rest in (line.partition(" ") for line in joined.splitlines() if line)]


def image_env() -> dict[str, str]:
    """Return the environment of the image."""
    pairs = [word.partition("=") for keyword, rest in instructions() if keyword == "ENV" for word in shlex.split(rest)]
    return {name: value for name, _, value in pairs}


def installed_packages() -> set[str]:
    """Return the Debian packages that the Dockerfile installs."""
    found = set()
    for keyword, rest in instructions():
        for command in rest.split("&&") if keyword == "RUN" else []:
            words = command.split()
            if words[:2] == ["apt-get", "install"]:
                found.update(word for word in words[2:] if not word.startswith("-"))
    return found
