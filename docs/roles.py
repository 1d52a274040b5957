"""For the API pages: what docstrings write in reStructuredText, as Markdown."""

from __future__ import annotations

import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:class|func|meth|attr|mod):`([\w.]+)`")
SEVERAL = re.compile(r"^([ \t]+)(\w+(?:, \w+)+): (.*)$", re.MULTILINE)
CODE = re.compile(r"^([ \t]*\S.*)?::$", re.MULTILINE)


class Roles(griffe.Extension):
    """Links for :class:`RePr` and the like where the name is public, and code for what stands under ``::``."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of one module, class, function or attribute."""
        if obj.docstring is not None:
            text = CODE.sub(lambda found: f"{found[1]}:" if found[1] else "", obj.docstring.value)
            text = SEVERAL.sub(self._one_each, text)
            obj.docstring.value = ROLE.sub(lambda found: self._link(found[1], obj.package), text)

    def _one_each(self, found: re.Match[str]) -> str:
        """Arguments that share a line, each on its own."""
        return "\n".join(f"{found[1]}{name}: {found[3]}" for name in found[2].split(", "))

    def _link(self, name: str, package: griffe.Module) -> str:
        path = name if name.startswith("torchreaper.") else f"torchreaper.{name}"
        public = path.split(".")[1] in package.members
        return f"[`{name}`][{path}]" if public else f"`{name}`"
