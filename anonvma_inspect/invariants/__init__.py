"""What must hold of the anonymous reverse map: one declared object an invariant, with its check.

:mod:`catalogue` chooses and runs them; the modules named after what they check declare them; the
others are what the checks share (:mod:`facts`) and how it is told which of several words that
disagree is wrong (:mod:`lists`, :mod:`shape`, :mod:`colours`, :mod:`keys`).
"""
