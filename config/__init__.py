"""What an operator can set: typed models, and TOML file + environment + flags -> one frozen `Config`.

Imports nothing of pgnear's other packages. `load` is the way in. `model` holds the settings at the top with their
documentation, `users`, `origins`, `overrides`, `cache` and `log` those of the sections, `values` what a value may be.
`deadlines` says which hold for whom, `passwords` reads those from files and commands, `url` reads connection URLs,
`certificates` looks at certificate files, `reference` writes the documentation from the models.
"""

from config.cache import Cache
from config.load import ConfigError, Problem, load
from config.log import Log
from config.model import Config
from config.origins import Database
from config.url import Target
from config.users import User

__all__ = ["Cache", "Config", "ConfigError", "Database", "Log", "Problem", "Target", "User", "load"]
