"""The same network and methods inside T5X's own launcher: what gin alone cannot tell T5X.

T5X is on no package registry. This part works where the user has it; no other part imports it.
"""
