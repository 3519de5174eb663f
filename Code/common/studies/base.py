"""What a study is: what it measures, its columns, its table, its figures and sentences, all in one object."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import pandas as pd
from matplotlib.figure import Figure

from common.errors import UsageError
from common.report.claims import Verdict
from common.report.sections import Answer, Section
from common.schema import Table

STUDIES: dict[str, Study] = {}


class Study(Table):
    """One study. A subclass in a file of its own, registered by :func:`register_study`, is all that a new one needs.

    Attributes, besides those of its table:
        title, question: its chapter on the page.
        place: of the chapter, the smallest first.
        setting: columns that rows must share to stand in one table.
        captions: of its figures, by the name that :meth:`figures` gives; "" = of the figures of single runs.
        run_figures: pattern of those figures of single runs that the page shows, "" = none.
        run_captions: of those that need another caption: pattern of their path -> caption.
        own_page: name of a page that shows its runs, too; the report beside it has a link to it. "" = none.
        parameters: of its notebook, those that :data:`common.parameters.PARAMETERS` lacks: name -> what it may be.
        explains: ``method`` and ``options`` are those of an explainer.
        claims: tests of published claims, by their name in results/published/which_tokens_claims.csv: rows of one
            setting of the table -> verdict, None where what the claim is about was not run.
    """

    title: str
    question: str
    place: int = 1000
    setting: Sequence[str] = ()
    captions: Mapping[str, str] = {}
    run_figures: str = ""
    run_captions: Mapping[str, str] = {}
    own_page: str = ""
    parameters: Mapping[str, object] = {}
    explains: bool = False
    claims: Mapping[str, Callable[[pd.DataFrame], Verdict | None]] = {}

    def summarise(self, runs: pd.DataFrame) -> pd.DataFrame:
        """The numbers of the table: one row per condition, from all rows of all runs."""
        raise NotImplementedError

    def sections(self, table: pd.DataFrame) -> Iterator[Section]:
        """What :meth:`summarise` gave, as tables for people."""
        raise NotImplementedError

    def figures(self, runs: pd.DataFrame, others: Mapping[str, pd.DataFrame]) -> Iterator[tuple[str, Figure]]:
        """Summary figures of all runs, each with the name of its caption; ``others`` are the runs of every study."""
        return iter(())

    def answers(self, table: pd.DataFrame) -> Iterator[Answer]:
        """Sentences made from the numbers; none where the numbers do not carry one."""
        return iter(())

    def measured_on(self, rows: pd.DataFrame) -> str:
        """On what data and network, trained or not, ``rows`` of one setting were measured; of a study with claims."""
        raise NotImplementedError

    def missing(self, runs: pd.DataFrame) -> list[str]:
        """What the runs should hold to be complete and do not, in words."""
        return []


def register_study(cls: type[Study]) -> type[Study]:
    """Class decorator that adds a study to :data:`STUDIES`; a name can be taken once."""
    if cls.name in STUDIES:
        raise UsageError(f"study {cls.name!r} is registered already, by {type(STUDIES[cls.name]).__qualname__}")
    STUDIES[cls.name] = cls()
    return cls
