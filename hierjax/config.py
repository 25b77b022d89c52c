"""The tree of options and what may stand in it."""


class UserError(ValueError):
  """A user's mistake: one line that names the file, the row or the option, and the choices. main.py prints it without a traceback."""
