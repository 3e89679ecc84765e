"""Ray's cluster launcher without machines: its command lines are recorded, and the programs in them are listed."""

import json
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from subprocess import DEVNULL
from typing import Any

# Private modules of Ray, imported in this file only. `ray up` and the head's autoscaler validate a configuration with
# these functions, prepare AWS with `bootstrap_aws`, and set up each machine with NodeUpdater, which runs its command
# lines through DockerCommandRunner. Ray has no public way to see those command lines or the requests to AWS.
from ray.autoscaler._private.aws.config import bootstrap_aws
from ray.autoscaler._private.updater import NodeUpdater
from ray.autoscaler._private.util import prepare_config, validate_config, with_head_node_ip
from ray.autoscaler.node_provider import NodeProvider

__all__ = [
    "bootstrap_aws",
    "bring_up",
    "prepare_config",
    "programs_in_container",
    "programs_on_caller",
    "validate_config",
]

BUILTINS = {"export", "source"}
# Runs only if `cat FILE` fails; rsync gives each copied file to the container's user, who can read the file.
FALLBACKS = {"sudo"}


class RecordedProvider(NodeProvider):
    """Machines that are always up. The command runner is the base class's: DockerCommandRunner."""

    def node_tags(self, node_id: str) -> dict[str, str]:
        return {}

    def set_node_tags(self, node_id: str, tags: dict[str, str]) -> None:
        pass

    def is_terminated(self, node_id: str) -> bool:
        return False

    def internal_ip(self, node_id: str) -> str:
        return "10.0.0.2"

    def external_ip(self, node_id: str) -> str:
        return "203.0.113.9"


@dataclass
class ProcessRecorder:
    """The functions of ``subprocess`` that the launcher calls: they record command lines and answer like a machine.

    Attributes:
        image_env: The image's environment, for the answer to `docker inspect`.
        lines: The recorded command lines.
    """

    image_env: dict[str, str]
    lines: list[list[str]] = field(default_factory=list)
    DEVNULL: int = DEVNULL

    def check_call(self, line: Sequence[str], **_: Any) -> int:
        self.lines.append(list(line))
        return 0

    def check_output(self, line: Sequence[str], **_: Any) -> bytes:
        text = " ".join(line)
        was_started = any(" docker run " in " ".join(words).replace("(", " ") for words in self.lines)
        self.check_call(line)
        answers = {
            ".State.Running": "true" if was_started else "false",
            ".Config.Env": json.dumps([f"{name}={value}" for name, value in self.image_env.items()]),
            "printenv HOME": self.image_env.get("HOME", "/root"),
            "info -f": "map[nvidia-container-runtime:{} runc:{}]",
            "/proc/meminfo": "MemAvailable: 30000000 kB",
            "command -v docker": "/usr/bin/docker",
        }
        return next((answer for part, answer in answers.items() if part in text), "").encode()


def bring_up(config: dict[str, Any], image_env: dict[str, str], *, is_head: bool) -> list[list[str]]:
    """Return the command lines with which Ray brings up the head or a worker.

    Args:
        config: A launcher's configuration (cluster.yaml).
        image_env: The image's environment.
        is_head: Whether the machine is the head. The operator's machine runs the lines for the head; the head's
            container runs the lines for a worker.
    """
    config = prepare_config(config)
    commands = config["head_start_ray_commands" if is_head else "worker_start_ray_commands"]
    recorder = ProcessRecorder(image_env)
    updater = NodeUpdater(
        node_id="i-1",
        provider_config={"type": "recorded"},
        provider=RecordedProvider({}, config["cluster_name"]),
        auth_config=config["auth"] | {"ssh_private_key": "~/ray_bootstrap_key.pem"},
        cluster_name=config["cluster_name"],
        file_mounts=config["file_mounts"],
        initialization_commands=config["initialization_commands"],
        setup_commands=config["setup_commands"],
        ray_start_commands=commands if is_head else list(with_head_node_ip(commands, "10.0.0.1")),
        runtime_hash="",
        file_mounts_contents_hash="",
        is_head_node=is_head,
        node_resources=json.dumps({"CPU": 16}),
        process_runner=recorder,
        use_internal_ip=not is_head,
        docker_config=config["docker"],
    )
    updater.run()
    assert any("ray start" in " ".join(line) for line in recorder.lines)  # the last step
    return recorder.lines


def programs_on_caller(lines: Sequence[Sequence[str]]) -> set[str]:
    """Return the programs that ``lines`` need on the machine that runs them."""
    found = set()
    for line in lines:
        found.add(line[0])
        if "--rsh" in line:
            found.add(shlex.split(line[line.index("--rsh") + 1])[0])
    return found


def programs_in_container(lines: Sequence[Sequence[str]]) -> set[str]:
    """Return the programs that ``lines`` need in the container of the machine they connect to."""
    found = set()
    for line in lines:
        target = next((at for at, word in enumerate(line) if word.startswith("ubuntu@")), None)
        if line[0] == "ssh" and target is not None:
            for words in commands(" ".join(line[target + 1 :])):
                found.update(_in_container(words))
    return found - BUILTINS - FALLBACKS


def _in_container(words: list[str]) -> Iterator[str]:
    if words[:2] == ["docker", "exec"]:
        arguments = iter(words[2:])
        next(word for word in arguments if not word.startswith("-"))  # the container's name
        inner = list(arguments)
        yield inner[0]
        for command in commands(shlex.join(inner)):
            yield command[0]
    elif words[0] == "rsync" and "docker exec -i" in words:  # rsync starts itself at the other end
        yield "rsync"


def commands(line: str) -> Iterator[list[str]]:
    """Yield the words of each simple command of a shell line, including those inside `bash -c LINE`."""
    line = re.sub(r"\d?>&?\s*[\w/]+|\$\([^()]*\)", "", line)  # redirections and $(…)
    lexer = shlex.shlex(line, posix=True, punctuation_chars="();|&")
    lexer.whitespace_split, lexer.commenters = True, ""
    words: list[str] = []
    for token in [*lexer, ";"]:
        if token[:1] in set("();|&"):
            if words:
                yield words
                if words[0].endswith("bash") and "-c" in words:
                    yield from commands(words[-1])
            words = []
        else:
            words.append(token)
