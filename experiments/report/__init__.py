"""The output of a run for people: its record, a page and a figure."""

from experiments.report.diagnosis import beyond_repair, diagnosed
from experiments.report.facts import Facts, Runs, facts_of
from experiments.report.page import write_page
from experiments.report.record import diffusivity_rows, finder, make_record, measured_rows
from experiments.report.words import number, stability, summary, with_error, with_interval, with_ratio

__all__ = [
    "Facts",
    "Runs",
    "beyond_repair",
    "diagnosed",
    "diffusivity_rows",
    "facts_of",
    "finder",
    "make_record",
    "measured_rows",
    "number",
    "stability",
    "summary",
    "with_error",
    "with_interval",
    "with_ratio",
    "write_page",
]
