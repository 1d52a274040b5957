"""Schemes of the user's own: `package.module:Spec` in a recipe, imported when they are put to work."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, Field

from torchreaper.lab import objects, settings
from torchreaper.lab.errors import UserError
from torchreaper.lab.schemes.base import Attached, Setup, Spec

EXAMPLE = "myschemes:UnitFiltersSpec"


def _formed(name: str) -> str:
    objects.check_form(name, EXAMPLE)
    return name


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    objects.check_options(options)
    return dict(options)


def imported(name: str, argument: str, base: Path | None = None) -> type[Spec]:
    """The class that `package.module:Spec` names, looked for in `base` too.

    Raises:
        UserError: It cannot be imported, or is no `Spec`; `argument` is the key it is told under.
    """
    found = objects.find(name, argument, base=base, example=EXAMPLE)
    if not (isinstance(found, type) and issubclass(found, Spec)):
        raise UserError(f"{argument}={name!r}: must be a subclass of torchreaper.lab.schemes.Spec")
    return found


class OwnSpec(Spec):
    """A scheme that is no part of the lab: a subclass of `Spec`, and its `options`.

    Reading a recipe imports nothing, so what must be known before is not asked of the class: it is trained for the
    recipe's epochs by its optimizer, has no teacher, and is attached after the lab's own; it is taken to go together
    with any other.
    """

    summary: ClassVar[str] = "a scheme of your own"
    name: Annotated[str, AfterValidator(_formed)]
    options: Annotated[dict[str, Any], AfterValidator(_plain)] = Field(default_factory=dict)

    def attach(self, setup: Setup) -> Attached:
        """Import the class, read its options, and put it to work.

        Raises:
            UserError: It cannot be imported, is no `Spec`, refuses its options or the epochs, or attaches nothing.
        """
        spec = settings.parse(imported(self.name, "scheme.name", setup.base), self.options, at="scheme.options")
        if spec.lengths(setup.epochs) != (setup.epochs,) or spec.teachers():
            raise UserError(
                f"scheme.name={self.name!r}: has epochs or a teacher of its own, as only the lab's schemes can; "
                "leave out lengths and teachers"
            )
        if type(spec).optim is not Spec.optim:
            raise UserError(
                f"scheme.name={self.name!r}: has an optimizer of its own, as only the lab's schemes can; "
                "leave out optim, and change the groups of setup.optimizer in attach"
            )
        spec.check(setup.epochs)
        attached: object = spec.attach(setup)
        if not isinstance(attached, Attached):
            raise UserError(
                f"scheme.name={self.name!r}: its attach gives a {type(attached).__name__}; must return a "
                "torchreaper.lab.schemes.Attached"
            )
        return attached
