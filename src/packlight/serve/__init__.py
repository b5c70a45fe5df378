"""The local page: a server on this machine's loopback, over the same functions as the command.

`start.py` opens it, `app.py` lists its routes, `guard.py` stands before all of them. What is
uploaded lies in the state folder (`state.py`), what was run in its history (`history.py`), and
whatever touches a model happens in a child process (`process.py` here, `child.py` and `work.py`
there). The page itself is built from `web/`.
"""
