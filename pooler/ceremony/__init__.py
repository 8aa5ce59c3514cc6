"""What happens once per connection, as trio tasks with deadlines: listening, login, connecting, resetting, cancelling.

Nothing here runs per query. A ceremony ends by handing its connection to the reactor (`session`, `origin`) or closing
it.
"""
