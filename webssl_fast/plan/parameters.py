"""How many parameters a method has, by what is done with them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ModuleParameters:
    """One of a method's trained modules.

    block       of one of its repeated blocks; 0 where it has none
    num_blocks  of those
    embedded    of tables that are looked up, which no product rounds to bf16
    """

    name: str
    total: int
    block: int = 0
    num_blocks: int = 0
    embedded: int = 0

    @property
    def outside_blocks(self) -> int:
        return self.total - self.num_blocks * self.block


@dataclass(frozen=True)
class ParameterCounts:
    """trained: in the method's order, "backbone" among them; untrained: of an EMA teacher."""

    trained: tuple[ModuleParameters, ...]
    untrained: int

    @property
    def student(self) -> int:
        """All that are trained."""
        return sum(module.total for module in self.trained)

    @property
    def backbone(self) -> int:
        return self.of("backbone").total

    @property
    def heads(self) -> int:
        """What is trained beside the backbone."""
        return self.student - self.backbone

    def of(self, name: str) -> ModuleParameters:
        return next(module for module in self.trained if module.name == name)
