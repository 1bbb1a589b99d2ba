"""Many edits: scenes x prompts x objectives x options x seeds, each an ordinary run folder, in one table.

plan.py      which edits there are
pool.py      doing them, some at a time, each in a process of its own
report.py    the table, as JSON, CSV and a page
"""
