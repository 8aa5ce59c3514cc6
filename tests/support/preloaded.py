"""What a pgnear that is forked finds done: imports, and the collection of what they left (`forked`)."""
# ruff: noqa: F401

import gc

import cryptography.hazmat.backends.openssl.backend

import pooler.cli
import pooler.serving
import tests.support.forked

gc.collect()
gc.freeze()
