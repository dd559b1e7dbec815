"""A seeded discrete-event simulator in virtual time: the router's own policy code beside six others and an oracle.

world.py     providers, what goes wrong with them, the luck of every request
engine.py    the events; plays the gateway's part for whichever policy is under test
policies.py  the selector, the baselines, the oracle
measure.py   what a run says about leaving and returning
figures.py   the figures to reach, measured
"""
