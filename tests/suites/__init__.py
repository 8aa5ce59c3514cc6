"""Other people's tests, run directly and through pgnear in transaction mode: `make regress`, `make driver-suites`.

Nothing here is collected by pytest. Nobody's tests are kept in the repository: each runner fetches them into a cache
directory, runs them twice on fresh clusters and compares. A difference that is not explained in the file of reasons
beside the runner fails it.
"""
