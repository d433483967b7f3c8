"""Judgement: error rates with intervals, and the results writer. A leaf: imports files only."""
