"""What a mutant is, and the list of all: plausible mistakes in places where one would give wrong figures without a word."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
CODE = CHECKOUT / "src"


@dataclass(frozen=True)
class Mutant:
    """One mistake.

    Args:
        name: The place, a slash, and the mistake: "masks/one-too-many".
        file: Below src/mapet.
        before: Text that occurs exactly once in the file.
        after: What takes its place.
        tests: Those that are expected to fail then, as pytest names them below tests/, separated by blanks.
    """

    name: str
    file: str
    before: str
    after: str
    tests: str

    @property
    def place(self) -> str:
        """What the mistake is about."""
        return self.name.partition("/")[0]

    @property
    def test_ids(self) -> list[str]:
        """The expected killers, as pytest takes them in the checkout."""
        return [f"tests/{test}" for test in self.tests.split()]

    def applied(self, text: str) -> str:
        """The text of the file with the mistake."""
        if text.count(self.before) != 1:
            raise ValueError(f"{self.name}: its text occurs {text.count(self.before)} times in {self.file}, and once is needed.")
        return text.replace(self.before, self.after)


def every_mutant() -> list[Mutant]:
    """All of them, place by place."""
    from tests.mutation import compare_mutants, data_mutants, evaluation_mutants, pretraining_mutants, token_mutants

    modules = (pretraining_mutants, token_mutants, data_mutants, evaluation_mutants, compare_mutants)
    return [Mutant(*values) for module in modules for values in module.MUTANTS]
