"""The protocol fuzz: bytes that nobody would send, until something gives way.

targets     what is fed, and what each may raise: typed protocol errors, nothing else
machine     sessions, origins and a pool over transports of memory; a script of bytes says who sends what
scripted    the two ends of those transports: a client's messages, an origin that answers as PostgreSQL would
mutation    the engine where atheris is not installed: the corpus, changed at random, by seed
corpus/     inputs that reached something new or broke something once, a directory for each target
__main__    the long run, and the replay of one input: `python -m tests.fuzz_protocol --help`
"""
