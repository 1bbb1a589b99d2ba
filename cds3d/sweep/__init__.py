"""Many edits: scenes x prompts x objectives x options x seeds, each an ordinary run folder, in one table.

plan.py      which edits there are
memory.py    how much each needs, and so how many fit at a time
pool.py      doing them, some at a time, each in a process of its own; or, by what it is given,
calls.py       functions in processes that are kept: the benchmarks' runs
cluster.py     on a Ray cluster, whose machines do what node.py says: shipping.py brings them captures and models,
               storage.py and mirror.py keep runs in a store; ports.py looks who can reach Ray
report.py    the table, as JSON, CSV and a page
"""
