"""What an operator can set: typed models, and TOML file + environment + flags -> one frozen `Config`.

Imports nothing of pgnear's other packages. `load` is the way in; `model` holds every setting with its documentation,
`url` reads connection URLs, `certificates` looks at certificate files, `reference` writes the documentation from the
models.
"""

from config.load import ConfigError, Problem, load
from config.model import Cache, Config, Database, Log, User
from config.url import Target

__all__ = ["Cache", "Config", "ConfigError", "Database", "Log", "Problem", "Target", "User", "load"]
