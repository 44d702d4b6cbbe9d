"""Evaluation: scores, costs, reports, before/after pages, previews, and the demo scene."""
