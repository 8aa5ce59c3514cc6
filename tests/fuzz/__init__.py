"""The state-isolation fuzz: a pooled connection beside a private one.

script         what happens: steps of several clients, in one order; read and written as lines of text
actions        which steps are worth trying, by group (hypothesis strategies), in *_actions
conversation   one client on the wire: knows which answers its messages are owed
look           what a client can see of its session
rig            two PostgreSQL servers alike, and pgnear in front of one of them
referee        runs a script on both sides and says where they first differ
search         looks for scripts that differ
reduction      makes them small
known          what is off or passed over because a bug is open
__main__       the long run, and the replay of a script: `python -m tests.fuzz --help`
"""
