"""The guide for clusters, docs/cluster.md, and its blocks of commands."""

import re

from tests.support.commands import ROOT

GUIDE = (ROOT / "docs" / "cluster.md").read_text()
BLOCKS = re.findall(r"```\n(.*?)```", GUIDE, re.S)
