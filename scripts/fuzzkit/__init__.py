"""Field fuzzing: one wrong word at a time in real kernels' memory, and what an audit makes of it.

:mod:`subjects` has what is changed (fields of objects, by their roles), :mod:`verbs` how,
:mod:`freed` objects that are free, :mod:`harmless` what no audit could see and why, and
:mod:`cells` puts one change to an audit and judges the answer.
"""
