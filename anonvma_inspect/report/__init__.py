"""Reports: findings and figures as text and JSON.

Text from the target is escaped here (:mod:`anonvma_inspect.report.escape`), for every format, and
nowhere else.
"""
